"""A sweep as one program against the same runs in one process, and in a process for each run.

    python -m benchmarks.sweep_throughput --data=FOLDER_WITH_GLUE_TSV_FILES \\
        [--config=configs/sweep/rank_glue.py:mrpc] [--examples=1280] [--epochs=1] [--output=FILE.json]

Contenders, each started anew with the same points: `program` is experiments.sweep with all points in one
program; `sequential` runs them one after another in one process, with the functions of experiments.glue;
`separate` runs them one after another, in a process for each; `together` starts these processes all at once.
Seconds count everything, imports and compilation included; memory is the peak of resident memory
(`together`: the sum over the processes). The largest differences are between each contender and the
first one, over all logged losses, scores and trained values.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from benchmarks.timing import report
from experiments import glue
from experiments.runs.run import run_all
from experiments.sweep import local
from experiments.sweep.points import points

_DATA = flags.DEFINE_string("data", None, "Folder of the GLUE files.", required=True)
_CONFIG = flags.DEFINE_string(
    "config", "configs/sweep/rank_glue.py:mrpc", "Config of a GLUE sweep."
)
_EXAMPLES = flags.DEFINE_integer("examples", 1280, "Training examples; 0 is all.")
_EPOCHS = flags.DEFINE_integer("epochs", 1, "Passes over them.")
_CONTENDERS = flags.DEFINE_list(
    "contenders", ["separate", "sequential", "program", "together"], "Which of the four to run."
)
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for the record.")
_WORK = flags.DEFINE_string("work", "", "Internal: the work of a child process, as JSON.")


def sweep_config() -> ConfigDict:
    """The sweep that is measured."""
    path, _, argument = _CONFIG.value.partition(":")
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    config = module.get_config(argument) if argument else module.get_config()
    config.run.data.source, config.run.data.max_examples = _DATA.value, _EXAMPLES.value
    config.run.epochs, config.run.log_every = _EPOCHS.value, 10
    config.runs_per_program = len(points(config))
    return config


def work(names: list[str], folder: Path, as_program: bool) -> None:
    """The work of a child process: trains points.

    Args:
      names: of the points.
      folder: gets a folder per point.
      as_program: all points of the sweep as one program, instead of one after another.
    """
    sweep = sweep_config()
    if as_program:
        local.run_sweep(sweep, folder)
        return
    for point in points(sweep):
        if point.name in names:
            own = point.config
            own.mesh.run, own.mesh.data = 1, -1
            run_all(glue.task, own, folder / "points" / point.name)


def start(names: list[str], folder: Path, as_program: bool = False) -> subprocess.Popen:
    """Starts a child process with the arguments of `work`."""
    arguments = json.dumps({"names": names, "folder": str(folder), "as_program": as_program})
    flags_here = [argument for argument in sys.argv[1:] if not argument.startswith("--work")]
    command = [sys.executable, "-m", "benchmarks.sweep_throughput", *flags_here]
    command.append(f"--work={arguments}")
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def peak_bytes(processes: list[subprocess.Popen]) -> list[int]:
    """Waits for child processes; the peak resident memory of each in bytes."""
    peaks = []
    for process in processes:
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise RuntimeError(
                f"a child process failed with status {status}; run it by hand to see why: {process.args}"
            )
        peaks.append(usage.ru_maxrss * 1024)
    return peaks


def measure(contender: str, names: list[str], folder: Path) -> dict[str, Any]:
    """Seconds and peak memory of a contender that trains all points into `folder`."""
    begin = time.perf_counter()
    if contender in ("program", "sequential"):
        peak = peak_bytes([start(names, folder, contender == "program")])[0]
    elif contender == "together":
        peak = sum(peak_bytes([start([name], folder) for name in names]))
    else:
        peak = max(peak_bytes([start([name], folder)])[0] for name in names)
    return {"seconds": time.perf_counter() - begin, "peak_bytes": peak}


def differences(folder: Path, reference: Path, names: list[str]) -> dict[str, float]:
    """The largest differences of logged losses, of scores and of trained values.

    Args:
      folder: of a contender.
      reference: of the contender it is compared with.
      names: of the points.
    """
    largest = {"loss": 0.0, "score": 0.0, "trained": 0.0}
    for name in names:
        run, expected = (_read(root / "points" / name) for root in (folder, reference))
        for key in largest:
            for a, b in zip(run[key], expected[key], strict=True):
                largest[key] = max(largest[key], float(np.max(np.abs(a - b))))
    return largest


def _read(run: Path) -> dict[str, list[Any]]:
    (seed,) = run.glob("seed_*")
    lines = [json.loads(line) for line in (seed / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((run / "result.json").read_text())
    trained = load_file(run / "adapter" / "adapter.safetensors")
    return {
        "loss": [line["loss"] for line in lines if "loss" in line],
        "score": [spread["median"] for spread in result["best"].values()],
        "trained": [trained[path] for path in sorted(trained)],
    }


def main(_: list[str]) -> None:
    """Runs the contenders and prints the table."""
    if _WORK.value:
        arguments = json.loads(_WORK.value)
        work(arguments["names"], Path(arguments["folder"]), arguments["as_program"])
        return
    config = sweep_config()
    names = [point.name for point in points(config)]
    record: dict[str, Any] = {"config": _CONFIG.value, "points": names, "contenders": {}}
    with tempfile.TemporaryDirectory() as root:
        for contender in _CONTENDERS.value:
            record["contenders"][contender] = measure(contender, names, Path(root) / contender)
            print(contender, record["contenders"][contender], flush=True)
        reference = _CONTENDERS.value[0]
        for contender, measured in record["contenders"].items():
            measured["differences"] = differences(
                Path(root) / contender, Path(root) / reference, names
            )
    rows = [f"| contender | seconds | of {reference} | peak GiB | loss | score | trained |"]
    rows.append("|---" * 7 + "|")
    base = record["contenders"][reference]["seconds"]
    for contender, measured in record["contenders"].items():
        largest = " | ".join(f"{value:.1e}" for value in measured["differences"].values())
        rows.append(
            f"| {contender} | {measured['seconds']:.0f} | {measured['seconds'] / base:.2f} | "
            f"{measured['peak_bytes'] / 2**30:.2f} | {largest} |"
        )
    report(f"{len(names)} runs, {_CONFIG.value}", rows, record, _OUTPUT.value)


if __name__ == "__main__":
    timing.run(main)
