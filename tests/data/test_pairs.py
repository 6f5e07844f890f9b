"""Pairs of data and text: grouping by context, cleaning, taking a part."""

from __future__ import annotations

import glue_files
import pytest

from lora_jax.data import data_to_text, glue, glue_tasks, glue_text
from lora_jax.data.pairs import Pairs, by_context, clean


def test_grouping_by_context_keeps_order_and_cleans_references():
    pairs = Pairs(list("abacb"), ["1", " 2 ", "3<|endoftext|>x", "4\n\ny", "2"], list("sussu"))
    groups = by_context(pairs)
    assert groups.contexts == ["a", "b", "c"] and groups.subsets == ["s", "u", "s"]
    assert groups.references == [["1", "3"], ["2", "2"], ["4"]]
    assert len(groups) == 3
    with pytest.raises(ValueError, match=r"'a' is in the subsets 'seen' and 'unseen'.*Give"):
        by_context(Pairs(["a", "a"], ["1", "2"], ["seen", "unseen"]))


def test_clean_cuts_at_the_end_marker_then_at_an_empty_line():
    assert clean(" A pub . <|endoftext|> more\n\n<|endoftext|>") == "A pub ."
    assert clean("\nOne\nline .\n\nmore<|endoftext|>") == "One\nline ."
    assert clean("\n\nnothing before") == "" == clean("")


def test_take_keeps_rows_together():
    pairs = Pairs(list("abc"), list("123"), list("xyz"), "note")
    assert pairs.take(0) is pairs and len(pairs.take(9)) == 3
    assert pairs.take(2) == Pairs(["a", "b"], ["1", "2"], ["x", "y"], "note")
    with pytest.raises(ValueError, match="1 contexts, 2 completions and 1 subsets"):
        Pairs(["a"], ["1", "2"], [""])


def test_balanced_rows_are_those_that_a_classifier_gets(tmp_path):
    """The same rows as `Examples.balanced` takes of the same file, whose class ids have another order."""
    for name in ("mnli", "wnli"):
        task = glue_tasks.task(name)
        glue_files.write_folder(task, tmp_path)
        pairs = data_to_text.read(f"{name}_text", "train", str(tmp_path))
        examples = glue.read(task, "train", str(tmp_path))
        for limit in (len(task.labels), len(task.labels) + 1, 0):
            taken, expected = pairs.balanced(limit), examples.balanced(limit, task.labels)
            assert taken.contexts == [
                glue_text.context(task, *texts)
                for texts in zip(expected.first, expected.second, strict=True)
            ]
            labels = [task.labels[label].replace("_", " ") for label in expected.labels]
            assert taken.completions == labels and taken.classes == pairs.classes
            assert len(taken.subsets) == len(taken)


def test_what_cannot_be_balanced_says_why():
    rows = Pairs(list("abcd"), ["no", "yes", "no", "no"], [""] * 4, classes=("yes", "no"))
    assert rows.balanced(2).contexts == ["a", "b"] == rows.balanced(0).contexts
    with pytest.raises(
        ValueError, match="3 balanced examples need 2 of class 'yes', and there are 1: at most 2"
    ):
        rows.balanced(3)
    with pytest.raises(ValueError, match=r"texts of this data set are not labels: leave data\.bal"):
        Pairs(["a"], ["b"], [""]).balanced(1)
