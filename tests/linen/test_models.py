"""A Linen model with updates is the NNX model with the same numbers, however its layers are stacked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import lora_jax
from lora_jax.costs import flops
from tests.linen.models import Model, pair, random_ids, random_variables, trained

QKV = {"parts": ("q", "v"), "fused": ("q", "k", "v")}
METHODS = {
    "lora": lora_jax.lora(r"layers\w*/(qkv|output)|embed", rank=2, alpha=4, head="head/.*"),
    "dora": lora_jax.lora(r"layers\w*/(qkv|output)|embed", rank=2, magnitude=True),
    "parts": lora_jax.lora({r"layers\w*/qkv": QKV, r"layers\w*/hidden": {}}, rank=2, bias="all"),
    "parts of dora": lora_jax.lora({r"layers\w*/qkv": QKV}, rank=2, magnitude=True),
    "bitfit": lora_jax.bitfit(head="head/.*"),
    "head": lora_jax.head_only("head/.*"),
    "full": lora_jax.full(),
}
IDS = random_ids()


@pytest.fixture(scope="module")
def scanned():
    return pair()


@pytest.mark.parametrize("name", METHODS)
def test_method_is_that_of_the_nnx_model(name, scanned):
    """Labels, summaries, first values, outputs, gradients, merged parameters."""
    method, (module, variables, model, twin) = METHODS[name], scanned
    ours, theirs = (method.insert(one, jax.random.key(3, impl="rbg")) for one in (model, twin))
    assert method.labels(ours) == method.labels(theirs)
    assert str(method.summary(ours)) == str(method.summary(theirs))
    for path, value in lora_jax.parameters(ours).items():
        np.testing.assert_array_equal(value, lora_jax.parameters(theirs)[path])
    base = module.apply(variables, IDS)
    if "dora" in name:
        np.testing.assert_allclose(ours(IDS), base, rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_array_equal(ours(IDS), base)

    results = []
    for one in (model, twin):
        structure, trainable, frozen = trained(one, method)

        def run(trainable, structure=structure, frozen=frozen):
            return lora_jax.join(structure, trainable, frozen)(IDS)

        outputs, pull_back = jax.vjp(run, trainable)
        (gradients,) = pull_back(jnp.cos(jnp.arange(outputs.size)).reshape(outputs.shape))
        results.append((outputs, gradients, lora_jax.join(structure, trainable, frozen)))
    (outputs, gradients, adapted), (expected, expected_gradients, adapted_twin) = results
    assert not np.allclose(outputs, base, atol=0.05)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
    for path, gradient in gradients.items():
        scale = np.abs(expected_gradients[path]).max()
        assert scale > 0, path
        np.testing.assert_allclose(
            gradient, expected_gradients[path], rtol=1e-4, atol=1e-5 * scale, err_msg=path
        )
    if not method.insertions:
        return
    merged = lora_jax.linen.variables(lora_jax.merge(adapted))
    assert jax.tree.structure(merged) == jax.tree.structure(variables)
    np.testing.assert_allclose(module.apply(merged, IDS), outputs, rtol=1e-4, atol=1e-4)
    flat = lora_jax.parameters(lora_jax.linen.as_nnx(module, merged, IDS))
    for path, value in lora_jax.parameters(lora_jax.merge(adapted_twin)).items():
        np.testing.assert_array_equal(flat[path], value)


@pytest.mark.parametrize("stack", ["loop", "scan, remat", "scan, jit"])
def test_other_stacks(stack):
    module, _, model, _ = pair(stack)
    method = METHODS["lora"]
    structure, trainable, frozen = trained(model, method)
    adapted = lora_jax.join(structure, trainable, frozen)
    merged = lora_jax.linen.variables(lora_jax.merge(adapted))
    np.testing.assert_allclose(adapted(IDS), module.apply(merged, IDS), rtol=1e-4, atol=1e-4)
    gradients = jax.grad(lambda t: (lora_jax.join(structure, t, frozen)(IDS) ** 2).sum())(trainable)
    assert all(np.any(gradient) for gradient in gradients.values())


def test_programs_of_nn_jit_are_kept_by_what_is_static():
    """Two updates that differ in their scale only have arrays of the same shapes."""
    _, _, model, _ = pair("scan, jit")
    outputs = []
    for alpha in (2, 8):
        method = lora_jax.lora("layers/output", rank=2, alpha=alpha)
        adapted = lora_jax.join(*trained(model, method))
        expected = lora_jax.merge(adapted)(IDS)
        outputs.append(adapted(IDS))
        np.testing.assert_allclose(outputs[-1], expected, rtol=1e-4, atol=1e-4)
    assert not np.allclose(*outputs, atol=0.05)


def test_flops_are_those_of_the_nnx_model(scanned):
    method, (_, _, model, twin) = METHODS["lora"], scanned
    ids = random_ids((4, 32))
    counts, compiled = [], []
    for one in (model, twin):
        adapted = method.insert(one, jax.random.key(0))
        structure, trainable, frozen = lora_jax.split(adapted, method.labels(adapted))

        def loss(trainable, frozen, ids, structure=structure):
            return jnp.mean(lora_jax.join(structure, trainable, frozen)(ids) ** 2)

        counts.append(flops.training(loss, trainable, frozen, ids))
        program = jax.jit(jax.grad(loss)).lower(trainable, frozen, ids).compile()
        compiled.append(program.cost_analysis()["flops"])
    assert counts[0] == counts[1] > 0
    assert compiled[0] == pytest.approx(compiled[1], rel=0.02)


def test_dropout_is_that_of_the_nnx_model(scanned):
    _, _, model, twin = scanned
    method = lora_jax.lora(r"layers/(qkv|output)", rank=2, dropout=0.5)
    outputs = []
    for one in (model, twin):
        adapted = lora_jax.join(*trained(one, method))
        without = adapted(IDS)
        lora_jax.seed_dropout(adapted, jax.random.key(5))
        outputs.append(adapted(IDS))
        assert not np.allclose(outputs[-1], without, atol=0.01)
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-5)


def test_abstract_model(scanned):
    """Nothing but shapes: GPT-3's parameters are counted this way."""
    module = Model()
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), IDS))
    ids = jax.ShapeDtypeStruct(IDS.shape, IDS.dtype)
    for name in ("lora", "dora"):
        method = METHODS[name]
        adapted = nnx.eval_shape(
            lambda method=method: method.insert(
                lora_jax.linen.as_nnx(module, shapes, ids), jax.random.key(0)
            )
        )
        expected = method.insert(scanned[2], jax.random.key(0))
        assert method.summary(adapted).counts() == method.summary(expected).counts()


