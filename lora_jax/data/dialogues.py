"""Dialogues with summaries: SAMSum (Gliwa et al. 2019; paper, Table 4) and DialogSum (Chen et al. 2021).

The paper's context is the utterances, one a line, and an empty line; its target is the summary (appendix C).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from lora_jax.data.pairs import Row
from lora_jax.data.tables import Table, read_table


def rows(path: Path) -> list[Row]:
    """Reads one file: every summary is a row.

    Args:
      path: JSON or JSON lines of objects with `dialogue` and `summary`, or with `summary1`, `summary2` and
        so on, as DialogSum's test file has them; either .gz.

    Raises:
      FileError: it is not written like that.
    """
    table = read_table(path)
    names = _summaries(table)
    texts = [table.text(name) for name in ("dialogue", *names)]
    result = []
    for number, (dialogue, *summaries) in enumerate(zip(*texts, strict=True)):
        for name, summary in zip(names, summaries, strict=True):
            if not summary.strip():
                raise table.error(number, name, repr(summary)[:60], "a summary that is not blank")
            context = "\n".join(line.strip() for line in dialogue.splitlines() if line.strip())
            result.append(Row(f"{context}\n\n", " ".join(summary.split())))
    return result


def _summaries(table: Table) -> list[str]:
    """The names of the columns of summaries."""
    several = list(itertools.takewhile(table.columns.__contains__, _numbered()))
    return several if several and "summary" not in table.columns else ["summary"]


def _numbered() -> Iterator[str]:
    return (f"summary{number}" for number in itertools.count(1))
