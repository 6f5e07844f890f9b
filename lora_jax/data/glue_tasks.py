"""The nine GLUE tasks: their names, files, columns and classes.

Tasks: Wang et al. 2019, https://gluebenchmark.com. The paper (section 5.2, Table 2) trains on eight of
them; WNLI is here for completeness.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Mapping

from lora_jax.errors import InputError

MAX_SCORE = 5.0  # STS-B similarity runs from 0 to 5.

HOW_TO_GET = (
    "Two sources work: source='tfds' (TensorFlow Datasets downloads the task), or "
    "config.data.source=FOLDER with the original GLUE files from https://gluebenchmark.com/tasks "
    "unpacked in it, one folder a task (FOLDER/SST-2/train.tsv, FOLDER/SST-2/dev.tsv)."
)

_BINARY = ("0", "1")
_SENTENCE = ("sentence",)
_SENTENCES = ("sentence1", "sentence2")
_QUESTIONS = ("question1", "question2")
_ANSWER = ("question", "sentence")
_ENTAILMENT = ("entailment", "not_entailment")
_NLI = ("entailment", "neutral", "contradiction")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What a reader, a model head and a metric need to know of one GLUE task.

    Attributes:
        name: Short name, also the name of the TFDS and Hugging Face configuration.
        folder: Folder name in the original GLUE distribution.
        columns: TSV columns of the text: one, or two for a task on pairs.
        features: Names of the same texts in TFDS.
        label_column: TSV column of the label.
        labels: Class names in the order of their ids in TFDS and Hugging Face; () for regression.
        label_values: The classes as the TSV file writes them, in the order of `labels`.
        evaluations: Splits that hold public labels and are not for training.
        header: Column names of a file without a header line; () when the file has one.
        skip_short_rows: Drop rows with too few columns instead of raising. The official QQP files
            hold a few rows cut by newlines inside questions, and every reader of GLUE drops them.
    """

    name: str
    folder: str
    columns: tuple[str, ...]
    features: tuple[str, ...]
    label_column: str
    labels: tuple[str, ...]
    label_values: tuple[str, ...]
    evaluations: tuple[str, ...] = ("validation",)
    header: tuple[str, ...] = ()
    skip_short_rows: bool = False

    @property
    def regression(self) -> bool:
        """Whether labels are scores (STS-B) and not classes."""
        return not self.labels

    @property
    def num_outputs(self) -> int:
        """Width of the model's output: the number of classes, or 1 for regression."""
        return len(self.labels) or 1

    @property
    def tfds_config(self) -> str:
        """Configuration name of the task in `tensorflow_datasets.text.glue.Glue`."""
        return self.name


_ALL = (
    Task(
        name="cola",
        folder="CoLA",
        columns=_SENTENCE,
        features=_SENTENCE,
        label_column="label",
        labels=("unacceptable", "acceptable"),
        label_values=_BINARY,
        header=("source", "label", "mark", "sentence"),
    ),
    Task(
        name="sst2",
        folder="SST-2",
        columns=_SENTENCE,
        features=_SENTENCE,
        label_column="label",
        labels=("negative", "positive"),
        label_values=_BINARY,
    ),
    Task(
        name="mrpc",
        folder="MRPC",
        columns=("#1 String", "#2 String"),
        features=_SENTENCES,
        label_column="Quality",
        labels=("not_equivalent", "equivalent"),
        label_values=_BINARY,
    ),
    Task(
        name="stsb",
        folder="STS-B",
        columns=_SENTENCES,
        features=_SENTENCES,
        label_column="score",
        labels=(),
        label_values=(),
    ),
    Task(
        name="qqp",
        folder="QQP",
        columns=_QUESTIONS,
        features=_QUESTIONS,
        label_column="is_duplicate",
        labels=("not_duplicate", "duplicate"),
        label_values=_BINARY,
        skip_short_rows=True,
    ),
    Task(
        name="mnli",
        folder="MNLI",
        columns=_SENTENCES,
        features=("premise", "hypothesis"),
        label_column="gold_label",
        labels=_NLI,
        label_values=_NLI,
        evaluations=("validation_matched", "validation_mismatched"),
    ),
    Task(
        name="qnli",
        folder="QNLI",
        columns=_ANSWER,
        features=_ANSWER,
        label_column="label",
        labels=_ENTAILMENT,
        label_values=_ENTAILMENT,
    ),
    Task(
        name="rte",
        folder="RTE",
        columns=_SENTENCES,
        features=_SENTENCES,
        label_column="label",
        labels=_ENTAILMENT,
        label_values=_ENTAILMENT,
    ),
    Task(
        name="wnli",
        folder="WNLI",
        columns=_SENTENCES,
        features=_SENTENCES,
        label_column="label",
        labels=_ENTAILMENT[::-1],  # the opposite order to that of RTE and QNLI
        label_values=_BINARY,
    ),
)

TASKS: Mapping[str, Task] = types.MappingProxyType({task.name: task for task in _ALL})


def task(name: str) -> Task:
    """Returns the task called `name`.

    Raises:
        ValueError: No task has exactly this name; the message names the nearest one.
    """
    if name in TASKS:
        return TASKS[name]
    plain = "".join(c for c in name.lower() if c.isalnum())
    nearest = difflib.get_close_matches(plain, TASKS, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise InputError(f"Unknown GLUE task {name!r}.{hint} Valid names: {', '.join(TASKS)}.")
