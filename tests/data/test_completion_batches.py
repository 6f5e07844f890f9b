"""Batches of completions: what is predicted, their order, and the loss of the public GPT-2 code."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from lora_jax import digests, partition
from lora_jax.data import batches, completions, packing, shapes
from lora_jax.data.batch import Inputs
from lora_jax.data.completions import TokenisedPairs
from lora_jax.data.special_tokens import in_pairs, special_ids
from lora_jax.models import hub
from lora_jax.models.gpt2 import GPT2, GPT2Config
from lora_jax.training import step

torch.set_num_threads(1)
VOCAB = 60


def random_rows(count, seed, longest=20):
    """Rows that begin with the token 100 + number, so that a batch tells its rows."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, longest + 1, count)
    ids = [rng.integers(1, VOCAB, n).astype(np.int32) for n in lengths]
    for number, row in enumerate(ids):
        row[0] = 100 + number
    return TokenisedPairs(ids, np.array([rng.integers(1, n) for n in lengths], np.int32))


def in_vocabulary(rows):
    return TokenisedPairs([row % VOCAB for row in rows.ids], rows.starts)


def numbers(batch):
    """The rows of a batch, in its order of segments."""
    tokens, segments, positions, _ = batch.inputs
    first = (segments > 0) & (positions == 0)
    return (tokens[first] - 100)[np.argsort(segments[first])].tolist()


# pack


@pytest.mark.parametrize("seed", range(20))
def test_outputs_are_the_completion_tokens_and_the_tokens_before_them(seed):
    rng = np.random.default_rng(seed)
    rows = random_rows(30, seed)
    indices = rng.permutation(30)[: rng.integers(1, 16)]
    count = packing.place(rows.lengths[indices], 24)[1]
    needed = int((rows.lengths - rows.starts)[indices].sum())
    batch = rows.pack(indices, (count + 1, 24), needed + seed % 4)
    tokens, segments, _, _ = batch.inputs
    expected = []
    for number, index in enumerate(indices, 1):
        [row], columns = (
            np.unique(np.nonzero(segments == number)[0]),
            np.nonzero(segments == number)[1],
        )
        np.testing.assert_array_equal(columns, columns[0] + np.arange(len(columns)))
        np.testing.assert_array_equal(tokens[row, columns], rows.ids[index])
        for k in range(rows.starts[index], len(rows.ids[index])):
            expected.append((row, columns[k] - 1, rows.ids[index][k]))
            assert tokens[row, columns[k] - 1] == rows.ids[index][k - 1]
            assert segments[row, columns[k] - 1] == number  # never a neighbour's token
    found = list(zip(batch.rows, batch.columns, batch.labels, strict=True))
    assert found[:needed] == expected and len(set(found[:needed])) == needed
    assert found[needed:] == [(0, 0, 0)] * (seed % 4)
    np.testing.assert_array_equal(batch.weights, [1] * needed + [0] * (seed % 4))
    assert {a.dtype for a in (batch.rows, batch.columns, batch.labels)} == {np.dtype(np.int32)}


def test_a_mask_of_all_tokens_from_the_start_is_that_start():
    rows = random_rows(20, 3)
    masks = [np.arange(len(ids)) >= start for ids, start in zip(rows.ids, rows.starts, strict=True)]
    same = dataclasses.replace(rows, counted=masks)
    assert same.outputs(range(20)) == rows.outputs(range(20))
    one, two = (r.pack(range(20), (20, 20), 300) for r in (rows, same))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    # Runs of versions without masks have this digest, and go on.
    values = [digests.of_sequences(rows.ids), digests.of_arrays(rows.starts), digests.of_arrays(0)]
    assert rows.digest == digests.of_texts(values) != same.digest


@pytest.mark.parametrize("seed", range(10))
def test_masks_count_any_tokens(seed):
    rng = np.random.default_rng(seed)
    rows = random_rows(8, seed)
    masks = [rng.random(len(ids)) < 0.5 for ids in rows.ids]
    for mask in masks:
        mask[0] = False
    counted = dataclasses.replace(rows, counted=masks)
    batch = counted.pack(range(8), (8, 20), 200)
    _, segments, positions, _ = batch.inputs
    used = batch.weights > 0
    places = list(zip(batch.rows[used], batch.columns[used], strict=True))
    found = {(segments[p] - 1, positions[p] + 1): int(t)
             for p, t in zip(places, batch.labels[used], strict=True)}  # fmt: skip
    assert found == {
        (i, j): int(rows.ids[i][j]) for i in range(8) for j in np.flatnonzero(masks[i])
    }
    special = special_ids((2, 3), 500)
    moved = in_pairs(counted, special)
    for i, start in enumerate(rows.starts):
        assert moved.ids[i][moved.counted[i]].tolist() == rows.ids[i][masks[i]].tolist()
        assert moved.ids[i][moved.starts[i]] == rows.ids[i][start]


