"""Packing: nothing overlaps, nothing is lost."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest
from random_examples import random_examples

from lora_jax.data import packing
from lora_jax.models.attention import gpus
from lora_jax.models.attention.spans import of_segments

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
    # A row is opened only if no open one has room: all rows but one, and those with the most segments that
    # a row may have, are fuller than row_length - longest (and, with long segments, more than half full).
    most = max(1, row_length // packing.TOKENS_PER_SEGMENT)
    held = np.bincount([row for row, _ in where])
    assert held.max() <= most
    total, rows = sum(lengths), rows - int(np.sum(held == most))
    assert rows <= 2 * total / row_length + 1
    assert rows <= total / (row_length - longest + 1) + 1
    if longest <= row_length // 4:  # longest first fills the gaps with short ones: bound + 1
        assert rows <= math.ceil(total / row_length) + 1


def test_rows_have_no_more_segments_than_kernels_have_room_for():
    """16 examples of 3 tokens: 8 in each row of 32, though 10 would fit."""
    where, rows = packing.place([3] * 16, 32)
    assert rows == 2 and sorted({row for row, _ in where}) == [0, 1]
    inputs, _ = packing.lay_out([np.ones(3, np.int32)] * 16, (2, 32))
    starts, lengths = gpus.segments(of_segments(jnp.asarray(inputs.segments), causal=False).first)
    assert (
        (starts[:, -1] == -1).all() and (lengths[:, :-1] == 3).all() and (lengths[:, -1] == 8).all()
    )


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
