"""GLUE with any method: the RoBERTa rows of the paper's Table 2, and the same on other encoders.

    python -m experiments.glue --config=configs/glue/roberta_base_lora.py:rte --workdir=DIR

Any field can be set on the command line: --config.seeds="(0,1)" --config.learning_rate=1e-4. The
run record is DIR/result.json; DIR/adapter holds what was trained, of the best seed at its best
epoch. A run that was killed goes on with the same command. To evaluate an adapter:
`--config.eval_only=True --config.adapter=DIR`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.runs import class_tables, command_line, evaluation
from experiments.runs.classification import ClassificationTask, Outputs, Problem
from experiments.runs.record import check_converged, parameters_text, shown, speed
from experiments.runs.run import run_all
from lora_jax.data import glue, glue_tasks
from lora_jax.errors import InputError
from lora_jax.metrics import glue as metrics


def score(task: glue_tasks.Task, outputs: Outputs, labels: Outputs) -> dict[str, float]:
    """Metrics of a task. MNLI: matched under the plain names, mismatched and both pooled beside."""
    first, *others = task.evaluations
    result = metrics.scores(task, outputs[first], labels[first])
    for split in others:
        mismatched = metrics.scores(task, outputs[split], labels[split])
        pooled = [
            np.concatenate([values[s] for s in task.evaluations]) for values in (outputs, labels)
        ]
        result |= {f"{name}_mismatched": value for name, value in mismatched.items()}
        result |= {f"{name}_overall": v for name, v in metrics.scores(task, *pooled).items()}
    return result


def problem(config: ConfigDict) -> Problem:
    """The GLUE task of a config, its data read from `config.data.source`."""
    glue_task, data = glue_tasks.task(config.task), config.data
    train = None
    if not config.eval_only:
        every, most = glue.read(glue_task, "train", data.source), data.max_examples
        balanced = data.get("balanced")
        train = every.balanced(most, glue_task.labels) if balanced else every.take(most)
    return Problem(
        name=glue_task.name,
        num_outputs=glue_task.num_outputs,
        regression=glue_task.regression,
        headline=metrics.headline(glue_task),
        train=train,
        evaluations={
            split: glue.read(glue_task, split, data.source).take(data.max_eval_examples)
            for split in glue_task.evaluations
        },
        score=partial(score, glue_task),
    )


def task(config: ConfigDict) -> ClassificationTask:
    """The task of a config, for `run_all`."""
    return ClassificationTask(config, partial(problem, config))


def evaluate(config: ConfigDict, workdir: Path | None) -> dict[str, float]:
    """Evaluates an adapter, see `evaluation.evaluate`."""
    return evaluation.evaluate(task, config, workdir)


def table(result: dict[str, Any]) -> str:
    """A short text of a run record."""
    lines = [f"{result['task']}  {result['method']}  {result['model']}"]
    for name in result["best"]:
        texts = []
        for which in ("best", "last"):
            values = result[which].get(name, {"median": None, "std": None})
            median, std = (100 * shown(values[key]) for key in ("median", "std"))
            texts.append(f"{which} epoch {median:6.2f} ±{std:.2f}")
        count = len(result["best"][name]["values"])
        lines.append(f"  {name:22s} {'   '.join(texts)}   ({count} seeds)")
    return "\n".join([*lines, f"  {parameters_text(result)}", f"  {speed(result)}"])


def main(_: list[str]) -> None:
    """Runs the command."""
    config, folder = _CONFIG.value, _WORKDIR.value
    with command_line.readable_errors():
        command_line.join_hosts(_HOSTS.value)
        if config.eval_only:
            scores = evaluate(config, Path(folder) if folder else None)
            command_line.say("\n".join(class_tables.plain_lines(scores)))
            return
        if not folder:
            raise InputError("--workdir=DIR is needed: the folder for checkpoints and results")
        result = run_all(task, config, Path(folder))
        command_line.say(table(result))
        check_converged(result, Path(folder))
        command_line.say(f"record: {folder}/result.json   adapter: {folder}/adapter")


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "Run configuration.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run.")
    _HOSTS = command_line.hosts_flag()
    flags.mark_flag_as_required("config")
    command_line.run(main)
