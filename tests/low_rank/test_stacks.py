"""Stacked layers: one pair with a layer axis is as many pairs, with the right fan-in."""

import jax
import numpy as np
import pytest
from flax import nnx

from lora_jax.low_rank import layers
from lora_jax.low_rank.settings import LoRASettings
from tests.low_rank.layer_cases import (
    CASES,
    FLOAT32,
    adapted_copy,
    key,
    linear,
    random_input,
    randomise,
)

DEPTH = 3
STACKS = {
    name: CASES[name]
    for name in (
        "linear", "general, from heads", "general, batch axis", "einsum, heads", "einsum, experts",
        "embed", "conv 1D", "conv 2D, groups, stride, dilated",
        "transposed 1D, stored transposed",
    )
}  # fmt: skip


@pytest.mark.parametrize(
    "name, parts", [(name, False) for name in STACKS] + [("linear", True), ("einsum, heads", True)]
)
def test_scanned_stack_equals_a_loop_over_single_layers(name, parts):
    make, shape, rank = STACKS[name]
    arguments = {"rank": rank, "alpha": 3.0}
    if parts:
        sizes = (2, 5) if name == "linear" else (2, 1)
        arguments |= {"rank": 2, "fused": ("f", "g"), "parts": ("g",), "fused_sizes": sizes}
    stack = nnx.split_rngs(splits=DEPTH)(nnx.vmap(make))(nnx.Rngs(0))
    randomise(stack, 0)
    layers.adapt(stack, LoRASettings(**arguments), key(1))
    start = stack.lora.g if parts else stack.lora
    first = start.b if isinstance(stack, nnx.Embed) else start.a
    assert first.shape[0] == DEPTH
    assert not np.isin(first[0], first[1]).any(), "layers of a stack start with equal values"
    randomise(stack.lora, 2)
    graphdef, state = nnx.split(stack)
    single = make(nnx.Rngs(0))
    layers.adapt(single, LoRASettings(**arguments), key(1))
    single_graphdef = nnx.graphdef(single)
    x = random_input(shape, 10 if "embed" in name else None)

    @jax.jit
    def run(state, x):
        _, scanned = jax.lax.scan(lambda c, s: (c, nnx.merge(graphdef, s)(x)), None, state)
        deltas = layers.delta(nnx.merge(graphdef, state))
        loop = []
        for i in range(DEPTH):
            layer = nnx.merge(single_graphdef, jax.tree.map(lambda v, i=i: v[i], state))
            loop.append((layer(x), layers.delta(layer)))
        return scanned, deltas, loop

    scanned, deltas, loop = run(state, x)
    assert deltas.shape == stack.weight_shape()
    for i, (output, delta) in enumerate(loop):
        np.testing.assert_allclose(scanned[i], output, **FLOAT32)
        np.testing.assert_allclose(deltas[i], delta, rtol=1e-5, atol=1e-5)


def test_stack_starts_as_large_as_a_single_layer():
    """he_uniform of a (12, d, r) factor sees a fan-in of 12 d and is 3.5 times too small."""
    single = adapted_copy(linear(128, 128)(nnx.Rngs(0)), rank=8)
    stack = nnx.split_rngs(splits=12)(nnx.vmap(linear(128, 128)))(nnx.Rngs(0))
    layers.adapt(stack, LoRASettings(rank=8, alpha=8.0), key(0))
    assert stack.lora.a.shape == (12, 128, 8) and stack.lora.b.shape == (12, 8, 128)
    assert not np.any(stack.lora.b[...])
    stds = np.std(np.asarray(stack.lora.a[...]), axis=(1, 2))
    # 1024 values a layer: the std is known to 1.4%.
    np.testing.assert_allclose(stds, np.std(single.lora.a[...]), rtol=0.1)
    np.testing.assert_allclose(stds, 128**-0.5 / 3**0.5, rtol=0.1)


@pytest.mark.parametrize("name", ["general, batch axis", "einsum, experts"])
def test_experts_have_factors_of_their_own(name):
    """qwix gives the experts of an einsum one B, those of a dot_general one each."""
    make, _, rank = CASES[name]
    layer = adapted_copy(make(nnx.Rngs(0)), rank=rank)
    assert layer.lora.a.shape == (3, 4, rank) and layer.lora.b.shape == (3, rank, 5)
    assert not np.isin(layer.lora.a[0], layer.lora.a[1]).any()
