"""Special tokens in data: where they stand, what is predicted, and that nothing else changes."""

import numpy as np
import pytest

from lora_jax.data import packing
from lora_jax.data.completions import TokenisedPairs
from lora_jax.data.special_tokens import in_examples, in_pairs, in_prompts, special_ids

VOCAB = 60
COUNTS = [(0, 0), (3, 0), (0, 2), (3, 2)]


def rows(count=7):
    random = np.random.default_rng(0)
    lengths = random.integers(3, 12, count)
    ids = [random.integers(0, VOCAB, n).astype(np.int32) for n in lengths]
    return ids, np.array([random.integers(1, n) for n in lengths], np.int32)


@pytest.mark.parametrize("counts", COUNTS)
def test_ids_follow_the_vocabulary(counts):
    special = special_ids(counts, VOCAB)
    both = np.concatenate([special.prefix, special.infix])
    assert both.tolist() == list(range(VOCAB, VOCAB + sum(counts)))
    assert (len(special.prefix), len(special.infix)) == counts and special.count == sum(counts)


@pytest.mark.parametrize("counts", COUNTS)
def test_examples_are_enclosed_and_the_classification_token_is_the_old_one(counts):
    ids, _ = rows()
    types = [np.arange(len(row), dtype=np.int32) % 2 for row in ids]
    plain = packing.TokenisedExamples(ids, types, np.arange(len(ids), dtype=np.int32))
    special = special_ids(counts, VOCAB)
    found = in_examples(plain, special)
    prefix, infix = counts
    for old, new, kinds, moved in zip(ids, found.ids, types, found.types, strict=True):
        assert new.tolist() == [*special.prefix, *old, *special.infix] and new.dtype == np.int32
        assert moved.tolist() == [0] * prefix + kinds.tolist() + [0] * infix
    order = [4, 1, 6]
    batch = found.pack(order, (3, 20), 4)
    firsts = batch.inputs.tokens[batch.rows, batch.columns][:3]
    assert firsts.tolist() == [ids[i][0] for i in order]
    # Positions count from the segment's first token, the prefix included.
    assert batch.inputs.positions[batch.rows, batch.columns][:3].tolist() == [prefix] * 3
    assert batch.labels[:3].tolist() == order and batch.columns.dtype == np.int32


@pytest.mark.parametrize("counts", COUNTS)
def test_pairs_have_the_same_targets_predicted_from_the_last_infix_token(counts):
    ids, starts = rows()
    plain, special = TokenisedPairs(ids, starts, cut=2), special_ids(counts, VOCAB)
    found = in_pairs(plain, special)
    assert found.cut == 2 and found.outputs(range(7)) == plain.outputs(range(7))
    before = plain.pack(range(7), (7, 20), 64)
    after = found.pack(range(7), (7, 20), 64)
    assert sorted(before.labels.tolist()) == sorted(after.labels.tolist())
    assert before.weights.sum() == after.weights.sum()
    for old, new, start, moved in zip(ids, found.ids, starts, found.starts, strict=True):
        assert new.tolist() == [
            *special.prefix, *old[:start], *special.infix, *old[start:]
        ]  # fmt: skip
        assert new[moved] == old[start]
    # The first target of a row is predicted from the token before it: an infix token if there is one.
    inputs = after.inputs
    used = after.weights > 0
    source = inputs.tokens[after.rows[used], after.columns[used]]
    place = inputs.positions[after.rows[used], after.columns[used]]
    row = after.rows[used]
    numbers = inputs.segments[row, after.columns[used]] - 1
    first = place == found.starts[numbers] - 1
    assert first.sum() == 7
    if counts[1]:
        assert (source[first] == special.infix[-1]).all()
    assert (source[~first] < VOCAB).all() and (after.labels < VOCAB).all()


@pytest.mark.parametrize("counts", COUNTS)
def test_prompts_are_the_beginning_of_the_pairs(counts):
    ids, starts = rows()
    special = special_ids(counts, VOCAB)
    pairs = in_pairs(TokenisedPairs(ids, starts), special)
    prompts = in_prompts([row[:s] for row, s in zip(ids, starts, strict=True)], special)
    for prompt, row, start in zip(prompts, pairs.ids, pairs.starts, strict=True):
        assert prompt.tolist() == row[:start].tolist() and prompt.dtype == np.int32
