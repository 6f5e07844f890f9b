"""The XML of WebNLG, which DART has too: entries of triples and the texts that say them."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import NamedTuple
from xml.etree import ElementTree

from lora_jax.data.text_files import malformed, read_text

Triple = tuple[str, str, str]  # subject, property, object


class Entry(NamedTuple):
    """One input with its texts.

    Attributes:
      where: the place in the file, for errors.
      category: the attribute of that name, None if there is none.
      triples: the modified triples, one or more, parts as the file has them.
      texts: (comment, text) of every `lex`, as the file has them.
    """

    where: str
    category: str | None
    triples: list[Triple]
    texts: list[tuple[str, str]]


def entries(path: pathlib.Path) -> Iterator[Entry]:
    """Reads the entries of one file, plain or .gz.

    Raises:
      FileError: it is not XML, has a document type declaration or no entry, or an entry has no triple
        or one that is not 'subject | property | object'.
    """
    text = read_text(path)
    if "<!DOCTYPE" in text:  # Entities, which can be made to expand without end, need one.
        raise malformed(path, "head", "<!DOCTYPE", "an XML file without one")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        where = f"line {error.position[0]}"
        raise malformed(path, where, f"invalid XML ({error})", "XML") from error
    number = 0
    for number, entry in enumerate(root.iter("entry"), 1):
        where = f"entry {number} (eid {entry.get('eid')})"
        triples = [
            _triple(path, where, element.text)
            for element in entry.iterfind("modifiedtripleset/mtriple")
        ]
        if not triples:
            raise malformed(path, where, "no modifiedtripleset/mtriple", "at least one")
        texts = [(lex.get("comment", ""), lex.text or "") for lex in entry.iterfind("lex")]
        yield Entry(where, entry.get("category"), triples, texts)
    if not number:
        raise malformed(path, "top", f"<{root.tag[:60]}> without any <entry>", "<entry> elements")


def _triple(path: pathlib.Path, where: str, text: str | None) -> Triple:
    parts = (text or "").split(" | ")
    if len(parts) != 3:
        expected = "'subject | property | object'"
        raise malformed(path, where, f"mtriple {(text or '')[:120]!r}", expected)
    subject, relation, target = parts
    return subject, relation, target
