"""What the texts and the outputs of a classifier mean, by what its run or its adapter says of itself."""

from __future__ import annotations

import dataclasses

from experiments.runs.fields import OWN_TEXTS
from lora_jax.data import glue_tasks, labels
from lora_jax.data.labelled_texts import Columns
from lora_jax.data.labels import Labels
from lora_jax.reading import Record

SENTIMENT = "sentiment"  # task of experiments.quickstart


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meaning:
    """What inputs and outputs mean.

    Attributes:
      columns: of tables with such texts.
      labels: what the outputs stand for.
    """

    columns: Columns
    labels: Labels


def of_task(task: object, described: Record) -> Meaning | None:
    """What inputs and outputs of a task mean; None for a task of another kind, or none.

    Args:
      task: its name.
      described: the record of a run, or the notes of an adapter, which say the columns and labels of a
        user's own texts.

    Raises:
      FileError: they do not.
    """
    if task == OWN_TEXTS:
        return Meaning(
            columns=Columns(**described.text_by_name("columns")),
            labels=labels.from_json(described.record("labels")),
        )
    if task == SENTIMENT:
        kind = Labels(classes=("negative", "positive"), values=("0", "1"))
        return Meaning(columns=Columns("text"), labels=kind)
    if not isinstance(task, str) or task not in glue_tasks.TASKS:
        return None
    of_glue = glue_tasks.task(task)
    return Meaning(
        columns=Columns(of_glue.columns[0], "".join(of_glue.columns[1:]), of_glue.label_column),
        labels=Labels(classes=of_glue.labels, values=of_glue.label_values),
    )
