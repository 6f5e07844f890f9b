"""Predictions of a finished run of experiments.classify, experiments.glue or experiments.quickstart.

    python -m experiments.predict --run=DIR --input=FILE --output=predictions.csv

FILE is a table with the columns that the run was trained on (JSONL, JSON, CSV, TSV, Parquet), or .txt with
a text a line (two texts: a tab between them). Every row gets the class and its probabilities, or the
number; where the file has labels, whether it is right, and the scores are printed. Without --input the
run's own held-out rows are predicted. --input=- answers each line of the standard input at once. --output
ends in .jsonl or .csv; without it JSON lines are printed. LoRA is merged into the base first. See
docs/classify.md.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import glue, quickstart
from experiments.runs import class_tables, command_line, meanings, own_texts
from experiments.runs.answers import answers, as_text, read_input, texts_of_line
from experiments.runs.classification import Outputs, Problem
from experiments.runs.fields import OWN_TEXTS
from experiments.runs.predictor import Predictor, finished_run
from lora_jax import json_lines
from lora_jax.data import glue_tasks, labelled_texts
from lora_jax.data.glue import Examples
from lora_jax.data.labels import Labels
from lora_jax.data.tables import Table
from lora_jax.errors import InputError
from lora_jax.files import check_output, to_json, write_text
from lora_jax.metrics import glue as glue_metrics
from lora_jax.reading import Record, check_file

INPUT = "input"  # name of the split of a file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meaning(meanings.Meaning):
    """What inputs and outputs of a run mean.

    Attributes:
      score: (outputs, targets of a file) -> scores.
      problem: reads the data of the run itself.
    """

    score: Callable[[np.ndarray, np.ndarray], dict[str, float]]
    problem: Callable[[], Problem]


def meaning(config: ConfigDict, record: Record) -> Meaning:
    """What a run's inputs and outputs mean; InputError for a run that predicts no classes or numbers."""
    task = config.get("task")
    found = meanings.of_task(task, record)
    if found is None:
        raise InputError(
            f"{record.path.parent} is the run of another command; predictions are of runs of "
            "experiments.classify, experiments.glue and experiments.quickstart"
        )
    score: Callable[[np.ndarray, np.ndarray], dict[str, float]]
    if task in glue_tasks.TASKS:
        score = partial(glue_metrics.scores, glue_tasks.task(task))
        read = partial(glue.problem, config)
    else:
        score = partial(own_texts.scores, found.labels)
        read = partial((own_texts if task == OWN_TEXTS else quickstart).problem, config)
    return Meaning(columns=found.columns, labels=found.labels, score=score, problem=read)


def without_data(kind: Labels, examples: Examples | None) -> Problem:
    """A problem that has nothing but texts to predict."""

    def no_scores(outputs: Outputs, targets: Outputs) -> dict[str, float]:
        return {}

    return Problem(
        name="predict", num_outputs=kind.num_outputs, regression=kind.regression, headline="", train=None,
        evaluations={} if examples is None else {INPUT: examples}, score=no_scores,
    )  # fmt: skip


