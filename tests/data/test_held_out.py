"""Held-out rows: a share of every label, no text on both sides, the same for the same seed."""

import collections

import numpy as np
import pytest

from lora_jax.data import held_out


def rows(seed=0):
    """Texts, of which some are repeated, and labels of very different frequency."""
    random = np.random.default_rng(seed)
    keys = [f"text {i}" for i in random.integers(0, 700, 1000)]
    frequent = {key: str(random.choice(["a", "b", "c"], p=[0.8, 0.15, 0.05])) for key in keys}
    return keys, [frequent[key] for key in keys]


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_every_label_has_its_share_and_no_text_is_on_both_sides(share):
    keys, labels = rows()
    marked = held_out.held_out(keys, labels, share, 0)
    assert not {k for k, m in zip(keys, marked, strict=True) if m} & {
        k for k, m in zip(keys, marked, strict=True) if not m
    }
    largest = max(collections.Counter(keys).values())
    assert share * len(keys) <= marked.sum() < share * len(keys) + largest
    texts = collections.Counter(dict(zip(keys, labels, strict=True)).values())
    of_held = {key: labels[row] for row, key in enumerate(keys) if marked[row]}
    held = collections.Counter(of_held.values())
    whole = sum(held.values()) / sum(texts.values())
    for label, count in texts.items():
        assert abs(held[label] - whole * count) <= 1.0


def test_the_choice_is_of_the_seed_and_not_of_the_order():
    keys, labels = rows()
    marked = held_out.held_out(keys, labels, 0.2, 7)
    chosen = {k for k, m in zip(keys, marked, strict=True) if m}
    order = np.random.default_rng(1).permutation(len(keys))
    again = held_out.held_out([keys[i] for i in order], [labels[i] for i in order], 0.2, 7)
    assert chosen == {keys[i] for i, m in zip(order, again, strict=True) if m}
    other = held_out.held_out(keys, labels, 0.2, 8)
    assert chosen != {k for k, m in zip(keys, other, strict=True) if m}


def test_a_label_keeps_a_text_to_train_on():
    marked = held_out.held_out(["x", "y", "z", "z"], ["a", "b", "c", "c"], 0.9, 0)
    assert not marked.any()  # one text each
    marked = held_out.held_out(["x", "y", "z", "u"], ["a", "a", "b", "b"], 0.9, 0)
    assert marked.sum() == 2 and marked[:2].sum() == 1


def test_a_limit_keeps_the_shares_and_the_order():
    keys, labels = rows()
    by_label = sorted(range(1000), key=lambda i: labels[i])  # a file that is sorted
    keys, labels = [keys[i] for i in by_label], [labels[i] for i in by_label]
    kept = held_out.limited(keys, labels, 100, 0)
    assert len(kept) == 100 and kept == sorted(set(kept))
    counts = collections.Counter(labels)
    for label, count in collections.Counter(labels[i] for i in kept).items():
        assert abs(count - 0.1 * counts[label]) <= 1.0
    assert held_out.limited(keys, labels, 0, 0) == held_out.limited(keys, labels, 5000, 0)
    assert set(held_out.limited(keys, labels, 50, 0)) < set(kept)


def test_strata_of_numbers_are_equal_parts_by_size():
    numbers = np.random.default_rng(0).normal(size=103)
    strata = np.array(held_out.strata_of(numbers))
    assert set(np.bincount(strata)) == {10, 11}
    for part in range(9):
        assert numbers[strata == part].max() <= numbers[strata == part + 1].min()
