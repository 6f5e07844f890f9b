"""The WebNLG 2017 challenge (Gardent et al. 2017): the public LoRA code's json, or the official XML.

Both give the same rows, made as format_converting_webnlg.py of the public code makes them for every
split: from the modified triples, and only of texts whose comment is 'good'.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from lora_jax.data import triples_xml
from lora_jax.data.pairs import Row
from lora_jax.data.text_files import field, malformed, read_json, short
from lora_jax.data.triples_xml import Triple

_Value = TypeVar("_Value")

# The paper says 9 seen categories, its code and the data have these 10.
SEEN = frozenset(
    (
        *("Airport", "Astronaut", "Building", "City", "ComicsCharacter"),
        *("Food", "Monument", "SportsTeam", "University", "WrittenWork"),
    )
)


def rows(paths: list[pathlib.Path]) -> list[Row]:
    """Reads one split: one json file, or XML files in this order; each plain or .gz.

    Raises:
      ValueError: a file does not have the structure of WebNLG 2017, or has a document type declaration.
    """
    result: list[Row] = []
    for path in paths:
        entries = _xml(path) if ".xml" in path.suffixes else _json(path)
        for entry in entries:
            context = linearise(entry.triples)
            subset = "seen" if entry.category in SEEN else "unseen"
            result += [
                Row(context, text, subset) for comment, text in entry.texts if comment == "good"
            ]
    if not result:
        raise malformed(paths[0], "all entries", "no text with comment 'good'", "at least one")
    return result


def linearise(triples: Iterable[Triple]) -> str:
    """Writes triples as 'subject : property : object', joined by ' | '."""
    return " | ".join(" : ".join(triple) for triple in triples)


class _Entry(NamedTuple):
    category: str
    triples: list[Triple]
    texts: list[tuple[str, str]]  # (comment, text)


def _json(path: pathlib.Path) -> Iterator[_Entry]:
    for number, wrapped in enumerate(field(path, "top", read_json(path), "entries", list), 1):
        where = f"entry {number}"
        # An entry is written as {"17": {...}}: its number is its only key.
        if not isinstance(wrapped, dict) or len(wrapped) != 1:
            raise malformed(path, where, short(wrapped), f"one object, {{'{number}': ...}}")
        entry = next(iter(wrapped.values()))

        def get(record: Any, key: str, kind: type[_Value], where: str = where) -> _Value:
            return field(path, where, record, key, kind)

        triples = [
            (get(triple, "subject", str), get(triple, "property", str), get(triple, "object", str))
            for triple in get(entry, "modifiedtripleset", list)
        ]
        if not triples:
            raise malformed(path, where, "'modifiedtripleset': []", "at least one triple")
        texts = [
            (get(text, "comment", str), get(text, "lex", str))
            for text in get(entry, "lexicalisations", list)
        ]
        yield _Entry(get(entry, "category", str), triples, texts)


def _xml(path: pathlib.Path) -> Iterator[_Entry]:
    for where, category, unstripped, lexes in triples_xml.entries(path):
        if category is None:
            raise malformed(path, where, "no category", "<entry category=...>")
        triples = [(one.strip(), two.strip(), three.strip()) for one, two, three in unstripped]
        texts = [(comment, text.strip()) for comment, text in lexes]
        if not all(text for _, text in texts):
            expected = "a text inside <lex>, as in the 2017 challenge release"
            raise malformed(path, where, "an empty <lex>", expected)
        yield _Entry(category, triples, texts)
