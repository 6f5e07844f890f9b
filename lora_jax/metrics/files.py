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
from collections.abc import Sequence
from pathlib import Path

from lora_jax.errors import InputError
from lora_jax.files import write_text


def read_hypotheses(path: str | os.PathLike[str]) -> list[str]:
    """Reads one hypothesis a line, stripped; an empty line is an empty hypothesis.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is empty or not UTF-8; the message names file and line.
    """
    return _lines(Path(path))


def read_references(*paths: str | os.PathLike[str]) -> list[list[str]]:
    """Reads the references of each instance, from one e2e-metrics file or several aligned files.

    As in measure_scores.py, one file without any blank line holds one reference per instance.

    Raises:
      OSError: a file cannot be read.
      ValueError: a file is empty or not UTF-8, aligned files differ in length, or an instance has
        no reference; the message names file and line.
    """
    if not paths:
        raise InputError("no reference file was named")
    first, *others = [Path(path) for path in paths]
    return _aligned([first, *others]) if others else _blocks(first)


def write_references(path: str | os.PathLike[str], references: Sequence[Sequence[str]]) -> None:
    """Writes an e2e-metrics file, whole or not at all.

    Each reference becomes one line, so line breaks within it turn into spaces.

    Raises:
      ValueError: an instance has no reference, or a blank one, which the format cannot hold.
    """
    blocks = []
    for number, instance in enumerate(references):
        texts = [one_line(text).strip() for text in instance]
        if not texts or not all(texts):
            raise InputError(f"instance {number} has no reference or a blank one: {instance!r}")
        blocks.append("".join(text + "\n" for text in texts) + "\n")
    write_text(path, "".join(blocks))


def write_hypotheses(path: str | os.PathLike[str], hypotheses: Sequence[str]) -> None:
    """Writes one hypothesis a line, whole or not at all; line breaks inside turn into spaces."""
    write_text(path, "".join(one_line(text).strip() + "\n" for text in hypotheses))


def one_line(text: str) -> str:
    """Replaces whatever Python or Java reads as a line break by a space."""
    return " ".join(text.splitlines())


def _lines(path: Path) -> list[str]:
    """Reads the lines of a file, stripped, without a byte order mark at its start."""
    content = path.read_bytes()
    if not content:
        raise InputError(f"{path} is empty")
    lines = []
    # Only \n ends a line here: splitting at the rarer breaks would shift all lines after them.
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), start=1):
        try:
            lines.append(line.decode("utf-8-sig" if number == 1 else "utf-8").strip())
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x} at column "
                f"{error.start + 1}). Save the file as UTF-8"
            ) from error
    return lines


def _blocks(path: Path) -> list[list[str]]:
    """Reads the references of an e2e-metrics file, split at blank lines."""
    lines = _lines(path)
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise InputError(f"{path} has no text, only blank lines")
    if all(lines):
        return [[line] for line in lines]
    instances: list[list[str]] = [[]]
    for number, line in enumerate(lines, start=1):
        if line:
            instances[-1].append(line)
        elif instances[-1]:
            instances.append([])
        else:
            raise InputError(
                f"{path}, line {number}: a second blank line, so an instance without references. "
                "One blank line stands between instances"
            )
    return instances


def _aligned(paths: list[Path]) -> list[list[str]]:
    """Reads the references of line-aligned files, without the empty lines that fill up."""
    columns = [_lines(path) for path in paths]
    for path, column in zip(paths[1:], columns[1:], strict=True):
        if len(column) != len(columns[0]):
            raise InputError(
                f"{paths[0]} has {len(columns[0])} lines and {path} has {len(column)}: aligned "
                "reference files must be equally long"
            )
    instances = [[text for text in row if text] for row in zip(*columns, strict=True)]
    for number, instance in enumerate(instances, start=1):
        if not instance:
            names = ", ".join(map(str, paths))
            raise InputError(f"line {number} is empty in all of {names}: an instance has no text")
    return instances
