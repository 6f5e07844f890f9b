"""Tests of the command that scores files."""

from __future__ import annotations

import functools
import json

import commands
import pytest

from experiments import score
from lora_jax.metrics import java


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "refs.txt").write_text("a cheap pub\na pub\n\nBlue Spice\n\n")
    (tmp_path / "ref0").write_text("a cheap pub\nBlue Spice\n")
    (tmp_path / "ref1").write_text("a pub\n\n")
    (tmp_path / "hyps.txt").write_text("a cheap pub\nBlue Spice\n")
    (tmp_path / "three.txt").write_text("a\nb\nc\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("a\ncafé\n".encode("latin-1"))
    return tmp_path


@pytest.fixture
def command(folder, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", str(folder))
    return functools.partial(commands.run, "experiments.score")


@pytest.mark.parametrize("references", ["refs.txt", "ref0,ref1"])
def test_both_forms_of_references_score_alike(folder, monkeypatch, references):
    monkeypatch.setattr(java, "_candidates", lambda: iter(()))
    paths = ",".join(str(folder / name) for name in references.split(","))
    found = score.score(paths, str(folder / "hyps.txt"), "e2e")
    assert found["instances"] == 2 and found["values"]["rouge_l"] == 1.0
    text = score.table(found)
    assert "rouge_l      100.00   1   (tokenised in Python" in text
    assert "meteor      missing   no working Java" in text


def test_which_bleu_was_computed_is_said(folder, monkeypatch):
    monkeypatch.setattr(java, "_candidates", lambda: iter(()))
    (folder / "ref0").write_text("a cheap pub near the river in the city\nBlue Spice is a pub\n")
    (folder / "hyps.txt").write_text("a cheap pub near\nBlue Spice is a pub\n")
    arguments = f"{folder / 'ref0'},{folder / 'ref1'}", str(folder / "hyps.txt"), "webnlg"
    for bleu, note in (
        ("lora", "microsoft/LoRA: 1 blank"),
        ("multi-bleu", "multi-bleu.perl: 1 bl"),
    ):
        found = score.score(*arguments, bleu=bleu)
        assert found["bleu"] == bleu and f"as {note}" in found["notes"]["bleu"]
        first, second, *_ = score.table(found).splitlines()
        assert first.endswith(f"BLEU: {bleu}") and f"(as {note}" in second
    with pytest.raises(ValueError, match="--bleu=multi-bleu belongs to --metrics=webnlg"):
        score.score(*arguments[:2], "e2e", bleu="multi-bleu")


@pytest.mark.parametrize(
    ("references", "hypotheses", "message"),
    [
        ("refs.txt", "three.txt", r"refs.txt has 2 instances and .*three.txt has 3 lines"),
        ("refs.txt", "empty.txt", "empty.txt: found an empty file"),
        ("empty.txt", "hyps.txt", "empty.txt: found an empty file"),
        ("latin.txt", "hyps.txt", "latin.txt, line 2: found bytes that are not UTF-8"),
    ],
)
def test_bad_files_are_named(folder, references, hypotheses, message):
    with pytest.raises(ValueError, match=message):
        score.score(str(folder / references), str(folder / hypotheses), "e2e")


def test_classes_are_those_of_the_task_and_every_other_text_is_wrong(folder):
    (folder / "classes.txt").write_bytes(b"entailment\r\nnot entailment\r\nentailment\r\n")
    (folder / "texts.txt").write_text("not  entailment\n\nentailment\n")
    paths = [str(folder / name) for name in ("classes.txt", "texts.txt")]
    found = score.score(*paths, "rte_text")
    assert found["values"] == {"accuracy": 1 / 3}
    assert found["notes"] == {"accuracy": "1 of 3 texts are the name of no class"}
    with pytest.raises(ValueError, match=r"classes.txt: reference 2 is 'not entailment', which is no class"
                       r".*expected one of entailment, neutral.*Is --metrics=mnli_text"):  # fmt: skip
        score.score(*paths, "mnli_text")


def test_command_prints_and_writes_scores(folder, command):
    program = folder / "bin" / "java"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n[ $1 = -version ] || { echo no heap >&2; exit 1; }\n")
    program.chmod(0o755)
    files = [str(folder / "refs.txt"), str(folder / "hyps.txt")]
    done = command(*files, "--metrics=webnlg", f"--json={folder / 'out/scores.json'}")
    assert done.returncode == 0, done.stderr
    assert "webnlg  2 instances" in done.stdout and "ter          0.0000   0" in done.stdout
    assert "meteor      missing   meteor-1.5.jar ended early" in done.stdout
    record = json.loads((folder / "out/scores.json").read_text())
    assert record["values"]["ter"] == 0.0 and record["hypotheses"] == files[1]


def test_command_ends_with_one_line_on_bad_input(folder, command):
    done = command(str(folder / "nowhere.txt"), str(folder / "hyps.txt"))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "nowhere.txt" in done.stderr and "Traceback" not in done.stderr


def test_two_files_are_needed():
    with pytest.raises(SystemExit, match="error: two files are needed, got 1"):
        score.main(["score", "refs.txt"])
