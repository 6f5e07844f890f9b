"""The picture of a confusion matrix: what it shows, for few classes and for many."""

import numpy as np
import pytest

from lora_jax.analysis.confusion import confusion_figure
from lora_jax.data.labels import short_name


def matrix(count):
    return np.random.default_rng(0).integers(0, 2000, (count, count)) + 1


@pytest.mark.parametrize("count", [2, 12, 25])
def test_every_count_and_name_is_shown(count):
    counts, names = matrix(count), [f"cost in $ {i}" for i in range(count)]
    axis, _ = confusion_figure(counts, names, "title").axes
    shown = {(round(t.get_position()[1]), round(t.get_position()[0])): t for t in axis.texts}
    assert {place: text.get_text() for place, text in shown.items()} == {
        place: f"{number:,}" for place, number in np.ndenumerate(counts)
    }
    for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
        assert [label.get_text().replace("\\", "") for label in labels] == names
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("prediction", "label")
    np.testing.assert_allclose(axis.images[0].get_array().sum(axis=1), 1.0)


@pytest.mark.parametrize(("count", "named"), [(26, 26), (110, 110), (300, 100)])
def test_pictures_of_many_classes_stay_readable(count, named):
    figure = confusion_figure(matrix(count), [f"name {i}" for i in range(count)])
    axis = figure.axes[0]
    assert not axis.texts and len(axis.get_yticklabels()) == named
    # Names do not overlap: their letters are lower than the cells between them.
    size = axis.get_yticklabels()[0].get_fontsize()
    assert 4 <= size <= 72 * figure.get_figheight() / named and figure.get_figheight() < 16


def test_a_class_without_rows_is_white():
    axis = confusion_figure(np.array([[3, 1], [0, 0]]), ["a", "b"]).axes[0]
    np.testing.assert_array_equal(axis.images[0].get_array(), [[0.75, 0.25], [0, 0]])


def test_long_names_keep_their_ends():
    assert short_name("a\n b") == "a b" and short_name("x" * 24) == "x" * 24
    short = short_name("wrong amount of cash received in March")
    assert short == "wrong amount of…in March" and len(short) == 24
