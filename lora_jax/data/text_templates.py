"""Templates of texts over the columns of a table, such as an instruction's.

    "### Instruction:\\n{instruction}[[\\n\\n### Input:\\n{input}]]\\n\\n### Response:\\n"

`{column}` is the row's value. A part in double brackets is left out where a column in it is empty or
missing. `{{` and `}}` stand for braces. Values are put in as they are: a brace in them means nothing.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from lora_jax.errors import InputError

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|\[\[|\]\]|[{}]")
MOST = 100_000  # characters of a template
_EXAMPLE = "such as 'Question: {question}[[\\nHint: {hint}]]\\nAnswer: '"


@dataclasses.dataclass(frozen=True)
class _Part:
    """Texts and columns in turn: literals[0], columns[0], literals[1], ..., literals[-1]."""

    literals: tuple[str, ...]
    columns: tuple[str, ...]
    optional: bool


@dataclasses.dataclass(frozen=True)
class TextTemplate:
    """A template that has proved well formed; made by `parse`.

    Attributes:
      text: as it was given.
    """

    text: str
    parts: tuple[_Part, ...]

    @property
    def required(self) -> tuple[str, ...]:
        """Columns of the parts that are never left out."""
        return _columns(part for part in self.parts if not part.optional)

    @property
    def optional(self) -> tuple[str, ...]:
        """Columns that stand in optional parts alone."""
        return tuple(c for c in _columns(self.parts) if c not in self.required)

    def fill(self, values: Mapping[str, str]) -> str:
        """The text of a row.

        Args:
          values: by column; those of optional parts may be missing or empty.

        Raises:
          KeyError: a required column is missing.
        """
        filled = []
        for part in self.parts:
            if part.optional and not all(values.get(name) for name in part.columns):
                continue
            filled.append(part.literals[0])
            for name, literal in zip(part.columns, part.literals[1:], strict=True):
                filled += [values[name], literal]
        return "".join(filled)


def _columns(parts: object) -> tuple[str, ...]:
    assert hasattr(parts, "__iter__")
    return tuple(dict.fromkeys(name for part in parts for name in part.columns))


def parse(text: str) -> TextTemplate:
    """Reads a template.

    Raises:
      InputError: a brace or bracket is not closed, an optional part has no column or is inside of another,
        no column at all, or too long.
    """
    if len(text) > MOST:
        raise InputError(f"the template has {len(text):,} characters, expected at most {MOST:,}")
    parts: list[_Part] = []
    literals, columns, optional, at = [""], list[str](), False, 0

    def close(is_optional: bool) -> None:
        parts.append(_Part(tuple(literals), tuple(columns), is_optional))
        literals[:], columns[:] = [""], []

    for match in _PIECE.finditer(text):
        literals[-1] += text[at : match.start()]
        at, piece = match.end(), match[0]
        if piece in ("{{", "}}"):
            literals[-1] += piece[0]
        elif piece == "[[" and not optional:
            close(False)
            optional = True
        elif piece == "]]" and optional and columns:
            close(True)
            optional = False
        elif match[1] is not None and match[1].strip():
            columns.append(match[1].strip())
            literals.append("")
        else:
            raise _wrong(text, match.start(), piece)
    literals[-1] += text[at:]
    if optional:
        raise _wrong(text, len(text), "the end, where [[ is still open")
    close(False)
    if not any(part.columns for part in parts):
        raise InputError(
            f"the template {text[:80]!r} names no column; put one in braces, {_EXAMPLE}"
        )
    return TextTemplate(text, tuple(parts))


def _wrong(text: str, place: int, piece: str) -> InputError:
    return InputError(
        f"the template {text[:80]!r}: found {piece!r} at character {place + 1}, expected {{column}}, a "
        "part with a column in double brackets [[ ]] (not inside of another), and {{ }} for braces as "
        f"such; {_EXAMPLE}"
    )
