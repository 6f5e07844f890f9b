"""The bias of B (PEFT's lora_bias): scale * (x A B + bias), also of parts and of stacked layers, merged."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lora_jax

KEY = jax.random.key(0)
FUSED = {"parts": ("q", "v"), "fused": ("q", "k", "v")}


class Stacked(nnx.Module):
    """Two layers in a scan, each with one linear layer to (3, 4)."""

    def __init__(self, use_bias=True):
        def make(rngs):
            return nnx.LinearGeneral(4, (3, 4), use_bias=use_bias, rngs=rngs)

        self.block = nnx.split_rngs(splits=2)(nnx.vmap(make))(nnx.Rngs(0))

    def __call__(self, x):
        graphdef, state = nnx.split(self.block)

        def body(x, layer):
            return jnp.tanh(jnp.sum(nnx.merge(graphdef, layer)(x), axis=-2)), None

        return jax.lax.scan(body, x, state)[0]


def randomised(model):
    rng = np.random.default_rng(0)
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.LoRAParam)):
        leaf[...] = jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)
        assert path[-1] in ("a", "b", "b_bias")
    return model


@pytest.mark.parametrize("arguments", [{}, FUSED, {"scaling": "alpha/sqrt(r)"}])
def test_merged_and_not(arguments):
    base, x = Stacked(), jax.random.normal(KEY, (5, 4))
    method = lora_jax.lora("block", rank=2, alpha=3, b_bias=True, **arguments)
    adapted = method.insert(base, KEY)
    np.testing.assert_array_equal(adapted(x), base(x))
    randomised(adapted)
    merged = lora_jax.merge(adapted)
    assert type(merged.block) is nnx.LinearGeneral
    np.testing.assert_allclose(adapted(x), merged(x), rtol=1e-4, atol=1e-5)
    if not arguments:
        pair = adapted.block.lora
        moved = merged.block.bias[...] - base.block.bias[...]
        np.testing.assert_allclose(moved, 1.5 * pair.b_bias[...], rtol=1e-5, atol=1e-6)
    assert lora_jax.methods.from_json(method.to_json()) == method


def test_what_cannot_have_one():
    with pytest.raises(ValueError, match="the layer has none|has none that could take it in"):
        lora_jax.merge(lora_jax.lora("block", rank=2, b_bias=True).insert(Stacked(False), KEY))
    with pytest.raises(ValueError, match="b_bias and magnitude"):
        lora_jax.lora("block", rank=2, b_bias=True, magnitude=True)
    with pytest.raises(ValueError, match="cannot have b_bias"):
        table = nnx.Dict(token=nnx.Embed(6, 4, rngs=nnx.Rngs(0)))
        lora_jax.lora("token", rank=2, b_bias=True).insert(table, KEY)
