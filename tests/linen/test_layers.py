"""Every layer of Flax Linen with an update is the NNX layer of the same kind with the same numbers."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import lora_jax
from lora_jax.low_rank import layers
from tests.low_rank.layer_cases import CASES, FLOAT32, key, random_input, randomise

SHARED = ("use_bias", "dtype", "param_dtype", "precision")


def arguments(layer, *names):
    return {name: getattr(layer, name) for name in names}


def to_linen(layer):
    """The Linen module with the arguments of an NNX layer."""
    if isinstance(layer, nnx.Linear):
        return linen.Dense(layer.out_features, **arguments(layer, *SHARED))
    if isinstance(layer, nnx.LinearGeneral):
        more = {"batch_dims": tuple(layer.batch_axis), **arguments(layer, "axis", *SHARED)}
        return linen.DenseGeneral(layer.out_features, **more)
    if isinstance(layer, nnx.Einsum):
        return linen.Einsum(
            layer.kernel_shape, layer.einsum_str, use_bias=layer.bias_shape is not None
        )
    if isinstance(layer, nnx.Embed):
        return linen.Embed(layer.num_embeddings, layer.features)
    names = ("kernel_size", "strides", "padding", "kernel_dilation", *SHARED)
    if isinstance(layer, nnx.Conv):
        names += ("input_dilation", "feature_group_count")
        return linen.Conv(layer.out_features, **arguments(layer, *names))
    return linen.ConvTranspose(layer.out_features, **arguments(layer, "transpose_kernel", *names))


# The algebra is NNX's, which is tested on every case; what differs is how a module makes its product.
CHOSEN = (
    "linear", "linear, no bias", "general, from heads", "general, axis 1 and last",
    "general, batch axis, inner", "einsum, heads", "einsum, ellipsis", "einsum, experts",
    "einsum, output permuted", "embed", "embed, one row", "conv 1D, causal, dilated",
    "conv 2D, circular, stride", "conv 2D, groups, stride, dilated", "conv 2D, no batch, groups",
    "transposed 1D, stored transposed", "transposed 2D, circular", "transposed 2D, pairs, dilated",
)  # fmt: skip
DORA = (
    "linear",
    "general, batch axis, inner",
    "einsum, heads",
    "embed",
    "conv 2D, no batch, groups",
)


@pytest.fixture(
    scope="module", params=[(n, False) for n in CHOSEN] + [(n, True) for n in DORA], ids=str
)
def case(request):
    """A layer of every kind in both, adapted with the same key, with random factors."""
    name, magnitude = request.param
    make, shape, rank = CASES[name]
    layer = make(nnx.Rngs(0))
    randomise(layer, 0)
    x = random_input(shape, 10 if isinstance(layer, nnx.Embed) else None)
    module, params = to_linen(layer), lora_jax.parameters(layer)
    model = lora_jax.linen.as_nnx(module, {"params": params}, x)
    method = lora_jax.lora("", rank=rank, alpha=3.0, magnitude=magnitude)
    adapted = [method.insert(one, key(0)) for one in (layer, model)]
    fresh = [nnx.clone(one) for one in adapted]
    for one in adapted:
        randomise(one.lora, 2)
    return types.SimpleNamespace(
        module=module, params=params, x=x, layer=layer, model=model, fresh=fresh,
        adapted=adapted, magnitude=magnitude,
    )  # fmt: skip


def test_call_is_that_of_the_module(case):
    expected = case.module.apply({"params": case.params}, case.x)
    np.testing.assert_array_equal(case.model(case.x), expected)
    if not case.magnitude:
        np.testing.assert_array_equal(case.fresh[1](case.x), expected)


def test_start_is_that_of_the_nnx_layer(case):
    ours, theirs = (lora_jax.parameters(model) for model in case.fresh)
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        np.testing.assert_array_equal(value, theirs[path], err_msg=path)


def test_output_gradients_and_merged_weight_are_those_of_the_nnx_layer(case):
    results = []
    for model in case.adapted:
        graphdef, factors, rest = nnx.split(model, nnx.LoRAParam, ...)

        def run(factors, graphdef=graphdef, rest=rest):
            return nnx.merge(graphdef, factors, rest)(case.x)

        y, pull_back = jax.vjp(run, factors)
        (gradient,) = pull_back(jnp.cos(jnp.arange(y.size)).reshape(y.shape))
        merged = lora_jax.parameters(lora_jax.merge(model))
        results.append((y, {p: g[...] for p, g in nnx.to_flat_state(gradient)}, merged))
    ours, theirs = results
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6, atol=1e-6)
    for path in theirs[1]:
        scale = np.abs(theirs[1][path]).max()
        np.testing.assert_allclose(ours[1][path], theirs[1][path], rtol=1e-5, atol=1e-6 * scale)
    for path in theirs[2]:
        np.testing.assert_array_equal(ours[2][path], theirs[2][path])


def test_merged_parameters_give_the_adapted_output(case):
    variables = lora_jax.linen.variables(lora_jax.merge(case.adapted[1]))
    assert variables["params"].keys() == case.params.keys()
    merged = case.module.apply(variables, case.x)
    result = case.adapted[1](case.x)
    assert not np.allclose(result, case.model(case.x), atol=0.1)
    np.testing.assert_allclose(result, merged, rtol=1e-4, atol=5e-4 if case.magnitude else 1e-4)


def test_attend():
    table = linen.Embed(10, 6)
    ids, query = random_input((3, 4), 10), random_input((5, 6))
    params = {"embedding": random_input((10, 6))}
    model = lora_jax.linen.as_nnx(table, {"params": params}, ids)
    for magnitude in (False, True):
        adapted = lora_jax.lora("", rank=2, magnitude=magnitude).insert(model, key(0))
        np.testing.assert_allclose(
            adapted(query, method="attend"), query @ params["embedding"].T, rtol=1e-6, atol=1e-5
        )
        randomise(adapted.lora, 1)
        variables = lora_jax.linen.variables(lora_jax.merge(adapted))
        expected = table.apply(variables, query, method="attend")
        np.testing.assert_allclose(adapted(query, method="attend"), expected, **FLOAT32)


# --- Products of a user's own ----------------------------------------------------------------------


def doubled(inputs, kernel, dimensions, **settings):
    return 2 * jax.lax.dot_general(inputs, kernel, dimensions, **settings)


def clipped(first, *rest, dtype=None, inexact=True):
    first, *rest = linen.dtypes.promote_dtype(first, *rest, dtype=dtype, inexact=inexact)
    return [jnp.clip(first, -0.5, 0.5) if rest else first, *rest]


def doubled_conv(*arguments, **settings):
    return 2 * jax.lax.conv_general_dilated(*arguments, **settings)


CUSTOM = {
    "dense, product": (linen.Dense(5, dot_general=doubled), (3, 4)),
    "dense, product's class": (linen.Dense(5, dot_general_cls=lambda: doubled), (3, 4)),
    "dense, promotion": (linen.Dense(5, promote_dtype=clipped), (3, 4)),
    "general": (linen.DenseGeneral((2, 3), dot_general=doubled), (3, 4)),
    "einsum": (linen.Einsum((4, 5), "bi,io->bo", promote_dtype=clipped), (3, 4)),
    "conv": (linen.Conv(6, 3, conv_general_dilated=doubled_conv), (2, 5, 4)),
    "transposed": (linen.ConvTranspose(6, (3,), promote_dtype=clipped), (2, 5, 4)),
}


@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("name", CUSTOM)
def test_custom_product_or_promotion_acts_once(name, magnitude):
    module, shape = CUSTOM[name]
    x = random_input(shape)
    model = lora_jax.linen.as_nnx(module, module.init(key(0), x), x)
    adapted = lora_jax.lora("", rank=2, magnitude=magnitude).insert(model, key(0))
    randomise(adapted, 1)
    expected = module.apply(lora_jax.linen.variables(lora_jax.merge(adapted)), x)
    np.testing.assert_allclose(adapted(x), expected, rtol=1e-4, atol=2e-4)


# --- Layers of a user's own ------------------------------------------------------------------------


@pytest.fixture
def registry(registry):
    """Those of Linen's calls, too."""
    from lora_jax.linen import calls

    before = dict(calls.FORMS)
    yield
    calls.FORMS.clear()
    calls.FORMS.update(before)


