"""Files of every corpus and of the scorers, changed at random: read as they are, or refused by name."""

from __future__ import annotations

import collections
import copy
import gzip
import json
import math
import os
import random

import pytest
import wikisql_files
from corpus_files import dart_xml, entry, webnlg_json, webnlg_xml
from glue_files import write_rows
from hypothesis import event, given
from hypothesis import strategies as st

from lora_jax.data import data_to_text, glue, glue_tasks
from lora_jax.data.pairs import by_context
from lora_jax.errors import InputError
from lora_jax.metrics import files, generation, java
from tests.fuzz.fixed_settings import fixed_settings

WEBNLG = [
    entry("Food", [("a", "b", "c"), ("d é", "e", "f")], [("good", "t"), ("toFix", "u")]),
    entry("City", [("a b", "p_q", '"x"')], [("good", "A text, of « some » words .")]),
]
DART = [
    {"tripleset": [["a", "B_C", "d"], ["e", "F", "g é"]], "annotations": [{"source": "s", "text": "t"}]},
    {"tripleset": [["h", "I", "j"]], "annotations": [{"source": "s", "text": " u "}] * 2},
]  # fmt: skip
# One line, which is JSON, so that its values can be changed, too.
WIKISQL = json.dumps(
    wikisql_files.by_name(wikisql_files.QUESTIONS[1], wikisql_files.PLAYERS["header"])
)
SAMSUM = [
    {"id": "1", "dialogue": "A: Hi é\r\nB: Hello", "summary": "A and B meet."},
    {"id": "2", "dialogue": "A: No", "summary": "A says no."},
]
E2E = "name : Blue Spice | Type : pub||Blue Spice is a pub .\nname : B | area : é||B in é .\n"
CSV = 'mr,ref\n"name[Blue Spice], eatType[pub]","Blue Spice, a ""pub""."\nname[B],B in é.\n'
CORPORA = {
    "e2e/train.txt": E2E,
    "e2e/train.txt.gz": E2E,
    "e2e/trainset.csv": CSV,
    "webnlg/train.json": json.dumps(webnlg_json(WEBNLG)),
    "webnlg/train/1triples/a.xml": webnlg_xml(WEBNLG),
    "dart/train.json": json.dumps(DART),
    "dart/train.xml": dart_xml(DART),
    "dart/train.json.gz": json.dumps(DART),
    "wikisql/train.jsonl": WIKISQL,
    "samsum/train.json": json.dumps(SAMSUM),
    "dialogsum/train.jsonl": json.dumps(SAMSUM[0]),
}
SCORES = {
    "references": "a cheap pub\na pub\n\nBlue Spice é\n\n",
    "aligned": "a cheap pub\n\nBlue Spice é\n",
    "hypotheses": "a cheap pub\n\nBlue Spice é\n",
}
TASKS = ("cola", "mrpc", "stsb", "qqp", "mnli")
PIECES = [
    b"\0", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\n", b"\n\n", b"\r", b"\t", b"||", b'"', b",",
    b"[", b"]", b"{", b"}", b"<", b">", b"</entry>", b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"&b;",
    b"&#xD800;", b" | ", b"null", b"NaN", b"1e999", b"9" * 5000, b"[" * 5000, b"<a>" * 5000,
    b"\\ud800", b"\\u0000", b"\xe2\x80\xa8", b"\x0c", b"\xef\xbb\xbf", b"x" * 200_000,
]  # fmt: skip
VALUES = [
    None, True, -1, 10**400, math.nan, 1e308, "", " ", "a\0", "\ud800", "x" * 5000, [], [[]], {}, {"": 0},
    ["a", "b", "c"], [["a", "b"]], [None], {"text": 3}, eval("[" * 90 + "]" * 90),
]  # fmt: skip


