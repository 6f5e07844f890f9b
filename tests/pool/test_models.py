"""Pools on our models: packed rows with several adapters, heads of several widths, decoding with a cache."""

import os

import jax
import numpy as np
import pool_adapters
import pytest
import random_models
from flax import nnx
from pool_adapters import alone, call

import lora_jax
from lora_jax.data.packing import lay_out
from lora_jax.decoding.beam import BeamSearch, beam_search
from lora_jax.decoding.sampling import Sampling, sample
from lora_jax.models.decoder_classifier import DecoderClassifier
from lora_jax.models.encoder import Classifier, EncoderConfig
from lora_jax.models.gpt2 import GPT2, GPT2Config
from lora_jax.models.llama import Llama
from lora_jax.models.llama_config import LlamaConfig
from lora_jax.pool import AdapterPool, packed_slots, route

# float32; sums in another order, through two layers of width 32.
CLOSE = {"rtol": 1e-5, "atol": 2e-6}
VOCAB = 40


def encoder(architecture):
    positions = {"bert": 0, "roberta": 2}[architecture]
    config = EncoderConfig(
        architecture, vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=34, type_vocab_size=1, position_offset=positions,
    )  # fmt: skip
    whole = random_models.from_shapes(lambda: Classifier(config, 3, nnx.Rngs(0)), scale=0.15)

    def make(outputs):
        return narrowed(whole, outputs, "output")

    return make


def narrowed(model, outputs, name):
    """The same model with a head of fewer outputs."""
    model = nnx.clone(model)
    layer = getattr(model.head, name)
    narrow = nnx.Linear(
        layer.in_features, outputs, use_bias=layer.bias is not None, rngs=nnx.Rngs(0)
    )
    narrow.kernel[...] = layer.kernel[..., :outputs]
    if layer.bias is not None:
        narrow.bias[...] = layer.bias[:outputs]
    setattr(model.head, name, narrow)
    return model


def gpt2():
    config = GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    return random_models.from_shapes(lambda: GPT2(config, nnx.Rngs(0)), scale=0.2)


