"""Batches of several runs: each run gets those it has alone, and dropout depends on these only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.data.batches import BatchesOfRuns, TrainingBatches
from lora_jax.data.completions import TokenisedPairs
from lora_jax.data.packing import TokenisedExamples
from lora_jax.dropout import dropout

LENGTH, SEEDS = 32, (3, 0, 3, 7)


def examples(kind, count=67, longest=25, seed=0):
    """Examples that can be told apart by their first token; classes of their number."""
    random = np.random.default_rng(seed)
    ids = [random.integers(1, 50, n).astype(np.int32) for n in random.integers(2, longest, count)]
    for number, row in enumerate(ids):
        row[0] = 100 + number
    if kind == "pairs":
        return TokenisedPairs(ids, np.array([random.integers(1, len(r)) for r in ids], np.int32))
    types = [random.integers(0, 2, len(row)).astype(np.int32) for row in ids]
    return TokenisedExamples(ids, types, np.arange(count, dtype=np.int32))


def of_runs(kind, seeds=SEEDS, parts=1, batch_size=8, **settings):
    return BatchesOfRuns(
        examples(kind, **settings), batch_size=batch_size, epochs=3, seeds=list(seeds),
        hidden_size=16, row_length=LENGTH, parts=parts,
    )  # fmt: skip


def alone(kind, seed, parts=1, batch_size=8):
    return training(examples(kind), batch_size, seed, parts=parts, row_length=LENGTH)


def training(examples, batch_size, seed, max_length=40, **settings):
    return TrainingBatches(
        examples, batch_size=batch_size, epochs=3, seed=seed, hidden_size=16,
        max_length=max_length, **settings,
    )  # fmt: skip


def same_but_for_padding(one, two):
    """Checks that the longer of two arrays is the other one with zeros behind it, on axis 0."""
    assert one.shape[1:] == two.shape[1:] and one.dtype == two.dtype
    common = min(len(one), len(two))
    np.testing.assert_array_equal(one[:common], two[:common])
    assert not one[common:].any() and not two[common:].any()


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("kind", ["classes", "pairs"])
def test_a_runs_batches_are_those_alone_but_for_padding_behind(kind, parts):
    data = of_runs(kind, parts=parts)
    assert data.per_epoch == 9
    longer = 0
    for epoch in range(2):
        batches_alone = [list(alone(kind, seed, parts).epoch(epoch)) for seed in SEEDS]
        together = list(data.epoch(epoch))
        assert len(together) == 9
        for number, batch in enumerate(together):
            rows = batch.inputs.tokens.shape
            assert rows[0] == len(SEEDS) and rows[1] % parts == 0 and rows[2] == LENGTH
            for i in range(len(SEEDS)):
                mine = jax.tree.map(lambda leaf, i=i: leaf[i], batch)
                expected = batches_alone[i][number]
                assert type(mine) is type(expected) and type(mine.inputs) is type(expected.inputs)
                jax.tree.map(same_but_for_padding, mine, expected)
                longer += len(mine.inputs.tokens) > len(expected.inputs.tokens)
            # No more rows than some run needs: that one has them alone, too.
            assert rows[1] <= max(data.menu.choose(
                data._lengths[data.order(epoch, seed)[number]].tolist())[0] for seed in SEEDS
            )  # fmt: skip
    assert longer or parts > 1  # the padding is there


@pytest.mark.parametrize("kind", ["classes", "pairs"])
def test_every_runs_epoch_is_a_permutation_and_equal_seeds_share(kind):
    for epoch in range(2):
        orders = [[] for _ in SEEDS]
        for batch in of_runs(kind).epoch(epoch):
            tokens, segments, positions, _ = batch.inputs
            for i, order in enumerate(orders):
                first = (segments[i] > 0) & (positions[i] == 0)
                numbers = tokens[i][first][np.argsort(segments[i][first])] - 100
                order.extend(numbers.tolist())
            jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf[0], leaf[2]), batch)
        assert all(sorted(order) == list(range(67)) for order in orders)
        assert orders[0] == orders[2] and len(set(map(tuple, orders))) == 3


def test_equal_seeds_are_packed_once(monkeypatch):
    data = of_runs("classes")
    packed = []
    original = TokenisedExamples.pack
    monkeypatch.setattr(
        TokenisedExamples, "pack", lambda *args: packed.append(1) or original(*args)
    )
    assert len(list(data.epoch(0))) == 9 and len(packed) == 3 * 9


@pytest.mark.parametrize("start", [0, 1, 5, 8, 9])
def test_resuming_gives_the_tail(start):
    whole, tail = list(of_runs("pairs").epoch(1)), list(of_runs("pairs").epoch(1, start))
    assert len(tail) == 9 - start
    for one, two in zip(whole[start:], tail, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("seeds", [(5,), (5, 5)])
def test_one_order(seeds):
    for batch, expected in zip(
        of_runs("classes", seeds).epoch(0), alone("classes", 5).epoch(0), strict=True
    ):
        assert len(batch.weights) == len(seeds)
        for i in range(len(seeds)):
            jax.tree.map(lambda a, b, i=i: same_but_for_padding(a[i], b), batch, expected)


@pytest.mark.parametrize("seed", [0, 3, 7])
def test_with_a_row_length_all_rows_are_as_long_and_hold_the_same_examples(seed):
    free = training(examples("classes"), 8, seed)
    for fixed, expected in zip(alone("classes", seed).epoch(1), free.epoch(1), strict=True):
        assert fixed.inputs.tokens.shape[1] == LENGTH
        np.testing.assert_array_equal(fixed.labels, expected.labels)
        np.testing.assert_array_equal(fixed.weights, expected.weights)


def test_a_row_length_below_the_longest_example_is_an_error():
    for make in (
        lambda: of_runs("classes", longest=60),
        lambda: training(examples("pairs", longest=60), 8, 0, 64, row_length=LENGTH),
    ):
        with pytest.raises(ValueError, match=r"rows of 32 tokens .* which has 5\d; .*row_length"):
            make()
    assert max(examples("pairs").lengths) == 24
    tight = training(examples("pairs"), 8, 0, 64, row_length=24)
    assert {batch.inputs.tokens.shape[1] for batch in tight.epoch(0)} == {24}


@pytest.mark.parametrize("shape", [(5, LENGTH, 7), (4, 2, 8, 8), (9, 5)])
def test_dropout_of_leading_rows_does_not_depend_on_rows_behind_them(shape):
    """Of activations (rows, length, width), attention (rows, heads, length, length), slots."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    key = jax.random.key(4)
    whole = np.asarray(dropout(x, 0.3, key))
    assert 0.1 < np.mean(whole == 0) < 0.5
    for rows in (1, len(x) - 1):
        np.testing.assert_array_equal(dropout(x[:rows], 0.3, key), whole[:rows])


