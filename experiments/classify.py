"""Classification or regression of texts of your own: a table in, an adapter and a report out.

    python -m experiments.classify --config=configs/classify/minilm.py --workdir=DIR \
        --config.data.train=FILE.csv

The file is JSONL, JSON, CSV, TSV or Parquet with a column of texts (or two) and one of labels. A share of
it is held out, or other files are: --config.data.held_out=FILE. DIR/result.json is the record, DIR/adapter
what was trained, DIR/confusion_matrix.png a picture. A run that was killed goes on with the same command.
To score an adapter on other rows: `--config.eval_only=True --config.adapter=DIR
--config.data.held_out=FILE`; to use it: `python -m experiments.predict --run=DIR`. See docs/classify.md.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.runs import class_tables, command_line, evaluation
from experiments.runs.classification import ClassificationTask
from experiments.runs.own_texts import HELD_OUT, problem
from experiments.runs.record import check_converged, parameters_text, speed
from experiments.runs.run import run_all
from lora_jax.analysis.confusion import confusion_figure
from lora_jax.analysis.plots import save
from lora_jax.data.labels import short_name
from lora_jax.errors import InputError
from lora_jax.sharding.hosts import is_main

PICTURE = "confusion_matrix.png"


def task(config: ConfigDict) -> ClassificationTask:
    """The task of a config, for `run_all`."""
    return ClassificationTask(config, partial(problem, config))


def chosen_seed(result: dict[str, Any]) -> dict[str, Any]:
    """What the record has of the seed whose adapter stands for the run; {} if all diverged."""
    chosen = result["adapter"]
    return {} if chosen is None else result["seeds"][str(chosen["seed"])]


def table(result: dict[str, Any]) -> str:
    """A run record as text."""
    baseline, rows = dict(result["baseline"]), result["rows"]
    answer = baseline.pop("answer")
    always = f"always {answer:.4g}" if isinstance(answer, float) else f"always {short_name(answer)}"
    seeds = len(result["seeds"])
    spreads, columns = {}, {}
    for which in ("best", "last"):
        title = f"{which} epoch"
        columns[title] = {name: v["median"] for name, v in result[which].items()}
        spreads[title] = {name: v["std"] for name, v in result[which].items()} if seeds > 1 else {}
    held_out, train = rows[HELD_OUT], rows["train"]
    over = f", median of {seeds} seeds" if seeds > 1 else ""
    lines = [
        f"{result['method']}  {result['model']}",
        f"  {train:,} training rows; scores in % on {held_out:,} held-out rows{over}:",
        *class_tables.score_lines({**columns, always: baseline}, spreads),
    ]
    seed = chosen_seed(result)
    if "by_class" in seed:
        of = f" (seed {result['adapter']['seed']})" if seeds > 1 else ""
        lines += [
            "",
            f"  classes at the best epoch{of}, in %:",
            *class_tables.class_lines(seed["by_class"]),
        ]
        classes = result["labels"]["classes"]
        lines += ["", *class_tables.matrix_lines(seed["confusion_matrix"], classes)]
    return "\n".join([*lines, "", f"  {parameters_text(result)}", f"  {speed(result)}"])


def draw(result: dict[str, Any], folder: Path) -> Path | None:
    """Writes the picture of a record's confusion matrix; None where there are no classes."""
    seed = chosen_seed(result)
    if "confusion_matrix" not in seed or not is_main():
        return None
    score = result["headline"]
    title = f"{class_tables.value(score, seed['best'][score])}% {score.replace('_', ' ')} on "
    matrix = np.array(seed["confusion_matrix"])
    classes = result["labels"]["classes"]
    figure = confusion_figure(matrix, classes, f"{title}{matrix.sum():,} held-out rows")
    return save(figure, folder / PICTURE)


def main(_: list[str]) -> None:
    """Runs the command."""
    config, workdir = _CONFIG.value, _WORKDIR.value
    with command_line.readable_errors():
        command_line.join_hosts(_HOSTS.value)
        if config.eval_only:
            result = evaluation.evaluate(task, config, Path(workdir) if workdir else None)
            command_line.say("\n".join(class_tables.plain_lines(result)))
            return
        if not workdir:
            raise InputError("--workdir=DIR is needed: the folder for checkpoints and results")
        result = run_all(task, config, Path(workdir))
        command_line.say(table(result))
        picture = draw(result, Path(workdir))
        check_converged(result, Path(workdir))
        named = f"   confusion matrix: {picture}" if picture else ""
        command_line.say(f"record: {workdir}/result.json   adapter: {workdir}/adapter{named}")
        command_line.say(f"to use it: python -m experiments.predict --run={workdir} --input=FILE")


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "Run configuration.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run.")
    _HOSTS = command_line.hosts_flag()
    flags.mark_flag_as_required("config")
    command_line.run(main)
