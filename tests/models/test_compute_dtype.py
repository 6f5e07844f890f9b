"""`compute_dtype`: what is computed in bfloat16, what stays float32, and how near the result is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lora_jax import methods, partition
from lora_jax.data.batch import Inputs
from lora_jax.models import encoder, gpt2

KEY = jax.random.key(0, impl="unsafe_rbg")  # compiles faster
WIDTH, INNER, VOCAB, OUTPUTS, LAYERS, ROWS, LENGTH = 16, 24, 30, 3, 3, 3, 8
HALF, FULL = jnp.dtype("bfloat16"), jnp.dtype("float32")
KINDS = ("bert", "roberta", "decoder")


def make(kind, dtype):
    """A model of random float32 parameters, the same for all types of computation."""
    shared = {"initializer_range": 0.2, "compute_dtype": str(dtype)}
    if kind == "decoder":
        sizes = gpt2.GPT2Config(
            WIDTH, LAYERS, 2, vocab_size=VOCAB, n_positions=20, n_inner=INNER, **shared
        )
        return gpt2.GPT2(sizes, nnx.Rngs(0))
    config = encoder.EncoderConfig(
        kind, vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2,
        intermediate_size=INNER, max_position_embeddings=20, type_vocab_size=2,
        position_offset=2 * (kind == "roberta"), **shared,
    )  # fmt: skip
    return encoder.Classifier(config, OUTPUTS, nnx.Rngs(0))


def lora(kind):
    """Factors at every linear layer of a block; the decoder's q and v have their own."""
    if kind != "decoder":
        return methods.lora(
            r"encoder/layers/.*/(query|key|value|output|up|down)", rank=2, head="head/.*"
        )
    fused = {"parts": ("q", "v"), "fused": ("q", "k", "v")}
    return methods.lora({".*/qkv": fused, ".*/(output|up|down)": {}}, rank=2)


METHODS = {"lora": lora, "full": lambda kind: methods.full()}
LINEAR = {"bert": 6, "roberta": 6, "decoder": 4}  # matrix products of a block but attention's
ADAPTED = {"bert": 6, "roberta": 6, "decoder": 5}  # factor pairs of a block


def prepared(kind, method, dtype):
    """Structure, float32 trainable leaves (factors not zero), and the rest in the computation's type."""
    adapted = METHODS[method](kind).insert(make(kind, dtype), KEY)
    labels = METHODS[method](kind).labels(adapted)
    structure, trainable, frozen = partition.split(adapted, labels)
    random = np.random.default_rng(0)
    for path in sorted(trainable):
        if path.endswith("/b"):
            value = random.normal(0, 0.2, trainable[path].shape)
            trainable[path] = jnp.asarray(value, jnp.float32)
    assert {v.dtype for v in trainable.values()} == {FULL}
    return structure, trainable, {path: value.astype(dtype) for path, value in frozen.items()}


def batch():
    tokens = np.random.default_rng(0).integers(2, VOCAB, (ROWS, LENGTH)).astype(np.int32)
    places = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
    return Inputs(tokens, np.ones_like(tokens), places, np.zeros_like(tokens))


AT = np.arange(ROWS), np.array([0, 3, 7])


def loss_of(structure, frozen):
    def loss(trainable):
        logits = partition.join(structure, trainable, frozen)(batch(), *AT)
        labels = np.arange(ROWS)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

    return loss


