"""What can be adapted, layers of a user, and the errors for what cannot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lora_jax
from lora_jax.low_rank import layers
from lora_jax.low_rank.contraction import Contraction
from lora_jax.low_rank.settings import LoRASettings
from tests.low_rank.layer_cases import (
    FLOAT32,
    adapted_copy,
    conv,
    einsum,
    key,
    linear,
    random_input,
    randomise,
    transposed,
)

# --- The registry ---------------------------------------------------------------------------------


class TransposedLinear(nnx.Module):
    """A layer of a user's own: weight (out, in)."""

    def __init__(self, inputs, outputs, rngs):
        self.weight_matrix = nnx.Param(jax.random.normal(rngs.params(), (outputs, inputs)))

    def __call__(self, inputs):
        return inputs @ self.weight_matrix[...].T


def test_unsupported_layer_is_refused_with_the_remedy():
    with pytest.raises(TypeError) as error:
        layers.adapt(
            TransposedLinear(4, 5, nnx.Rngs(0)), LoRASettings(2, 2.0), key(0), "encoder/odd"
        )
    text = str(error.value)
    assert "encoder/odd" in text and "TransposedLinear" in text
    for name in ("Linear", "LinearGeneral", "Einsum", "Embed", "Conv"):
        assert f"flax.nnx.{name}" in text
    assert "lora_jax.register(TransposedLinear)" in text


def test_subclass_of_a_supported_layer_is_refused():
    class Doubled(nnx.Linear):
        def __call__(self, inputs):
            return 2 * super().__call__(inputs)

    layer = Doubled(4, 5, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="no LoRA layer"):
        layers.adapt(layer, LoRASettings(2, 2.0), key(0))
    assert type(layer) is Doubled and not hasattr(layer, "lora")


def test_registered_layer_of_a_user_works(registry):
    @layers.register(TransposedLinear)
    class LoRATransposedLinear(layers.LoRALayer, TransposedLinear):
        weight = "weight_matrix"

        def roles(self):
            return Contraction(batch=(), inputs=(1,), outputs=(0,))

        def low_rank_output(self, inputs, a, b):
            return inputs @ a @ b

    assert TransposedLinear in layers.supported()
    base = TransposedLinear(4, 5, nnx.Rngs(0))
    model = lora_jax.lora("", rank=2).insert(base, key(0))
    x = random_input((3, 4))
    np.testing.assert_array_equal(model(x), base(x))
    randomise(model.lora, 1)
    merged = lora_jax.merge(model)
    assert type(merged) is TransposedLinear
    np.testing.assert_allclose(model(x), merged(x), **FLOAT32)


def test_supported_classes_are_those_of_the_documents():
    names = {f"{kind.__module__}.{kind.__name__}" for kind in layers.supported()}
    kinds = ("Linear", "LinearGeneral", "Einsum", "Embed", "Conv", "ConvTranspose")
    of_linen = ("Dense", "DenseGeneral", *kinds[2:])
    assert names == {
        *(f"flax.nnx.nn.linear.{kind}" for kind in kinds),
        *(f"flax.linen.linear.{kind}" for kind in of_linen),
    }


def test_form_that_is_no_subclass_is_refused(registry):
    with pytest.raises(TypeError, match="must subclass LoRALayer and TransposedLinear"):

        @layers.register(TransposedLinear)
        class Wrong(layers.LoRALayer):
            pass


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"rank": 0}, "positive integer"),
        ({"rank": True}, "positive integer"),
        ({"rank": 5}, "smaller side is 4"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"dropout": True}, "dropout"),
        ({"dropout": float("nan")}, "dropout"),
        ({"init": "zeros"}, "init"),
        ({"scaling": "r"}, "scaling"),
    ],
)
def test_bad_settings_are_refused_and_leave_the_layer(arguments, message):
    layer = linear(4, 6)(nnx.Rngs(0))
    before = nnx.graphdef(layer)
    with pytest.raises(ValueError, match=message):
        layers.adapt(layer, LoRASettings(**{"rank": 2, "alpha": 2.0, **arguments}), key(0))
    assert type(layer) is nnx.Linear and nnx.graphdef(layer) == before


def test_masked_transposed_convolution_is_refused():
    layer = transposed(3, 4, (3,), mask=jnp.tril(jnp.ones((3, 3, 4))))(nnx.Rngs(0))
    with pytest.raises(ValueError, match="a masked ConvTranspose has no LoRA form"):
        layers.adapt(layer, LoRASettings(2, 2.0), key(0))
    assert type(layer) is nnx.ConvTranspose


def test_adapting_twice_is_refused():
    layer = adapted_copy(linear(4, 6)(nnx.Rngs(0)))
    with pytest.raises(ValueError, match="adapted already"):
        layers.adapt(layer, LoRASettings(2, 2.0), key(0))


def test_masked_convolution_is_refused():
    layer = conv(3, 4, (3,), mask=jnp.tril(jnp.ones((3, 3, 4))))(nnx.Rngs(0))
    with pytest.raises(ValueError, match="masked"):
        layers.adapt(layer, LoRASettings(2, 2.0), key(0))
    assert type(layer) is nnx.Conv


@pytest.mark.parametrize("equation", ["bi,ij->b", "bi,...i->b..."])
def test_einsum_without_clear_roles_is_refused(equation):
    layer = einsum(equation, (4, 5))(nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"einsum|role"):
        layers.adapt(layer, LoRASettings(2, 2.0), key(0))
    assert type(layer) is nnx.Einsum


def test_global_functions_are_not_patched():
    """qwix replaces jnp.einsum and lax.dot_general while a model runs."""
    before = (jnp.einsum, jax.lax.dot_general, jax.lax.conv_general_dilated, nnx.Linear.__call__)
    seen = []

    class Watch(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(4, 4, rngs=rngs)

        def __call__(self, x):
            seen.append((jnp.einsum, jax.lax.dot_general))
            return self.layer(x)

    model = lora_jax.lora("layer", rank=2).insert(Watch(nnx.Rngs(0)), key(0))
    model(jnp.ones((1, 4)))
    assert seen == [before[:2]]
    after = (jnp.einsum, jax.lax.dot_general, jax.lax.conv_general_dilated, nnx.Linear.__call__)
    assert after == before


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int32, jnp.uint8, jnp.bool_])
def test_weight_that_cannot_hold_the_merged_values_is_refused(dtype):
    """Merged into integers the update would be rounded away."""
    model = nnx.Dict(query=linear(4, 4)(nnx.Rngs(0)))
    model["query"].kernel = nnx.Param(jnp.ones((4, 4), dtype))
    message = f"weight of query has type {jnp.dtype(dtype)}, which cannot hold the merged values"
    with pytest.raises(ValueError, match=message):
        lora_jax.lora("query", rank=2).insert(model, key(0))
    assert type(model["query"]) is nnx.Linear


def test_complex_weights_are_refused():
    layer = nnx.Linear(4, 4, param_dtype=jnp.complex64, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"type complex64, .*\(factors are real numbers\)"):
        lora_jax.lora("", rank=1).insert(layer, key(0))


def test_a_class_that_is_no_pytree_needs_a_form_that_is_none(registry):
    class Plain(nnx.Module, pytree=False):
        pass

    with pytest.raises(TypeError, match="Plain is no pytree, and Form would be one"):

        @layers.register(Plain)
        class Form(lora_jax.LoRALayer, Plain):
            pass
