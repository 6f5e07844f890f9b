"""Packing: nothing overlaps, nothing is lost."""

from __future__ import annotations

import math

import numpy as np
import pytest
from random_examples import random_examples

from lora_jax.data import packing

# place


@pytest.mark.parametrize("seed", range(60))
def test_place_never_overlaps_or_overflows_and_wastes_little(seed):
    rng = np.random.default_rng(seed)
    row_length = int(rng.integers(1, 200))
    share = rng.choice([1, 2, 4, 8])
    longest = max(1, row_length // share)
    lengths = rng.integers(1, longest + 1, rng.integers(1, 80)).tolist()
    where, rows = packing.place(lengths, row_length)
    taken = np.zeros((rows, row_length), int)
    for length, (row, column) in zip(lengths, where, strict=True):
        assert column >= 0 and column + length <= row_length
        taken[row, column : column + length] += 1
    assert taken.max() == 1 and taken.any(axis=1).all()
    # A row is opened only if no open one has room: all rows but one are fuller than
    # row_length - longest (and, with long segments, all but one are more than half full).
    total = sum(lengths)
    assert rows <= 2 * total / row_length + 1
    assert rows <= total / (row_length - longest + 1) + 1
    if longest <= row_length // 4:  # longest first fills the gaps with short ones: bound + 1
        assert rows <= math.ceil(total / row_length) + 1


def test_place_is_perfect_where_it_can_be():
    assert packing.place([3, 5, 2, 6], 8)[1] == 2
    assert packing.place([4] * 6, 8)[1] == 3
    assert packing.place([], 8) == ([], 0)


def test_a_segment_longer_than_a_row_is_an_error():
    with pytest.raises(ValueError, match=r"9 tokens.*row of 8"):
        packing.place([2, 9], 8)


# pack


@pytest.mark.parametrize("seed", range(10))
def test_every_example_is_found_where_its_slot_says(seed):
    examples = random_examples(40, 20, seed)
    rng = np.random.default_rng(seed)
    indices = rng.permutation(40)[: rng.integers(1, 17)]
    rows = packing.place(examples.lengths[indices], 24)[1]
    batch = examples.pack(indices, (rows + seed % 3, 24), slots=18)
    tokens, segments, positions, types = batch.inputs
    assert tokens.shape == (rows + seed % 3, 24) and len(batch.rows) == 18
    assert {a.dtype for a in batch.inputs} == {np.dtype(np.int32)}
    seen = np.zeros_like(tokens)
    numbers = set()
    for slot, index in enumerate(indices):
        n = len(examples.ids[index])
        at = batch.rows[slot], slice(batch.columns[slot], batch.columns[slot] + n)
        np.testing.assert_array_equal(tokens[at], examples.ids[index])
        np.testing.assert_array_equal(types[at], examples.types[index])
        np.testing.assert_array_equal(positions[at], np.arange(n))
        [number] = set(segments[at].tolist())
        numbers.add((batch.rows[slot], number))
        seen[at] += 1
        assert batch.labels[slot] == examples.labels[index]
    assert len(numbers) == len(indices) and all(number > 0 for _, number in numbers)
    np.testing.assert_array_equal(seen, segments > 0)
    assert not tokens[seen == 0].any() and not positions[seen == 0].any()
    np.testing.assert_array_equal(batch.weights, [1] * len(indices) + [0] * (18 - len(indices)))


def test_scores_stay_floats():
    examples = random_examples(4, 5, 0)
    scores = np.array([0.5, 1.25, 5.0, 0.0], np.float32)
    examples = packing.TokenisedExamples(examples.ids, examples.types, scores)
    batch = examples.pack([2, 0], (2, 8), slots=3)
    np.testing.assert_array_equal(batch.labels, np.float32([5.0, 0.5, 0.0]))


def test_what_does_not_fit_is_an_error():
    examples = random_examples(6, 8, 0)
    with pytest.raises(ValueError, match=r"6 examples need .* rows of 8"):
        examples.pack(range(6), (1, 8), slots=6)
    with pytest.raises(ValueError):
        examples.pack(range(6), (6, 8), slots=5)