def equations(jaxpr, in_scan=False):
    """Every equation of a program, and whether it is inside of a scan; of forms for devices the usual one."""
    for equation in jaxpr.eqns:
        yield equation, in_scan
        inside = in_scan or equation.primitive.name == "scan"
        values = list(equation.params.values())
        if equation.params.get("branches_platforms"):
            values = [equation.params["branches"][-1]]
        for parameter in jax.tree.leaves(values, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from equations(inner, inside)


def products(jaxpr):
    """Types (of the two operands and the result) of the products that are not attention's."""
    found = {True: [], False: []}
    for equation, in_scan in equations(jaxpr):
        if equation.primitive.name == "dot_general":
            (_, batched) = equation.params["dimension_numbers"]
            if not any(batched):  # attention's have rows and heads as batch axes
                variables = (*equation.invars, *equation.outvars)
                found[in_scan].append(tuple(v.aval.dtype for v in variables))
    return found[True], found[False]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_types_inside_of_a_bfloat16_model(kind, method):
    structure, trainable, frozen = prepared(kind, method, HALF)
    loss = loss_of(structure, frozen)
    forward = jax.make_jaxpr(loss)(trainable).jaxpr
    (scan,) = (e for e, _ in equations(forward) if e.primitive.name == "scan")
    (carry,) = scan.outvars[: scan.params["num_carry"]]
    assert carry.aval.shape == (ROWS, LENGTH, WIDTH) and carry.aval.dtype == HALF
    blocks, outside = products(forward)
    assert blocks == [(HALF,) * 3] * (LINEAR[kind] + 2 * ADAPTED[kind] * (method == "lora"))
    # The decoder's only other product is its tied output layer; an encoder's are in its head.
    assert outside == ([(HALF, HALF, FULL)] if kind == "decoder" else [(FULL,) * 3] * 2)

    backward = jax.make_jaxpr(jax.grad(loss, has_aux=True))(trainable).jaxpr
    blocks, _ = products(backward)
    assert set(blocks) == {(HALF,) * 3} and len(blocks) > 2 * LINEAR[kind]
    gradients, logits = jax.eval_shape(jax.grad(loss, has_aux=True), trainable)
    assert {v.dtype for v in gradients.values()} == {FULL} == {logits.dtype}


@pytest.mark.parametrize("kind", KINDS)
def test_a_float32_model_computes_in_float32_whatever_its_base(kind):
    structure, trainable, frozen = prepared(kind, "lora", FULL)
    half = {path: value.astype(HALF) for path, value in frozen.items()}
    program = jax.make_jaxpr(loss_of(structure, half))(trainable).jaxpr
    blocks, outside = products(program)
    assert set(blocks) == set(outside) == {(FULL,) * 3}


def outputs(structure, trainable, frozen):
    gradients, logits = jax.jit(jax.grad(loss_of(structure, frozen), has_aux=True))(trainable)
    return np.asarray(logits), {path: np.asarray(value) for path, value in gradients.items()}


def distance(ours, reference):
    """Largest distance of a leaf from the reference, relative to its norm.

    Or to the norm of a leaf of that size with a tenth of the largest root mean square, if that is more:
    a key's bias has gradient zero, but for rounding.
    """
    floor = 0.1 * max(np.sqrt(np.mean(v**2)) for v in reference.values())
    norm = lambda v: max(np.linalg.norm(v), floor * np.sqrt(v.size))  # noqa: E731
    return max(np.linalg.norm(ours[path] - v) / norm(v) for path, v in reference.items())


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind == "roberta")) for kind in KINDS]
)
def test_logits_and_gradients_are_near_those_of_float32(kind, method):
    """8 bits of mantissa: an operation rounds by up to 2^-9, and some ten follow each other in a layer.

    Reached with 3 layers: logits 3e-3 to 1.7e-2, gradients 1.4e-2 to 2.7e-2. Below 1e-3 the products
    would not be bfloat16.
    """
    half, exact = (outputs(*prepared(kind, method, dtype)) for dtype in (HALF, FULL))
    logits, gradients = distance({"": half[0]}, {"": exact[0]}), distance(half[1], exact[1])
    print(f"\ndeviation bfloat16: logits {logits:.1e}, gradients {gradients:.1e}")
    assert 1e-3 < logits < 0.05 and 1e-3 < gradients < 0.06


@pytest.mark.parametrize("adapted", [False, True])
def test_tied_output_layer_sums_in_float32(adapted):
    """Logits of GPT-2 are near -100, where bfloat16 has steps of 0.5."""
    model = make("decoder", HALF)
    if adapted:
        model = methods.lora("embeddings/token", rank=2).insert(model, KEY)
        pair = model.embeddings.token.lora
        pair.a[...] = jax.random.normal(KEY, pair.a.shape)
        table = model.embeddings.token.embedding[...] + pair.a[...] @ pair.b[...]
    else:
        table = model.embeddings.token.embedding[...].astype(HALF)
    hidden = 50 * jax.random.normal(KEY, (5, WIDTH)).astype(HALF)
    logits = np.asarray(jax.jit(lambda model: model.output_logits(hidden))(model))
    exact = np.asarray(hidden, np.float64) @ np.asarray(table, np.float64).T
    assert logits.dtype == FULL and np.abs(exact).max() > 50
    # The operands are given in the types of the products, so the sums alone differ: 1e-7 is reached.
    assert np.abs(logits - exact).max() < 1e-6 * np.abs(exact).max()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_a_table_are_sums_in_float32(kind):
    """In bfloat16 a sum of ones stops at 256; a frequent token is more often in a batch."""
    model = make(kind, HALF)
    embeddings = model.embeddings if kind == "decoder" else model.encoder.embeddings
    structure, trainable, frozen = partition.split(embeddings, methods.full().labels(embeddings))
    weights = jnp.arange(WIDTH) ** 2 / WIDTH  # a plain sum's gradient is zero before a norm

    def total(params, count):
        tokens, zeros = np.full((1, count), 7), np.zeros((1, count), int)
        joined = partition.join(structure, params, frozen)
        inputs = Inputs(tokens, zeros, zeros, zeros)
        x = joined(tokens, zeros) if kind == "decoder" else joined(inputs, None)
        return (x.astype(jnp.float32) * weights).sum()

    one, many = (jax.grad(total)(trainable, count) for count in (1, 1024))
    tables = [path for path in one if path.endswith("embedding")]
    assert len(tables) == (2 if kind == "decoder" else 3)
    for path in tables:  # equal rows: only the last bits of one may be rounded in another way
        np.testing.assert_allclose(many[path], 1024 * one[path], rtol=0.02, err_msg=path)
        assert np.abs(one[path]).max() > 0


def test_cache_is_bfloat16():
    model, tokens = make("decoder", HALF), batch().tokens
    logits, cache = model.prefill(tokens, jnp.array([8, 3, 5]), 2, 4)
    more, cache = model.decode_step(jnp.array([[1, 2], [3, 4], [5, 6]]), cache)
    assert {v.dtype for v in (*cache.prompt, *cache.generated)} == {HALF}
    assert logits.dtype == more.dtype == FULL
