"""Batches of a user's arrays: every example once an epoch, orders by seed, resume, errors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.data.arrays import ArrayBatches

ARRAYS = {"x": np.arange(20).reshape(10, 2), "y": (np.arange(10),)}


def ids(batches, epoch, start=0):
    return [batch["y"][0].tolist() for batch in batches.epoch(epoch, start)]


@pytest.mark.parametrize("seed", [0, 7])
def test_an_epoch_is_a_permutation_that_seed_and_epoch_give(seed):
    batches = ArrayBatches(ARRAYS, 4, seed=seed)
    assert batches.per_epoch == 3
    orders = [ids(batches, epoch) for epoch in range(3)]
    assert [len(batch) for batch in orders[0]] == [4, 4, 2]
    assert all(sorted(itertools.chain(*order)) == list(range(10)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert orders == [ids(ArrayBatches(ARRAYS, 4, seed=seed), epoch) for epoch in range(3)]
    assert orders[0] != ids(ArrayBatches(ARRAYS, 4, seed=seed + 1), 0)
    for batch in batches.epoch(1):
        np.testing.assert_array_equal(batch["x"][:, 0], 2 * batch["y"][0])


def test_an_epoch_goes_on_from_any_batch():
    batches = ArrayBatches(ARRAYS, 4)
    whole = ids(batches, 2)
    assert [ids(batches, 2, start) for start in range(4)] == [whole[start:] for start in range(4)]


def test_the_small_last_batch_can_be_left_out():
    batches = ArrayBatches(ARRAYS, 4, drop_last=True)
    assert batches.per_epoch == 2 and [len(batch) for batch in ids(batches, 0)] == [4, 4]


def test_counts_are_of_the_examples_and_their_shape():
    batches = ArrayBatches(jax.tree.map(jnp.asarray, ARRAYS), 4)
    counts = [batches.count(batch) for batch in batches.epoch(0)]
    assert [(c.examples, c.tokens, c.slots) for c in counts] == [(4, 0, 0), (4, 0, 0), (2, 0, 0)]
    assert counts[0].shape == counts[1].shape != counts[2].shape


@pytest.mark.parametrize(
    ("arrays", "settings", "says"),
    [
        (
            {"x": np.zeros(3), "y": np.zeros(4)},
            {},
            r"same number of examples.*\['x'\]: 3, \['y'\]: 4",
        ),
        ({"x": np.zeros(3), "y": np.float32(1)}, {}, r"\['y'\]: a number"),
        ({}, {}, "got none"),
        (np.zeros((0, 2)), {}, "0 examples make no batch"),
        (np.zeros(3), {"batch_size": 0}, "batch_size must be a positive integer"),
        (np.zeros(3), {"batch_size": 4, "drop_last": True}, "3 examples make no batch of 4"),
        (np.zeros(3), {"seed": -1}, "seed must be an? integer from 0 to"),
    ],
)
def test_arrays_that_make_no_batches(arrays, settings, says):
    with pytest.raises(ValueError, match=says):
        ArrayBatches(arrays, **{"batch_size": 2, **settings})