class Torchlike(linen.Module):
    features: int

    @linen.compact
    def __call__(self, x):
        init = linen.initializers.normal()
        return x @ self.param("w", init, (self.features, x.shape[-1])).T


def test_layer_of_a_users_own(registry):
    x = random_input((3, 4))
    module = Torchlike(5)
    variables = module.init(key(0), x)
    model = lora_jax.linen.as_nnx(module, variables, x)
    method = lora_jax.lora("", rank=2)
    with pytest.raises(TypeError, match=r"test_layers.Torchlike, for .*lora_jax.linen.register"):
        method.insert(model, key(0))

    @lora_jax.linen.register(Torchlike)
    class LoRATorchlike(lora_jax.linen.LinenLoRALayer):
        weight = "w"

        def roles(self):
            return lora_jax.Contraction(batch=(), inputs=(1,), outputs=(0,))

        def low_rank_output(self, inputs, a, b):
            return inputs @ a @ b

    adapted = method.insert(lora_jax.linen.as_nnx(module, variables, x), key(0))
    np.testing.assert_array_equal(adapted(x), module.apply(variables, x))
    randomise(adapted.lora, 1)
    expected = module.apply(lora_jax.linen.variables(lora_jax.merge(adapted)), x)
    np.testing.assert_allclose(adapted(x), expected, **FLOAT32)