def test_dropout_under_vmap_is_that_of_every_key():
    """For the default kind of keys; JAX says that `rbg` keys differ under vmap."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, LENGTH, 5)), jnp.float32)
    keys = jax.random.split(jax.random.key(1), 3)
    rates = jnp.asarray([0.0, 0.1, 0.5])
    together = jax.jit(jax.vmap(dropout))(x, rates, keys)
    for i in range(3):
        np.testing.assert_array_equal(together[i], dropout(x[i], float(rates[i]), keys[i]))


def test_real_tokens_have_the_dropout_of_the_run_alone():
    """Of a batch with padding rows behind, among other runs, where each run has another key."""
    random, width = np.random.default_rng(0), 6
    table = jnp.asarray(random.normal(size=(200, width)), jnp.float32)
    batch = next(of_runs("classes").epoch(0))
    keys = jax.random.split(jax.random.key(1), len(SEEDS))
    together = jax.vmap(lambda tokens, key: dropout(table[tokens], 0.4, key))(
        jnp.asarray(batch.inputs.tokens), keys
    )
    for i, seed in enumerate(SEEDS):
        batch_alone = next(alone("classes", seed).epoch(0))
        expected = dropout(table[batch_alone.inputs.tokens], 0.4, keys[i])
        np.testing.assert_array_equal(together[i][: len(expected)], expected)
