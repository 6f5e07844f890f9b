"""A line of a docstring about several parameters, `a, b: factors`, is one for each of them on the site."""

from __future__ import annotations

import re
from typing import Any

import griffe

SEVERAL = re.compile(r"^( +)(\w+(?:, \w+)+):(.*(?:\n\1 +.*)*)", re.M)


class OneByOne(griffe.Extension):
    """Rewrites docstrings as they are read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Parameters and attributes that share a line get one each, with its text."""
        if obj.docstring is not None:
            obj.docstring.value = SEVERAL.sub(_split, obj.docstring.value)


def _split(match: re.Match[str]) -> str:
    indent, names, text = match.groups()
    return "\n".join(f"{indent}{name}:{text}" for name in names.split(", "))
