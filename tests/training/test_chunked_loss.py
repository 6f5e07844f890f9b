"""The loss in chunks against the loss of all logits, in values, gradients, memory and FLOPs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from deviations import deviation
from flax import nnx
from random_models import from_shapes

import lora_jax
from lora_jax import methods, partition
from lora_jax.costs import flops
from lora_jax.data.batch import Batch, Inputs
from lora_jax.data.completions import TokenisedPairs
from lora_jax.errors import InputError
from lora_jax.models.gpt2 import GPT2, GPT2Config
from lora_jax.models.llama import Llama
from lora_jax.models.llama_config import LlamaConfig
from lora_jax.training import chunked_loss, step

VOCABULARY = 97
ALL = 10**6  # slots of a chunk: one chunk, which is the plain loss
LAYERS = ".*/(query|qkv)"
METHODS = {
    "frozen": methods.lora(LAYERS, rank=2, alpha=4),
    "table": methods.lora([LAYERS, ".*/token"], rank=2, alpha=4),
    "head": methods.lora([LAYERS, "lm_head"], rank=2, alpha=4),
    "head alone": methods.lora("lm_head", rank=2, alpha=4),
    "norms": methods.full(".*norm.*"),
    "full": methods.full(),
}
GPT = GPT2Config(16, 1, 2, vocab_size=VOCABULARY, n_positions=24)
LLAMA = functools.partial(
    LlamaConfig, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
    vocab_size=VOCABULARY, max_position_embeddings=24,
)  # fmt: skip
MODELS = {
    "gpt2": lambda: GPT2(GPT, nnx.Rngs(0)),
    "llama": lambda: Llama(LLAMA(tie_word_embeddings=True), nnx.Rngs(0)),
    "untied": lambda: Llama(LLAMA(tie_word_embeddings=False), nnx.Rngs(0)),
    "capped": lambda: Llama(
        LLAMA(tie_word_embeddings=True, final_logit_softcapping=2.0), nnx.Rngs(0)
    ),
}
CASES = [
    ("gpt2", "frozen", 0.1), ("gpt2", "table", 0.1), ("gpt2", "norms", 0.0), ("gpt2", "full", 0.1),
    ("llama", "frozen", 0.0), ("llama", "table", 0.0), ("llama", "full", 0.1),
    ("untied", "frozen", 0.1), ("untied", "head", 0.1), ("untied", "head alone", 0.0),
    ("untied", "full", 0.0), ("capped", "frozen", 0.1), ("capped", "table", 0.1),
    ("capped", "full", 0.0),
]  # fmt: skip


def packed(seed=0, slots=96):
    """Packed rows with padding, and with a third of the slots unused."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(1, VOCABULARY, n).astype(np.int32) for n in rng.integers(4, 13, 9)]
    rows = TokenisedPairs(ids, np.array([2] * len(ids), np.int32))
    batch = rows.pack(range(len(ids)), (6, 24), slots)
    assert 0.4 < batch.weights.mean() < 0.8 and (batch.inputs.segments == 0).any()
    return batch


def parts(model, method):
    adapted = METHODS[method].insert(from_shapes(MODELS[model]), jax.random.key(1))
    structure, trainable, frozen = partition.split(adapted, METHODS[method].labels(adapted))
    rng = np.random.default_rng(2)  # B too is not zero
    filled = {
        path: value if value.any() else jnp.asarray(0.3 * rng.normal(size=value.shape), jnp.float32)
        for path, value in trainable.items()
    }
    return structure, filled, frozen


def objective(structure, chunk, smoothing=0.0):
    return step.make_objective(structure, step.completion_loss(smoothing, chunk))


@pytest.mark.parametrize("model, method, smoothing", CASES)
def test_values_and_gradients_are_those_of_the_plain_loss(model, method, smoothing):
    """5 chunks of 16 of 66 slots in float32: rounding only, 1e-6 of the largest gradient."""
    structure, trainable, frozen = parts(model, method)
    batch, key = packed(slots=66), jax.random.key(3)

    @functools.partial(jax.jit, static_argnums=0)
    def both(chunk):
        value = jax.value_and_grad(objective(structure, chunk, smoothing))
        whole = partition.join(structure, trainable, frozen)
        each = step.completion_losses(whole, batch, None, smoothing, chunk)
        return *value(trainable, frozen, batch, key), each

    (loss, gradients, each), (wanted, of_plain, plain_each) = both(16), both(ALL)
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)
    np.testing.assert_allclose(each, plain_each, rtol=1e-5, atol=1e-6)
    assert each.shape == batch.weights.shape and not each[batch.weights == 0].any()
    largest = max(np.abs(g).max() for g in of_plain.values())
    assert largest > 0 and gradients.keys() == of_plain.keys()
    for path, gradient in gradients.items():
        assert gradient.dtype == of_plain[path].dtype
        np.testing.assert_allclose(gradient, of_plain[path], rtol=1e-5, atol=1e-6 * largest)


