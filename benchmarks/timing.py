"""Fair timing of two or more contenders: interleaved rounds, medians, ratios within a round."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Contenders = Mapping[str, Callable[[], object]]  # by name; a call returns when its work is done


def interleaved(
    contenders: Contenders,
    rounds: int,
    enough: Callable[[], bool] = lambda: False,
) -> dict[str, list[float]]:
    """Times the contenders in turn, after one untimed call of each.

    Args:
      contenders: calls by name.
      rounds: timed calls of each, at most.
      enough: asked after each round; ends the timing.

    Returns:
      Seconds of every round by name.
    """
    for call in contenders.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            begin = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begin)
        if enough():
            break
    return seconds


def ratio(seconds: Mapping[str, list[float]], slower: str, faster: str) -> dict[str, float]:
    """Median, smallest and largest of the ratio slower / faster over the rounds."""
    values = [a / b for a, b in zip(seconds[slower], seconds[faster], strict=True)]
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def report(name: str, rows: list[str], record: Any, output: str) -> None:
    """Prints the rows; writes the record as JSON if `output` names a file."""
    print("\n".join([name, *rows]))
    if output:
        Path(output).write_text(json.dumps(record, indent=2) + "\n")
