"""Which section of docs/troubleshooting.md is about an error: the page itself says what its messages are."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import NamedTuple

PAGE = "docs/troubleshooting.md"
_FILE = Path(__file__).resolve().parents[2] / PAGE
_LEAST = 20  # characters that are always the same; a shorter message looks like too many others
_ENTRY = re.compile(r"^### (.+)\n\n```text\n(.+)\n```$", re.M)


class Entry(NamedTuple):
    """A message that the page explains.

    Attributes:
      anchor: of the section.
      message: with `...` for names and values.
    """

    anchor: str
    message: str

    @property
    def pattern(self) -> re.Pattern[str]:
        """What such a message looks like, whatever its names and values are."""
        parts = map(str.strip, self.message.split("..."))
        return re.compile(".*?".join(map(re.escape, parts)), re.S)

    @property
    def fixed(self) -> int:
        """How much of the message is always the same."""
        return len(self.message.replace("...", ""))


@functools.cache
def entries() -> tuple[Entry, ...]:
    """The messages of the page; none where the page is not there."""
    text = _FILE.read_text(encoding="utf-8") if _FILE.is_file() else ""
    return tuple(Entry(anchor(title), message) for title, message in _ENTRY.findall(text))


def anchor(title: str) -> str:
    """The anchor of a heading, as GitHub and the site make it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def link(message: str) -> str:
    """Where the page explains an error's message; "" if it does not.

    Args:
      message: of an error. Of the entries that it looks like the one with the longest text counts.
    """
    plain = " ".join(message.split())
    told = [entry for entry in entries() if entry.fixed >= _LEAST]
    fitting = [entry for entry in told if entry.pattern.search(plain)]
    best = max(fitting, key=lambda entry: entry.fixed, default=None)
    return f"{PAGE}#{best.anchor}" if best else ""
