"""Variables in and out, collections that a call writes, training, folders, checkpoints, and errors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import lora_jax
from lora_jax.sharding import axes
from tests.linen.models import pair, random_ids, random_variables, trained

IDS = random_ids()
METHOD = lora_jax.lora(r"layers/(qkv|output)", rank=2, alpha=4, head="head/.*")


@pytest.fixture(scope="module")
def scanned():
    return pair()


def equal_trees(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_variables_go_in_and_out(scanned):
    _, variables, model, _ = scanned
    equal_trees(lora_jax.linen.variables(model), variables)
    adapted = METHOD.insert(model, jax.random.key(0))
    equal_trees(lora_jax.linen.variables(lora_jax.strip(adapted)), variables)
    with pytest.raises(
        ValueError, match=r"adapted \(layers/output/lora\).*variables\(lora_jax.merge"
    ):
        lora_jax.linen.variables(adapted)
    with pytest.raises(TypeError, match="takes a model of as_nnx, got Linear"):
        lora_jax.linen.variables(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))


def test_arrays_are_shared(scanned):
    _, variables, model, _ = scanned
    adapted = METHOD.insert(model, jax.random.key(0))
    assert adapted.embed.embedding.get_raw_value() is variables["params"]["embed"]["embedding"]


def test_boxes_of_partitioned_parameters_are_opened():
    init = linen.with_partitioning(linen.initializers.lecun_normal(), ("embed", "mlp"))
    module, x = linen.Dense(3, kernel_init=init), jnp.ones((2, 4))
    boxed = module.init(jax.random.key(0), x)
    assert isinstance(boxed["params"]["kernel"], linen.Partitioned)
    model = lora_jax.linen.as_nnx(module, boxed, x)
    adapted = lora_jax.lora("", rank=2).insert(model, jax.random.key(0))
    np.testing.assert_array_equal(adapted(x), module.apply(boxed, x))
    # The factors have the names of the kernel's axes.
    pair = adapted.lora
    assert axes.names(pair.a) == ("embed", None) and axes.names(pair.b) == (None, "mlp")
    equal_trees(lora_jax.linen.variables(model), linen.unbox(boxed))


class Normed(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        x = linen.Dense(4, name="hidden")(x)
        x = linen.BatchNorm(use_running_average=not train, name="norm")(x)
        x = linen.Dropout(0.5, deterministic=not train)(x)
        self.sow("intermediates", "seen", x)
        return linen.Dense(2, name="out")(x)


def test_what_a_call_may_write_is_written_into_the_model():
    module, x = Normed(), jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)), jnp.float32)
    variables = jax.tree.map(abs, random_variables(module, x, train=False))
    model = lora_jax.linen.as_nnx(module, variables, x, train=False)
    assert isinstance(model.norm.mean, nnx.BatchStat)
    adapted = lora_jax.lora("hidden", rank=2).insert(model, jax.random.key(0))
    rngs = {"dropout": jax.random.key(1)}
    expected, updates = module.apply(variables, x, train=True, rngs=rngs, mutable=["batch_stats"])
    outputs = adapted(x, train=True, rngs=rngs, mutable=["batch_stats"])
    np.testing.assert_array_equal(outputs, expected)
    written = lora_jax.linen.variables(lora_jax.strip(adapted))
    equal_trees(written["batch_stats"], updates["batch_stats"])
    equal_trees(written["params"], variables["params"])
    adapted(x, train=False, mutable=["intermediates"])
    assert adapted.seen.get_value()[0].shape == (8, 4)
    everything = adapted(x, train=False, mutable=True)
    np.testing.assert_array_equal(everything, adapted(x, train=False))


def test_other_methods_of_the_module_and_arguments_by_name():
    class Coder(linen.Module):
        def setup(self):
            self.first, self.second = linen.Dense(3), linen.Dense(4)

        def encode(self, x):
            return self.first(inputs=x)

        def __call__(self, x):
            return self.second(self.encode(x))

    module, x = Coder(), jnp.ones((2, 4))
    variables = random_variables(module, x)
    model = lora_jax.linen.as_nnx(module, variables, x)
    adapted = lora_jax.join(*trained(model, lora_jax.lora("first", rank=2)))
    merged = lora_jax.linen.variables(lora_jax.merge(adapted))
    np.testing.assert_allclose(
        adapted(x, method="encode"), module.apply(merged, x, method="encode"), rtol=1e-5, atol=1e-5
    )
    encoder = lora_jax.linen.as_nnx(module, variables, x, method="encode")
    with pytest.raises(
        TypeError, match="second is a .*NotCalledByExampleInputs.*Give as_nnx example"
    ):
        lora_jax.lora("second", rank=2).insert(encoder, jax.random.key(0))


def test_module_inside_a_model_cannot_be_called_alone(scanned):
    with pytest.raises(TypeError, match="a Block inside a Linen model cannot be called alone"):
        scanned[2].layers(IDS)


# --- Training, folders, checkpoints ----------------------------------------------------------------


def steps(model, method, count=3):
    adapted = method.insert(model, jax.random.key(0, impl="rbg"))
    labels = method.labels(adapted)
    structure, trainable, frozen = lora_jax.split(adapted, labels)
    tx = lora_jax.optimizer({path: labels[path] for path in trainable}, optax.adamw(1e-2))
    state, losses = tx.init(trainable), []

    def loss(trainable, frozen):
        return jnp.mean((lora_jax.join(structure, trainable, frozen)(IDS) - 1) ** 2)

    @jax.jit
    def step(trainable, state, frozen):
        value, gradients = jax.value_and_grad(loss)(trainable, frozen)
        updates, state = tx.update(gradients, state, trainable)
        return optax.apply_updates(trainable, updates), state, value

    for _ in range(count):
        trainable, state, value = step(trainable, state, frozen)
        losses.append(float(value))
    return structure, trainable, frozen, labels, losses


def test_training_and_the_folder_are_those_of_the_nnx_model(scanned, tmp_path):
    module, variables, model, twin = scanned
    structure, trainable, frozen, labels, losses = steps(model, METHOD)
    *_, expected = steps(twin, METHOD)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert losses[-1] < losses[0]

    head = "head/.*"
    base = [lora_jax.fingerprint(lora_jax.base_parameters(one, head)) for one in (model, twin)]
    assert base[0] == base[1]
    lora_jax.save_adapter(tmp_path, trainable, labels, METHOD, base[0])
    outputs = lora_jax.join(structure, trainable, frozen)(IDS)
    adapter = lora_jax.load_adapter(tmp_path)
    fresh = lora_jax.linen.as_nnx(module, variables, IDS)
    again = lora_jax.attach(fresh, adapter, head=head)
    np.testing.assert_array_equal(again(IDS), outputs)
    on_twin = lora_jax.attach(twin, adapter, head=head)
    np.testing.assert_allclose(on_twin(IDS), outputs, rtol=1e-5, atol=1e-5)
    other = lora_jax.linen.as_nnx(module, random_variables(module, IDS, seed=7), IDS)
    with pytest.raises(ValueError, match="trained on another base"):
        lora_jax.attach(other, adapter, head=head)


def test_checkpoint_of_orbax_is_adapted_merged_and_saved_back(scanned, tmp_path):
    checkpoint = pytest.importorskip("orbax.checkpoint")
    module, variables, _, _ = scanned
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "base", variables["params"])
        checkpointer.wait_until_finished()
        params = checkpointer.restore(tmp_path / "base")
        model = lora_jax.linen.as_nnx(module, {"params": params}, IDS)
        adapted = lora_jax.join(*trained(model, METHOD))
        merged = lora_jax.linen.variables(lora_jax.merge(adapted))["params"]
        checkpointer.save(tmp_path / "merged", merged)
        checkpointer.wait_until_finished()
        shapes = jax.tree.map(np.empty_like, variables["params"])
        restored = checkpointer.restore(tmp_path / "merged", shapes)
    equal_trees(restored, merged)
    np.testing.assert_allclose(
        module.apply({"params": restored}, IDS), adapted(IDS), rtol=1e-4, atol=1e-4
    )


def test_nnx_jit_and_grad(scanned):
    _, _, model, _ = scanned
    adapted = lora_jax.join(*trained(model, METHOD))
    expected = adapted(IDS)
    np.testing.assert_allclose(
        nnx.jit(lambda model, ids: model(ids))(adapted, IDS), expected, rtol=1e-5, atol=1e-5
    )
    of_factors = nnx.DiffState(0, nnx.LoRAParam)
    gradients = nnx.grad(lambda m: jnp.mean(m(IDS) ** 2), argnums=of_factors)(adapted)
    assert all(np.any(leaf[...]) for _, leaf in nnx.to_flat_state(gradients))


# --- Errors ----------------------------------------------------------------------------------------


@pytest.mark.wrong_types
def test_what_is_no_nnx_model_is_refused_with_the_call_to_make(scanned):
    module, variables, _, _ = scanned
    calls = {
        "Model.*as_nnx\\(module, variables": module,
        'dict.*as_nnx\\(module, {"params": params}': variables["params"],
    }
    for message, model in calls.items():
        with pytest.raises(TypeError, match=message):
            METHOD.insert(model, jax.random.key(0))


def test_wrapper_of_flax(scanned):
    module, _, _, _ = scanned
    wrapper = nnx.bridge.lazy_init(nnx.bridge.ToNNX(module, rngs=nnx.Rngs(0)), IDS)
    with pytest.raises(TypeError, match=r"ToNNX.*as_nnx\(wrapper.to_nnx__module, lora_jax.linen.v"):
        METHOD.insert(wrapper, jax.random.key(0))
    variables = lora_jax.linen.variables(wrapper)
    model = lora_jax.linen.as_nnx(wrapper.to_nnx__module, variables, IDS)
    adapted = METHOD.insert(model, jax.random.key(0))
    np.testing.assert_array_equal(adapted(IDS), wrapper(IDS))


@pytest.mark.wrong_types
def test_bad_arguments_of_the_bridge(scanned):
    module, variables, _, _ = scanned
    with pytest.raises(ValueError, match=r"must hold the collection 'params'.*as_nnx\(module, {"):
        lora_jax.linen.as_nnx(module, variables["params"], IDS)
    with pytest.raises(TypeError, match="takes a flax.linen.Module, got Linear"):
        lora_jax.linen.as_nnx(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), variables, IDS)
    twice = {**variables, "other": {"embed": {"embedding": jnp.ones(3)}}}
    with pytest.raises(ValueError, match="embed/embedding of the collection 'other' is in another"):
        lora_jax.linen.as_nnx(module, twice, IDS)


@pytest.mark.parametrize(
    "method, message",
    [
        (lora_jax.lora("layers/querry"), "matches no path.*Nearest paths:.*layers"),
        (lora_jax.lora("layers", rank=2), "layers is a .*for which there is no LoRA layer"),
        (lora_jax.lora("layers/qkv", rank=99), "rank 99 is larger than the matrix for layers/qkv"),
        (lora_jax.top_layers(1), "holds no lora_jax.models.stack.Stack"),
        (lora_jax.adapter_h(4), "matches no path"),
    ],
)
def test_errors_are_those_of_nnx_models(method, message, scanned):
    with pytest.raises((TypeError, ValueError), match=re.compile(message, re.S)):
        method.insert(scanned[2], jax.random.key(0))


class OwnProduct(linen.Module):
    """A parameter that the module multiplies by itself, between two layers of one class of types."""

    @linen.compact
    def __call__(self, x):
        x = linen.Dense(4, dtype=jnp.bfloat16, name="low")(x)
        x = x @ self.param("w", linen.initializers.lecun_normal(), (4, 4))
        return linen.Dense(3, name="out")(x)


def test_parameters_without_a_layer_switching_classes_and_verify():
    module, x = OwnProduct(), jax.random.normal(jax.random.key(0), (5, 4))
    variables = module.init(jax.random.key(1), x)
    model = lora_jax.linen.as_nnx(module, variables, x)
    method = lora_jax.lora({linen.Dense: {}, "w": {"axes": "io"}}, rank=2)
    lora_jax.verify(model, method, x).check()
    adapted = method.insert(model, jax.random.key(2))
    for leaf in jax.tree.leaves(nnx.state(adapted, nnx.LoRAParam)):
        assert leaf.size
    for number, (_, leaf) in enumerate(nnx.to_flat_state(nnx.state(adapted, nnx.LoRAParam))):
        leaf[...] += 0.3 * jax.random.normal(jax.random.key(number), leaf.shape)
    merged = module.apply(lora_jax.linen.variables(lora_jax.merge(adapted)), x)
    np.testing.assert_allclose(adapted(x), merged, rtol=3e-2, atol=3e-2)  # bfloat16
    assert float(jnp.max(jnp.abs(adapted(x) - model(x)))) > 0.1
    with lora_jax.disabled(adapted):
        np.testing.assert_array_equal(adapted(x), model(x))
    equal_trees(lora_jax.linen.variables(lora_jax.strip(adapted)), variables)
