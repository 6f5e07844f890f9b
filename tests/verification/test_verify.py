"""`verify` passes what is right, and names the layer of every fault that is put in by hand."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lora_jax as lj
from lora_jax.verification.report import Verification

WIDTH = 8
TOKENS = jnp.asarray([[1, 2, 3, 4], [4, 3, 2, 2]])
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _registry(registry):
    """Of every test here."""


class Block(nnx.Module):
    """A layer of the models below."""

    def __init__(self, rngs: nnx.Rngs):
        self.up = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.down(jax.nn.tanh(self.up(x)))


class Model(nnx.Module):
    """A small language model whose last step is `logits`, changed by the tests."""

    def __init__(self, rngs: nnx.Rngs, dtype: jnp.dtype | None = None):
        self.table = nnx.Embed(11, WIDTH, dtype=dtype, param_dtype=dtype or jnp.float32, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])
        self.unused = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.table(tokens)
        for block in self.blocks:
            x = block(x)
        return self.logits(x)

    def logits(self, x: jax.Array) -> jax.Array:
        return self.table.attend(x)


def model_with(logits: Callable[[Model, jax.Array], jax.Array] = Model.logits) -> Model:
    return type("Changed", (Model,), {"logits": logits})(nnx.Rngs(0))


def failed(result: Verification) -> list[tuple[str, str]]:
    """(check, layer) of every failure; the report names them and the exception holds the report."""
    assert result.passed == (not result.failures)
    if result.failures:
        with pytest.raises(ValueError, match="FAILED") as raised:
            result.check()
        for failure in result.failures:
            assert str(failure) in str(raised.value)
    else:
        result.check()
        assert "passed" in str(result)
    return [(failure.check, failure.path) for failure in result.failures]


@pytest.mark.parametrize("magnitude", [False, True])
def test_a_right_model_passes_with_its_method_and_adapted(magnitude: bool):
    model, method = Model(nnx.Rngs(0)), lj.lora(r"table|blocks/.*/up", rank=2, magnitude=magnitude)
    result = lj.verify(model, method, TOKENS)
    assert failed(result) == []
    assert result.layers == ("blocks/0/up", "blocks/1/up", "table")
    assert result.effect > 0.05
    assert result.merge < 1e-4
    trained = method.insert(model, KEY)
    for path, leaf in nnx.to_flat_state(nnx.state(trained, nnx.LoRAParam)):
        leaf[...] += 0.1 * jax.random.normal(jax.random.fold_in(KEY, len(path)), leaf.shape)
    before = lj.parameters(trained)
    assert failed(lj.verify(model, trained, TOKENS)) == []
    for path, leaf in lj.parameters(trained).items():
        np.testing.assert_array_equal(leaf, before[path])


def test_a_trained_head_is_part_of_the_base():
    model = Model(nnx.Rngs(0))
    adapted = lj.lora("blocks/.*/up", rank=2).insert(model, KEY)
    adapted.blocks[1].down.kernel[...] *= 2
    result = lj.verify(model, adapted, TOKENS)
    assert failed(result) == [] and result.differing == ("blocks/1/down/kernel",)
    assert "not the base's, so trained or of another base: blocks/1/down/kernel" in str(result)


def test_bfloat16_is_compared_in_float32():
    model = Model(nnx.Rngs(0), jnp.bfloat16)
    result = lj.verify(model, lj.lora("table|blocks/./(up|down)", rank=2), TOKENS)
    assert failed(result) == []
    assert result.merge < 1e-4
    assert model.table.embedding.dtype == jnp.bfloat16


FAULTS: dict[str, tuple[Callable[[Model, jax.Array], jax.Array], list[tuple[str, str]]]] = {
    "a tied table that is read beside its layer": (
        lambda self, x: x @ self.table.embedding[...].T,
        [("merge", "table")],
    ),
    "a kernel that is read beside its layer": (
        lambda self, x: x @ self.blocks[1].up.kernel[...],
        [("merge", "blocks/1/up")],
    ),
    "a product that is not differentiated": (
        lambda self, x: self.table.attend(x) + jax.lax.stop_gradient(self.unused(x)).sum(),
        [("gradient", "unused")],
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_names_the_layers_whose_weight_is_used_otherwise(name: str):
    logits, expected = FAULTS[name]
    targets = "table|blocks/./up" + ("|unused" if "gradient" in dict(expected) else "")
    assert failed(lj.verify(model_with(logits), lj.lora(targets, rank=2), TOKENS)) == expected


def test_a_table_that_is_only_read_has_no_gradient_and_merges_to_another_model():
    class Reads(Model):
        def __call__(self, tokens: jax.Array) -> jax.Array:
            return self.blocks[0](self.table.embedding[...][tokens])

    result = lj.verify(Reads(nnx.Rngs(0)), lj.lora("table|blocks/0/up", rank=2), TOKENS)
    assert failed(result) == [("merge", "table"), ("gradient", "table")]
    assert "table: merging alone changes the output" in str(result)
    only = lj.verify(Reads(nnx.Rngs(0)), lj.lora("table", rank=2), TOKENS)
    assert failed(only) == [("effect", ""), ("merge", "table"), ("gradient", "table")]


def test_layers_that_are_not_called_have_no_gradient():
    result = lj.verify(Model(nnx.Rngs(0)), lj.lora("unused|blocks/0/up", rank=2), TOKENS)
    assert failed(result) == [("gradient", "unused")]
    assert "factors without gradient: unused: a, b" in str(result)


def test_a_layer_of_a_stack_without_gradient_is_named_by_number():
    class Stacked(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            make = nnx.vmap(Block, in_axes=0, out_axes=0)
            self.blocks = make(rngs.fork(split=3))

        def __call__(self, x: jax.Array) -> jax.Array:
            def step(x: jax.Array, block: Block) -> jax.Array:
                return block(x)

            return nnx.scan(step, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.blocks)

    class First(Stacked):
        def __call__(self, x: jax.Array) -> jax.Array:
            graphdef, state = nnx.split(self.blocks)
            block = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[1], state))
            return block(x)

    method, x = lj.lora("blocks/up", rank=2), jax.random.normal(KEY, (3, WIDTH))
    assert failed(lj.verify(Stacked(nnx.Rngs(0)), method, x)) == []
    result = lj.verify(First(nnx.Rngs(0)), method, x)
    assert failed(result) == [("gradient", "blocks/up")]
    assert "a in layers 0, 2 of the stack" in str(result)


class Scaled(nnx.Linear):
    """A layer whose call does more than its weight."""

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return 3 * super().__call__(inputs)


class Forgets(lj.LoRALayer, Scaled):
    """Forgets the factor 3."""

    def roles(self) -> lj.Contraction:
        return lj.Contraction(batch=(), inputs=(0,), outputs=(1,))

    def low_rank_output(self, inputs: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        return inputs @ a @ b


class Transposed(Forgets):
    """Has inputs and outputs of a square weight the wrong way round."""

    def roles(self) -> lj.Contraction:
        return lj.Contraction(batch=(), inputs=(1,), outputs=(0,))

    def low_rank_output(self, inputs: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        return 3 * inputs @ a @ b


class Shifted(Forgets):
    """Adds something where the factors are zero."""

    def low_rank_output(self, inputs: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        return 3 * inputs @ a @ b + 1


@pytest.mark.parametrize(
    ("form", "check"), [(Forgets, "merge"), (Transposed, "merge"), (Shifted, "start")]
)
def test_names_the_wrong_lora_layers_of_ones_own(form: type[lj.LoRALayer], check: str):
    class Two(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.scaled = Scaled(WIDTH, WIDTH, rngs=rngs)
            self.plain = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.plain(jax.nn.tanh(self.scaled(x)))

    lj.register(Scaled)(form)
    result = lj.verify(
        Two(nnx.Rngs(0)), lj.lora("scaled|plain", rank=2), jnp.ones((1, WIDTH)) / WIDTH
    )
    assert (check, "scaled") in failed(result)
    assert ("merge", "plain") not in failed(result)


def test_layers_that_normalise_a_weight_themselves_are_named():
    class Normalised(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.norm = nnx.WeightNorm(nnx.Linear(WIDTH, WIDTH, rngs=rngs), rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.norm(x)

    x = jax.random.normal(KEY, (3, WIDTH))
    result = lj.verify(Normalised(nnx.Rngs(0)), lj.lora(r".*layer_instance", rank=2), x)
    assert ("merge", "norm/layer_instance") in failed(result)


def test_other_calls_and_outputs():
    model, method = Model(nnx.Rngs(0)), lj.lora("blocks/./up", rank=2)

    def classes(model: Model, tokens: jax.Array) -> jax.Array:
        return jnp.argmax(model(tokens), -1)

    with pytest.raises(
        ValueError, match=r"no floating-point numbers \(types \['int32'\]\).*`call`"
    ):
        lj.verify(model, method, TOKENS, call=classes)
    dicts = lj.verify(model, method, TOKENS, call=lambda m, t: {"a": m(t), "b": classes(m, t)})
    assert failed(dicts) == []
    with pytest.raises(ValueError, match="not finite"):
        lj.verify(model, method, TOKENS, call=lambda m, t: m(t) / 0)
    with pytest.raises(ValueError, match="no adapted layer"):
        lj.verify(model, lj.bitfit(), TOKENS)
    with pytest.raises(ValueError, match="shapes without values"):
        lj.verify(nnx.eval_shape(lambda: Model(nnx.Rngs(0))), method, TOKENS)


class Small(nnx.Module):
    """A residual branch that is multiplied by almost nothing, as with LayerScale, before many others."""

    def __init__(self, rngs: nnx.Rngs, scale: float):
        self.first = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.rest = nnx.List([Block(rngs) for _ in range(3)])
        self.scale = scale

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.scale * self.first(x)
        for block in self.rest:
            x = block(x)
        return x

    def read_twice(self, x: jax.Array) -> jax.Array:
        return self(x) + self.scale * x @ self.first.kernel[...]


@pytest.mark.parametrize("scale", [1e-3, 1e-6])
@pytest.mark.parametrize("magnitude", [False, True])
def test_small_effects_are_enlarged_until_they_can_be_compared(scale: float, magnitude: bool):
    model, x = Small(nnx.Rngs(0), scale), jax.random.normal(KEY, (3, WIDTH))
    method = lj.lora("first", rank=2, magnitude=magnitude)
    result = lj.verify(model, method, x)
    assert failed(result) == [] and result.effect > 0.01
    wrong = lj.verify(model, method, x, call=Small.read_twice)
    assert failed(wrong) == [("merge", "first")]
    nothing = lj.verify(Small(nnx.Rngs(0), 0.0), method, x)
    assert ("gradient", "first") in failed(nothing)


class InBfloat16(nnx.Module):
    """A layer of one's own that computes in a type which no attribute tells."""

    def __init__(self, rngs: nnx.Rngs):
        self.w = nnx.Param(jax.random.normal(rngs.params(), (WIDTH, WIDTH)) / 3)
        self.einsum_str = "bi,io->bo"

    def __call__(self, x: jax.Array) -> jax.Array:
        x, w = x.astype(jnp.bfloat16), self.w[...].astype(jnp.bfloat16)
        return jnp.einsum(self.einsum_str, x, w).astype(jnp.float32)


