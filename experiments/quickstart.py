"""Quickstart: LoRA on a real pre-trained encoder in two to five minutes on two CPU cores.

    python -m experiments.quickstart [--workdir=runs/quickstart]

Trains a head on the frozen encoder, then LoRA and head, on a generated sentiment task whose dev set
uses words never seen in training, and prints the accuracy per phenomenon. See configs/quickstart.py.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from configs import quickstart
from experiments.runs import command_line
from experiments.runs.classification import ClassificationTask, Outputs, Problem
from experiments.runs.record import check_converged
from experiments.runs.run import run_all
from lora_jax.data import sentiment
from lora_jax.data.glue import Examples


def score(phenomena: list[str], outputs: Outputs, labels: Outputs) -> dict[str, float]:
    """Accuracy, in all and per phenomenon."""
    right = outputs["dev"].argmax(-1) == labels["dev"]
    kinds = np.array(phenomena)
    by_kind = {kind: float(right[kinds == kind].mean()) for kind in sentiment.PHENOMENA}
    return {"accuracy": float(right.mean()), **by_kind}


def problem(config: ConfigDict) -> Problem:
    """The generated task; the same sentences for every method and seed."""
    train = sentiment.generate("train", config.data.max_examples)
    dev = sentiment.generate("dev", config.data.max_eval_examples)
    return Problem(
        name="sentiment",
        num_outputs=2,
        regression=False,
        headline="accuracy",
        train=Examples(train.texts, None, train.labels),
        evaluations={"dev": Examples(dev.texts, None, dev.labels)},
        score=partial(score, dev.phenomena),
    )


def task(config: ConfigDict) -> ClassificationTask:
    """The task of a config, for `run_all`."""
    return ClassificationTask(config, partial(problem, config))


def table(frozen: dict[str, Any], lora: dict[str, Any]) -> str:
    """The two runs side by side, in percent, at the last epoch."""
    names = {"accuracy": "all", **{kind: kind for kind in sentiment.PHENOMENA}}
    lines = [f"{'dev accuracy, %':18s} {'frozen encoder + head':>22s} {'LoRA + head':>12s}"]
    for key, name in names.items():
        values = [100 * result["last"][key]["median"] for result in (frozen, lora)]
        lines.append(f"{name:18s} {values[0]:22.1f} {values[1]:12.1f}")
    counts = [result["parameters"]["trainable"] for result in (frozen, lora)]
    lines.append(f"{'trained values':18s} {counts[0]:22,} {counts[1]:12,}")
    seconds = [result["seconds"] for result in (frozen, lora)]
    lines.append(f"{'seconds':18s} {seconds[0]:22.0f} {seconds[1]:12.0f}")
    return "\n".join(lines)


def main(_: list[str]) -> None:
    """Runs the command."""
    folder = Path(_WORKDIR.value)
    results = []
    with command_line.readable_errors():
        for method in ("head_only", "lora"):
            config = quickstart.get_config(method)
            results.append(run_all(task, config, folder / method))
            check_converged(results[-1], folder / method)
    print(f"\n{table(*results)}\n\nrecords and adapters: {folder}/head_only, {folder}/lora")


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "Folder of the two runs.")
    command_line.run(main)
