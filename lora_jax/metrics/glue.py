"""Scores outputs on the GLUE tasks, by the metrics of the paper's section 5.2 and Table 2."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Num

from lora_jax.data.glue_tasks import Task
from lora_jax.errors import InputError
from lora_jax.metrics.classification import score

_WITH_F1 = ("mrpc", "qqp")
_HEADLINES = {"cola": "matthews", "stsb": "pearson"}


def headline(task: Task) -> str:
    """Returns the metric that the paper's Table 2 shows for a task.

    It is Matthews correlation for CoLA, Pearson correlation for STS-B and accuracy for all others,
    MRPC and QQP included. The paper's MNLI number is the accuracy over matched and mismatched.
    """
    return _HEADLINES.get(task.name, "accuracy")


def scores(
    task: Task, outputs: Float[np.ndarray, ...], labels: Num[np.ndarray, ...]
) -> dict[str, float]:
    """Scores a model's outputs on one split.

    Args:
        task: One of `glue_tasks.TASKS`.
        outputs: (N, classes) logits; for regression (N, 1) or (N,) predicted scores.
        labels: (N,) class ids, or (N,) scores for regression.

    Returns:
        Fractions in [-1, 1] by metric: 'accuracy' for classification, with 'f1' of class 1 for
        MRPC and QQP and 'matthews' for CoLA; 'pearson' and 'spearman' for STS-B. Predictions that
        are all equal give a correlation of 0.0. When any output is not finite, the run has
        diverged and every metric is NaN, so that it is recorded as such and never as a score.

    Raises:
        ValueError: The shapes do not fit the task, there are no examples, or a label is invalid.
    """
    outputs = np.asarray(outputs).astype(np.float64)
    labels = np.asarray(labels)
    _check(task, outputs, labels)
    names = _metric_names(task)
    if not np.isfinite(outputs).all():
        return dict.fromkeys(names, float("nan"))
    if task.regression:
        predictions, labels = outputs.reshape(-1), labels.astype(np.float64)
    else:
        predictions, labels = outputs.argmax(axis=-1), labels.astype(np.int64)
    return {name: score(name, predictions, labels) for name in names}


def _metric_names(task: Task) -> tuple[str, ...]:
    if task.regression:
        return ("pearson", "spearman")
    if task.name in _WITH_F1:
        return ("accuracy", "f1")
    return ("accuracy", "matthews") if task.name == "cola" else ("accuracy",)


def _check(task: Task, outputs: np.ndarray, labels: np.ndarray) -> None:
    """Raises ValueError when outputs and labels do not fit the task or each other."""
    rows = labels.shape[0] if labels.ndim == 1 else None
    shapes = [(rows, task.num_outputs)] + ([(rows,)] if task.regression else [])
    if not rows or outputs.shape not in shapes:
        expected = "(N, 1) or (N,)" if task.regression else f"(N, {task.num_outputs})"
        raise InputError(
            f"{task.name} needs outputs of shape {expected} and labels of shape (N,) with N > 0: got "
            f"outputs {outputs.shape} and labels {labels.shape}."
        )
    classes = range(task.num_outputs)
    valid = np.isfinite(labels) if task.regression else np.isin(labels, classes)
    if not valid.all():
        row = int(np.argmin(valid))
        expected = "finite scores" if task.regression else f"classes 0 to {classes[-1]}"
        raise InputError(
            f"{task.name} labels must be {expected}: row {row} has {labels[row]}. Labels of the "
            "test sets are not public and cannot be scored."
        )