class LoRAInBfloat16(lj.EinsumLoRALayer, InBfloat16):
    weight = "w"


class Mixed(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.low = nnx.List([InBfloat16(rngs) for _ in range(3)])
        self.plain = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.low:
            x = jax.nn.tanh(layer(x))
        return self.plain(x)

    def read_twice(self, x: jax.Array) -> jax.Array:
        return self(x) + 0.3 * x @ self.plain.kernel[...]


def test_what_computes_in_bfloat16_is_no_fault_and_hides_none():
    lj.register(InBfloat16)(LoRAInBfloat16)
    model, x = Mixed(nnx.Rngs(0)), jax.random.normal(KEY, (3, WIDTH))
    method = lj.lora(r"low/.|plain", rank=2)
    assert failed(lj.verify(model, method, x)) == []
    assert failed(lj.verify(model, method, x, call=Mixed.read_twice)) == [("merge", "plain")]


def test_inputs_may_be_written_and_a_model_may_insist_on_its_types():
    class Cached(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.layer = nnx.Linear(4, 4, param_dtype=jnp.bfloat16, rngs=rngs)

        def __call__(self, x: jax.Array, cache: nnx.Cache) -> jax.Array:
            y = self.layer(x)
            cache[...] = jax.lax.dynamic_update_slice(cache[...], y, (0, 0))
            return cache[...]

    x, cache = jnp.ones((2, 4), jnp.bfloat16), nnx.Cache(jnp.zeros((3, 4), jnp.bfloat16))
    result = lj.verify(Cached(nnx.Rngs(0)), lj.lora("layer", rank=1), x, cache)
    assert failed(result) == []
    assert not np.any(cache[...])


OUTPUTS: dict[str, Callable[[Model, jax.Array], object]] = {
    "masked": lambda m, t: jnp.where(t[..., None] == 4, -jnp.inf, m(t)),
    "masked by a number": lambda m, t: jnp.where(t[..., None] == 4, -1e9, m(t)),
    "of other sizes": lambda m, t: (m(t), 1e5 * t.astype(jnp.float32)),
    "complex": lambda m, t: jnp.fft.fft(m(t)),
    "of a dataclass and words": lambda m, t: {"a": Result(m(t)), "name": "b"},
}


@dataclasses.dataclass
class Result:
    """Not one of JAX's trees."""

    logits: jax.Array


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_of_every_kind_are_compared(name: str):
    call, method = OUTPUTS[name], lj.lora("table|blocks/0/up", rank=2)
    assert failed(lj.verify(Model(nnx.Rngs(0)), method, TOKENS, call=call)) == []
    wrong = model_with(FAULTS["a tied table that is read beside its layer"][0])
    assert failed(lj.verify(wrong, method, TOKENS, call=call)) == [("merge", "table")]


def test_one_wrong_layer_of_small_influence_among_many_is_found():
    class Deep(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.layers = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(8)])

        def __call__(self, x: jax.Array) -> jax.Array:
            for i, layer in enumerate(self.layers):
                y = layer(x) + (x @ layer.kernel[...] if i == 3 else 0)
                x = x + (1e-4 if i == 3 else 1) * jnp.tanh(y)
            return x

    x = jax.random.normal(KEY, (3, WIDTH))
    result = lj.verify(Deep(nnx.Rngs(0)), lj.lora("all-linear", rank=2), x)
    assert failed(result) == [("merge", "layers/3")]


def test_seeded_dropout_and_updates_that_are_switched_off_do_not_matter():
    model, method = Model(nnx.Rngs(0)), lj.lora("blocks/./up", rank=2, dropout=0.5)
    adapted = method.insert(model, KEY)
    lj.seed_dropout(adapted, KEY)
    lj.enable(adapted, False)
    assert failed(lj.verify(model, adapted, TOKENS)) == []


def test_zeros_that_train_are_no_fault_and_zeros_that_stay_are():
    class Headed(Model):
        def __init__(self, rngs: nnx.Rngs):
            super().__init__(rngs)
            self.head = nnx.Linear(WIDTH, 3, kernel_init=nnx.initializers.zeros, rngs=rngs)

        def logits(self, x: jax.Array) -> jax.Array:
            return self.head(x)

    model = Headed(nnx.Rngs(0))
    trains = lj.lora("blocks/./up", rank=2, head="head/.*")
    assert failed(lj.verify(model, trains, TOKENS)) == []
    assert not np.any(model.head.kernel[...])
    stays = failed(lj.verify(model, lj.lora("blocks/./up", rank=2), TOKENS))
    assert ("gradient", "blocks/0/up") in stays and ("effect", "") in stays
