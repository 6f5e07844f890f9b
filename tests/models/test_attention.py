"""Attention by cuDNN: elsewhere than on GPUs it is XLA's, and for a GPU it is cuDNN's kernels."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lora_jax.costs import flops, topologies
from lora_jax.errors import InputError
from lora_jax.models import attention
from lora_jax.models.llama_config import LlamaConfig


def operands(rows=2, length=16, heads=4, shared=2, size=8):
    """Queries, keys and values; two examples share a row."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(rows, length, n, size) for n in (heads, shared, shared)]
    q, k, v = (jax.random.normal(key, s, jnp.bfloat16) for key, s in zip(keys, shapes, strict=True))
    segments = jnp.arange(length) // (length // 2)
    mask = (segments[:, None] == segments) & jnp.tril(jnp.ones((length, length), bool))
    return q, k, v, jnp.broadcast_to(mask, (rows, 1, length, length))


def loss(kernel, q, k, v, mask):
    recomputed = jax.checkpoint(attention.attend, static_argnums=(4, 6, 7))
    mixed = recomputed(q, k, v, mask, 0.0, None, attention.PLAIN, kernel)
    return jnp.sum(mixed.astype(jnp.float32) ** 2)


@pytest.mark.parametrize("length", [16, 15])
def test_on_a_cpu_it_is_plain_attention(length):
    results = [
        jax.jit(jax.value_and_grad(functools.partial(loss, kernel), argnums=(0, 1, 2)))(
            *operands(length=length)
        )
        for kernel in ("xla", "cudnn")
    ]
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert all(np.abs(np.asarray(g, np.float32)).max() > 0.1 for g in results[0][1])


def test_products_are_counted_as_those_of_plain_attention():
    counts = [
        flops.training(functools.partial(loss, kernel), *operands()) for kernel in ("xla", "cudnn")
    ]
    # forward two products, and for the queries' gradient the same two again
    assert counts == [4 * 2 * 2 * 4 * 16 * 16 * 8] * 2


SIZES = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "compute_dtype": "bfloat16",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"compute_dtype": "float32"},
            r"'cudnn' needs compute_dtype .* 'bfloat16', got 'float32'; set that",
        ),
        ({"attention_dropout": 0.1}, "'cudnn' needs attention_dropout 0.0, got 0.1"),
        ({"attn_logit_softcapping": 50.0}, "'cudnn' needs attn_logit_softcapping None, got 50.0"),
        ({"attention": "cuDNN"}, "attention must be 'xla' or 'cudnn', got 'cuDNN'"),
    ],
)
@pytest.mark.wrong_types
def test_what_cudnn_cannot_do_is_refused(changes, message):
    config = LlamaConfig(**SIZES, attention="cudnn")
    with pytest.raises(InputError, match=message):
        dataclasses.replace(config, **changes)


def test_for_a_gpu_it_is_cudnn_and_holds_no_scores(optimised, monkeypatch):
    if not any(map(importlib.util.find_spec, ("jax_cuda12_plugin", "jax_cuda13_plugin"))):
        pytest.skip("compiling for GPUs needs JAX's plugin for CUDA: pip install jax[cuda12]")
    monkeypatch.setenv(topologies.WITHOUT_DRIVER, "1")
    mesh = Mesh(np.array(topologies.devices("a100-80:1")), ("data",))
    place = NamedSharding(mesh, PartitionSpec())
    arguments = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
        for x in jax.eval_shape(lambda: operands(4, 512, 8, 4, 64))
    ]
    kernels, held = [], []
    for kernel in ("xla", "cudnn"):
        function = jax.jit(jax.value_and_grad(functools.partial(loss, kernel), argnums=(0, 1, 2)))
        text = function.lower(*arguments).compile().as_text()
        kernels.append(set(re.findall(r"__cudnn\$\w+", text)))
        held.append(bool(re.search(r"\[4,(8|4,2),512,512\]", text)))
    forward = "__cudnn$fmhaScaleBiasSoftmax"
    assert kernels == [set(), {forward, forward + "Backward"}] and held == [True, False]
