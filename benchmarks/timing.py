"""Fair timing of two or more contenders: interleaved rounds, medians, ratios within a round."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import app

from experiments.runs import process

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


def run(main: Callable[[list[str]], None]) -> None:
    """Runs a benchmark in a process that is tuned as those of the experiments are."""
    process.tune()
    app.run(main)


def report(name: str, rows: list[str], record: Mapping[str, Any], output: str) -> None:
    """Prints the rows and the processor; writes both and the record as JSON if `output` names a file."""
    machine, tuned = process.processor(), process.applied()
    wide = "AVX-512" if machine["avx512f"] else "no AVX-512"
    text = (
        f"  {machine['name']}, family {machine['family']} model {machine['model']}, {wide}, "
        f"{machine['cores']} cores; set for the process: {', '.join(tuned) or 'nothing'}"
    )
    print("\n".join([name, *rows, text]))
    if output:
        whole = {**record, "processor": machine, "set": tuned}
        Path(output).write_text(json.dumps(whole, indent=2) + "\n")