def predict_rows(
    run: Path, source: str, model: str = "", merged: bool = True
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Predicts the rows of a file, or the run's own held-out rows.

    Args:
      run: folder of a finished run.
      source: path of the file; "" for the held-out rows.
      model: see `finished_run`.
      merged: see `Predictor`.

    Returns:
      Rows of output, and the scores: {} where there are no labels.
    """
    config, record = finished_run(run, model)
    meant = meaning(config, record)
    kind, columns = meant.labels, meant.columns
    if not source:
        predictor = Predictor(config, meant.problem, run, merged=merged)
        return _held_out(meant, predictor)
    texts = read_input(Path(source), columns)
    known = texts.encoded(kind) if texts.labels else None
    examples = texts.examples(kind)
    predictor = Predictor(config, lambda: without_data(kind, examples), run, merged=merged)
    outputs = predictor.of_splits()[INPUT]
    dtype = np.float64 if kind.regression else np.int32
    found = {} if known is None else meant.score(outputs, np.asarray(known, dtype))
    return answers(kind, columns, examples, outputs, known), found


def _held_out(
    meant: Meaning, predictor: Predictor
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows and scores of the splits that a run was judged by."""
    problem, outputs = predictor.task.problem, predictor.of_splits()
    rows = []
    for split, data in problem.evaluations.items():
        known = meant.labels.restored(data.labels)
        rows += answers(meant.labels, meant.columns, data, outputs[split], known)
    targets = {split: data.labels for split, data in problem.evaluations.items()}
    return rows, problem.score(outputs, targets)


def predict_lines(
    run: Path, lines: Iterable[str], model: str = "", merged: bool = True
) -> Iterable[dict[str, Any]]:
    """Answers line by line; a line that cannot be read has an `error` in its answer.

    Args:
      run: folder of a finished run.
      lines: of the standard input, with their ends; empty ones are passed over.
      model, merged: as of `predict_rows`.
    """
    config, record = finished_run(run, model)
    meant = meaning(config, record)
    kind, columns = meant.labels, meant.columns
    predictor = Predictor(config, lambda: without_data(kind, None), run, merged=merged)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            where = f"line {number}"
            row = texts_of_line(line.rstrip("\r\n"), columns, "the standard input", where)
            table = Table(Path("the standard input"), columns.of_texts, [row], [number], "line")
            examples = labelled_texts.of_table(table, columns, labelled=False).examples(kind)
            yield answers(kind, columns, examples, predictor.of_line(examples), None)[0]
        except InputError as error:
            yield {"error": str(error)}


def main(arguments: list[str]) -> None:
    """Runs the command."""
    run, source, output = Path(_RUN.value or ""), _INPUT.value, _OUTPUT.value
    suffix = Path(output).suffix.lower() if output else ".jsonl"
    with command_line.readable_errors():
        command_line.refuse_rest(arguments)
        if suffix not in (".jsonl", ".csv") or (source == "-" and suffix == ".csv"):
            wanted = ".jsonl" if source == "-" else ".jsonl or .csv"
            raise InputError(f"--output={output}: the name must end in {wanted}")
        if output:
            check_output(Path(output), [source] if source not in ("", "-") else [], "--output")
        if source not in ("", "-"):
            check_file(Path(source))
        if source == "-":
            _answer_lines(run, output)
            return
        rows, scores = predict_rows(run, source, _MODEL.value, _MERGE.value)
        text = as_text(rows, suffix)
        if not output:
            print(text, end="")
        else:
            write_text(output, text)
            if scores:
                command_line.say("\n".join(class_tables.plain_lines(scores)))
            command_line.say(f"{len(rows):,} predictions: {output}")


def _answer_lines(run: Path, output: str) -> None:
    if sys.stdin.isatty():
        print("A text a line (two texts: a tab between them); Ctrl-D ends.", file=sys.stderr)
    answered = predict_lines(run, sys.stdin, _MODEL.value, _MERGE.value)
    if output:
        write_text(output, "")
        with json_lines.Appender(Path(output)) as file:
            for row in answered:
                file.write(row)
        return
    for row in answered:
        print(to_json(row, indent=None), flush=True)


if __name__ == "__main__":
    _RUN = flags.DEFINE_string("run", None, "Folder of a finished run (its --workdir).")
    _INPUT = flags.DEFINE_string(
        "input", "", "File to predict; - for lines; else the held-out rows."
    )
    _OUTPUT = flags.DEFINE_string(
        "output", "", "File of predictions, .jsonl or .csv; else they are printed."
    )
    _MODEL = flags.DEFINE_string("model", "", "Where the run's base is now, if elsewhere.")
    _MERGE = flags.DEFINE_bool("merge", True, "Merge LoRA into the base first.")
    flags.mark_flag_as_required("run")
    command_line.run(main)
