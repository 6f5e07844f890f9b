"""Pairs of data and text: grouping by context, cleaning, taking a part."""

from __future__ import annotations

import pytest

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