@pytest.mark.parametrize("chunk", [8, 32])
def test_gradient_of_the_head_in_float64(chunk):
    """That of the kernel of an own head, by hand: h^T (softmax - smoothed target), weighted."""
    structure, trainable, frozen = parts("untied", "full")
    batch, smoothing = packed(), 0.1
    model = partition.join(structure, trainable, frozen)
    hidden = model.norm(model.hidden(batch.inputs, batch.rows, batch.columns))
    hidden, kernel = (np.asarray(x, np.float64) for x in (hidden, trainable["lm_head/kernel"]))
    logits = hidden @ kernel
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    share = odds / odds.sum(-1, keepdims=True)
    target = (1 - smoothing) * np.eye(VOCABULARY)[batch.labels] + smoothing / VOCABULARY
    total = batch.weights.sum() + 1e-4
    loss = -(target * np.log(share)).sum(-1) @ batch.weights / total
    by_hand = hidden.T @ ((share - target) * batch.weights[:, None]) / total
    of = jax.jit(jax.value_and_grad(objective(structure, chunk, smoothing)))
    value, gradients = of(trainable, frozen, batch, jax.random.key(0))
    np.testing.assert_allclose(value, loss, rtol=1e-6)
    assert deviation({"head": gradients["lm_head/kernel"]}, {"head": by_hand}) < 1e-6


@pytest.mark.parametrize("method", ["frozen", "full"])
def test_several_runs_at_once(method):
    """Under vmap over trainable parts and batches, and in a loop over runs."""
    structure, trainable, frozen = parts("gpt2", method)
    runs = jax.tree.map(lambda leaf: jnp.stack([leaf, 1.1 * leaf]), trainable)
    several = jax.tree.map(lambda *leaves: np.stack(leaves), packed(0), packed(1))

    def both(chunk):
        of = jax.value_and_grad(objective(structure, chunk))
        run = lambda arguments: of(arguments[0], frozen, arguments[1], jax.random.key(0))  # noqa: E731
        shared = jax.vmap(lambda one: run((one, packed(0))))(runs)
        return jax.vmap(run)((runs, several)), jax.lax.map(run, (runs, several)), shared

    both = jax.jit(both, static_argnums=0)
    for found, wanted in zip(both(16), both(ALL), strict=True):
        np.testing.assert_allclose(found[0], wanted[0], rtol=1e-6)
        largest = max(np.abs(g).max() for g in wanted[1].values())
        for path, gradient in found[1].items():
            np.testing.assert_allclose(gradient, wanted[1][path], rtol=1e-5, atol=1e-6 * largest)


def test_chunks_of_unused_slots_are_not_computed():
    """Their tokens have no numbers here: 0 times that is none either, where it is computed."""
    structure, trainable, frozen = parts("untied", "full")
    table = "embeddings/token/embedding"
    trainable[table] = np.array(trainable[table])
    trainable[table][-1] = np.nan
    batch = packed()
    inputs = batch.inputs._replace(tokens=np.minimum(batch.inputs.tokens, VOCABULARY - 2))
    inputs = Inputs(*(np.concatenate([part, part[:1]]) for part in inputs))
    inputs.tokens[-1] = VOCABULARY - 1
    unused = np.arange(len(batch.weights)) >= 48
    rows = np.where(unused, len(inputs.tokens) - 1, batch.rows)
    batch = batch._replace(inputs=inputs, rows=rows, weights=np.float32(~unused))

    def loss(chunk):
        of = jax.value_and_grad(objective(structure, chunk))
        return float(jax.jit(of)(trainable, frozen, batch, jax.random.key(0))[0])

    assert np.isfinite(loss(16)) and np.isnan(loss(ALL)) and np.isnan(loss(32))