def test_slots_are_a_tenth_more_in_steps_of_32():
    for count in range(1, 700):
        rows = TokenisedPairs([np.zeros(count + 1, np.int32)], np.array([1], np.int32))
        slots = rows.slots([[0]])
        assert slots % 32 == 0 and 10 * slots >= 11 * count > 10 * (slots - 32)
    rows = random_rows(9, 0)
    batch_sizes = [[0, 1], [2], [3, 4, 5, 6, 7, 8]]
    assert rows.slots(batch_sizes) == max(rows.slots([indices]) for indices in batch_sizes)


def test_what_does_not_fit_is_an_error():
    rows = random_rows(6, 1)
    needed = int((rows.lengths - rows.starts).sum())
    assert rows.pack(range(6), (6, 20), needed).weights.all()
    with pytest.raises(ValueError, match=f"{needed} outputs do not fit {needed - 1} slots"):
        rows.pack(range(6), (6, 20), needed - 1)
    with pytest.raises(ValueError, match=r"6 examples need . rows of 20, the shape has 1"):
        rows.pack(range(6), (1, 20), needed)
    with pytest.raises(ValueError, match="does not fit a row of 4"):
        rows.pack(range(6), (6, 4), needed)


# batches of a run


def run_batches(seed=3, epochs=3):
    return batches.TrainingBatches(
        random_rows(37, 5), batch_size=8, epochs=epochs, seed=seed, hidden_size=16, max_length=32
    )


def test_every_epoch_is_a_permutation_that_the_seed_decides():
    data, again, other = run_batches(), run_batches(), run_batches(seed=4)
    orders = [[numbers(batch) for batch in data.epoch(e)] for e in range(3)]
    for epoch, order in enumerate(orders):
        assert [len(batch) for batch in order] == [8, 8, 8, 8, 5]
        assert sorted(i for batch in order for i in batch) == list(range(37))
        assert order == [numbers(batch) for batch in again.epoch(epoch)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert orders[0] != [numbers(batch) for batch in other.epoch(0)]


@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_an_epoch_goes_on_from_any_batch(start):
    data = run_batches()
    whole = list(data.epoch(1))[start:]
    rest = list(run_batches().epoch(1, start))
    assert len(whole) == len(rest) == 5 - start
    for one, two in zip(whole, rest, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("tokens", [1, 64, 4096])
def test_evaluation_has_every_row_once(tokens):
    rows = random_rows(37, 6)
    packed = batches.evaluation_batches(rows, 16, 32, tokens)
    assert sorted(i for indices, _ in packed for i in indices) == list(range(37))
    assert len({batch.inputs.tokens.shape + batch.labels.shape for _, batch in packed}) == 1
    for indices, batch in packed:
        assert numbers(batch) == indices.tolist()
        targets = np.concatenate([rows.ids[i][rows.starts[i] :] for i in indices])
        np.testing.assert_array_equal(batch.labels[batch.weights > 0], targets)
        assert batch.inputs.tokens.size <= max(tokens, batch.inputs.tokens.shape[1])


# the loss


def public_arrays(rows):
    """Input, target and mask of the public code's loader (paper.md 8.2): padded with 0 behind."""
    width = int(rows.lengths.max()) + 3
    inputs, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), np.float32)
    targets = np.zeros((len(rows), width), np.int32)
    for i, (ids, start) in enumerate(zip(rows.ids, rows.starts, strict=True)):
        inputs[i, : len(ids)], targets[i, : len(ids) - 1] = ids, ids[1:]
        mask[i, start - 1 : len(ids) - 1] = 1  # the context, separator included, has `start` tokens
    return inputs, targets, mask


def test_the_mask_of_the_paper_notes():
    rows = TokenisedPairs([np.array([11, 12, 56, 21, 22, 56], np.int32)], np.array([3], np.int32))
    assert public_arrays(rows)[2][0].tolist() == [0, 0, 1, 1, 1, 0, 0, 0, 0]
    batch = rows.pack([0], (1, 8), 3)
    assert batch.columns.tolist() == [2, 3, 4] and batch.labels.tolist() == [21, 22, 56]


@functools.cache
def tiny_decoder():
    config = GPT2Config(16, 1, 2, vocab_size=VOCAB, n_positions=32, initializer_range=0.3)
    model = GPT2(config, nnx.Rngs(0))
    return partition.split(model, dict.fromkeys(partition.parameters(model), partition.TRAINABLE))


