"""Run records: config.json, metrics.jsonl, TensorBoard events, result.json."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import resource
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter

from lora_jax.files import to_json, write_bytes
from lora_jax.sharding.hosts import is_main
from lora_jax.summary import Summary

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "safetensors",
    "ml-collections", "numpy", "scikit-learn", "scipy",
)  # fmt: skip


class MetricsLog:
    """metrics.jsonl and TensorBoard events of one run.

    A resumed run cuts what it will write again: lines after its checkpoint's step. Of several
    processes only the first one writes.
    """

    def __init__(self, folder: str | os.PathLike[str], resume_step: int = 0):
        self._writes = is_main()
        if not self._writes:
            return
        self._path = Path(folder) / "metrics.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if self._path.exists():
            for line in self._path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= resume_step:
                        kept.append(line + "\n")
                except json.JSONDecodeError:
                    continue  # the line a killed run was writing
        write_bytes(self._path, "".join(kept).encode())
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line and the same scalars for TensorBoard."""
        if not self._writes:
            return
        self._file.write(to_json({"step": step, **values}, indent=None) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes both."""
        if self._writes:
            self._file.close()
            self._board.close()


def environment() -> dict[str, Any]:
    """Package versions and the device, for result.json."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    device = jax.devices()[0]
    return {
        "versions": versions,
        "device": {
            "backend": jax.default_backend(),
            "kind": device.device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
            "cpu_cores": os.cpu_count(),
        },
    }


def peak_memory() -> dict[str, int | None]:
    """Peak bytes of the first device, if the backend reports them, and of this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in KiB on Linux
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"device_peak_bytes": stats.get("peak_bytes_in_use"), "host_peak_bytes": host}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, mean, standard deviation, minimum and maximum over seeds, and the values.

    All but the values are NaN where one of them is not finite: a seed that diverged has no score.
    """
    values = [float(v) for v in values]
    if not all(map(math.isfinite, values)):
        names = ("median", "mean", "std", "min", "max")
        return {**dict.fromkeys(names, math.nan), "values": values}
    return {
        "median": statistics.median(values),
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "min": min(values),
        "max": max(values),
        "values": values,
    }


def lora_layers(summary: Summary) -> list[dict[str, Any]]:
    """The layers that LoRA adapts, for a run record: path, rank and adapted parts of each.

    Args:
      summary: what the method did to the model; others than LoRA give no layers.
    """
    return [
        {"path": layer.path, "rank": layer.rank, "parts": list(layer.parts)}
        for layer in summary.layers
        if layer.rank is not None
    ]
