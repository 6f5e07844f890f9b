"""A sweep as one program against the same runs in one process, and in a process each.

    python -m benchmarks.sweep_throughput --data=FOLDER_WITH_GLUE_TSV_FILES \\
        [--config=configs/sweep/rank_glue.py:mrpc] [--examples=1280] [--epochs=1] [--output=FILE.json]

Contenders, each started afresh with the same points: `program` is experiments.sweep with all of them in
one program; `sequential` runs them by experiments.glue's functions one after another in one process;
`separate` does so in processes of their own, one after another; `together` starts those all at once.
Seconds are of the whole, imports and compilation included; memory is the peak of resident memory
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
from absl import app, flags
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from benchmarks.timing import report
from experiments import glue
from experiments.runs.run import run_all
from experiments.sweep import local
from experiments.sweep.points import points

_DATA = flags.DEFINE_string("data", None, "Folder of the GLUE files.", required=True)
_CONFIG = flags.DEFINE_string("config", "configs/sweep/rank_glue.py:mrpc", "Of a GLUE sweep.")
_EXAMPLES = flags.DEFINE_integer("examples", 1280, "Of the training set; 0 is all.")
_EPOCHS = flags.DEFINE_integer("epochs", 1, "Passes over them.")
_CONTENDERS = flags.DEFINE_list(
    "contenders", ["separate", "sequential", "program", "together"], "Which of the four."
)
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for the record.")
_WORK = flags.DEFINE_string("work", "", "Internal: what a child process does, as JSON.")


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
    """What a child process does: trains these points into `folder`."""
    config = sweep_config()
    if as_program:
        local.run_sweep(config, folder)
        return
    for point in points(config):
        if point.name in names:
            own = point.config
            own.mesh.run, own.mesh.data = 1, -1
            run_all(glue.task, own, folder / "points" / point.name)


def start(names: list[str], folder: Path, as_program: bool = False) -> subprocess.Popen:
    """A child process that trains these points."""
    told = json.dumps({"names": names, "folder": str(folder), "as_program": as_program})
    own = [argument for argument in sys.argv[1:] if not argument.startswith("--work")]
    command = [sys.executable, "-m", "benchmarks.sweep_throughput", *own, f"--work={told}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def peak_bytes(processes: list[subprocess.Popen]) -> list[int]:
    """Waits for children; the peak resident memory of each."""
    peaks = []
    for process in processes:
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise RuntimeError(
                f"a child failed with status {status}: run it by hand: {process.args}"
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
    """The largest differences of logged losses, of scores and of trained values."""
    largest = {"loss": 0.0, "score": 0.0, "trained": 0.0}
    for name in names:
        one, other = (_read(root / "points" / name) for root in (folder, reference))
        for key in largest:
            for a, b in zip(one[key], other[key], strict=True):
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
    """Command line."""
    if _WORK.value:
        told = json.loads(_WORK.value)
        work(told["names"], Path(told["folder"]), told["as_program"])
        return
    config = sweep_config()
    names = [point.name for point in points(config)]
    record: dict[str, Any] = {"config": _CONFIG.value, "points": names, "contenders": {}}
    with tempfile.TemporaryDirectory() as root:
        for contender in _CONTENDERS.value:
            record["contenders"][contender] = measure(contender, names, Path(root) / contender)
            print(contender, record["contenders"][contender], flush=True)
        reference = _CONTENDERS.value[0]
        for contender, own in record["contenders"].items():
            own["differences"] = differences(Path(root) / contender, Path(root) / reference, names)
    rows = [f"| contender | seconds | of {reference} | peak GiB | loss | score | trained |"]
    rows.append("|---" * 7 + "|")
    base = record["contenders"][reference]["seconds"]
    for contender, own in record["contenders"].items():
        found = " | ".join(f"{value:.1e}" for value in own.get("differences", {}).values())
        rows.append(
            f"| {contender} | {own['seconds']:.0f} | {own['seconds'] / base:.2f} | "
            f"{own['peak_bytes'] / 2**30:.2f} | {found} |"
        )
    report(f"{len(names)} runs, {_CONFIG.value}", rows, record, _OUTPUT.value)


if __name__ == "__main__":
    app.run(main)
