"""Layers of a user's own: one mixin for einsums, and what is refused when a form is registered or used."""

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
    CASES,
    FLOAT32,
    adapted_copy,
    embed,
    key,
    linear,
    random_input,
    randomise,
)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Forms that a test registers are gone after it."""
    monkeypatch.setattr(layers, "_LORA_LAYERS", dict(layers._LORA_LAYERS))


class MyEinsum(nnx.Module):
    def __init__(self, einsum_str, shape, rngs):
        self.einsum_str = einsum_str
        self.w = nnx.Param(jax.random.normal(rngs.params(), shape))

    def __call__(self, x):
        return jnp.einsum(self.einsum_str, x, self.w[...])


@pytest.fixture
def einsum_form(registry):
    @lora_jax.register(MyEinsum)
    class LoRAMyEinsum(lora_jax.EinsumLoRALayer, MyEinsum):
        weight = "w"

    return LoRAMyEinsum


EQUATIONS = {
    "...d,ndh->...nh": ((4, 3, 5), (2, 6, 3)),
    "BTD,NDH->BTNH": ((4, 3, 5), (2, 6, 3)),
    "BTNH,NHD->BTD": ((4, 5, 3), (2, 6, 4, 5)),
    "BSD,CKDH->CBSKH": ((2, 4, 3, 5), (2, 6, 3)),
    "...ecd,edf->...ecf": ((3, 4, 5), (2, 3, 6, 4)),
    "gbei,geio->gbeo": ((2, 3, 4, 5), (2, 6, 3, 4)),
    "b t d , d f -> b t f": ((3, 4), (2, 6, 3)),
}


@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum_of_a_users_own(equation, magnitude, einsum_form):
    shape, inputs = EQUATIONS[equation]
    base = MyEinsum(equation, shape, nnx.Rngs(0))
    layer = adapted_copy(base, magnitude=magnitude)
    x = random_input(inputs)
    np.testing.assert_allclose(layer(x), base(x), rtol=1e-6 * magnitude, atol=1e-5 * magnitude)
    randomise(layer.lora, 1)
    merged = lora_jax.merge(layer)
    assert type(merged) is MyEinsum
    assert not np.allclose(layer(x), base(x), atol=0.1)
    np.testing.assert_allclose(layer(x), merged(x), rtol=1e-4, atol=2e-4)


def test_stack_of_einsums_of_a_users_own(einsum_form):
    make = nnx.split_rngs(splits=3)(nnx.vmap(lambda rngs: MyEinsum("bi,io->bo", (4, 5), rngs)))
    stack = make(nnx.Rngs(0))
    layers.adapt(stack, LoRASettings(rank=2, alpha=3.0), key(0))
    randomise(stack.lora, 1)
    x = random_input((2, 4))
    outputs = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(stack, x)
    merged = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(lora_jax.merge(stack), x)
    assert outputs.shape == (3, 2, 5)
    np.testing.assert_allclose(outputs, merged, **FLOAT32)


# --- A weight that is called `weight`, names that are taken ----------------------------------------


class Torchlike(nnx.Module):
    def __init__(self, rngs):
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (4, 5)))

    def __call__(self, x):
        return x @ self.weight[...]


def test_weight_called_weight():
    @lora_jax.register(Torchlike)
    class LoRATorchlike(lora_jax.LoRALayer, Torchlike):
        weight = "weight"

        def roles(self):
            return Contraction(batch=(), inputs=(0,), outputs=(1,))

        def low_rank_output(self, inputs, a, b):
            return inputs @ a @ b

    layer = adapted_copy(Torchlike(nnx.Rngs(0)))
    randomise(layer.lora, 1)
    x = random_input((3, 4))
    np.testing.assert_allclose(layer(x), lora_jax.merge(layer)(x), **FLOAT32)


def test_method_of_a_users_class_with_a_name_that_is_needed_is_refused():
    class Viewed(Torchlike):
        def view(self):
            return self.weight[...]

    with pytest.raises(TypeError, match="Viewed has a view of its own.*rename it"):
        lora_jax.register(Viewed)(type("F", (lora_jax.LoRALayer, Viewed), {}))


@pytest.mark.parametrize("name", ["lora", "view"])
def test_attribute_with_a_name_that_is_needed_is_refused(name):
    model = nnx.Dict(query=linear(4, 5)(nnx.Rngs(0)))
    setattr(model["query"], name, nnx.Param(jnp.ones(3)))
    with pytest.raises(ValueError, match=f"query has an attribute `{name}` of its own.*rename"):
        lora_jax.lora("query", rank=2).insert(model, key(0))


# --- Order of bases, calls of a subclass's own -----------------------------------------------------


def test_wrong_order_of_bases_is_refused():
    """The branch of such a form never ran, but it was merged."""

    class Form(Torchlike, lora_jax.LoRALayer):
        weight = "weight"

    with pytest.raises(TypeError, match=r"Swap them: class Form\(LoRALayer, Torchlike\)"):
        lora_jax.register(Torchlike)(Form)


def test_einsum_mixin_behind_the_base_is_refused():
    class Form(MyEinsum, lora_jax.EinsumLoRALayer):
        weight = "w"

    with pytest.raises(TypeError, match=r"Swap them: class Form\(EinsumLoRALayer, MyEinsum\)"):
        lora_jax.register(MyEinsum)(Form)


def test_mixin_that_keeps_an_object_from_becoming_the_form_is_refused():
    class Mixin:
        def low_rank_output(self, inputs, a, b):
            return inputs @ a @ b

    class Form(Mixin, lora_jax.LoRALayer, Torchlike):
        pass

    with pytest.raises(TypeError, match="Name LoRALayer, or a subclass of it, as the first base"):
        lora_jax.register(Torchlike)(Form)


class ScaledEmbed(nnx.Embed):
    def __call__(self, inputs):
        return 3 * super().__call__(inputs)

    def attend(self, query):
        return super().attend(query) / 5


def test_branch_of_a_parent_class_is_refused():
    class Form(layers._LORA_LAYERS[nnx.Embed], ScaledEmbed):
        pass

    with pytest.raises(TypeError) as error:
        lora_jax.register(ScaledEmbed)(Form)
    assert "ScaledEmbed has a __call__ of its own" in str(error.value)
    assert "return super().low_rank_output(inputs, a, b) * scale" in str(error.value)

    class Half(layers._LORA_LAYERS[nnx.Embed], ScaledEmbed):
        def low_rank_output(self, inputs, a, b):
            return 3 * super().low_rank_output(inputs, a, b)

    with pytest.raises(
        TypeError, match=r"attend of its own.*super\(\).low_rank_logits\(query, a, b"
    ):
        lora_jax.register(ScaledEmbed)(Half)


def test_branch_that_does_what_the_subclass_does():
    @lora_jax.register(ScaledEmbed)
    class Form(layers._LORA_LAYERS[nnx.Embed], ScaledEmbed):
        def low_rank_output(self, inputs, a, b):
            return 3 * super().low_rank_output(inputs, a, b)

        def low_rank_logits(self, query, a, b):
            return super().low_rank_logits(query, a, b) / 5

    base = ScaledEmbed(10, 6, rngs=nnx.Rngs(0))
    layer = adapted_copy(base)
    randomise(layer.lora, 1)
    merged = lora_jax.merge(layer)
    assert type(merged) is ScaledEmbed
    ids, query = random_input((3, 4), 10), random_input((3, 6))
    assert not np.allclose(layer(ids), base(ids), atol=0.1)
    np.testing.assert_allclose(layer(ids), merged(ids), **FLOAT32)
    np.testing.assert_allclose(layer.attend(query), merged.attend(query), **FLOAT32)


def test_subclass_without_a_call_of_its_own_takes_the_branch_of_its_parent():
    class Named(nnx.Linear):
        pass

    lora_jax.register(Named)(type("Form", (layers._LORA_LAYERS[nnx.Linear], Named), {}))
    layer = adapted_copy(Named(4, 5, rngs=nnx.Rngs(0)))
    randomise(layer.lora, 1)
    x = random_input((3, 4))
    np.testing.assert_allclose(layer(x), lora_jax.merge(layer)(x), **FLOAT32)


def test_what_a_form_does_not_say_is_asked_for():
    lora_jax.register(Torchlike)(
        type("Form", (lora_jax.LoRALayer, Torchlike), {"weight": "weight"})
    )
    with pytest.raises(NotImplementedError, match=r"roles\(self\).*Contraction\(batch"):
        adapted_copy(Torchlike(nnx.Rngs(0)))
    roles = {"weight": "weight", "roles": lambda self: Contraction((), (0,), (1,))}
    lora_jax.register(Torchlike)(type("Form", (lora_jax.LoRALayer, Torchlike), roles))
    layer = adapted_copy(Torchlike(nnx.Rngs(0)))
    with pytest.raises(NotImplementedError, match="inputs @ weight, inputs @ a @ b"):
        layer(random_input((3, 4)))


# --- Stacks on another axis ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["linear", "general, to heads", "einsum, heads", "embed", "conv 1D"]
)
def test_stack_on_another_axis_is_refused(name):
    make, _, rank = CASES[name]
    for axis in (1, -1):
        stack = nnx.split_rngs(splits=7)(nnx.vmap(make, out_axes=axis))(nnx.Rngs(0))
        model = nnx.Dict(layers=stack)
        with pytest.raises(ValueError, match=r"layers/\w+ has shape .* Stack layers on axis 0"):
            lora_jax.lora("layers", rank=rank).insert(model, key(0))


def test_bias_on_another_axis_is_refused():
    model = nnx.Dict(layers=embed(4, 4)(nnx.Rngs(0)), query=linear(4, 4)(nnx.Rngs(0)))
    model["query"].kernel = nnx.Param(jnp.ones((3, 4, 4)))
    model["query"].bias = nnx.Param(jnp.ones((4, 3)))
    with pytest.raises(ValueError, match=r"query/bias has shape \(4, 3\).*\(3, 4\) was expected"):
        lora_jax.lora("query", rank=2).insert(model, key(0))
