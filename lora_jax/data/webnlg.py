"""The WebNLG 2017 challenge (Gardent et al. 2017): the public LoRA code's json, or the official XML.

Both give the same rows, made as format_converting_webnlg.py of the public code makes them, for
every split: the modified triples, only texts whose comment is 'good'.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator
from typing import Any
from xml.etree import ElementTree

from lora_jax.data.text_files import field, malformed, read_json, read_text

Row = tuple[str, str, str]  # context, completion, subset
_Triple = tuple[str, str, str]

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
      ValueError: a file is not of the WebNLG 2017 form, or has a document type declaration.
    """
    result: list[Row] = []
    for path in paths:
        entries = _xml(path) if ".xml" in path.suffixes else _json(path)
        for category, triples, texts in entries:
            context = linearise(triples)
            subset = "seen" if category in SEEN else "unseen"
            result += [(context, text, subset) for comment, text in texts if comment == "good"]
    if not result:
        raise malformed(paths[0], "all entries", "no text with comment 'good'", "at least one")
    return result


def linearise(triples: Iterable[_Triple]) -> str:
    """Returns 'subject : property : object', one after the other, joined by ' | '."""
    return " | ".join(" : ".join(triple) for triple in triples)


_Entry = tuple[str, list[_Triple], list[tuple[str, str]]]  # category, triples, (comment, text)


def _json(path: pathlib.Path) -> Iterator[_Entry]:
    for number, wrapped in enumerate(field(path, "top", read_json(path), "entries", list), 1):
        where = f"entry {number}"
        # Each is {"17": {...}}: its number is its only key.
        if not isinstance(wrapped, dict) or len(wrapped) != 1:
            raise malformed(path, where, repr(wrapped)[:60], f"one object, {{'{number}': ...}}")
        entry = next(iter(wrapped.values()))

        def get(record: Any, key: str, kind: type = str, where: str = where) -> Any:
            return field(path, where, record, key, kind)

        triples = [
            (get(triple, "subject"), get(triple, "property"), get(triple, "object"))
            for triple in get(entry, "modifiedtripleset", list)
        ]
        texts = [
            (get(text, "comment"), get(text, "lex")) for text in get(entry, "lexicalisations", list)
        ]
        yield get(entry, "category"), triples, texts


def _xml(path: pathlib.Path) -> Iterator[_Entry]:
    text = read_text(path)
    if "<!DOCTYPE" in text:  # Entities, which can be made to expand without end, need one.
        raise malformed(path, "head", "<!DOCTYPE", "an XML file without one")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise malformed(path, f"line {error.position[0]}", f"no XML ({error})", "XML") from error
    for number, entry in enumerate(root.iter("entry"), 1):
        where = f"entry {number} (eid {entry.get('eid')})"
        category = entry.get("category")
        if category is None:
            raise malformed(path, where, "no category", "<entry category=...>")
        triples = []
        for element in entry.iterfind("modifiedtripleset/mtriple"):
            parts = [part.strip() for part in (element.text or "").split(" | ")]
            if len(parts) != 3:
                found = f"mtriple {element.text!r}"
                raise malformed(path, where, found, "'subject | property | object'")
            triples.append((parts[0], parts[1], parts[2]))
        if not triples:
            raise malformed(path, where, "no modifiedtripleset/mtriple", "at least one")
        texts = []
        for element in entry.iterfind("lex"):
            lex = (element.text or "").strip()
            if not lex:
                expected = "a text inside <lex>, as in the 2017 challenge release"
                raise malformed(path, where, "an empty <lex>", expected)
            texts.append((element.get("comment", ""), lex))
        yield category, triples, texts
