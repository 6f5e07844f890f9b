"""Pairs of GLUE as texts, which a decoder continues with the name of the class (paper, Tables 4 to 6, 15)."""

from __future__ import annotations

from collections.abc import Mapping

from lora_jax.data import glue
from lora_jax.data.glue_tasks import TASKS, Task
from lora_jax.data.pairs import Row
from lora_jax.errors import InputError

_SUFFIX = "_text"  # so that no record or adapter is taken for one of a classifier
OF_GLUE: Mapping[str, Task] = {
    f"{name}{_SUFFIX}": task
    for name, task in TASKS.items()
    if len(task.columns) == 2 and not task.regression
}


def rows(dataset: str, split: str, source: str) -> list[Row]:
    """Reads one split.

    Args:
      dataset: a key of `OF_GLUE`, such as mnli_text.
      split: 'train' or 'valid'; MNLI's is the matched one, as in the paper.
      source: see `glue.read`.

    Raises:
      FileNotFoundError, ValueError, ImportError, OSError: see `glue.read`; or the split is 'test', whose
        labels are not public.
    """
    task = OF_GLUE[dataset]
    if split == "test":
        raise InputError(
            f"{dataset} has no test split, as the labels of GLUE's test sets are not public. Use 'valid' "
            "(config.data.decode_split='valid')"
        )
    examples = glue.read(task, "train" if split == "train" else task.evaluations[0], source)
    assert examples.second is not None
    return [
        Row(context(task, first, second), words(task.labels[label]))
        for first, second, label in zip(
            examples.first, examples.second, examples.labels.tolist(), strict=True
        )
    ]


def classes(dataset: str) -> tuple[str, ...]:
    """The classes of a key of `OF_GLUE` as a model writes them, by class id."""
    return tuple(map(words, OF_GLUE[dataset].labels))


def context(task: Task, first: str, second: str) -> str:
    """A pair as a model reads it, a line each: `premise: ...` and `hypothesis: ...`."""
    lines = zip(task.features, (first, second), strict=True)
    return "\n".join(f"{name}: {' '.join(text.split())}" for name, text in lines)


def words(label: str) -> str:
    """The name of a class as a model writes it: `not entailment`."""
    return label.replace("_", " ")
