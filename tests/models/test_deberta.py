"""DeBERTa against PyTorch `transformers`, and against itself packed, unrolled and recomputed."""

from __future__ import annotations

import dataclasses

import deberta_models
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from deberta_models import VARIANTS, to_ours
from deviations import deviation
from transformers.models.deberta_v2 import modeling_deberta_v2 as of_torch

from lora_jax import partition
from lora_jax.errors import InputError
from lora_jax.models.attention.relative import Relative, buckets
from lora_jax.models.deberta_config import SIZES

torch.set_num_threads(1)

# Reached on a CPU in float32, relative to the largest value of the tensor: 8e-7 and 2e-6. The order of
# summation differs; the tolerances are about ten times that.
LOGITS, GRADIENTS = 1e-5, 2e-5
LENGTHS = [13, 29, 1, 22, 2]  # in rows of 40: several in each, and padding behind them


def split(model):
    return partition.split(model, dict.fromkeys(partition.parameters(model), partition.TRAINABLE))


def outputs(model, batch, loss, key=None):
    """Logits, and the gradients of a loss of them by path."""
    structure, params, rest = split(model)

    @jax.jit
    def both(params):
        def of(p):
            logits = partition.join(structure, p, rest)(*batch, key=key)
            return loss(logits), logits

        return jax.grad(of, has_aux=True)(params)

    gradients, logits = both(params)
    return np.asarray(logits), {k: np.asarray(v) for k, v in gradients.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_all_gradients_equal_pytorch(variant, tmp_path):
    theirs = deberta_models.reference(variant, seed=len(variant))
    theirs.save_pretrained(tmp_path)
    ours, config = deberta_models.load(tmp_path)
    expected = to_ours(dict(theirs.named_parameters()))
    loaded = partition.parameters(ours)
    assert set(loaded) == set(expected)
    for path, value in expected.items():
        np.testing.assert_array_equal(loaded[path], value, err_msg=path)

    torch_inputs, batch = deberta_models.batches(LENGTHS, config.type_vocab_size)
    labels = np.array([0, 2, 1, 1, 0]) % theirs.config.num_labels
    logits = theirs(**torch_inputs).logits
    if theirs.config.num_labels == 1:
        target = np.linspace(-1, 1, len(LENGTHS)).astype(np.float32)
        torch.nn.functional.mse_loss(logits[:, 0], torch.tensor(target)).backward()
        loss = lambda x: jnp.mean((x[:, 0] - target) ** 2)  # noqa: E731
    else:
        torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()
        loss = lambda x: optax.softmax_cross_entropy_with_integer_labels(x, labels).mean()  # noqa: E731
    # What is not used has no gradient in PyTorch, and 0 in JAX.
    named = {
        k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in theirs.named_parameters()
    }
    found, gradients = outputs(ours, batch, loss)
    reached = (
        deviation({"": found}, {"": logits.detach().numpy()}),
        deviation(gradients, to_ours(named)),
    )
    print(f"\ndeviation {variant}: logits {reached[0]:.1e}, gradients {reached[1]:.1e}")
    assert reached[0] < LOGITS
    assert reached[1] < GRADIENTS


def small(tmp_path, variant="v2-xxlarge", **overrides):
    """Our model of a variant, read in another way, and a batch."""
    if not (tmp_path / "config.json").exists():
        deberta_models.reference(variant).save_pretrained(tmp_path)
    model, config = deberta_models.load(tmp_path, **overrides)
    return model, deberta_models.batches(LENGTHS, config.type_vocab_size)[1]


def quick_key(seed):
    """A key whose bits compile faster than the default's."""
    return jax.random.key(seed, impl="unsafe_rbg")


@pytest.mark.parametrize("unroll, remat", [(1, "dots"), (2, "none"), (3, "full")])
def test_unroll_and_remat_change_nothing(unroll, remat, tmp_path):
    """With dropout, of relative positions and of the convolution too: it is drawn again alike."""
    loss = lambda x: jnp.sum(jnp.sin(x))  # noqa: E731
    plain = outputs(*small(tmp_path), loss, quick_key(3))
    without = outputs(*small(tmp_path), loss)[0]
    other = outputs(*small(tmp_path, unroll=unroll, remat=remat), loss, quick_key(3))
    # The same operations, fused in other ways; 2e-7 and 8e-7 are reached.
    assert deviation({"": other[0]}, {"": plain[0]}) < 5e-6
    assert deviation(other[1], plain[1]) < 1e-5
    assert np.abs(plain[0] - without).max() > 0.05 * np.abs(without).max()


def test_examples_that_share_a_row_do_not_see_each_other(tmp_path):
    """Nor what is behind them: neither in scores nor in the convolution, whatever is there."""
    model, (inputs, rows, columns) = small(tmp_path)
    run = jax.jit(lambda inputs: model(inputs, rows, columns))
    logits = np.asarray(run(inputs))
    for number, (row, column) in enumerate(zip(rows, columns, strict=True)):
        own = inputs.segments == inputs.segments[row, column]
        others = np.where(own, inputs.tokens, (inputs.tokens + 7) % 50).astype(np.int32)
        np.testing.assert_array_equal(run(inputs._replace(tokens=others))[number], logits[number])
    alone = deberta_models.batches(LENGTHS, 0, shape=(5, 33))[1]
    # Each in a row of its own, of another length: products of other shapes.
    np.testing.assert_allclose(model(*alone), logits, rtol=0, atol=1e-5 * np.abs(logits).max())


def test_the_convolution_belongs_to_the_first_layer(tmp_path):
    """A stack that is cut is the whole one, so the part that begins later has no convolution."""
    model, batch = small(tmp_path)
    whole = np.asarray(model(*batch))
    model.encoder.layers = model.encoder.layers.cut(2)
    np.testing.assert_allclose(model(*batch), whole, rtol=0, atol=1e-6 * np.abs(whole).max())


def test_bfloat16_is_near_float32(tmp_path):
    model, batch = small(tmp_path)
    exact = np.asarray(model(*batch))
    rounded = small(tmp_path, compute_dtype="bfloat16")[0](*batch)
    assert rounded.dtype == jnp.float32
    difference = np.abs(rounded - exact).max() / np.abs(exact).max()
    assert 1e-4 < difference < 0.1  # 8 bits of mantissa, through three layers; 2e-2 is reached


@pytest.mark.parametrize("length", [1, 5, 128, 200, 300])
def test_products_with_positions_are_those_that_are_looked_up(length):
    """In blocks of queries, of which the last may be smaller, against one index for each score in float64."""
    random = np.random.default_rng(length)
    q, k = random.normal(size=(2, 1, 2, length, 4)).astype(np.float32)
    keys, queries = random.normal(size=(2, 2 * length, 2, 4)).astype(np.float32)
    distance = np.arange(length)[:, None] - np.arange(length)
    by_query = np.einsum("bhqd,qkhd->bhqk", q, keys[length - 1 - distance], dtype=np.float64)
    by_key = np.einsum("bhkd,qkhd->bhqk", k, queries[length - 1 + distance], dtype=np.float64)
    keys, queries = jnp.asarray(keys), jnp.asarray(queries)
    for given, expected in (
        (Relative(keys, None), by_query), (Relative(None, queries), by_key),
        (Relative(keys, queries), by_query + by_key),
    ):  # fmt: skip
        found = given.products(jnp.asarray(q), jnp.asarray(k))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)  # sums of 8 float32 products


@pytest.mark.parametrize("count, longest", [(256, 512), (32, 128), (9, 40), (2, 16), (5, 5)])
def test_buckets_are_those_of_transformers(count, longest):
    distances = np.arange(-1500, 1501)
    theirs = of_torch.make_log_bucket_position(torch.tensor(distances), count, longest).numpy()
    span = lambda x: np.clip(x, -count, count - 1)  # noqa: E731  # farther ones have no embedding
    np.testing.assert_array_equal(span(buckets(distances, count, longest)), span(theirs))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"conv_kernel_size": 4}, "conv_kernel_size must be odd"),
        ({"position_buckets": 1}, "position_buckets 1 must be from 2 on"),
        ({"position_buckets": 1024}, "half of it below 511"),
        ({"attention": "splash", "attention_probs_dropout_prob": 0.0}, "no relative positions"),
        ({"architecture": "bert"}, "architecture must be 'deberta-v2', got 'bert'"),
        ({"pos_att_type": ("p2p",)}, "pos_att_type must be a tuple.*'c2p' or 'p2c'"),
        ({"num_attention_heads": 7}, "divisible"),
    ],
)
def test_settings_that_cannot_be_are_errors(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SIZES["deberta-v2-xxlarge"], **changes)
