"""DART v1.1.1 (Nan et al. 2021), read as format_converting_dart.py of the public LoRA code does.

The XML that lies beside the json gives the same rows.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator

from lora_jax.data import triples_xml
from lora_jax.data.pairs import Row
from lora_jax.data.text_files import field, malformed, read_json, short
from lora_jax.data.triples_xml import Triple
from lora_jax.data.webnlg import linearise


def rows(path: pathlib.Path) -> list[Row]:
    """Reads one DART file, json or XML, plain or .gz: every annotation is a row, relations in lower case.

    Texts are kept as they are: a few have blanks at their ends, and one of the test set is empty.

    Raises:
      FileError: the file does not have the structure of DART, or no annotation.
    """
    entries = _xml(path) if ".xml" in path.suffixes else _json(path)
    result: list[Row] = []
    for triples, texts in entries:
        context = linearise((subject, name.lower(), target) for subject, name, target in triples)
        result += [Row(context, text) for text in texts]
    if not result:
        raise malformed(path, "all entries", "no annotation", "at least one")
    return result


def _json(path: pathlib.Path) -> Iterator[tuple[list[Triple], list[str]]]:
    content = read_json(path)
    if not isinstance(content, list) or not content:
        raise malformed(path, "top", short(content), "a list of objects with 'tripleset'")
    for number, entry in enumerate(content, 1):
        where = f"entry {number}"
        triples = [
            _triple(path, where, each) for each in field(path, where, entry, "tripleset", list)
        ]
        if not triples:
            raise malformed(path, where, "'tripleset': []", "at least one triple")
        annotations = field(path, where, entry, "annotations", list)
        yield triples, [field(path, where, each, "text", str) for each in annotations]


def _xml(path: pathlib.Path) -> Iterator[tuple[list[Triple], Iterable[str]]]:
    for entry in triples_xml.entries(path):
        yield entry.triples, [text for _, text in entry.texts]


def _triple(path: pathlib.Path, where: str, value: object) -> Triple:
    if (
        not isinstance(value, list)
        or len(value) != 3
        or not all(isinstance(part, str) and "\0" not in part for part in value)
    ):
        expected = "three strings in each triple of 'tripleset'"
        raise malformed(path, where, short(value), expected)
    subject, relation, target = value
    return subject, relation, target
