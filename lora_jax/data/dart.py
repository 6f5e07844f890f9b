"""DART v1.1.1 (Nan et al. 2021), read as format_converting_dart.py of the public LoRA code does."""

from __future__ import annotations

import pathlib

from lora_jax.data.pairs import Row
from lora_jax.data.text_files import field, malformed, read_json
from lora_jax.data.webnlg import linearise


def rows(path: pathlib.Path) -> list[Row]:
    """Reads one DART json file, plain or .gz: every annotation is a row, relations in lower case.

    Texts are kept as they are: a few have blanks at their ends.

    Raises:
      ValueError: the file does not have the structure of DART.
    """
    content = read_json(path)
    if not isinstance(content, list) or not content:
        raise malformed(path, "top", repr(content)[:60], "a list of objects with 'tripleset'")
    result: list[Row] = []
    for number, entry in enumerate(content, 1):
        where = f"entry {number}"
        triples = []
        for triple in field(path, where, entry, "tripleset", list):
            if not _is_triple(triple):
                expected = "three strings in each triple of 'tripleset'"
                raise malformed(path, where, repr(triple)[:60], expected)
            subject, relation, target = triple
            triples.append((subject, relation.lower(), target))
        context = linearise(triples)
        for annotation in field(path, where, entry, "annotations", list):
            result.append(Row(context, field(path, where, annotation, "text", str)))
    return result


def _is_triple(triple: object) -> bool:
    return (
        isinstance(triple, list)
        and len(triple) == 3
        and all(isinstance(part, str) for part in triple)
    )
