"""Scores of predicted classes and numbers, by scikit-learn and scipy; GLUE's scores are made of them."""

from __future__ import annotations

import warnings

import numpy as np
from jaxtyping import Float, Int, Num
from scipy import stats
from sklearn import metrics

CLASSES = ("accuracy", "macro_f1", "micro_f1", "matthews")
NUMBERS = ("pearson", "spearman", "mse")


def score(
    name: str, predictions: Num[np.ndarray, " examples"], labels: Num[np.ndarray, " examples"]
) -> float:
    """One score.

    A macro F1 is the mean over the classes that occur among labels or predictions. A class that is never
    predicted has an F1 of 0. A correlation with a constant, which is undefined, counts as 0, so that a run
    that collapsed to one answer is recorded with a poor score rather than lost as NaN.

    Args:
      name: of `CLASSES` or `NUMBERS`, or `f1`, that of class 1.
      predictions: classes or numbers.
      labels: what they should be.
    """
    if name == "accuracy":
        return float(metrics.accuracy_score(labels, predictions))
    if name == "mse":
        return float(metrics.mean_squared_error(labels, predictions))
    if name.endswith("f1"):
        average = {"f1": "binary", "macro_f1": "macro", "micro_f1": "micro"}[name]
        return float(metrics.f1_score(labels, predictions, average=average, zero_division=0.0))
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    if name == "matthews":
        return float(metrics.matthews_corrcoef(labels, predictions))
    with warnings.catch_warnings():  # scipy warns of nearly constant input; the value still holds.
        warnings.simplefilter("ignore")
        correlation = stats.pearsonr if name == "pearson" else stats.spearmanr
        return float(np.nan_to_num(correlation(predictions, labels).statistic))


def class_scores(
    outputs: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, " examples"]
) -> dict[str, float]:
    """The scores in `CLASSES` of a model's logits; NaN where a logit is not finite, as of a diverged run."""
    if not np.isfinite(outputs).all():
        return dict.fromkeys(CLASSES, float("nan"))
    predictions = outputs.argmax(axis=-1)
    return {name: score(name, predictions, labels) for name in CLASSES}


def number_scores(
    predictions: Float[np.ndarray, " examples"], labels: Float[np.ndarray, " examples"]
) -> dict[str, float]:
    """The scores in `NUMBERS`; NaN where a prediction is not finite, as of a diverged run."""
    if not np.isfinite(predictions).all():
        return dict.fromkeys(NUMBERS, float("nan"))
    return {name: score(name, predictions, labels) for name in NUMBERS}


def confusion_matrix(
    predictions: Int[np.ndarray, " examples"], labels: Int[np.ndarray, " examples"], classes: int
) -> Int[np.ndarray, "{classes} {classes}"]:
    """How often examples of a class (rows) were given each class (columns)."""
    counts: np.ndarray = metrics.confusion_matrix(labels, predictions, labels=range(classes))
    return counts


def by_class(
    predictions: Int[np.ndarray, " examples"], labels: Int[np.ndarray, " examples"], classes: int
) -> list[dict[str, float | int]]:
    """Precision, recall, F1 and support (examples) of every class; 0 where one is undefined."""
    columns = metrics.precision_recall_fscore_support(
        labels, predictions, labels=range(classes), zero_division=0.0
    )
    return [
        {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for p, r, f, n in zip(*columns, strict=True)
    ]
