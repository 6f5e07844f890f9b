"""Files of references and hypotheses, in the formats that the scorers of E2E and WebNLG read.

Text is UTF-8, one text a line. An instance is one input with its references, which come in one of two
formats:
* e2e-metrics (paper.md 8.4; measure_scores.py): one reference a line, a blank line between
  instances.
* GenerationEval (eval.py -nr): several files, line i of each being a reference of instance i; a
  line is empty where an instance has fewer references than there are files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from lora_jax.data.text_files import read_text
from lora_jax.errors import FileError, InputError
from lora_jax.files import write_text

MOST = (
    10_000  # characters of a text that can be scored in reasonable time; the corpora have up to 445
)
_REMEDY = "Save the file as UTF-8, with one text a line"


def read_hypotheses(path: str | os.PathLike[str]) -> list[str]:
    """Reads one hypothesis a line, stripped; an empty line is an empty hypothesis.

    Raises:
      OSError: the file cannot be read.
      FileError: it is empty, not UTF-8 or too large; the message names file and line.
    """
    return _lines(Path(path))


def read_references(*paths: str | os.PathLike[str], keep_blank: bool = False) -> list[list[str]]:
    """Reads the references of each instance, from one e2e-metrics file or several aligned files.

    As in measure_scores.py, one file without any blank line holds one reference per instance.

    Args:
      *paths: of the files.
      keep_blank: whether the blank lines of aligned files come along, as empty texts. The scorers
        leave them out unless they are told to count them.

    Raises:
      OSError: a file cannot be read.
      ValueError: a file is empty, not UTF-8 or too large, aligned files differ in length, or an
        instance has no reference; the message names file and line.
    """
    if not paths:
        raise InputError("no reference file was named")
    first, *others = [Path(path) for path in paths]
    return _aligned([first, *others], keep_blank) if others else _blocks(first)


def write_references(path: str | os.PathLike[str], references: Sequence[Sequence[str]]) -> None:
    """Writes an e2e-metrics file, whole or not at all.

    Each reference becomes one line, so line breaks within it turn into spaces.

    Raises:
      ValueError: an instance has no reference, or a blank one, which the format cannot hold.
    """
    blocks = []
    for number, instance in enumerate(references):
        texts = [_writable(text, f"instance {number}") for text in instance]
        if not texts or not all(texts):
            raise InputError(f"instance {number} has no reference or a blank one: {instance!r}")
        blocks.append("".join(text + "\n" for text in texts) + "\n")
    write_text(path, "".join(blocks))


def write_hypotheses(path: str | os.PathLike[str], hypotheses: Sequence[str]) -> None:
    """Writes one hypothesis a line, whole or not at all; line breaks inside turn into spaces."""
    lines = [_writable(text, f"hypothesis {number}") for number, text in enumerate(hypotheses)]
    write_text(path, "".join(f"{line}\n" for line in lines))


def _writable(text: str, name: str) -> str:
    """The text on one line; raises InputError if UTF-8 cannot write it."""
    if half_of_pair(text):
        raise InputError(f"{name} has half of a surrogate pair, which UTF-8 cannot write: {text!a}")
    return one_line(text).strip()


def half_of_pair(text: str) -> bool:
    """Whether a text has half of a surrogate pair, which is no character."""
    return re.search("[\ud800-\udfff]", text) is not None


def one_line(text: str) -> str:
    """Replaces whatever Python or Java reads as a line break, and NUL, by a space."""
    return " ".join(text.splitlines()).replace("\0", " ")


def _lines(path: Path) -> list[str]:
    """Reads the lines of a file, stripped, without a byte order mark at its start."""
    text = read_text(path, _REMEDY)
    if not text:
        raise FileError(path, "", "an empty file", "one text a line", _REMEDY)
    if text.replace("\r\n", "\n").count("\r") > text.count("\n"):  # of which one line would be made
        found = "carriage returns as the ends of lines"
        raise FileError(path, "", found, "lines that end in a newline", _REMEDY)
    # Only \n ends a line here: splitting at the rarer breaks would shift all lines after them.
    lines = [line.strip() for line in text.removesuffix("\n").split("\n")]
    for number, line in enumerate(lines, start=1):
        if len(line) > MOST:
            found, expected = f"a text of {len(line):,} characters", f"at most {MOST:,}"
            raise FileError(path, f"line {number}", found, expected, "Cut it")
    return lines


def _blocks(path: Path) -> list[list[str]]:
    """Reads the references of an e2e-metrics file, split at blank lines."""
    lines = _lines(path)
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise FileError(path, "", "only blank lines", "one text a line", _REMEDY)
    if all(lines):
        return [[line] for line in lines]
    instances: list[list[str]] = [[]]
    for number, line in enumerate(lines, start=1):
        if line:
            instances[-1].append(line)
        elif instances[-1]:
            instances.append([])
        else:
            found = "a second blank line, so an instance without references"
            remedy = "If the file is one of several aligned ones, name them all"
            expected = "one blank line between instances"
            raise FileError(path, f"line {number}", found, expected, remedy)
    return instances


def _aligned(paths: list[Path], keep_blank: bool) -> list[list[str]]:
    """Reads the references of line-aligned files, with or without the empty lines that fill up."""
    columns = [_lines(path) for path in paths]
    for path, column in zip(paths[1:], columns[1:], strict=True):
        if len(column) != len(columns[0]):
            expected = f"{len(columns[0])} as in {paths[0]}"
            remedy = "Aligned reference files are equally long"
            raise FileError(path, "", f"{len(column)} lines", expected, remedy)
    instances = list(map(list, zip(*columns, strict=True)))
    for number, instance in enumerate(instances, start=1):
        if not any(instance):
            names = ", ".join(map(str, paths))
            expected = f"a text in one of {names}"
            raise FileError(paths[0], f"line {number}", "a blank line", expected)
    if keep_blank:
        return instances
    return [[text for text in instance if text] for instance in instances]