def test_every_chunk_drops_values_of_its_own():
    """Dropout before the factors of an adapted head: equal tokens in two chunks have other losses."""
    method = methods.lora("lm_head", rank=2, alpha=64, dropout=0.5)
    adapted = method.insert(from_shapes(MODELS["untied"]), jax.random.key(1))
    b = adapted.lm_head.lora.b
    b[...] = jax.random.normal(jax.random.key(3), b.shape)
    lora_jax.seed_dropout(adapted, jax.random.key(2))
    batch = packed()
    same = batch._replace(
        rows=0 * batch.rows, columns=0 * batch.columns, labels=0 * batch.labels,
        weights=np.ones_like(batch.weights),
    )  # fmt: skip
    each = np.asarray(step.completion_losses(adapted, same, None, chunk=32)).reshape(3, 32)
    assert np.unique(each, axis=0).shape == each.shape


def compiled_memory(model, method, slots, chunk):
    """Bytes of value and gradients, and of temporaries, from shapes alone."""
    shape = jax.ShapeDtypeStruct
    make = lambda: METHODS[method].insert(model(), jax.random.key(1))  # noqa: E731
    adapted = nnx.eval_shape(make)
    structure, trainable, frozen = partition.split(adapted, METHODS[method].labels(adapted))
    tokens, slot = shape((slots // 8, 8), jnp.int32), shape((slots,), jnp.int32)
    batch = Batch(Inputs(*[tokens] * 4), slot, slot, slot, shape((slots,), jnp.float32))
    program = jax.jit(jax.value_and_grad(objective(structure, chunk)))
    key = jax.eval_shape(lambda: jax.random.key(0))
    memory = program.lower(trainable, frozen, batch, key).compile().memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes


@pytest.mark.parametrize("tied", [True, False])
def test_memory_with_a_frozen_table(optimised, tied):
    """2,048 x 32,000 in 32 chunks, as 8,192 x 128,000 are: at most 5% of the plain loss's memory.

    A trained table has a gradient; a frozen one has no buffer of that size.
    """
    words, width = 32_000, 64
    sizes = LLAMA(hidden_size=width, vocab_size=words, tie_word_embeddings=tied)
    model = lambda: Llama(sizes, nnx.Rngs(0))  # noqa: E731
    assert chunked_loss.chunk_shape(8192, 128_000) == (32, 256)
    plain, chunked = (compiled_memory(model, "frozen", 2048, chunk) for chunk in (ALL, 64))
    assert plain >= 2048 * words * 4
    assert chunked <= 0.05 * plain
    if tied:
        assert compiled_memory(model, "full", 2048, 64) >= chunked + words * width * 4


def test_flops_are_those_of_the_plain_loss():
    """No product is computed twice, and none for a gradient that nothing needs."""
    batch, key = packed(), jax.random.key(0)
    for method in ("frozen", "full"):
        structure, trainable, frozen = parts("gpt2", method)
        counts = [
            flops.training(objective(structure, chunk), trainable, frozen, batch, key)
            for chunk in (ALL, 16)
        ]
        assert counts[0] == counts[1]


def test_sizes_of_chunks():
    """Powers of two of the default, and equal parts that are no larger than asked for."""
    shapes = {
        (1024, 49152): (2, 512), (8192, 50257): (16, 512), (8192, 128_256): (32, 256),
        (1056, 50257): (3, 352), (512, 50257): (1, 512), (400, 128_000): (2, 200),
        (100, 10**9): (13, 8),
    }  # fmt: skip
    for (slots, vocabulary), shape in shapes.items():
        assert chunked_loss.chunk_shape(slots, vocabulary) == shape
    assert chunked_loss.chunk_shape(66, 97, 16) == (5, 16)
    assert chunked_loss.chunk_shape(66, 97, 5) == (14, 5)
    assert chunked_loss.chunk_shape(66, 97, 66) == (1, 66)


@pytest.mark.parametrize("shares", [1, 2, 4])
def test_chunks_are_no_larger_than_asked_for_and_hold_all_slots(monkeypatch, shares):
    monkeypatch.setattr(chunked_loss, "ways", lambda _: shares)
    for slots in range(1, 120):
        for most in (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 64, 79):
            count, size = chunked_loss.chunk_shape(slots, VOCABULARY, most)
            assert (count - 1) * size < slots <= count * size
            assert size <= max(most, shares)
            assert count == 1 or size % shares == 0


@pytest.mark.wrong_types
@pytest.mark.parametrize("chunk", [0, -1, 1.5, True, "8"])
def test_a_chunk_is_a_positive_integer(chunk):
    with pytest.raises(InputError, match="chunk must be a positive integer, got"):
        step.completion_loss(0.0, chunk)
    with pytest.raises(InputError, match="chunk must be a positive integer, got"):
        chunked_loss.chunk_shape(10, VOCABULARY, chunk)
