"""Products with A and B in the form that suits the device: apart from others on GPUs, by rows on CPUs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lora_jax
from lora_jax import partition

LAYERS = {
    "linear": lambda: nnx.Linear(6, 4, rngs=nnx.Rngs(0)),
    "general": lambda: nnx.LinearGeneral(6, (2, 2), rngs=nnx.Rngs(0)),
}


class Model(nnx.Module):
    def __init__(self, layer):
        self.layer = layer

    def __call__(self, x):
        return self.layer(x)


@pytest.fixture(params=LAYERS)
def adapted(request):
    method = lora_jax.lora("layer", rank=2, alpha=2)
    model = method.insert(Model(LAYERS[request.param]()), jax.random.key(0))
    model.layer.lora.b[...] = jax.random.normal(jax.random.key(1), model.layer.lora.b.shape)
    return model


def test_the_barrier_is_in_programs_for_gpus(adapted):
    structure, params = partition.all_frozen(adapted)
    traced = jax.jit(lambda p, x: partition.join(structure, {}, p)(x)).trace(
        params, jnp.ones((3, 6))
    )
    for platform, expected in {"cuda": True, "cpu": False, "tpu": False}.items():
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("optimization_barrier" in text) is expected, platform


@pytest.mark.parametrize("shape", [(3, 5, 6), (2, 3, 5, 6)])
def test_factors_gradients_are_sums_over_one_axis_in_programs_for_cpus_alone(adapted, shape):
    """Over several axes XLA's compiler for CPUs transposes the layer's inputs and output gradients."""
    structure, params = partition.all_frozen(adapted)
    factors = {path: value for path, value in params.items() if "lora" in path}
    frozen = {path: value for path, value in params.items() if "lora" not in path}

    def loss(factors, x):
        return jnp.sum(jnp.sin(partition.join(structure, factors, frozen)(x)))

    traced = jax.jit(jax.grad(loss)).trace(factors, jnp.ones(shape))
    of_features = (
        adapted.layer.lora.b.ndim - 2
    )  # one product sums over both output axes of the general layer
    for platform, of_tokens in {"cpu": 0, "tpu": 2, "cuda": 2}.items():
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        axes = re.findall(r"contracting_dims = \[([0-9, ]*)\]", text)
        assert len(axes) >= 5, "the products have another name now"
        assert sum("," in found for found in axes) == of_tokens + of_features, platform


@pytest.mark.parametrize("tokens", [(3,), (3, 2)])
def test_values_and_both_kinds_of_derivatives(adapted, tokens):
    """Of a closed form, by reverse and by forward mode."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((*tokens, 6)), jnp.float32)
    layer = adapted.layer
    a, b = layer.lora.a[...], layer.lora.b[...]
    kernel, bias = layer.kernel[...].reshape(6, 4), layer.bias[...].reshape(4)

    def closed(x, a):
        return x @ kernel + bias + x @ a @ b.reshape(2, 4)

    structure, params = partition.all_frozen(adapted)

    def ours(x, a):
        return partition.join(structure, {}, {**params, "layer/lora/a": a})(x).reshape(*tokens, 4)

    close = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(ours(x, a), closed(x, a), **close)
    for derivative in (jax.jacrev, jax.jacfwd):
        found = derivative(ours, argnums=(0, 1))(x, a)
        for mine, reference in zip(found, derivative(closed, argnums=(0, 1))(x, a), strict=True):
            np.testing.assert_allclose(mine, reference, **close)
