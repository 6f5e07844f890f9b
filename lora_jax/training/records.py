"""Run records: config.json, metrics.jsonl, TensorBoard events, result.json."""

from __future__ import annotations

import importlib.metadata
import logging
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

from lora_jax import json_lines
from lora_jax.files import make_folder, set_aside, write_bytes
from lora_jax.sharding.hosts import is_main
from lora_jax.summary import Summary
from lora_jax.training.event_file import EventFile

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "safetensors",
    "ml-collections", "numpy", "scikit-learn", "scipy",
)  # fmt: skip
_LOG = logging.getLogger(__name__)


class MetricsLog:
    """metrics.jsonl and TensorBoard events of one run.

    A resumed run cuts what it will write again: lines after its checkpoint's step. Of several
    processes only the first one writes.
    """

    def __init__(self, folder: str | os.PathLike[str], resume_step: int = 0, lines: int = 0):
        """Opens both.

        Args:
          folder: of the run.
          resume_step: of its checkpoint.
          lines: that the file should have up to that step, at least; if it has fewer, or damaged ones,
            that is said and the file is kept under another name.

        Raises:
          OSError: they cannot be written.
        """
        self._writes = is_main()
        if not self._writes:
            return
        path = Path(folder) / "metrics.jsonl"
        make_folder(path.parent)
        kept, what = _kept(path, resume_step, lines)
        if what:
            aside = f"kept as {set_aside(path)}" if path.exists() else "gone"
            _LOG.warning(
                "%s: %s before step %d of the checkpoint; the file is %s, and the run goes on without them",
                path, what, resume_step, aside,
            )  # fmt: skip
        write_bytes(path, json_lines.text_of(kept))
        self._file = json_lines.Appender(path)
        self._board = EventFile(Path(folder) / "tensorboard", purge_step=resume_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line and the same scalars for TensorBoard.

        Raises:
          OSError: the disk is full, or the like; it names the file, which has no part of the line.
          FolderInUseError: another program has taken the run's folder over.
        """
        if not self._writes:
            return
        self._file.write({"step": step, **values})
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes both."""
        if self._writes:
            self._file.close()
            self._board.close()


def _kept(path: Path, step: int, expected: int) -> tuple[list[str], str]:
    """The lines up to a step, and what is wrong with them.

    What a killed run was writing was behind its checkpoint: damage there is no loss.
    """
    lines = json_lines.read(path)
    steps = [value.get("step") for value in lines.values]
    pairs = list(zip(steps, lines.texts, strict=True))
    kept = [text for at, text in pairs if type(at) is int and at <= step]
    odd = [number for number, (at, _) in enumerate(pairs, 1) if type(at) is not int]
    if len(kept) < expected:
        return kept, f"{expected - len(kept)} of {expected} lines are damaged or missing"
    before = [n for n in (*lines.bad, *odd) if n <= len(kept)]
    return kept, f"damaged {json_lines.numbers(before)}" if before else ""


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
