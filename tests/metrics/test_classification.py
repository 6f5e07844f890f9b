"""Scores of classes and numbers against closed forms, by hand and in float64."""

import math

import numpy as np
import pytest

from lora_jax.metrics import classification as metrics

# Rows are labels: 3 classes with 4, 3 and 1 examples.
MATRIX = np.array([[3, 1, 0], [1, 1, 1], [0, 1, 0]])
PAIRS = [(i, j) for i in range(3) for j in range(3) for _ in range(MATRIX[i, j])]
LABELS, PREDICTIONS = (np.array(values, np.int32) for values in zip(*PAIRS, strict=True))


def logits(predictions, classes=3):
    return np.eye(classes)[predictions] * 3.0 - 1.0


def test_the_confusion_matrix_and_each_class():
    assert (metrics.confusion_matrix(PREDICTIONS, LABELS, 3) == MATRIX).all()
    first, second, third = metrics.by_class(PREDICTIONS, LABELS, 3)
    assert first == {"precision": 3 / 4, "recall": 3 / 4, "f1": 3 / 4, "support": 4}
    assert second == pytest.approx({"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3, "support": 3})
    assert third == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}


def test_scores_by_hand():
    found = metrics.class_scores(logits(PREDICTIONS), LABELS)
    # Gorodkin's form of Matthews' correlation for several classes.
    right, n = np.trace(MATRIX), MATRIX.sum()
    rows, columns = MATRIX.sum(1), MATRIX.sum(0)
    matthews = (right * n - rows @ columns) / math.sqrt(
        (n**2 - rows @ rows) * (n**2 - columns @ columns)
    )
    expected = {
        "accuracy": 4 / 8, "micro_f1": 4 / 8, "macro_f1": (3 / 4 + 1 / 3 + 0) / 3, "matthews": matthews,
    }  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-12) and tuple(found) == metrics.CLASSES


def test_a_class_that_is_nowhere_does_not_count_for_the_mean():
    four = metrics.class_scores(logits(PREDICTIONS, 4), LABELS)
    assert four["macro_f1"] == metrics.class_scores(logits(PREDICTIONS), LABELS)["macro_f1"]
    assert metrics.by_class(PREDICTIONS, LABELS, 4)[3] == {
        "precision": 0, "recall": 0, "f1": 0, "support": 0
    }  # fmt: skip


def test_one_answer_for_all_is_scored_and_not_lost():
    always = metrics.class_scores(logits(np.zeros(8, int)), LABELS)
    assert always == pytest.approx(
        {"accuracy": 1 / 2, "micro_f1": 1 / 2, "macro_f1": (2 / 3 + 0 + 0) / 3, "matthews": 0.0}
    )


def test_numbers_by_hand():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 40))
    a, b = x - x.mean(), y - y.mean()
    rank = lambda v: np.argsort(np.argsort(v)).astype(float)  # noqa: E731
    apart = rank(x) - rank(y)
    expected = {
        "pearson": a @ b / math.sqrt((a @ a) * (b @ b)),
        "spearman": 1 - 6 * apart @ apart / (40 * (40**2 - 1)),
        "mse": np.mean((x - y) ** 2),
    }  # fmt: skip
    assert metrics.number_scores(x, y) == pytest.approx(expected, rel=1e-12)
    assert metrics.number_scores(np.full(40, 2.0), y)["pearson"] == 0.0


def test_outputs_that_are_not_finite_have_no_score():
    outputs = logits(PREDICTIONS)
    outputs[3, 1] = math.inf
    assert all(math.isnan(v) for v in metrics.class_scores(outputs, LABELS).values())
    numbers = metrics.number_scores(np.array([1.0, math.nan]), np.array([1.0, 2.0]))
    assert all(math.isnan(v) for v in numbers.values()) and tuple(numbers) == metrics.NUMBERS