# --- Other ways to share and to stack --------------------------------------------------------------


class Ensemble(linen.Module):
    """Members with parameters of their own, and a layer that is called twice."""

    @linen.compact
    def __call__(self, x):
        shared = linen.Dense(4, name="shared")
        x = shared(jnp.tanh(shared(x)))
        members = linen.vmap(
            Member, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None,
            axis_size=3,
        )  # fmt: skip
        return members(name="members")(x)


class Member(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(5, name="out")(x)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_vmapped_members_and_a_shared_layer(dropout):
    module, x = Ensemble(), jnp.asarray(np.random.default_rng(0).normal(size=(2, 4)), jnp.float32)
    model = lora_jax.linen.as_nnx(module, random_variables(module, x), x)
    method = lora_jax.lora("shared|members/out", rank=2, dropout=dropout)
    adapted = lora_jax.join(*trained(model, method))
    assert adapted.members.out.lora.a.shape == (3, 4, 2)
    merged = module.apply(lora_jax.linen.variables(lora_jax.merge(adapted)), x)
    assert merged.shape == (3, 2, 5)
    np.testing.assert_allclose(adapted(x), merged, rtol=1e-4, atol=1e-4)
    if dropout:
        lora_jax.seed_dropout(adapted, jax.random.key(0))
        assert not np.allclose(adapted(x), merged, atol=0.01)


def test_stack_on_another_axis_is_refused():
    class Stacked(linen.Module):
        @linen.compact
        def __call__(self, x):
            scanned = linen.scan(
                Layer, variable_axes={"params": 1}, split_rngs={"params": True}, length=3
            )
            return scanned(name="layers")(x, None)[0]

    class Layer(linen.Module):
        @linen.compact
        def __call__(self, x, _):
            return linen.Dense(4, name="out", use_bias=False)(x), None

    module, x = Stacked(), jnp.ones((2, 4))
    model = lora_jax.linen.as_nnx(module, random_variables(module, x), x)
    message = r"layers/out/kernel has shape \(4, 3, 4\), but one layer's is \(4, 4\).*variable_axes"
    with pytest.raises(ValueError, match=message):
        lora_jax.lora("layers/out", rank=2).insert(model, jax.random.key(0))


class Wrapped(linen.Module):
    """One layer, made by a function."""

    make: object

    @linen.compact
    def __call__(self, x):
        return self.make()(x)


MAPPED = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
TRANSFORMED = {
    "remat": lambda: linen.remat(linen.Dense)(5, name="d"),
    "jit": lambda: linen.jit(linen.Dense)(5, name="d"),
    "vmap": lambda: linen.vmap(linen.Dense, in_axes=None, axis_size=3, **MAPPED)(5, name="d"),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_transformed_layer(name):
    module, x = Wrapped(TRANSFORMED[name]), jnp.ones((2, 4))
    model = lora_jax.linen.as_nnx(module, random_variables(module, x), x)
    for magnitude in (False, True):
        adapted = lora_jax.join(*trained(model, lora_jax.lora("d", rank=2, magnitude=magnitude)))
        assert not np.allclose(adapted(x), model(x), atol=0.01)
        np.testing.assert_allclose(adapted(x), lora_jax.merge(adapted)(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", [linen.WeightNorm, linen.SpectralNorm])
def test_layer_whose_weight_is_normalised_is_refused(norm):
    """Its update would be added behind the norm, and merged in front of it."""
    more = {"update_stats": False} if norm is linen.SpectralNorm else {}

    class Normalised(linen.Module):
        @linen.compact
        def __call__(self, x):
            return norm(linen.Dense(5), name="w")(x, **more)

    module, x = Normalised(), jnp.ones((2, 4))
    model = lora_jax.linen.as_nnx(module, module.init(jax.random.key(0), x), x)
    with pytest.raises(
        TypeError, match="Dense_0 is a .*NormalisedByWeightNorm, for which there is"
    ):
        lora_jax.lora("Dense_0", rank=2).insert(model, jax.random.key(0))


def test_module_that_applies_another_one_inside():
    """As some output layers read the table of an embedding; what has no update there stays as it was."""

    class Inner(linen.Module):
        def setup(self):
            self.out = linen.Dense(4)
            self.decoder = linen.Dense(4, use_bias=False)

        def __call__(self, x):
            x = self.out(x)
            return self.decoder.apply(
                {"params": {"kernel": self.out.variables["params"]["kernel"]}}, x
            )

    module, x = Inner(), jnp.ones((2, 4))
    variables = random_variables(module, x)
    model = lora_jax.linen.as_nnx(module, variables, x)
    assert list(lora_jax.parameters(model)) == ["out/bias", "out/kernel"]
    adapted = lora_jax.lora("out", rank=2).insert(model, jax.random.key(0))
    np.testing.assert_array_equal(adapted(x), module.apply(variables, x))
