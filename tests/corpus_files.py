"""Writes small corpora in the formats of WebNLG and others."""

from __future__ import annotations

import gzip
import json
import pathlib
from xml.sax import saxutils


def write(path: pathlib.Path, content: object) -> pathlib.Path:
    """Writes text or an object as JSON, gzipped if the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = (content if isinstance(content, str) else json.dumps(content)).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def entry(category="Food", triples=(("a", "b", "c"),), texts=(("good", "t"),)) -> dict:
    keys = ("subject", "property", "object")
    return {
        "category": category,
        "modifiedtripleset": [dict(zip(keys, triple, strict=True)) for triple in triples],
        "lexicalisations": [{"comment": comment, "lex": lex} for comment, lex in texts],
    }


def webnlg_json(entries: list[dict]) -> dict:
    return {"entries": [{str(i): entry} for i, entry in enumerate(entries, 1)]}


def webnlg_xml(entries: list[dict]) -> str:
    """The same entries as the official release writes them."""
    return _xml(
        entries, "      <originaltripleset><otriple>x | y | z</otriple></originaltripleset>"
    )


def dart_xml(entries: list[dict]) -> str:
    """Entries of DART's json as the XML beside it has them."""
    keys = ("subject", "property", "object")
    return _xml(
        [
            {
                "category": "MISC",
                "modifiedtripleset": [dict(zip(keys, t, strict=True)) for t in each["tripleset"]],
                "lexicalisations": [
                    {"comment": text["source"], "lex": text["text"]} for text in each["annotations"]
                ],
            }
            for each in entries
        ]
    )


def _xml(entries: list[dict], first: str = "") -> str:
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', "<benchmark>", "  <entries>"]
    for number, each in enumerate(entries, 1):
        category = saxutils.quoteattr(each["category"])
        lines.append(f'    <entry category={category} eid="Id{number}" size="1">')
        lines += [first] if first else []
        lines.append("      <modifiedtripleset>")
        for triple in each["modifiedtripleset"]:
            parts = " | ".join(triple[key] for key in ("subject", "property", "object"))
            lines.append(f"        <mtriple>{saxutils.escape(parts)}</mtriple>")
        lines.append("      </modifiedtripleset>")
        for text in each["lexicalisations"]:
            comment, lex = saxutils.quoteattr(text["comment"]), saxutils.escape(text["lex"])
            lines.append(f'      <lex comment={comment} lid="Id1">{lex}</lex>')
        lines.append("    </entry>")
    return "\n".join([*lines, "  </entries>", "</benchmark>"]) + "\n"
