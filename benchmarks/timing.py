"""Timing two or more contenders fairly: interleaved rounds, medians, ratios of one run."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def interleaved(contenders: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round; one untimed call each comes first."""
    for call in contenders.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            begin = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratio(seconds: Mapping[str, list[float]], slower: str, faster: str) -> dict[str, float]:
    """Median, smallest and largest of the round-by-round ratio slower / faster."""
    values = [a / b for a, b in zip(seconds[slower], seconds[faster], strict=True)]
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def report(name: str, rows: list[str], record: Any, output: str) -> None:
    """Prints the rows; writes the record as JSON if `output` names a file."""
    print("\n".join([name, *rows]))
    if output:
        Path(output).write_text(json.dumps(record, indent=2) + "\n")
