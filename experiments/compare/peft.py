"""A method's result in the form of the method comparison of Hugging Face's PEFT.

Names and places are those of its result files. Memory is null, since the runs of a program share the devices
so that no run's own was measured; scores are those of the task under their own names. PEFT's own table wants
numbers for both, and a `test accuracy`, so other tasks' files need a table of their own.
"""

from __future__ import annotations

import datetime
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.compare.runs import Run
from experiments.compare.statistics import Row
from experiments.runs.record import MADE_ANEW
from lora_jax import __version__, json_lines
from lora_jax.reading import Record, read_object
from lora_jax.run_folder import RESULT

_MEMORY = ("reserved_avg", "max", "reserved_99th")  # of an accelerator
_PACKAGES = ("transformers", "peft", "datasets", "torch", "bitsandbytes")  # that PEFT's tables name


def chosen_run(row: Row, runs: Sequence[Run]) -> Run:
    """The first seed's run at the best rate; of a method without one, the first of all."""
    rate = runs[0].rate if row.best is None else row.best.rate
    return min((run for run in runs if run.rate == rate), key=lambda run: run.seed)


def folder_bytes(folder: Path) -> int | None:
    """Bytes of all files in a folder; None if there is none, as of a run that diverged at once."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files) if files else None


def result(row: Row, runs: Sequence[Run]) -> dict[str, Any]:
    """The content of a method's file: that of its `chosen_run`.

    Args:
      row: the method.
      runs: all of its runs.
    """
    run = chosen_run(row, runs)
    path = run.folder / RESULT
    record = read_object(path, MADE_ANEW)
    own = record.record("seeds").record(str(run.seed))
    config = record.get("config", dict)
    parameters = record.record("parameters")
    failed = f"diverged at step {own.get('diverged', int)}" if run.diverged else ""
    ended = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC)
    seconds = own.get("seconds", float)
    return {
        "run_info": {
            "created_at": ended.isoformat(timespec="seconds"),
            "total_time": seconds + own.get("evaluation_seconds", float),
            "experiment_name": f"{row.name}/{run.folder.name}",
            "peft_branch": f"lora_jax {__version__}",
            "train_config": {"model_id": record.get("model", str), **config},
            "peft_config": _method(config),
            "error_msg": failed,
        },
        "train_info": {
            **{f"accelerator_memory_{name}": None for name in _MEMORY},
            "train_time": seconds,
            "file_size": folder_bytes(run.folder / "adapter"),
            "num_trainable_params": parameters.get("trainable", int),  # with the head
            "num_total_params": parameters.get("total", int),
            "status": "failed" if failed else "success",
            "metrics": _metrics(own, run),
        },
        "meta_info": _meta(record),
    }


def _method(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The method with its arguments; PEFT has null for full fine-tuning."""
    method = config["method"]
    if method["name"] == "full":
        return None
    kind = str(method["name"]).upper()
    return {"peft_type": kind, **{k: v for k, v in method.items() if k != "name"}}


def _metrics(own: Record, run: Run) -> list[dict[str, Any]]:
    """One entry for each finished epoch; the last one has the scores of decoded texts, too.

    The training loss is the mean over the logged steps of the epoch, null where none was logged.
    """
    lines = json_lines.read(run.folder / f"seed_{run.seed}" / "metrics.jsonl").values
    history = own.get("history", list)
    # As the training loop writes them: the lines of steps have the learning rate, those of epochs scores.
    steps = [(line["step"], line["loss"]) for line in lines if "learning_rate" in line]
    ends = [line["step"] for line in lines if "learning_rate" not in line]
    done, result, begin = own.get("step", int), [], 0
    for scores, end in zip(history, ends, strict=False):
        losses = [loss for step, loss in steps if begin < step <= end and loss is not None]
        result.append(
            {
                "step": end,
                **{f"valid {name}": value for name, value in scores.items()},
                "train loss": statistics.fmean(losses) if losses else None,
                "train samples": round(own.get("examples", int) * end / done),
                "train total tokens": round(own.get("tokens", float) * end / done),
            }
        )
        begin = end
    if result and isinstance(own.values.get("test"), dict):
        result[-1] |= {f"test {name}": value for name, value in own.get("test", dict).items()}
    return result


def _meta(record: Record) -> dict[str, Any]:
    versions: dict[str, Any] = record.get("versions", dict)
    device: dict[str, Any] = record.get("device", dict)
    inputs: dict[str, Any] = record.get("inputs", dict)
    data = {name: digest for name, digest in inputs.items() if name.endswith("data")}
    return {
        "model_info": {"name": record.get("model", str), "sha": inputs.get("model")},
        "dataset_info": {record.get("task", str): data},
        "package_info": {
            **{f"{name}-version": None for name in _PACKAGES},
            **{f"{name}-version": version for name, version in versions.items()},
            "lora_jax-version": __version__,
        },
        "system_info": {
            "system": platform.system(),
            "machine": platform.machine(),
            "accelerator": device.get("kind"),
            **{name: device.get(name) for name in ("backend", "count", "cpu_cores")},
        },
    }