def test_branch_of_a_parent_class_is_refused(registry):
    from lora_jax.linen.layers import LoRAEmbed

    class ScaledEmbed(linen.Embed):
        def __call__(self, ids):
            return 3 * super().__call__(ids)

    with pytest.raises(TypeError, match=r"ScaledEmbed has a __call__ of its own.*low_rank_output"):
        lora_jax.linen.register(ScaledEmbed)(type("Form", (LoRAEmbed,), {}))

    @lora_jax.linen.register(ScaledEmbed)
    class Form(LoRAEmbed):
        def low_rank_output(self, inputs, a, b):
            return 3 * super().low_rank_output(inputs, a, b)

    module, ids = ScaledEmbed(10, 6), random_input((3, 4), 10)
    adapted = lora_jax.lora("", rank=2).insert(
        lora_jax.linen.as_nnx(module, module.init(key(0), ids), ids), key(0)
    )
    randomise(adapted.lora, 1)
    expected = module.apply(lora_jax.linen.variables(lora_jax.merge(adapted)), ids)
    np.testing.assert_allclose(adapted(ids), expected, **FLOAT32)


@pytest.mark.wrong_types
def test_form_of_nnx_is_refused():
    with pytest.raises(TypeError, match="must subclass lora_jax.linen.LinenLoRALayer"):
        lora_jax.linen.register(Torchlike)(type("Form", (lora_jax.LoRALayer,), {}))


def test_masked_convolution_is_refused():
    x = random_input((2, 5, 3))
    mask = jnp.ones((3, 3, 4))
    module = linen.Conv(4, 3, mask=mask)
    model = lora_jax.linen.as_nnx(module, module.init(key(0), x), x)
    with pytest.raises(ValueError, match="a masked Conv has no LoRA form"):
        lora_jax.lora("", rank=2).insert(model, key(0))


# --- Calls that are not `layer(inputs)` --------------------------------------------------------------


def merged_equals_adapted(module, variables, call, targets, magnitude=False):
    """Inserts into the model of `call(model_or_apply)`, with random factors."""
    model = call(lambda *a, **k: lora_jax.linen.as_nnx(module, variables, *a, **k))
    method = lora_jax.lora(targets, rank=2, magnitude=magnitude)
    adapted = method.insert(model, key(0))
    before = call(adapted)
    expected = call(lambda *a, **k: module.apply(variables, *a, **k))
    np.testing.assert_allclose(before, expected, rtol=1e-5 * magnitude, atol=1e-5 * magnitude)
    for layer in layers.adapted_layers(adapted).values():
        randomise(layer.lora, 1)
    merged = lora_jax.linen.variables(lora_jax.merge(adapted))
    after, expected = call(adapted), call(lambda *a, **k: module.apply(merged, *a, **k))
    assert not np.allclose(after, before, atol=0.1)
    np.testing.assert_allclose(after, expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("named", [False, True])
def test_einsum_whose_equation_comes_with_the_call(named):
    x, equation = random_input((2, 6, 4)), "bti,ihd->bthd"
    given = ((x,), {"einsum_str": equation}) if named else ((x, equation), {})
    module = linen.Einsum((4, 3, 5))
    variables = module.init(key(0), x, equation)
    merged_equals_adapted(module, variables, lambda f: f(*given[0], **given[1]), "")


class Einsum(linen.Module):
    """As in Gemma: the equation comes first, with the call."""

    shape: tuple

    @linen.compact
    def __call__(self, eqn, x):
        return jnp.einsum(eqn, x, self.param("w", linen.initializers.normal(), self.shape))


class Embedder(linen.Module):
    """As in Gemma: two methods of its own, one with a scale."""

    def setup(self):
        self.table = self.param("input_embedding", linen.initializers.normal(), (10, 8))

    def encode(self, ids):
        return self.table[(ids,)] * 8**0.5

    def decode(self, x):
        return x @ self.table.T


class Gemma(linen.Module):
    def setup(self):
        self.embedder = Embedder()
        self.kv = Einsum((2, 3, 8, 4))
        self.out = Einsum((3, 4, 8))

    def __call__(self, ids):
        x = self.embedder.encode(ids)
        keys, values = self.kv("BSD,2KDH->2BSKH", x)
        return self.embedder.decode(self.out("BTNH,NHD->BTD", jnp.tanh(keys) * values) + x)


@pytest.mark.parametrize("magnitude", [False, True])
def test_layers_as_gemmas(registry, magnitude):
    @lora_jax.linen.register(Einsum)
    class LoRAEinsum(lora_jax.linen.EinsumLoRALayer):
        weight = "w"
        inputs_argument, equation_argument = "x", "eqn"

    @lora_jax.linen.register(Embedder)
    class LoRAEmbedder(lora_jax.linen.LinenLoRALayer):
        weight, gathers = "input_embedding", True
        output_methods, attend_methods = ("encode",), ("decode",)

        def roles(self):
            return lora_jax.Contraction(batch=(), inputs=(0,), outputs=(1,))

        def low_rank_output(self, ids, a, b):
            return jnp.take(a, ids, axis=0) @ b * 8**0.5

        def low_rank_logits(self, query, a, b):
            return (query @ b.T) @ a.T

    module, ids = Gemma(), random_input((2, 5), 10)
    variables = module.init(key(0), ids)
    merged_equals_adapted(module, variables, lambda f: f(ids), "embedder|kv|out", magnitude)
