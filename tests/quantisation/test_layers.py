"""Quantised layers against the same layers with the unpacked weight: outputs, gradients, merging, memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import linen, nnx

import lora_jax
from lora_jax import partition
from lora_jax.errors import InputError, InputTypeError
from lora_jax.fingerprints import accepted
from lora_jax.low_rank.layers import adapted_layers
from lora_jax.methods.loftq import loftq
from lora_jax.models.gpt2 import GPT2, GPT2Config
from lora_jax.quantisation.ggml import Ggml
from lora_jax.quantisation.layers import is_quantised, packed_weight, quantised_layers
from lora_jax.quantisation.quantise import errors
from lora_jax.quantisation.registry import FORMATS
from lora_jax.training.adapted_model import AdaptedModel

TOKENS = jnp.arange(12).reshape(3, 4)
EVERY = ("all-linear", "table")
METHODS = {
    "lora": lora_jax.lora("all-linear", rank=4, alpha=8) + lora_jax.lora("table", rank=2),
    "dora": lora_jax.lora("all-linear", rank=4, magnitude=True),
    "parts": lora_jax.lora({"fused": {"parts": ("q", "v"), "fused": ("q", "k", "v"), "rank": 3}}),
}


class Model(nnx.Module):
    """Every kind of layer that can be quantised, with biases, a tied table and a stack."""

    def __init__(self, rngs):
        self.table = nnx.Embed(96, 128, rngs=rngs)
        self.fused = nnx.LinearGeneral(128, (3, 64), rngs=rngs)
        self.einsum = nnx.Einsum("abc,cde->abde", (64, 4, 32), rngs=rngs)
        self.experts = nnx.Einsum("abe,bed->abd", (4, 32, 64), bias_shape=(4, 64), rngs=rngs)
        self.stack = nnx.vmap(lambda r: nnx.Linear(64, 64, rngs=r))(nnx.Rngs(0).fork(split=3))
        self.norm = nnx.LayerNorm(64, rngs=rngs)
        self.out = nnx.Linear(64, 128, rngs=rngs)

    def __call__(self, tokens):
        x = self.fused(self.table(tokens))
        x = self.experts(self.einsum(jax.nn.gelu(x[..., 0, :] * x[..., 2, :])).reshape(-1, 4, 32))
        graph, layers = nnx.split(self.stack)

        def run(x, layer):
            return jax.nn.gelu(nnx.merge(graph, layer)(x)), None

        x, _ = jax.lax.scan(run, self.norm(x.mean(axis=1)), layers)
        return self.table.attend(self.out(x))


@pytest.fixture(scope="module")
def model():
    return Model(nnx.Rngs(1))


def moved(adapted, method):
    """An adapted model in parts, with trained values that are not those of the start."""
    structure, trainable, frozen = lora_jax.split(adapted, method.labels(adapted))
    key = jax.random.key(5)
    trainable = {
        path: value + 0.05 * jax.random.normal(jax.random.fold_in(key, i), value.shape)
        for i, (path, value) in enumerate(sorted(trainable.items()))
    }
    return structure, trainable, frozen


def trained_copy(adapted, method):
    return lora_jax.join(*moved(adapted, method))


def gradients(adapted, method):
    structure, trainable, frozen = moved(adapted, method)

    def loss(trainable):
        return jnp.mean(lora_jax.join(structure, trainable, frozen)(TOKENS) ** 2)

    return jax.jit(jax.value_and_grad(loss))(trainable), lora_jax.join(structure, trainable, frozen)


@pytest.mark.parametrize(
    ("form", "method"),
    [
        *[("nf4", name) for name in METHODS],
        ("int8", "lora"),
        ("q8_0", "parts"),
        pytest.param("q4_1", "dora", marks=pytest.mark.slow),
    ],
)
def test_outputs_gradients_and_merging_are_those_of_the_unpacked_weights(model, form, method):
    method = METHODS[method]
    # Rows of 32 inputs: of the forms of bitsandbytes only int8 of whole rows fits the experts.
    exclude = "experts" if form in ("nf4", "fp4", "int8_blocks") else None
    quantised = lora_jax.quantise(model, EVERY, form, exclude=exclude)
    plain = lora_jax.dequantise(quantised)
    np.testing.assert_allclose(quantised(TOKENS), plain(TOKENS), rtol=1e-5, atol=1e-5)
    adapted = method.insert(quantised, jax.random.key(0))
    (loss, found), trained = gradients(adapted, method)
    (expected_loss, expected), reference = gradients(
        method.insert(plain, jax.random.key(0)), method
    )
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    assert found.keys() == expected.keys()
    for path, gradient in expected.items():
        scale = float(jnp.abs(gradient).max())
        np.testing.assert_allclose(found[path], gradient, atol=1e-5 * scale + 1e-9, err_msg=path)
    merged = lora_jax.merge(trained)
    assert type(merged.fused) is nnx.LinearGeneral
    # Layers without an update stay packed.
    assert set(quantised_layers(merged)) == set(quantised_layers(quantised)) - set(
        adapted_layers(trained)
    )
    outputs = trained(TOKENS)
    np.testing.assert_allclose(merged(TOKENS), outputs, atol=1e-5 * float(jnp.abs(outputs).max()))
    np.testing.assert_allclose(reference(TOKENS), outputs, rtol=1e-4, atol=1e-4)


def test_a_model_in_shapes_is_quantised_like_one_with_values(model):
    abstract = lora_jax.quantise(nnx.eval_shape(lambda: Model(nnx.Rngs(1))), EVERY, "q4_0")
    concrete = lora_jax.quantise(model, EVERY, "q4_0")
    shapes = {p: (v.shape, v.dtype) for p, v in lora_jax.parameters(abstract).items()}
    assert shapes == {p: (v.shape, v.dtype) for p, v in lora_jax.parameters(concrete).items()}


def test_verify_strip_and_the_summary_know_quantised_layers(model):
    quantised = lora_jax.quantise(model, EVERY, "q8_0")
    method = lora_jax.lora("all-linear", rank=4)
    adapted = method.insert(quantised, jax.random.key(0))
    assert lora_jax.verify(quantised, adapted, TOKENS).passed
    counts = method.summary(adapted).counts()
    assert counts["frozen"] == partition.count(lora_jax.parameters(model))
    stripped = lora_jax.strip(adapted)
    assert is_quantised(stripped.out) and lora_jax.fingerprint(
        lora_jax.base_parameters(stripped)
    ) == lora_jax.fingerprint(lora_jax.base_parameters(quantised))


def test_what_is_stored_makes_the_fingerprint(model):
    prints = {
        form: lora_jax.fingerprint(
            lora_jax.base_parameters(lora_jax.quantise(model, "out", FORMATS[form]))
        )
        for form in ("nf4", "fp4", "int8", "q4_0")
    }
    assert len(set(prints.values())) == len(prints)


def test_an_adapter_goes_onto_its_packed_base_only(model, tmp_path):
    quantised = lora_jax.quantise(model, "all-linear", "q8_0")
    method = lora_jax.lora("all-linear", rank=2)
    adapted = method.insert(quantised, jax.random.key(0))
    trained = trained_copy(adapted, method)
    lora_jax.save(tmp_path / "adapter", trained, method, base=quantised)
    again = lora_jax.load(tmp_path / "adapter", quantised)
    np.testing.assert_array_equal(again(TOKENS), trained(TOKENS))
    message = r"another base.*packed \(5 as q8_0\), this model has %s: pack it so first"
    with pytest.raises(InputError, match=message % "none"):
        lora_jax.load(tmp_path / "adapter", model)
    other = lora_jax.quantise(model, "all-linear", "q4_0")
    with pytest.raises(InputError, match=message % r"5 as q4_0"):
        lora_jax.load(tmp_path / "adapter", other)
    moved = nnx.clone(quantised)
    moved.out.kernel.scale[...] = 2 * moved.out.kernel.scale[...]
    with pytest.raises(
        InputError, match="Both have 5 as .* packed, so it was packed from other weights"
    ):
        lora_jax.load(tmp_path / "adapter", moved)
    lora_jax.save(
        tmp_path / "plain",
        trained_copy(method.insert(model, jax.random.key(0)), method),
        method,
        model,
    )
    with pytest.raises(InputError, match="This model has weights packed .* another base than in"):
        lora_jax.load(tmp_path / "plain", quantised)


@pytest.mark.parametrize("form", ["q8_0", "nf4", "nf4_single", "int8"])
def test_every_bit_of_the_scales_is_in_the_fingerprint(form):
    layer = nnx.Linear(256, 128, rngs=nnx.Rngs(0))
    base = lora_jax.quantise(layer, nnx.Linear, form)
    before = lora_jax.fingerprint(lora_jax.base_parameters(base))
    weight = packed_weight(base)[1]
    for name, part in weight.arrays().items():
        if not jnp.issubdtype(part.dtype, jnp.floating):
            continue
        old = part[...]
        bits = np.array(old).view(f"int{8 * old.dtype.itemsize}")
        bits.reshape(-1)[0] ^= 1
        part.set_value(jnp.asarray(bits.view(old.dtype)))
        assert lora_jax.fingerprint(lora_jax.base_parameters(base)) != before, name
        part.set_value(old)
    assert lora_jax.fingerprint(lora_jax.base_parameters(base)) == before


def test_the_earlier_fingerprint_of_a_packed_base_is_accepted(model, tmp_path):
    """It rounded the scales to bfloat16; new folders get the exact one."""
    base = lora_jax.quantise(model, "all-linear", "q8_0")
    method = lora_jax.lora("out", rank=2)
    earlier = lora_jax.fingerprint(lora_jax.parameters(base))
    exact = lora_jax.fingerprint(lora_jax.base_parameters(base))
    assert list(accepted(base, method)) == [exact, earlier]
    assert len(list(accepted(model, method))) == 1
    lora_jax.save(
        tmp_path, trained_copy(method.insert(base, jax.random.key(0)), method), method, base
    )
    adapter = lora_jax.load_adapter(tmp_path)
    assert adapter.base == exact
    lora_jax.attach(base, dataclasses.replace(adapter, base=earlier))


def test_methods_that_would_train_packed_weights_are_refused(model):
    quantised = lora_jax.quantise(model, "all-linear", "q8_0")
    with pytest.raises(
        InputError, match="kernel is quantised, and the method would train it.* exclude="
    ):
        lora_jax.full().labels(lora_jax.full().insert(quantised, jax.random.key(0)))


def test_packed_arrays_keep_their_types_and_never_train(model):
    quantised = lora_jax.quantise(model, "all-linear", "q4_0")
    trainer = AdaptedModel(quantised, lora_jax.lora("all-linear", rank=2), dtype="bfloat16")
    kinds = {path: value.dtype for path, value in trainer.frozen.items()}
    assert kinds["out/kernel/scale"] == jnp.float16 and kinds["out/kernel/codes"] == jnp.uint8
    assert kinds["out/bias"] == jnp.bfloat16
    assert not any("/kernel/" in path for path in trainer.trainable)


def test_errors_of_packing_are_counted(model):
    quantised = lora_jax.quantise(model, "out", "nf4")
    (found,) = errors(quantised, model).values()
    packed = packed_weight(quantised.out)[1]
    was, now = (np.asarray(v, np.float64) for v in (model.out.kernel[...], packed.values()))
    np.testing.assert_allclose(found.relative, np.linalg.norm(now - was) / np.linalg.norm(was))
    np.testing.assert_allclose(found.largest, np.abs(now - was).max())
    assert found.bits == pytest.approx(8 * packed.nbytes / was.size)


@pytest.mark.parametrize("steps", [1, 4])
def test_loftq_starts_at_the_best_matrix_of_the_rank(model, steps):
    method = lora_jax.lora("out", rank=8, alpha=4)
    adapted = loftq(model, method, jax.random.key(0), "out", "nf4", steps=steps)
    whole = np.asarray(model.out.kernel[...], np.float64)
    packed = np.asarray(packed_weight(adapted.out)[1].values(), np.float64)
    update = np.asarray(lora_jax.low_rank.layers.delta(adapted.out), np.float64)
    u, s, v = np.linalg.svd(whole - packed)
    nearest = u[:, :8] * s[:8] @ v[:8]
    np.testing.assert_allclose(update, nearest, atol=1e-5)
    one = lora_jax.quantise(model, "out", "nf4")
    alone = np.asarray(packed_weight(one.out)[1].values(), np.float64)
    assert (np.array_equal(alone, packed)) == (steps == 1)
    error = np.linalg.norm(whole - packed - update)
    assert error < np.linalg.norm(whole - alone)


def test_qpissa_packs_what_its_factors_leave(model):
    method = lora_jax.lora("out", rank=8, alpha=4)
    whole = np.asarray(model.out.kernel[...], np.float64)
    u, s, v = np.linalg.svd(whole)
    principal = u[:, :8] * s[:8] @ v[:8]
    adapted = loftq(model, method, jax.random.key(0), "out", "nf4", first="factors")
    update = np.asarray(lora_jax.low_rank.layers.delta(adapted.out), np.float64)
    np.testing.assert_allclose(update, principal, atol=1e-5)
    packed = packed_weight(adapted.out)[1]
    rest = nnx.clone(model)
    rest.out.kernel[...] = jnp.asarray(whole - update, jnp.float32)
    expected = packed_weight(lora_jax.quantise(rest, "out", "nf4").out)[1]
    np.testing.assert_array_equal(packed.values(), expected.values())
    errors_of = [
        np.linalg.norm(
            whole
            - np.asarray(packed_weight(m.out)[1].values(), np.float64)
            - np.asarray(lora_jax.low_rank.layers.delta(m.out), np.float64)
        )
        for m in (
            adapted,
            loftq(model, method, jax.random.key(0), "out", "nf4", first="factors", steps=5),
        )
    ]
    alone = np.asarray(packed_weight(lora_jax.quantise(model, "out", "nf4").out)[1].values())
    assert errors_of[1] < errors_of[0] < np.linalg.norm(whole - alone)
    with pytest.raises(InputError, match="start otherwise"):
        pissa = lora_jax.lora("out", rank=8, init="pissa")
        loftq(model, pissa, jax.random.key(0), "out", "nf4")


@pytest.mark.wrong_types
def test_what_cannot_be_quantised_is_refused(model):
    quantised = lora_jax.quantise(model, "out", "q8_0")
    with pytest.raises(
        InputError, match="out is quantised already: leave it out .* anew, lora_jax.quantise"
    ):
        lora_jax.quantise(quantised, "out", "q8_0")
    with pytest.raises(InputError, match="quantise first, then insert"):
        adapted = lora_jax.lora("out", rank=2).insert(model, jax.random.key(0))
        lora_jax.quantise(adapted)
    with pytest.raises(InputTypeError, match="norm is a LayerNorm"):
        lora_jax.quantise(model, "norm")
    with pytest.raises(InputError, match=r"experts: nf4 packs blocks of 64 .* rows of 32 inputs"):
        lora_jax.quantise(model)
    with pytest.raises(InputError, match="no quantised layer"):
        lora_jax.dequantise(model)
    with pytest.raises(InputError, match="read from files that have it"):
        lora_jax.quantise(nnx.Linear(256, 8, rngs=nnx.Rngs(0)), nnx.Linear, Ggml("Q6_K"))
    adapted = lora_jax.lora("out", rank=2).insert(quantised, jax.random.key(0))
    for dtype in ("int8", "flot32", 3):
        with pytest.raises(InputError, match="dtype must be a floating-point type"):
            lora_jax.dequantise(quantised, dtype)
        with pytest.raises(InputError, match="dtype must be a floating-point type"):
            lora_jax.merge(adapted, dtype)
    with pytest.raises(InputTypeError, match=r"packed \(Ggml.*kernel\.values\(\) unpacks"):
        quantised.out.kernel[...]
    with pytest.raises(InputError, match=r"write format='nf4'"):
        lora_jax.quantise(model, "nf4")
    for name, meant in (("NF4", "nf4"), ("q8", "q8_0"), ("Q4_1", "q4_1")):
        with pytest.raises(InputError, match=rf"got '{name}', did you mean '{meant}'"):
            lora_jax.quantise(model, "out", name)
    bare = nnx.Dict(w=nnx.Param(jnp.ones((64, 8))), head=nnx.Linear(64, 4, rngs=nnx.Rngs(0)))
    with pytest.raises(
        InputError, match=r"'w' names parameters \(w\) and no layer; only the weights"
    ):
        lora_jax.quantise(bare, "w")
    with pytest.raises(InputError, match="no layer is left .* takes head for one by its name"):
        lora_jax.quantise(bare)
    with pytest.raises(InputError, match=r"'x' matches no path.*Nearest paths:\n  head$"):
        lora_jax.quantise(bare, "x")
    dense = linen.Dense(8)
    variables = dense.init(jax.random.key(0), jnp.ones((2, 64)))
    with pytest.raises(InputTypeError, match="is of Flax Linen"):
        lora_jax.quantise(lora_jax.linen.as_nnx(dense, variables, jnp.ones((2, 64))))
    empty = nnx.Linear(64, 0, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=r"its weight of shape \(64, 0\) has no values"):
        lora_jax.quantise(empty, nnx.Linear)
    make = lambda: nnx.Linear(64, 8, rngs=nnx.Rngs(0))  # noqa: E731
    pack = lambda layer: lora_jax.quantise(layer, nnx.Linear)  # noqa: E731
    for traced in (lambda: nnx.eval_shape(lambda: pack(make())), lambda: nnx.jit(pack)(make())):
        with pytest.raises(InputError, match=r"inside jax.jit, nnx.eval_shape .* pack outside"):
            traced()
    assert packed_weight(pack(nnx.eval_shape(make)))[1].is_abstract()
    broken = nnx.clone(model)
    broken.out.kernel[...] = broken.out.kernel[...].at[0, 0].set(jnp.nan)
    with pytest.raises(InputError, match="out/kernel has 1 of 8,192 values that are not finite"):
        lora_jax.quantise(broken, "out", "q8_0")


@pytest.mark.parametrize(
    ("form", "dtype", "value"),
    [
        *[(form, "float32", 1e7) for form in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")],
        ("int8", "float32", 1e37), ("q8_0", "float16", 65504),
    ],
)  # fmt: skip
def test_values_that_packing_makes_infinite_are_refused(form, dtype, value):
    """Where nf4 holds them, or they are a little smaller, all unpacked values are finite."""
    layer = nnx.Linear(64, 32, rngs=nnx.Rngs(0), param_dtype=dtype)
    layer.kernel[...] = layer.kernel[...].at[3, 5].set(value)
    with pytest.raises(
        InputError, match=rf"kernel has values .* too large for .* in {dtype}: \d+ of"
    ):
        lora_jax.quantise(layer, nnx.Linear, form)
    for other, smaller in (("nf4", value), (form, value / 128)):
        layer.kernel[...] = layer.kernel[...].at[3, 5].set(smaller)
        plain = lora_jax.dequantise(lora_jax.quantise(layer, nnx.Linear, other))
        assert plain.kernel.dtype == dtype and jnp.isfinite(plain.kernel[...]).all()
    layer = nnx.Linear(64, 32, kernel_init=nnx.initializers.constant(1e5), rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="has values that float16 cannot hold"):
        lora_jax.dequantise(lora_jax.quantise(layer, nnx.Linear), "float16")


def test_loftq_refuses_what_packing_makes_infinite(model):
    large = nnx.clone(model)
    large.out.kernel[...] = large.out.kernel[...].at[0, 0].set(1e7)
    with pytest.raises(InputError, match="out/kernel has values that are not finite or too large"):
        loftq(large, lora_jax.lora("out", rank=2), jax.random.key(0), "out", "q8_0")


IDS = {
    "inside": [0, 3, 9], "outside": [10, 100, 2, -11], "from the end": [-1, -10],
    "scalar": 3, "scalar outside": 10, "one": [4], "two axes": [[1, 2], [3, 4]],
}  # fmt: skip


@pytest.mark.parametrize("form", ["nf4", "int8", "q8_0", "q4_1"])
@pytest.mark.parametrize("count", [1, 10])
def test_rows_of_a_packed_table_are_those_of_the_unpacked_one(count, form):
    table = nnx.Embed(count, 64, rngs=nnx.Rngs(0))
    packed = lora_jax.quantise(table, nnx.Embed, form)
    plain = lora_jax.dequantise(packed)
    ids = [jnp.asarray(one) for one in IDS.values()]
    for one in (*ids, jnp.int8(3), jnp.zeros(0, int), jnp.zeros((2, 0), int), np.arange(5)):
        if count == 1 and not one.ndim:
            continue  # which Flax's own table of one row has no answer to
        expected = plain(one)
        assert packed(one).shape == expected.shape and packed(one).dtype == expected.dtype
        np.testing.assert_array_equal(packed(one), expected)  # NaN of both are equal
    assert count == 1 or not jnp.isfinite(packed(jnp.asarray([10]))).any()
    for wrong in (jnp.ones(2), jnp.ones(2, bool)):
        with pytest.raises(ValueError, match="must be an integer"):
            packed(wrong)


def test_biases_are_added_to_packed_layers(model):
    """One that has none gets one, as over the unpacked weights."""
    base = lora_jax.quantise(nnx.Dict(a=nnx.Linear(64, 32, use_bias=False, rngs=nnx.Rngs(0))))
    method = lora_jax.bitfit(add=True)
    bias = jax.random.normal(jax.random.key(0), (32,))
    outputs = []
    for one in (base, lora_jax.dequantise(base)):
        adapted = method.insert(one, jax.random.key(0))
        assert {p for p, g in method.labels(adapted).items() if g == "bias"} == {"a/added/bias"}
        adapted["a"].added.bias[...] = bias
        outputs.append(adapted["a"](jnp.eye(64)))
    np.testing.assert_allclose(*outputs, rtol=1e-6)
    assert is_quantised(base["a"])


def test_methods_that_need_a_table_say_that_it_is_packed():
    """Its rows are no parameter that could be taken or replaced."""
    sizes = GPT2Config(64, 1, 2, vocab_size=64, n_positions=32)
    table = lora_jax.quantise(GPT2(sizes, nnx.Rngs(0)), "embeddings/token", "q8_0")
    for method in (lora_jax.prefix_embed(2), lora_jax.token_rows({"embeddings/token": [1]})):
        with pytest.raises(
            InputTypeError, match="embeddings/token is quantised.* exclude.*in place of 'stored'"
        ):
            method.insert(table, jax.random.key(0))


def test_a_packed_base_of_an_own_model_is_kept_with_orbax(model, tmp_path):
    """As docs/quantised.md has it, of a base that LoftQ made for its factors."""
    method = lora_jax.lora("out", rank=4)
    adapted = loftq(model, method, jax.random.key(0), "out", "nf4", steps=3)
    base = lora_jax.strip(adapted)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "base", nnx.state(base))
    lora_jax.save(tmp_path / "adapter", adapted, method, base)

    abstract = lora_jax.quantise(nnx.eval_shape(lambda: Model(nnx.Rngs(0))), "out", "nf4")
    structure, shapes = nnx.split(abstract)
    with ocp.StandardCheckpointer() as checkpointer:
        again = nnx.merge(structure, checkpointer.restore(tmp_path / "base", shapes))
    loaded = lora_jax.load(tmp_path / "adapter", again)
    np.testing.assert_array_equal(loaded(TOKENS), adapted(TOKENS))
    with pytest.raises(InputError, match="packed anew for its factors"):
        lora_jax.load(tmp_path / "adapter", lora_jax.quantise(model, "out", "nf4"))
