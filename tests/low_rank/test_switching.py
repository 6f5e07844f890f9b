"""Updates switched off: the model is the pre-trained one, and on again it is as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lora_jax as lj

X = jnp.asarray([[1, 2, 0], [2, 2, 1]])


class Tied(nnx.Module):
    """A table with its transpose as the output layer, and a fused projection."""

    def __init__(self, rngs: nnx.Rngs):
        self.table = nnx.Embed(5, 6, rngs=rngs)
        self.qkv = nnx.Linear(6, 18, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.table.attend(self.qkv(self.table(tokens))[..., 6:12])


def trained(magnitude: bool) -> tuple[nnx.Module, nnx.Module]:
    model = Tied(nnx.Rngs(0))
    fused = {"parts": ("k",), "fused": ("q", "k", "v")}
    method = lj.lora({"table": {}, "qkv": fused}, rank=2, magnitude=magnitude)
    adapted = method.insert(model, jax.random.key(0))
    for number, (_, leaf) in enumerate(nnx.to_flat_state(nnx.state(adapted, nnx.LoRAParam))):
        leaf[...] += jax.random.normal(jax.random.key(number), leaf.shape)
    return model, adapted


@pytest.mark.parametrize("magnitude", [False, True])
def test_switched_off_is_the_base_and_switched_on_as_before(magnitude: bool):
    model, adapted = trained(magnitude)
    before, graph = adapted(X), nnx.graphdef(adapted)
    with lj.disabled(adapted) as off:
        assert off is adapted
        np.testing.assert_array_equal(off(X), model(X))
        np.testing.assert_array_equal(nnx.jit(lambda m: m(X))(off), nnx.jit(lambda m: m(X))(model))
    np.testing.assert_array_equal(adapted(X), before)
    assert nnx.graphdef(adapted) == graph  # nothing is compiled again
    lj.enable(adapted, False)
    with lj.disabled(adapted):
        pass
    np.testing.assert_array_equal(adapted(X), model(X))  # as it was: off
    lj.enable(adapted)
    np.testing.assert_array_equal(adapted(X), before)


def test_gradients_are_zero_while_it_is_off():
    _, adapted = trained(False)
    lj.enable(adapted, False)
    gradients = nnx.grad(lambda m: jnp.sum(m(X)), argnums=nnx.DiffState(0, nnx.LoRAParam))(adapted)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_merging_what_is_off_is_refused_and_models_without_updates_too():
    model, adapted = trained(False)
    lj.enable(adapted, False)
    with pytest.raises(ValueError, match=r"update of qkv is switched off.*lora_jax.enable"):
        lj.merge(adapted)
    for refused in (lambda: lj.enable(model), lambda: lj.disabled(model).__enter__()):
        with pytest.raises(ValueError, match="no adapted layer"):
            refused()
