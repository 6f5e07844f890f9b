"""Every message on the page of troubleshooting is still in the code, and commands lead to their section."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from experiments.runs import command_line, troubleshooting
from lora_jax.errors import DivergedError, FileError, InputError

ROOT = Path(__file__).parents[2]
# `FileError` puts these between what a call gives it.
_OF_FILE_ERRORS = r": found |found |, expected |\. "


def _text(node):
    """The text of an expression, with a line break where a value is put in; "" if it is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            _text(value) if isinstance(value, ast.Constant) else "\n" for value in node.values
        )
    return ""


@pytest.fixture(scope="module")
def texts():
    """All texts in the code, each whole."""
    files = [path for name in ("lora_jax", "experiments") for path in (ROOT / name).rglob("*.py")]
    nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text())))
    return "\0".join(text for text in map(_text, nodes) if len(text) > 3)


ENTRIES = troubleshooting.entries()


def test_there_are_many_and_each_has_its_own_place():
    assert len(ENTRIES) >= 40
    assert len({entry.anchor for entry in ENTRIES}) == len(ENTRIES)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.anchor)
def test_the_message_is_in_the_code(entry, texts):
    parts = [part.strip() for part in entry.message.split("...")]
    for part in filter(None, parts):
        pieces = [part] if part in texts else re.split(_OF_FILE_ERRORS, part)
        assert all(piece.strip() in texts for piece in pieces), part


@pytest.mark.parametrize(
    ("error", "anchor"),
    [
        (InputError("the target rule 'quary' matches no path. Patterns are regular expressions for"
                    " whole paths"), "a-target-names-nothing"),
        (DivergedError({"run": 3}, "runs/one"), "training-diverged"),
        (FileError("a.csv", "", "the columns a, b", "a column text", "Name another one"),
         "a-column-that-the-file-does-not-have"),
        (InputError("runs/a was trained on another base: its fingerprint is 12, the\nmodel's is 34"),
         "trained-on-another-base"),
        (InputError("config.epochs: something that the page does not have"), ""),
    ],
)  # fmt: skip
def test_a_message_leads_to_its_section(error, anchor):
    link = troubleshooting.link(str(error))
    assert link == (f"docs/troubleshooting.md#{anchor}" if anchor else "")


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (
            InputError("b exists already and is not empty; choose another folder"),
            "error: b exists already and is not empty; choose another folder\n"
            "see docs/troubleshooting.md#the-output-is-there-already",
        ),
        (InputError("the server has no such thing"), "error: the server has no such thing"),
    ],
)
def test_commands_name_the_section_below_the_error(error, ends, monkeypatch):
    monkeypatch.delenv("LORA_JAX_DEBUG", raising=False)
    with pytest.raises(SystemExit) as ended, command_line.readable_errors():
        raise error
    assert ended.value.code == ends
