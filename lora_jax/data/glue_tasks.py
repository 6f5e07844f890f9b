"""The nine GLUE tasks: names, files, columns, classes.

Tasks: Wang et al. 2019, https://gluebenchmark.com. The paper (section 5.2, Table 2) trains on eight of
them; WNLI is here for completeness.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Mapping

_BINARY = ("0", "1")
_ONE = ("sentence",)
_PAIR = ("sentence1", "sentence2")
_QUESTIONS = ("question1", "question2")
_ANSWER = ("question", "sentence")
_ENTAILMENT = ("entailment", "not_entailment")
_NLI = ("entailment", "neutral", "contradiction")


@dataclasses.dataclass(frozen=True)
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
        "cola",
        "CoLA",
        _ONE,
        _ONE,
        "label",
        ("unacceptable", "acceptable"),
        _BINARY,
        header=("source", "label", "mark", "sentence"),
    ),
    Task("sst2", "SST-2", _ONE, _ONE, "label", ("negative", "positive"), _BINARY),
    Task(
        "mrpc",
        "MRPC",
        ("#1 String", "#2 String"),
        _PAIR,
        "Quality",
        ("not_equivalent", "equivalent"),
        _BINARY,
    ),
    Task("stsb", "STS-B", _PAIR, _PAIR, "score", (), ()),
    Task(
        "qqp",
        "QQP",
        _QUESTIONS,
        _QUESTIONS,
        "is_duplicate",
        ("not_duplicate", "duplicate"),
        _BINARY,
        skip_short_rows=True,
    ),
    Task(
        "mnli",
        "MNLI",
        _PAIR,
        ("premise", "hypothesis"),
        "gold_label",
        _NLI,
        _NLI,
        evaluations=("validation_matched", "validation_mismatched"),
    ),
    Task("qnli", "QNLI", _ANSWER, _ANSWER, "label", _ENTAILMENT, _ENTAILMENT),
    Task("rte", "RTE", _PAIR, _PAIR, "label", _ENTAILMENT, _ENTAILMENT),
    # The two classes of WNLI are in the opposite order to those of RTE and QNLI.
    Task("wnli", "WNLI", _PAIR, _PAIR, "label", _ENTAILMENT[::-1], _BINARY),
)

TASKS: Mapping[str, Task] = types.MappingProxyType({each.name: each for each in _ALL})


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
    raise ValueError(f"Unknown GLUE task {name!r}.{hint} Valid names: {', '.join(TASKS)}.")
