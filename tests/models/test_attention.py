"""Attention in each of its forms against PyTorch's in float64, and what compilers make of it."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.sharding import AbstractDevice, AbstractMesh

from lora_jax.costs import flops, topologies
from lora_jax.data.batch import Inputs
from lora_jax.errors import InputError
from lora_jax.models.attention import attend as chosen
from lora_jax.models.attention import gpus, plain, splash
from lora_jax.models.attention.scores import PLAIN, Scores
from lora_jax.models.attention.spans import of_kinds, of_segments
from lora_jax.models.encoder import Classifier, EncoderConfig
from lora_jax.models.gpt2 import GPT2, GPT2Config
from lora_jax.models.llama import Llama
from lora_jax.models.llama_config import LayerKind, LlamaConfig
from lora_jax.models.rotary import Rotary

ROWS, LENGTH, HEADS, SHARED, SIZE = 2, 256, 4, 2, 16


def segments(rng, rows=ROWS, length=LENGTH, most=6):
    """Rows of segments of random lengths, numbered over the batch; 0, the padding, comes last."""
    numbers, made = itertools.count(1), []
    for _ in range(rows):
        borders = np.sort(rng.choice(np.arange(1, length), rng.integers(1, most), replace=False))
        lengths = np.diff([0, *borders, length])
        row = np.repeat([next(numbers) for _ in lengths], lengths)
        row[borders[-1] :] = 0
        made.append(row)
    return np.stack(made).astype(np.int32)


def brute(numbers, causal, window):
    """The mask, written out."""
    i = np.arange(numbers.shape[1])
    mask = numbers[:, :, None] == numbers[:, None, :]
    if causal:
        mask = mask & (i[None, :] <= i[:, None])
    return mask & (i[:, None] - i[None, :] < window) if window else mask


def operands(rng, rows=ROWS, length=LENGTH, heads=HEADS, shared=SHARED, size=SIZE):
    return [rng.normal(size=(rows, length, n, size)) for n in (heads, shared, shared, heads)]


def reference(q, k, v, direction, mask, cap=None, scale=None):
    """PyTorch, float64: the result, and the gradients of q, k and v along a direction."""
    q, k, v = (torch.tensor(x).transpose(1, 2).requires_grad_() for x in (q, k, v))
    groups = q.shape[1] // k.shape[1]
    wide = [x.repeat_interleave(groups, 1) for x in (k, v)]
    products = q @ wide[0].transpose(2, 3) * (q.shape[-1] ** -0.5 if scale is None else scale)
    products = cap * torch.tanh(products / cap) if cap else products
    weights = products.masked_fill(~torch.tensor(mask)[:, None], -torch.inf).softmax(-1)
    mixed = (weights @ wide[1]).transpose(1, 2)
    mixed.backward(torch.tensor(direction))
    return [x.detach().numpy() for x in (mixed, *(x.grad.transpose(1, 2) for x in (q, k, v)))]


def ours(attention, q, k, v, direction):
    """The result, and the gradients along a direction."""
    mixed, backward = jax.vjp(attention, *(jnp.asarray(x, jnp.float32) for x in (q, k, v)))
    return [mixed, *backward(jnp.asarray(direction, jnp.float32))]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 5])
def test_spans_are_the_mask(causal, window):
    numbers = segments(np.random.default_rng(0), rows=8, length=40)
    spans = of_segments(jnp.asarray(numbers), causal=causal).within(window if causal else None)
    np.testing.assert_array_equal(spans.mask(), brute(numbers, causal, window if causal else None))
    assert (spans.causal, spans.windowed) == (causal, bool(causal and window))
    assert (jnp.diff(spans.first) >= 0).all() and (jnp.diff(spans.last) >= 0).all()


def test_spans_of_kinds_are_those_of_each_kind():
    whole = of_segments(jnp.zeros((1, 9), jnp.int32), causal=True)
    both = of_kinds([whole, whole.within(3)])
    for kind, spans in enumerate((whole, whole.within(3))):
        of_kind = jax.tree.map(lambda x, kind=kind: x[kind], both)
        np.testing.assert_array_equal(of_kind.mask(), spans.mask())
    assert both.windowed and both.causal


# What each can compute: causal, window, cap of the scores.
CASES = {
    "plain": [(False, None, None), (True, None, None), (True, 30, None), (True, None, 5.0)],
    "parts": [(False, None, None), (True, 30, 5.0)],
    "splash": [(False, None, None), (True, None, None), (True, 30, None), (True, 30, 5.0)],
    "triton": [(False, None, None), (True, None, None)],
}
FORMS = {
    "plain": plain.attend,
    "parts": plain.attend,
    "splash": functools.partial(splash.attend, interpret=True),
    "triton": functools.partial(gpus.triton, interpret=True),
}


@pytest.mark.parametrize(("form", "case"), [(f, case) for f in CASES for case in CASES[f]])
def test_all_forms_agree_with_pytorch(form, case, monkeypatch):
    causal, window, cap = case
    if form == "parts":  # of one row each
        monkeypatch.setattr(plain, "_SCORES_BYTES", HEADS * LENGTH**2 * 4)
    rng = np.random.default_rng(1)
    numbers, of = segments(rng), operands(rng)
    spans = of_segments(jnp.asarray(numbers), causal=causal).within(window)
    scores = Scores(cap=cap, scale=0.3 if cap else None)
    found = ours(lambda q, k, v: FORMS[form](q, k, v, spans, scores), *of)
    expected = reference(*of, brute(numbers, causal, window), cap, scores.scale)
    for a, b in zip(found, expected, strict=True):  # 4e-6 reached; values up to 4
        np.testing.assert_allclose(a, b, rtol=0, atol=4e-5)


def test_splash_reads_nothing_outside_of_the_spans():
    """NaN in one example reaches no block of another one, in results and in gradients."""
    rng = np.random.default_rng(2)
    q, k, v, direction = operands(rng, rows=1, length=512)
    numbers = np.repeat([[1, 2]], 256, axis=1).astype(np.int32)
    k[:, :256], v[:, :256] = np.nan, np.nan
    spans = of_segments(jnp.asarray(numbers), causal=False)
    found = ours(lambda q, k, v: FORMS["splash"](q, k, v, spans, PLAIN), q, k, v, direction)
    expected = reference(*(x[:, 256:] for x in (q, k, v, direction)), np.ones((1, 256, 256), bool))
    for a, b in zip(found, expected, strict=True):
        assert np.isnan(a[:, :256]).all()
        np.testing.assert_allclose(a[:, 256:], b, rtol=0, atol=4e-5)


@pytest.mark.parametrize("block", [128, 256])
def test_blocks_that_are_computed(block):
    """Those, of queries by keys, in which a token attends to another; the others name such a one."""
    numbers = segments(np.random.default_rng(3), rows=3, length=1024, most=12)
    spans = of_segments(jnp.asarray(numbers), causal=True).within(200)
    mask = brute(numbers, True, 200).reshape(3, 1024 // block, block, -1, block).any((2, 4))
    (keys, near), (queries, near_keys), packed = splash._blocks(spans, 3, block)
    own = 1024 // block
    np.testing.assert_array_equal(np.reshape(near, (3, own, own)), mask)
    np.testing.assert_array_equal(np.reshape(near_keys, (own, 3, own)), np.swapaxes(mask, 0, 1))
    whole = np.zeros((3 * own, 3 * own), bool)  # all rows as one sequence
    for row in range(3):
        whole[row * own :][:own, row * own :][:, :own] = mask[row]
    for i, j in itertools.product(range(3 * own), range(own)):
        assert whole[i, keys[0, i, j]] and (
            not near[0, i, j] or keys[0, i, j] == i // own * own + j
        )
        assert whole[queries[0, j, i], i]
        assert not near_keys[0, j, i] or queries[0, j, i] == i // own * own + j
    first, count = packed >> 11, packed & 2047
    np.testing.assert_array_equal(count, (spans.last - spans.first).ravel())
    np.testing.assert_array_equal(first, (spans.first + 1024 * np.arange(3)[:, None]).ravel())


def test_splash_takes_rows_whose_columns_fit_its_numbers():
    assert splash.fits(2048, 512) and not splash.fits(8192, 512) and not splash.fits(4, 500)
    assert splash.fits(16, 8192) and not splash.fits(17, 8192)


def test_segments_as_cudnn_reads_them():
    numbers = segments(np.random.default_rng(4), rows=4, length=24, most=6)
    starts, lengths = gpus.segments(of_segments(jnp.asarray(numbers), causal=False).first)
    for row, start, length in zip(numbers, np.asarray(starts), np.asarray(lengths), strict=True):
        begins = np.flatnonzero(np.diff(row, prepend=-1))
        sizes = np.diff([*begins, 24])
        assert start.tolist() == [*begins, *[-1] * (8 - len(begins))]
        assert length.tolist() == [*sizes, *[-1] * (7 - len(begins))]
    too_many = of_segments(jnp.arange(24)[None] // 3, causal=False).first
    assert gpus.segments(too_many)[0][0, -1] >= 0  # 8 segments, and room for 7


def test_dropout_does_not_depend_on_the_parts(monkeypatch):
    rng = np.random.default_rng(5)
    spans = of_segments(jnp.asarray(segments(rng)), causal=False)
    of = operands(rng)
    drop = lambda q, k, v: plain.attend(q, k, v, spans, PLAIN, 0.3, jax.random.key(0))  # noqa: E731
    whole = ours(drop, *of)
    without = ours(lambda q, k, v: plain.attend(q, k, v, spans, PLAIN), *of)
    monkeypatch.setattr(plain, "_SCORES_BYTES", 1)
    for a, b, c in zip(ours(drop, *of), whole, without, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)
        assert np.abs(a - c).max() > 0.1
    # On average nothing changes: values of one, 8,192 of them, each a mean over the weights that are left.
    ones = jnp.ones((ROWS, LENGTH, HEADS, SIZE))
    mixed = plain.attend(ones, ones, ones, spans, PLAIN, 0.3, jax.random.key(1))[..., 0]
    assert np.abs(np.mean(mixed) - 1) < 0.05 and np.std(mixed) > 0.02


@pytest.mark.parametrize("key", [None, 0])
def test_a_batch_of_no_rows(key):
    empty = jnp.zeros((0, LENGTH, HEADS, SIZE))
    spans = of_segments(jnp.zeros((0, LENGTH), jnp.int32), causal=False)
    key = None if key is None else jax.random.key(key)
    assert plain.attend(empty, empty, empty, spans, PLAIN, 0.1, key).shape == empty.shape


@pytest.mark.parametrize("form", ["splash", "triton"])
@pytest.mark.parametrize("shared", [True, False])
def test_runs_of_a_sweep(form, shared):
    """Under `jax.vmap`, over runs with one batch and with a batch each."""
    rng = np.random.default_rng(6)
    of = [
        np.stack(x) for x in zip(operands(rng, length=256), operands(rng, length=256), strict=True)
    ]
    numbers = np.stack([segments(rng, length=256) for _ in range(2)])

    def step(form, numbers, *of):
        spans = of_segments(jnp.asarray(numbers), causal=True)
        return ours(lambda q, k, v: FORMS[form](q, k, v, spans, PLAIN), *of)

    axes = (None if shared else 0, 0, 0, 0, 0)
    found, expected = (
        jax.vmap(functools.partial(step, name), axes)(numbers[0] if shared else numbers, *of)
        for name in (form, "plain")
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=4e-5)


@pytest.mark.parametrize("model", ["encoder", "gpt2", "gemma"])
def test_models_compute_the_same_by_a_kernel(model, monkeypatch):
    """Logits and gradients, where layers differ in their windows as well."""
    monkeypatch.setattr(chosen, "_at_hand", lambda: ("tpu", "splash"))
    calls = []

    def interpreted(*of, **settings):
        calls.append(settings)
        return FORMS["splash"](*of, **settings)

    monkeypatch.setattr(splash, "attend", interpreted)
    rng = np.random.default_rng(7)
    numbers = segments(rng, length=256)
    tokens = rng.integers(0, 32, numbers.shape)
    columns = np.broadcast_to(np.arange(256), numbers.shape)
    positions = columns - np.asarray(of_segments(jnp.asarray(numbers), causal=True).first)
    inputs = Inputs(tokens, numbers, positions, np.zeros_like(tokens))
    rows, at = np.array([0, 0, 1]), np.array([3, 200, 255])

    def of_kernel(kernel):
        made = MODELS[model](kernel)
        read = lambda m: jnp.sum(m(inputs, rows, at) ** 2)  # noqa: E731
        logits, grads = made(inputs, rows, at), nnx.grad(read)(made)
        return [logits, *jax.tree.leaves(grads)]

    for a, b in zip(of_kernel("splash"), of_kernel("xla"), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * max(1, np.abs(b).max()))
    assert calls


SMALL: dict = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 256}  # fmt: skip
MODELS = {
    "encoder": lambda kernel: Classifier(
        EncoderConfig(
            "bert", **SMALL, type_vocab_size=1, attention=kernel, attention_probs_dropout_prob=0.0,
            initializer_range=0.3,
        ),
        2, nnx.Rngs(0),
    ),
    "gpt2": lambda kernel: GPT2(
        GPT2Config(16, 2, 2, vocab_size=32, n_positions=256, attention=kernel, initializer_range=0.3),
        nnx.Rngs(0),
    ),
    "gemma": lambda kernel: Llama(
        LlamaConfig(
            **SMALL, attention=kernel, num_key_value_heads=1, attn_logit_softcapping=5.0,
            kinds=(LayerKind(None, Rotary()), LayerKind(20, Rotary())), layer_kinds=(1, 0),
            initializer_range=0.3,
        ),
        nnx.Rngs(0),
    ),
}  # fmt: skip


def test_what_is_chosen():
    q = jnp.zeros((2, 512, 4, 8), jnp.bfloat16)
    causal = of_segments(jnp.zeros((2, 512), jnp.int32), causal=True)

    def on(kind, platform, kernel="auto", q=q, spans=causal, scores=PLAIN):
        mesh = AbstractMesh((), (), abstract_device=AbstractDevice(kind, None, platform))
        with jax.sharding.use_abstract_mesh(mesh):
            return chosen._chosen(kernel, q, spans, scores)

    tpu, h100, t4 = ("TPU v5 lite", "tpu"), ("NVIDIA H100 80GB HBM3", "gpu"), ("Tesla T4", "gpu")
    assert [on(*d) for d in (tpu, h100, t4, ("cpu", "cpu"))] == ["splash", "triton", "xla", "xla"]
    assert [on(*d, "cudnn") for d in (tpu, h100)] == ["xla", "cudnn"]
    assert [on(*d, "xla") for d in (tpu, h100)] == ["xla", "xla"]
    window, capped = causal.within(7), Scores(cap=1.0)
    assert [on(*tpu, spans=window), on(*tpu, scores=capped)] == ["splash", "splash"]
    assert [on(*h100, spans=window), on(*h100, scores=capped)] == ["xla", "xla"]
    assert (
        on(*h100, "cudnn", spans=window) == "cudnn" and on(*h100, "cudnn", scores=capped) == "xla"
    )
    for other in (q.astype(jnp.float32), q[:, :128], q[:, :500]):
        spans = of_segments(jnp.zeros(other.shape[:2], jnp.int32), causal=True)
        assert [on(*d, q=other, spans=spans) for d in (tpu, h100)] == ["xla", "xla"]
    assert on(*tpu, "splash", q=q.astype(jnp.float32)) == "splash"
    # Heads of 160, which the kernel pads to 256, need more shared memory than most GPUs have.
    sizes = [jnp.zeros((2, 512, 4, size), jnp.bfloat16) for size in (128, 160, 256)]
    assert [on(*h100, q=q) for q in sizes] == ["triton", "xla", "xla"]
    assert [on(*tpu, q=q) for q in sizes] == ["splash"] * 3


def test_products_are_counted_as_those_of_plain_attention():
    q, k, v = (jnp.zeros((2, 256, n, 8), jnp.bfloat16) for n in (4, 2, 2))
    spans = of_segments(jnp.zeros((2, 256), jnp.int32), causal=True)
    tpu = AbstractMesh((), (), abstract_device=AbstractDevice("TPU v5 lite", None, "tpu"))
    of = lambda q: jnp.sum(chosen.attend(q, k, v, spans).astype(jnp.float32))  # noqa: E731
    with jax.sharding.use_abstract_mesh(tpu):
        assert "pallas_call" in str(jax.make_jaxpr(of)(q))
        # forward two products, and for the queries' gradient the same two again
        assert flops.training(of, q) == 4 * 2 * 2 * 4 * 256 * 256 * 8
        assert flops.forward(of, q) == 2 * 2 * 2 * 4 * 256 * 256 * 8


LLAMA = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "compute_dtype": "bfloat16",
}  # fmt: skip
ENCODER = {**LLAMA, "max_position_embeddings": 16, "type_vocab_size": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"compute_dtype": "float32"},
            r"'cudnn' needs compute_dtype .* 'bfloat16', got 'float32'; set that",
        ),
        ({"attention_dropout": 0.1}, "'cudnn' needs attention_dropout 0.0, got 0.1"),
        ({"attn_logit_softcapping": 50.0}, "'cudnn' needs attn_logit_softcapping None, got 50.0"),
        ({"attention": "cuDNN"}, "attention must be 'auto', 'xla', .* or 'cudnn', got 'cuDNN'"),
    ],
)
@pytest.mark.wrong_types
def test_what_a_kernel_cannot_do_is_refused(changes, message):
    config = LlamaConfig(**LLAMA, attention="cudnn")
    with pytest.raises(InputError, match=message):
        dataclasses.replace(config, **changes)


def test_the_other_models_refuse_alike():
    with pytest.raises(
        InputError, match="'splash' needs attention_probs_dropout_prob 0.0, got 0.1"
    ):
        EncoderConfig("bert", **ENCODER, attention="splash")
    with pytest.raises(InputError, match="'triton' needs compute_dtype"):
        GPT2Config(16, 2, 2, attention="triton")
    assert GPT2Config(16, 2, 2, attn_pdrop=0.1).attention == "auto"


def compiled(topology, kernel, mesh_shape=(1, 1), **sizes):
    """The program for a topology of the result and the gradients, in bfloat16."""
    devices = np.array(topologies.devices(topology)[: np.prod(mesh_shape)]).reshape(mesh_shape)
    mesh = jax.sharding.Mesh(devices, ("data", "model"))
    split = lambda *axes: jax.sharding.NamedSharding(mesh, jax.P(*axes))  # noqa: E731
    shapes = {"rows": 4, "length": 512, "heads": 8, "shared": 4, "size": 64, **sizes}
    rows, length, size = (shapes[n] for n in ("rows", "length", "size"))
    heads = split("data", None, "model")
    of = [
        jax.ShapeDtypeStruct((rows, length, shapes[n], size), jnp.bfloat16, sharding=heads)
        for n in ("heads", "shared", "shared", "heads")
    ]
    numbers = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=split("data"))

    def step(q, k, v, direction, numbers):
        spans = of_segments(numbers, causal=True)
        mixed, backward = jax.vjp(
            lambda q, k, v: chosen.attend(q, k, v, spans, kernel=kernel), q, k, v
        )
        return mixed, backward(direction)

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return jax.jit(step).lower(*of, numbers).compile().as_text()


def holds_squares(text, length=512):
    """Whether the program has an array of rows, heads or blocks by length by length."""
    return f",{length},{length}]" in text


def need_plugin(monkeypatch):
    if not any(map(importlib.util.find_spec, ("jax_cuda12_plugin", "jax_cuda13_plugin"))):
        pytest.skip("compiling for GPUs needs JAX's plugin for CUDA: pip install jax[cuda12]")
    monkeypatch.setenv(topologies.WITHOUT_DRIVER, "1")


@pytest.mark.parametrize("mesh_shape", [(1, 1), (2, 2)])
def test_for_tpus_it_is_splash_and_holds_no_scores(optimised, mesh_shape, monkeypatch):
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu: pip install libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    text = compiled("v5e:2x2", "auto", mesh_shape)
    assert not holds_squares(text) and "splash_mha" in text
    assert all(name in text for name in ("fwd_residuals", "dkv", "dq"))
    # No part of q, k, v or the scores is sent to another device.
    assert not any(f" {op}(" in text for op in ("all-gather", "all-to-all", "collective-permute"))


def test_for_tpus_xla_holds_them(optimised, monkeypatch):
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu: pip install libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    assert holds_squares(compiled("v5e:2x2", "xla"))


@pytest.mark.parametrize("mesh_shape", [(1, 1), (2, 2)])
@pytest.mark.parametrize("topology", ["h100:4", "rtx4090:4"])
def test_for_gpus_it_is_triton_and_holds_no_scores(optimised, topology, mesh_shape, monkeypatch):
    need_plugin(monkeypatch)
    text = compiled(topology, "auto", mesh_shape)
    assert not holds_squares(text) and "mha_forward" in text and "mha_backward" in text
    assert not any(f" {op}(" in text for op in ("all-gather", "all-to-all", "collective-permute"))
    assert holds_squares(compiled(topology, "xla"))


@pytest.mark.parametrize("packed", [True, False])
def test_for_gpus_cudnn_is_packed_from_hopper_on(optimised, packed, monkeypatch):
    need_plugin(monkeypatch)
    from jax._src.cudnn import fused_attention_stablehlo as of_jax

    # JAX asks the GPU that is there.
    monkeypatch.setattr(of_jax, "check_compute_capability", lambda capability: packed)
    text = compiled("h100:1", "cudnn")
    assert holds_squares(text) is not packed  # the mask
    assert ("fmhaSoftmax" in text) is packed and ("fmhaScaleBiasSoftmax" in text) is not packed