def changed_bytes(content: bytes, draw: random.Random) -> bytes:
    """A file with one to four bytes or pieces changed, cut, doubled or put in."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(data) + 1)
        end = min(len(data), start + draw.choice((1, 1, 3, 30, 10**6)))
        kind = draw.choice(("flip", "cut", "double", "insert", "insert"))
        if kind == "flip" and start < len(data):
            data[start] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            del data[start:end]
        elif kind == "double":
            data[start:start] = data[start:end]
        elif kind == "insert":
            data[start:start] = draw.choice(PIECES)
    return bytes(data)


def changed_json(content: str, draw: random.Random) -> str:
    """A JSON text with one to three values replaced, removed or added."""
    value = json.loads(content)
    for _ in range(draw.randint(1, 3)):
        place, last = value, None
        while isinstance(place, list | dict) and place and (last is None or draw.random() < 0.8):
            last = place, draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
            place = last[0][last[1]]
        if last is None:
            break
        (holder, key), new = last, copy.deepcopy(draw.choice(VALUES))
        action = draw.choice(("replace", "replace", "remove", "add"))
        if action == "remove":
            del holder[key]
        elif action == "add":
            holder.update({"new": new}) if isinstance(holder, dict) else holder.append(new)
        else:
            holder[key] = new
    return draw.choice((str, lambda text: text[: draw.randrange(len(text) + 1)]))(json.dumps(value))


def changed(name: str, content: str, draw: random.Random) -> bytes:
    if ".json" in name and draw.random() < 0.7:
        content = changed_json(content, draw)
    packed = name.endswith(".gz")
    if packed and draw.random() < 0.7:
        return gzip.compress(changed_bytes(content.encode(), draw))
    data = gzip.compress(content.encode()) if packed else content.encode()
    return data if ".json" in name and draw.random() < 0.5 else changed_bytes(data, draw)


def refused(error: Exception, path: object) -> str:
    """What kind of result an error is; it must name the file."""
    assert isinstance(error, InputError | OSError) and str(path) in str(error), error
    assert len(str(error)) < 1500 and "expected" in str(error)
    return f"refused: {type(error).__name__}"


def result_of_corpus(root, name, content: bytes) -> str:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    try:
        pairs = data_to_text.read(name.split("/")[0], "train", str(root))
    except Exception as error:
        return refused(error, path)
    finally:
        path.unlink()
    assert len(pairs) and len(pairs) == len(pairs.contexts) == len(pairs.subsets)
    texts = [*pairs.contexts, *pairs.completions]
    assert all(
        isinstance(text, str) and "\0" not in text and text.encode() for text in texts if text
    )
    assert all(pairs.contexts)
    try:
        assert all(map(all, by_context(pairs).references))
    except InputError as error:  # of a context whose texts are all blank, or of two subsets
        assert "reference" in str(error) or "subset" in str(error)
        return "read; no use for scoring"
    return "read"


def result_of_task(root, name, seed) -> str:
    task, draw = glue_tasks.task(name), random.Random(seed)
    path = root / task.folder / "train.tsv"
    content = write_rows(task, path, 5, 0).encode()
    path.write_bytes(changed_bytes(content, draw))
    try:
        examples = glue.read(task, "train", str(root))
    except Exception as error:
        return refused(error, path)
    assert len(examples) == len(examples.first) > 0
    assert all("\0" not in text for text in (*examples.first, *(examples.second or ())))
    top = 5 if task.regression else task.num_outputs - 1
    assert ((examples.labels >= 0) & (examples.labels <= top)).all()
    return "read"


def result_of_scores(root, name, content: bytes) -> str:
    path, other = root / "texts", root / "other"
    path.write_bytes(content)
    other.write_text("a\nb\nc\n")
    try:
        if name == "hypotheses":
            assert all(isinstance(text, str) for text in files.read_hypotheses(path))
        else:
            paths = (path, other) if name == "aligned" else (path,)
            assert all(map(any, files.read_references(*paths, keep_blank=True)))
    except Exception as error:
        return refused(error, path)
    return "read"


def run(root, seed: int, counts: collections.Counter) -> None:
    """One changed file of every format."""
    for name, content in CORPORA.items():
        result = result_of_corpus(root, name, changed(name, content, random.Random(seed)))
        counts[name, result] += 1
        event(f"{name}: {result}")
    for name in TASKS:
        counts[name, result_of_task(root, name, seed)] += 1
    for name, content in SCORES.items():
        data = changed_bytes(content.encode(), random.Random(seed))
        counts[name, result_of_scores(root, name, data)] += 1


def fuzz(root, examples: int, first: int, record_property) -> None:
    counts = collections.Counter()

    @fixed_settings(examples)
    @given(st.integers(first, first + 2**32))
    def every_format(seed):
        run(root, seed, counts)

    every_format()
    lines = [f"{name}: {result}: {n}" for (name, result), n in sorted(counts.items())]
    print("\n".join(lines))
    record_property("results", lines)
    for name in (*CORPORA, *TASKS, *SCORES):
        kinds = {result.split(":")[0] for which, result in counts if which == name}
        assert "refused" in kinds, f"no change of {name} was refused"


def test_changed_files(tmp_path, record_property):
    fuzz(tmp_path, 100, 0, record_property)


@pytest.mark.slow
def test_thousands_of_changed_files(tmp_path, record_property):
    fuzz(tmp_path, 4000, 2**40, record_property)


ANY_TEXT = st.text(st.characters(codec=None), max_size=30) | st.sampled_from(
    [
        "",
        " ",
        "...",
        "a\0b",
        "\u2028",
        "||| a",
        "\ud800",
        "😀" * 50,
        "1-" * 40,
        "'" * 60,
        "<skipped>",
    ]
)


@pytest.fixture
def no_java(monkeypatch):
    monkeypatch.setattr(java, "_candidates", lambda: iter(()))


def scored(hypotheses, references) -> None:
    for function in (generation.e2e, generation.webnlg):
        for options in (
            ({"corpus_ter": True}, {"bleu": "multi-bleu"})
            if function is generation.webnlg
            else ({},)
        ):
            try:
                scores = function(hypotheses, references, **options)
            except InputError as error:
                event(f"refused: {str(error).split(' ', 2)[-1][:30]!a}")
                continue
            assert all(map(math.isfinite, scores.values.values()))
            assert set(scores.missing) == {"meteor"}


@fixed_settings(80)
@given(st.lists(st.tuples(ANY_TEXT, st.lists(ANY_TEXT, max_size=3)), max_size=4))
def test_any_texts_are_scored_or_refused(no_java, instances):
    scored([text for text, _ in instances], [texts for _, texts in instances])


@pytest.mark.slow
@fixed_settings(5000)
@given(st.lists(st.tuples(ANY_TEXT, st.lists(ANY_TEXT, max_size=3)), max_size=4))
def test_thousands_of_texts_are_scored_or_refused(no_java, instances):
    scored([text for text, _ in instances], [texts for _, texts in instances])


def test_no_pipe_hangs(tmp_path):
    os.mkfifo(tmp_path / "texts")
    for read in (files.read_hypotheses, files.read_references):
        with pytest.raises(InputError, match="texts: found a folder or a device, expected a file"):
            read(tmp_path / "texts")
