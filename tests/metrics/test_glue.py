"""Tests of the GLUE scores against formulas written out in numpy."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from lora_jax.data.glue_tasks import TASKS, task
from lora_jax.metrics import glue

pytestmark = pytest.mark.filterwarnings("error")


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum()))


def mean_ranks(x: np.ndarray) -> np.ndarray:
    """Ranks with ties at their mean: values below, plus half of the values equal."""
    return (x[None] < x[:, None]).sum(1) + (x[None] == x[:, None]).sum(1) / 2


@pytest.mark.parametrize("name", [name for name in TASKS if name != "stsb"])
@pytest.mark.parametrize("seed", range(5))
def test_classification_matches_counts(name, seed):
    generator = np.random.default_rng(seed)
    classes = task(name).num_outputs
    labels = generator.integers(classes, size=83)
    logits = generator.normal(size=(83, classes)) + 0.8 * np.eye(classes)[labels]
    found = glue.scores(task(name), logits.astype(np.float32), labels.astype(np.int32))
    chosen = logits.argmax(-1)
    expected = {"accuracy": np.mean(chosen == labels)}
    if classes == 2:
        tp, tn = np.sum(chosen & labels), np.sum((1 - chosen) & (1 - labels))
        fp, fn = np.sum(chosen & (1 - labels)), np.sum((1 - chosen) & labels)
        if name in ("mrpc", "qqp"):
            expected["f1"] = 2 * tp / (2 * tp + fp + fn)
        if name == "cola":
            below = float(tp + fp) * float(tp + fn) * float(tn + fp) * float(tn + fn)
            expected["matthews"] = (tp * tn - fp * fn) / math.sqrt(below)
    assert found == pytest.approx(expected, abs=1e-12)
    assert glue.headline(task(name)) in found


@pytest.mark.parametrize("column", [False, True])
def test_regression_matches_formulas_with_ties(column):
    generator = np.random.default_rng(7)
    labels = (generator.integers(0, 26, size=71) / 5).astype(np.float32)  # Has ties, as STS-B has.
    outputs = (labels + generator.normal(size=71)).round(1).astype(np.float32)
    found = glue.scores(task("stsb"), outputs[:, None] if column else outputs, labels)
    wide, labels = outputs.astype(np.float64), labels.astype(np.float64)
    expected = {
        "pearson": pearson(wide, labels),
        "spearman": pearson(mean_ranks(wide), mean_ranks(labels)),
    }
    assert found == pytest.approx(expected, abs=1e-12)
    assert glue.headline(task("stsb")) == "pearson"


@pytest.mark.parametrize("labels", [[0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
def test_constant_predictions_score_zero_and_do_not_warn(labels):
    logits = np.tile([1.0, 0.0], (4, 1))
    labels = np.array(labels)
    assert glue.scores(task("cola"), logits, labels)["matthews"] == 0.0
    assert glue.scores(task("mrpc"), logits, labels)["f1"] == 0.0
    assert glue.scores(task("rte"), logits, labels) == {"accuracy": np.mean(labels == 0)}
    zero = {"pearson": 0.0, "spearman": 0.0}
    assert glue.scores(task("stsb"), np.full(4, 2.7), labels) == zero


def test_nearly_constant_regression_does_not_warn():
    outputs = 2.7 + np.array([0.0, 0.0, 0.0, 4e-16])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = glue.scores(task("stsb"), outputs, np.array([0.0, 1.0, 2.0, 5.0]))
    assert all(math.isfinite(value) for value in found.values())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_diverged_run_scores_nan(bad):
    logits = np.zeros((3, 2))
    logits[1, 0] = bad
    found = glue.scores(task("cola"), logits, np.array([0, 1, 0]))
    assert set(found) == {"accuracy", "matthews"}
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize(
    ("name", "outputs", "labels", "message"),
    [
        ("mnli", (4, 2), np.zeros(4), r"mnli needs outputs of shape \(N, 3\).*outputs \(4, 2\)"),
        ("sst2", (4, 2), np.zeros(3), r"labels \(3,\)"),
        ("sst2", (4,), np.zeros(4), r"outputs \(4,\)"),
        ("sst2", (4, 2), np.zeros((4, 1)), r"labels \(4, 1\)"),
        ("sst2", (0, 2), np.zeros(0), "N > 0"),
        ("stsb", (4, 2), np.zeros(4), r"\(N, 1\) or \(N,\)"),
        ("sst2", (2, 2), np.array([0, -1]), "classes 0 to 1: row 1 has -1.*not public"),
        ("stsb", (2, 1), np.array([0, np.nan]), "finite scores: row 1 has nan"),
    ],
)
def test_misfits_are_refused(name, outputs, labels, message):
    with pytest.raises(ValueError, match=message):
        glue.scores(task(name), np.zeros(outputs), labels)
