"""Evaluation of adapters: in a folder of its own that says what it was made from."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from ml_collections import ConfigDict

from experiments.runs import folder
from experiments.runs.classification import ClassificationTask
from experiments.runs.run import Run, loaded
from experiments.runs.task import Task
from lora_jax.files import write_json, write_text
from lora_jax.partition import Params
from lora_jax.sharding.hosts import is_main

_Task = TypeVar("_Task", bound=Task)


def recorded(
    make_task: Callable[[ConfigDict], _Task],
    config: ConfigDict,
    workdir: Path,
    scores: Callable[[_Task, Run, Params], dict[str, Any]],
) -> dict[str, Any]:
    """Evaluates an adapter; writes evaluation.json and returns the scores in it.

    Args:
      make_task: reads data and model configuration.
      config: of the evaluation, which names the adapter.
      workdir: its folder, see `folder.evaluating`.
      scores: of (task, run, the adapter's parameters); what else it writes goes into the folder, too.
    """
    with folder.evaluating(workdir, config) as claimed:
        task = make_task(config)
        run, trainable = loaded(task, workdir)
        claimed(task.inputs)
        found = scores(task, run, trainable)
        made_from = {"inputs": dict(task.inputs), "config": folder.plain(config)}
        write_json(workdir / folder.EVALUATION, {"adapter": config.adapter, **found, **made_from})
    return found


def evaluate(
    make_task: Callable[[ConfigDict], ClassificationTask], config: ConfigDict, workdir: Path | None
) -> dict[str, float]:
    """Evaluates a classifier's adapter; with a workdir, writes the outputs of every example, too."""
    if workdir is None:
        task = make_task(config)
        run, trainable = loaded(task, None)
        return task.metrics(run.outputs(trainable))

    def scores(task: ClassificationTask, run: Run, trainable: Params) -> dict[str, Any]:
        outputs = run.outputs(trainable)
        by_split = task.logits(outputs) if is_main() else {}
        for split, logits in by_split.items():
            text = StringIO()
            np.savetxt(text, logits, delimiter="\t", fmt="%.9g")
            write_text(workdir / f"outputs_{split}.tsv", text.getvalue())
        return {"metrics": task.metrics(outputs)}

    metrics: dict[str, float] = recorded(make_task, config, workdir, scores)["metrics"]
    return metrics
