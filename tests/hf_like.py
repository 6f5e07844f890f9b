"""A decoder with the names of Hugging Face's, in a list of layers; small, and without training."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

WIDTH, INNER, VOCABULARY, LAYERS = 8, 12, 11, 3
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")


def linear(inputs, outputs, rngs, use_bias=True):
    return nnx.Linear(inputs, outputs, use_bias=use_bias, rngs=rngs)


class Layer(nnx.Module):
    def __init__(self, rngs):
        attention = {name: linear(WIDTH, WIDTH, rngs) for name in ATTENTION}
        # A low-rank gate in the model itself: the smallest matrices.
        attention["k_proj"] = linear(WIDTH, 4, rngs)
        self.self_attn = nnx.Dict(**attention)
        self.mlp = nnx.Dict(
            gate_proj=linear(WIDTH, INNER, rngs, use_bias=False),
            up_proj=linear(WIDTH, INNER, rngs, use_bias=False),
            down_proj=linear(INNER, WIDTH, rngs, use_bias=False),
        )
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)

    def __call__(self, x):
        a, m = self.self_attn, self.mlp
        scores = a["q_proj"](x)[..., :4] * a["k_proj"](x)
        x = x + a["o_proj"](a["v_proj"](x) * jnp.sum(scores, -1, keepdims=True))
        return x + m["down_proj"](jax.nn.silu(m["gate_proj"](x)) * m["up_proj"](self.norm(x)))


class CausalLM(nnx.Module):
    def __init__(self, rngs=None):
        rngs = rngs or nnx.Rngs(0)
        self.model = nnx.Dict(
            embed_tokens=nnx.Embed(VOCABULARY, WIDTH, rngs=rngs),
            layers=nnx.List([Layer(rngs) for _ in range(LAYERS)]),
            norm=nnx.LayerNorm(WIDTH, rngs=rngs),
        )
        self.lm_head = linear(WIDTH, VOCABULARY, rngs, use_bias=False)

    def __call__(self, ids):
        x = self.model["embed_tokens"](ids)
        for layer in self.model["layers"]:
            x = layer(x)
        return self.lm_head(self.model["norm"](x))


def paths(*names, layers=range(LAYERS)):
    """The paths of the projections with these names."""
    return {
        f"model/layers/{i}/{'self_attn' if name in ATTENTION else 'mlp'}/{name}"
        for i in layers
        for name in names
    }
