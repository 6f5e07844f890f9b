"""Evaluation of an adapter on the dev splits of a classification task."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments.runs import folder
from experiments.runs.classification import ClassificationTask
from experiments.runs.run import loaded
from lora_jax.files import write_json, write_text
from lora_jax.inputs import Inputs
from lora_jax.sharding.hosts import is_main


def evaluate(
    make_task: Callable[[ConfigDict], ClassificationTask], config: ConfigDict, workdir: Path | None
) -> dict[str, float]:
    """Evaluates an adapter; with a workdir, writes evaluation.json and the outputs per example."""
    if workdir is None:
        return _evaluated(make_task(config), config, None, lambda _: None)
    with folder.evaluating(workdir, config) as claimed:
        return _evaluated(make_task(config), config, workdir, claimed)


def _evaluated(
    task: ClassificationTask,
    config: ConfigDict,
    workdir: Path | None,
    claimed: Callable[[Inputs], None],
) -> dict[str, float]:
    run, trainable = loaded(task, workdir)
    claimed(task.inputs)
    outputs = run.outputs(trainable)
    result = task.metrics(outputs)
    if workdir is not None:
        made_from = {"inputs": dict(task.inputs), "config": folder.plain(config)}
        record = {"adapter": config.adapter, "metrics": result, **made_from}
        write_json(workdir / folder.EVALUATION, record)
        by_split = task.logits(outputs) if is_main() else {}
        for split, logits in by_split.items():
            text = StringIO()
            np.savetxt(text, logits, delimiter="\t", fmt="%.9g")
            write_text(workdir / f"outputs_{split}.tsv", text.getvalue())
    return result