def llama(**settings):
    sizes = {
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    config = LlamaConfig(**{**sizes, **settings})
    return random_models.from_shapes(lambda: Llama(config, nnx.Rngs(0)), scale=0.2)


def filled(base, adapters, **settings):
    methods = list({str(adapter.method): adapter.method for adapter in adapters.values()}.values())
    pool = AdapterPool(base, methods, **settings)
    for name, adapter in adapters.items():
        pool.add(name, adapter)
    return pool


def packed(seed=0, examples=9, longest=11):
    rng = np.random.default_rng(seed)
    ids = [rng.integers(0, VOCAB, n).astype(np.int32) for n in rng.integers(1, longest, examples)]
    inputs, places = lay_out(ids, (5, 16))
    return ids, inputs, *np.array(places, np.int32).T


def run_packed(pool, names, inputs, rows, columns, outputs=None):
    def run(slots, frozen, numbers):
        model = pool.model(slots, frozen)
        tokens = packed_slots(inputs.segments, *at, numbers)
        own = numbers if outputs is None else tokens[rows, columns]
        route(model, tokens, own)
        return model(inputs, rows, columns)

    at = (rows, columns) if outputs is None else outputs
    return np.asarray(jax.jit(run)(*pool.ready(names)))


# ---- classifiers ----------------------------------------------------------------------------------------

WIDTHS = {"a": 3, "b": 2, "c": 1, "d": 3}
METHODS = {
    "a": lora_jax.lora(".*/(query|value)", rank=3, alpha=6, head="head/.*"),
    "b": lora_jax.lora("all-linear", rank=2, alpha=1, magnitude=True, head="head/.*"),
    "c": lora_jax.lora([".*/query", ".*/word"], rank=4, alpha=4, head="head/.*"),
    "d": lora_jax.lora([".*/(position|token_type)"], rank=1, too_large="cap", head="head/.*"),
}


@pytest.fixture(scope="module", params=["bert", "roberta"])
def classifiers(request):
    make = encoder(request.param)
    adapters = {
        name: pool_adapters.adapter(make(WIDTHS[name]), method, seed, 0.2)
        for seed, (name, method) in enumerate(METHODS.items())
    }
    return make, adapters


def classify_alone(make, adapters, name, inputs, rows, columns):
    model = make(3) if name is None else alone(make(WIDTHS[name]), adapters[name])
    return call(lambda m: m(inputs, rows, columns), model)


@pytest.mark.slow
def test_packed_rows_have_several_tasks(classifiers):
    make, adapters = classifiers
    pool = filled(make(3), adapters, capacity=4)
    _, inputs, rows, columns = packed()
    names = ["a", "c", "b", None, "a", "d", "b", "c", "a"]
    assert any(len(set(inputs.segments[r]) - {0}) > 1 for r in range(5))  # rows are shared
    found = run_packed(pool, names, inputs, rows, columns)
    for number, name in enumerate(names):
        reference = classify_alone(make, adapters, name, inputs, rows, columns)[number]
        np.testing.assert_allclose(found[number, : len(reference)], reference, **CLOSE)
        assert name is None or pool.outputs(name) == len(reference)
    changed = classify_alone(make, adapters, None, inputs, rows, columns)
    assert np.abs(found[:, 0] - changed[:, 0])[[0, 2, 4]].min() > 1e-2  # the adapters do something


@pytest.mark.slow
def test_a_nan_of_one_task_stays_in_its_examples(classifiers):
    make, adapters = classifiers
    broken = {n: pool_adapters.with_nan(a) if n == "b" else a for n, a in adapters.items()}
    pool = filled(make(3), broken, capacity=4)
    _, inputs, rows, columns = packed()
    names = ["a", "c", "b", None, "a", "d", "b", "c", "a"]
    found = run_packed(pool, names, inputs, rows, columns)
    for number, name in enumerate(names):
        if name == "b":
            assert np.isnan(found[number, :2]).all()
        else:
            reference = classify_alone(make, adapters, name, inputs, rows, columns)[number]
            np.testing.assert_allclose(found[number, : len(reference)], reference, **CLOSE)


@pytest.mark.parametrize("outputs", [1, 32, 50])
def test_the_width_of_a_head_is_that_of_its_last_layer(outputs):
    """Also where there are more classes than values inside the head, or as many."""
    narrow = encoder("roberta")(3)
    narrow.head.output = nnx.Linear(32, outputs, rngs=nnx.Rngs(0))
    method = METHODS["a"]
    pool = filled(narrow, {"a": pool_adapters.adapter(narrow, method, 0)}, capacity=1)
    assert pool.outputs("a") == outputs


@pytest.mark.slow
def test_a_head_of_a_decoder_is_pooled():
    whole = DecoderClassifier(gpt2(), 3, nnx.Rngs(0))

    def make(outputs):
        return narrowed(whole, outputs, "score")

    method = lora_jax.lora(
        {".*/qkv": {"parts": ("q", "v"), "fused": ("q", "k", "v")}}, rank=2, head="head/.*"
    )
    adapters = {
        n: pool_adapters.adapter(make(w), method, w, 0.2) for n, w in {"a": 3, "b": 2}.items()
    }
    pool = filled(make(3), adapters, capacity=2)
    _, inputs, rows, columns = packed()
    names = ["a", "b", "a", "a", "b", "a", "b", "b", "a"]
    found = run_packed(pool, names, inputs, rows, columns)
    for name, width in {"a": 3, "b": 2}.items():
        model = alone(make(width), adapters[name])
        reference = call(lambda m: m(inputs, rows, columns), model)
        mine = [i for i, n in enumerate(names) if n == name]
        np.testing.assert_allclose(found[mine, :width], reference[np.array(mine)], **CLOSE)


# ---- decoders -------------------------------------------------------------------------------------------

QV = {".*/attention/qkv": {"parts": ("q", "v"), "fused": ("q", "k", "v")}}
DECODERS = {
    "gpt2": (gpt2, [
        lora_jax.lora(QV, rank=4, alpha=8),
        lora_jax.lora({**QV, ".*/output": {}, ".*/(up|down)": {}}, rank=2, magnitude=True),
    ]),
    "gpt2, table": (gpt2, [
        lora_jax.lora({**QV, "embeddings/token": {}}, rank=2, alpha=1, magnitude=True),
        lora_jax.lora("embeddings/position", rank=2, alpha=1),
    ]),
    "llama": (llama, [
        lora_jax.lora("all-linear", rank=3, alpha=6),
        lora_jax.lora(".*/(query|value)", rank=5, scaling="alpha/sqrt(r)", magnitude=True),
    ]),
    "llama, untied": (lambda: llama(tie_word_embeddings=False), [
        lora_jax.lora([".*/(gate|key)", "lm_head"], rank=3, alpha=2),
    ]),
    "llama, nf4": (lambda: lora_jax.quantise(llama(hidden_size=64, intermediate_size=64)), [
        lora_jax.lora("all-linear", rank=3, alpha=6),
        lora_jax.lora(".*/(value|down)", rank=2, magnitude=True),
    ]),
}  # fmt: skip


@pytest.fixture(scope="module", params=list(DECODERS))
def decoders(request):
    make, methods = DECODERS[request.param]
    base = make()
    adapters = {
        f"t{i}": pool_adapters.adapter(base, methods[i % len(methods)], i, 0.15) for i in range(3)
    }
    return base, adapters, filled(base, adapters, capacity=3), {}


def test_packed_rows_of_decoders(decoders):
    base, adapters, pool, _ = decoders
    ids, inputs, rows, columns = packed()
    names = ["t0", "t1", "t2", None, "t1", "t0", "t2", "t1", "t0"]
    # Logits of every token, each of its example's adapter.
    every = [(r, c + i) for r, c, x in zip(rows, columns, ids, strict=True) for i in range(len(x))]
    at = np.array(every, np.int32).T
    found = run_packed(pool, names, inputs, *at, outputs=(rows, columns))
    owner = np.concatenate([[n] * len(x) for n, x in zip(names, ids, strict=True)])
    for name in ("t0", "t1", "t2", "None"):
        model = base if name == "None" else alone(base, adapters[name])
        reference = np.asarray(call(lambda m: m(inputs, *at), model))
        mine = owner == name
        np.testing.assert_allclose(found[mine], reference[mine], rtol=1e-5, atol=2e-5)


_FORMS = [("rows", False), ("beside", True), ("rows", True), ("tiles", True), ("auto", True)]
_IN_ALL_FORMS = ("gpt2", "llama")
SLOW = bool(os.environ.get("LORA_JAX_SLOW"))


@pytest.mark.parametrize(("form", "looped"), _FORMS)
@pytest.mark.parametrize("search", ["greedy", "beams"])
def test_continuations_are_those_of_each_adapter(request, decoders, search, form, looped):
    base, adapters, pool, known = decoders
    model = request.node.callspec.params["decoders"]
    if model not in _IN_ALL_FORMS and (form, looped) not in _FORMS[:2] and not SLOW:
        pytest.skip("slow, and shown with other models: LORA_JAX_SLOW=1 runs it")
    rng = np.random.default_rng(5)
    lengths = rng.integers(1, 9, 7).astype(np.int32)
    prompts = rng.integers(0, VOCAB, (7, 8)).astype(np.int32)

    def run(model, prompts, lengths):
        if search == "beams":
            return beam_search(model, prompts, lengths, BeamSearch((3,), beams=3, max_tokens=8))
        return sample(model, prompts, lengths, Sampling((3,), max_tokens=8), jax.random.key(0))

    names = ["t0", "t1", "t2", None, "t1", "t0", "t2"]
    found = pool.compiled(run, form=form, looped=looped)(names, prompts, lengths)
    for name in dict.fromkeys(names):
        if (search, name) not in known:  # the same for every form
            model = base if name is None else alone(base, adapters[name])
            known[search, name] = call(run, model, prompts, lengths)
        reference = known[search, name]
        mine = np.array([i for i, n in enumerate(names) if n == name])
        np.testing.assert_array_equal(np.asarray(found.tokens)[mine], reference.tokens[mine])
        np.testing.assert_allclose(found.scores[mine], reference.scores[mine], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_bfloat16():
    """Computed in bfloat16 the factors are rounded as an adapter's own are."""
    base = llama(compute_dtype="bfloat16")
    method = lora_jax.lora("all-linear", rank=4, alpha=8)
    adapters = {f"t{i}": pool_adapters.adapter(base, method, i, 0.15) for i in range(2)}
    pool = filled(base, adapters, capacity=2)
    _, inputs, rows, columns = packed()
    names = ["t0", "t1"] * 4 + [None]
    found = run_packed(pool, names, inputs, rows, columns)
    for name in ("t0", "t1"):
        reference = call(lambda m: m(inputs, rows, columns), alone(base, adapters[name]))
        mine = np.array([i for i, n in enumerate(names) if n == name])
        difference = np.abs(found[mine] - np.asarray(reference)[mine]).max()
        assert difference < 2**-6 * np.abs(reference).max()  # a few roundings of 8 bits


@pytest.mark.slow
def test_a_nan_in_one_decoder_stays_in_its_rows():
    base = llama()
    method = lora_jax.lora("all-linear", rank=4, alpha=8)
    adapters = {f"t{i}": pool_adapters.adapter(base, method, i, 0.15) for i in range(3)}
    broken = {**adapters, "t1": pool_adapters.with_nan(adapters["t1"])}
    pool = filled(base, broken, capacity=3)
    _, inputs, rows, columns = packed()
    names = ["t0", "t1", "t2", None, "t1", "t0", "t2", "t1", "t0"]
    found = run_packed(pool, names, inputs, rows, columns)
    bad = np.array([name == "t1" for name in names])
    assert np.isnan(found[bad]).any(axis=1).all()
    assert np.isfinite(found[~bad]).all()
