"""One line to save and load: every route of training, every method, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from state_models import METHOD, Model, Scanned, arrays, assert_same, flat
from test_state import by_hand, split_route

import lora_jax as lj
from lora_jax.models.stack import Stack

pytestmark = pytest.mark.filterwarnings("ignore:Using 'Module.sow")
KEY = jax.random.key(0)
X = arrays(5, seed=9)["x"]


def random(model, seed=0):
    """A copy with all parameters moved, as after training."""
    model = nnx.clone(model)
    for number, (path, leaf) in enumerate(nnx.to_flat_state(nnx.state(model, nnx.Param))):
        value = leaf.get_raw_value()
        noise = jax.random.normal(jax.random.key(100 * seed + number), value.shape)
        nnx.update(model, nnx.from_flat_state([(path, value + 0.1 * noise)]))
    return model


def outputs(model):
    model.eval()
    return np.asarray(model(X))


@pytest.mark.parametrize(
    "train", [by_hand, lambda model: split_route(model)[0]], ids=["nnx", "split"]
)
def test_saved_and_loaded_is_the_same_model(train, tmp_path):
    base = Model(nnx.Rngs(0))
    adapted = train(base)
    folder = lj.save(tmp_path / "run/adapter", adapted, METHOD, base, {"model": "small"})
    fresh = Model(nnx.Rngs(0))
    fresh.head = nnx.Linear(4, 2, rngs=nnx.Rngs(8))
    before = flat(fresh)
    for where, model in ((folder, base), (tmp_path / "run", fresh)):
        loaded = lj.load(where, model)
        np.testing.assert_array_equal(outputs(loaded), outputs(adapted))
        assert type(loaded.block.linear) is type(adapted.block.linear)
    assert_same(before, flat(fresh))
    adapter = lj.load_adapter(folder)
    assert adapter.notes == {"model": "small"} and len(adapter.state) == 3
    again = lj.attach(fresh, adapter)
    np.testing.assert_array_equal(outputs(again), outputs(adapted))


class Simple(nnx.Module):
    """A scanned stack and a head: no state at all."""

    def __init__(self, rngs):
        self.layers = Stack(Layer, 3, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.layers(x))


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x, key=None):
        return x + jax.nn.gelu(self.linear(x))


METHODS = {
    "lora": lj.lora(".*/linear", rank=1, head="head/.*"),
    "dora": lj.lora(".*/linear", rank=1, magnitude=True),
    "full": lj.full(),
    "full with a head": lj.full(head="head/.*"),
    "bitfit": lj.bitfit(head="head/.*"),
    "head": lj.head_only("head/.*"),
    "top": lj.top_layers(1, head="head/.*"),
    "two": lj.lora(".*/linear", rank=1, head="head/.*") + lj.bitfit(),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name, tmp_path):
    base, method = Simple(nnx.Rngs(0)), METHODS[name]
    adapted = method.insert(base, KEY)
    labels = method.labels(adapted)
    structure, trainable, frozen = lj.split(adapted, labels)
    trained = random(adapted)
    values = {p: lj.parameters(trained)[p] for p in trainable}
    adapted = lj.join(structure, values, frozen)
    lj.save(tmp_path, adapted, method, base)
    np.testing.assert_array_equal(outputs(lj.load(tmp_path, base)), outputs(adapted))
    assert set(lj.load_adapter(tmp_path).values) == set(trainable)


def test_statistics_of_a_cut_stack_go_to_the_parts(tmp_path):
    base, method = Scanned(nnx.Rngs(0)), lj.top_layers(1, head="head/.*")
    adapted = split_route(base, method)[0]
    lj.save(tmp_path, adapted, method, base)
    np.testing.assert_array_equal(outputs(lj.load(tmp_path, base)), outputs(adapted))
    state = lj.load_adapter(tmp_path).state
    assert state["blocks/last_1/block/norm/mean"].shape == (1, 4)
    assert state["blocks/first/block/norm/mean"].shape == (2, 4)


def test_a_method_knows_its_head():
    assert METHODS["lora"].head == "head/.*" == METHODS["two"].head
    assert METHODS["dora"].head is None
    both = lj.head_only("a/.*") + lj.head_only("b/.*")
    assert both.head == "(?:a/.*)|(?:b/.*)"


def lora(**changes):
    return lj.lora(".*/linear", **{"rank": 1, "head": "head/.*", **changes})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (lambda b, a, m: (a, m, a), "the base is adapted already"),
        (lambda b, a, m: (b, m, a), "the base is adapted already.*save.folder, adapted, method, base"),
        (lambda b, a, m: (b, m, Simple(nnx.Rngs(0))), "nothing is inserted into the adapted model"),
        (lambda b, a, m: (b, lj.full(), b), "are one object"),
        (lambda b, a, m: (nnx.clone(b), lj.full(), b), "nothing was trained"),
        (lambda b, a, m: (a, lora(rank=2), b), "not the one in the adapted model.*/lora/a"),
        (lambda b, a, m: (a, lora(alpha=7), b), "'alpha': 1.0.*, not .*'alpha': 7.0"),
        (lambda b, a, m: (a, lora(magnitude=True), b), "not the one.*magnitude"),
        (lambda b, a, m: (a, lora() + lj.top_layers(1), b), "not the one in the adapted model"),
        (lambda b, a, m: (a, m, Simple(nnx.Rngs(1))), "not made from this base.*layers/block/linear/kernel"),
    ],
)  # fmt: skip
def test_what_cannot_be_saved(arguments, says, tmp_path):
    base, method = Simple(nnx.Rngs(0)), METHODS["lora"]
    adapted = method.insert(base, KEY)
    adapted, method, base = arguments(base, adapted, method)
    with pytest.raises(ValueError, match=f"(?s){says}"):
        lj.save(tmp_path / "new", adapted, method, base)
    assert not (tmp_path / "new").exists()


def test_a_cast_base_and_another_head_are_the_same_base(tmp_path):
    base, method = Simple(nnx.Rngs(0)), METHODS["lora"]
    half = Simple(nnx.Rngs(0))
    kernel = half.layers.block.linear.kernel
    kernel.set_value(kernel[...].astype(jnp.bfloat16))
    base.head = nnx.Linear(4, 7, rngs=nnx.Rngs(3))  # of another task
    lj.save(tmp_path, method.insert(half, KEY), method, base)
    assert set(lj.load_adapter(tmp_path).values) == {
        "head/bias", "head/kernel", "layers/block/linear/lora/a", "layers/block/linear/lora/b"
    }  # fmt: skip
    with pytest.raises(ValueError, match="head/bias has shape \\(2,\\), the model needs \\(7,\\)"):
        lj.load(tmp_path, base)


def test_what_cannot_be_loaded(tmp_path):
    base, method = Model(nnx.Rngs(0)), METHOD
    adapted = by_hand(base)
    lj.save(tmp_path, adapted, method, base)
    with pytest.raises(ValueError, match="adapted already.*before `insert`"):
        lj.load(tmp_path, adapted)
    for change in (
        lambda m: m.block.norm.mean.set_value(jnp.ones(4)),
        lambda m: m.block.table.set_value(jnp.ones(4)),
    ):
        other = Model(nnx.Rngs(0))
        change(other)
        with pytest.raises(ValueError, match="trained on another base"):
            lj.load(tmp_path, other)
    with pytest.raises(FileNotFoundError, match="adapter.json is missing"):
        lj.load(tmp_path / "nowhere", base)
    adapter = lj.load_adapter(tmp_path)
    del adapter.state["block/norm/mean"]
    adapter.state["block/norm/median"] = np.zeros(4)
    with pytest.raises(ValueError, match="not in the model \\['block/norm/median'\\]"):
        lj.attach(base, adapter)


def test_state_that_the_first_call_makes_is_refused_and_switched_off_updates_are_saved(tmp_path):
    class Lazy(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(4, 4, rngs=rngs)

        def __call__(self, x):
            y = self.layer(x)
            if not hasattr(self, "mean"):
                self.mean = nnx.BatchStat(jnp.mean(y))
            return y

    base, method = Lazy(nnx.Rngs(0)), lj.lora("layer", rank=1)
    adapted = method.insert(base, KEY)
    structure, trainable, frozen = lj.split(adapted, method.labels(adapted))
    joined = lj.join(structure, trainable, frozen)
    joined(X)
    with pytest.raises(ValueError, match=r"made new state in its forward pass.*\['mean'\]"):
        lj.moved(frozen, joined)
    adapted(X)
    with pytest.raises(ValueError, match=r"state that no folder can put back.*\['mean'\]"):
        lj.save(tmp_path / "lazy", adapted, method, base)
    called = Lazy(nnx.Rngs(0))
    called(X)
    adapted = method.insert(called, KEY)
    adapted.layer.lora.b[...] += 1
    lj.enable(adapted, False)
    lj.save(tmp_path / "off", adapted, method, called)
    lj.enable(adapted)
    np.testing.assert_array_equal(lj.load(tmp_path / "off", called)(X), adapted(X))