def test_packed_loss_and_gradients_are_those_of_padded_rows():
    structure, params, rest = tiny_decoder()
    rows = in_vocabulary(random_rows(8, 7))
    count = packing.place(rows.lengths, 32)[1]
    assert count < 6  # rows are shared
    slots = rows.slots([range(8)])
    batch = jax.tree.map(jnp.asarray, rows.pack(range(8), (count + 1, 32), slots))
    assert batch.weights.sum() < slots
    inputs, targets, mask = public_arrays(rows)

    def packed(params, smoothing):
        return step.completion_loss(smoothing)(partition.join(structure, params, rest), batch, None)

    def padded(params, smoothing):
        model = partition.join(structure, params, rest)
        at = [jnp.asarray(grid.ravel()) for grid in np.indices(inputs.shape)]
        positions = np.broadcast_to(np.arange(inputs.shape[1]), inputs.shape)
        one = np.ones_like(inputs)  # no attention mask: padding is behind, attention causal
        logits = model(Inputs(inputs, one, positions, 0 * one), *at)
        chances = jax.nn.log_softmax(logits)
        nll = -chances[jnp.arange(len(chances)), targets.ravel()]
        losses = (1 - smoothing) * nll - smoothing * chances.mean(axis=-1)
        return jnp.sum(losses * mask.ravel()) / (mask.sum() + 1e-4)

    @jax.jit  # one program, so that it compiles once
    def everything(params):
        return [
            [jax.value_and_grad(loss)(params, smoothing) for loss in (packed, padded)]
            for smoothing in (0.0, 0.1)
        ]

    for (ours, gradients), (theirs, expected) in everything(params):
        # Sums run over rows of other lengths, so the last bits of float32 differ: 2e-7 reached.
        assert float(ours) == pytest.approx(float(theirs), rel=2e-6)
        top = max(float(jnp.abs(value).max()) for value in expected.values())
        reached = max(float(jnp.abs(gradients[path] - expected[path]).max()) for path in expected)
        print(f"\npacked against padded: gradients {reached / top:.1e}")
        assert gradients.keys() == expected.keys() and reached < 5e-6 * top


@pytest.fixture(scope="module")
def torch_model(tmp_path_factory):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=16, n_layer=1, n_head=2, n_positions=32, initializer_range=0.3,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    folder = tmp_path_factory.mktemp("gpt2")
    model.save_pretrained(folder)
    return model, hub.load_decoder(folder, hub.read_decoder_config(folder))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_that_of_the_public_code(torch_model, smoothing):
    theirs, ours = torch_model
    rows = in_vocabulary(random_rows(8, 8))
    inputs, targets, mask = (torch.tensor(array).long() for array in public_arrays(rows))
    logits = theirs(inputs).logits
    chances = torch.log_softmax(logits.view(-1, VOCAB), dim=-1)
    nll = -chances.gather(dim=-1, index=targets.view(-1, 1)).squeeze(1)
    losses = (1.0 - smoothing) * nll + smoothing * -chances.mean(dim=-1)
    expected = (losses * mask.view(-1)).sum() / (mask.sum() + 0.0001)
    expected.backward()
    packed = rows.pack(range(8), shapes.cheapest(rows.lengths, 16, 32), rows.slots([range(8)]))
    batch = jax.tree.map(jnp.asarray, packed)
    all_trained = dict.fromkeys(partition.parameters(ours), partition.TRAINABLE)
    structure, params, rest = partition.split(ours, all_trained)
    loss = step.completion_loss(smoothing)
    both = jax.jit(
        jax.value_and_grad(lambda p: loss(partition.join(structure, p, rest), batch, None))
    )
    value, gradients = both(params)
    gap = abs(float(value) - float(expected.detach()))
    gradient = theirs.transformer.wte.weight.grad.numpy()
    far = np.abs(gradients["embeddings/token/embedding"] - gradient).max() / np.abs(gradient).max()
    theirs.zero_grad()
    print(f"\nagainst the public loss, smoothing {smoothing}: {gap:.1e}, gradient {far:.1e}")
    assert gap < 1e-5 and far < 1e-5  # float32 sums of both libraries; reached 5e-7 and 1e-6


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_bad_smoothing_is_refused(smoothing):
    with pytest.raises(ValueError, match=r"label smoothing must be in \[0, 1\)"):
        step.completion_loss(smoothing)


# shapes


@pytest.mark.parametrize("width", [256, 1024])
def test_real_e2e_batches_are_dense(real_data, corpus, width):
    """Padding to the longest row of a batch, as peers do, makes 73% of the tokens real ones."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(real_data / "tokenizers/gpt2")
    rows = completions.tokenise_pairs(corpus("e2e", "train").take(12_000), tokenizer)
    data = batches.TrainingBatches(
        rows, batch_size=8, epochs=5, seed=0, hidden_size=width, max_length=512
    )
    lengths, real, computed, padded, used = rows.lengths, 0, 0, 0, set()
    for number, indices in enumerate(data.order(1, 0)):
        shape = data.menu.choose(lengths[indices].tolist())
        slots = max(data.slots, rows.slots([indices]))
        used.add((*shape, slots))
        real += lengths[indices].sum()
        computed += shape[0] * shape[1]
        padded += len(indices) * lengths[indices].max()
        if number % 100 == 0:
            batch = rows.pack(indices, shape, slots)
            assert (batch.inputs.segments > 0).sum() == lengths[indices].sum()
    print(f"\nE2E, width {width}: {real / computed:.3f}, padded {real / padded:.3f}, {len(used)}")
    assert real / padded < 0.76 and real / computed > 0.85
    assert max(length for _, length, _ in used) <= 256 and len(used) <= 10
