"""DeBERTa against PyTorch `transformers`, and against itself packed, unrolled and recomputed."""

from __future__ import annotations

import dataclasses

import deberta_models
import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
import transformers
from deberta_models import VARIANTS, to_ours
from deviations import deviation
from safetensors.numpy import load_file
from transformers.models.deberta_v2 import modeling_deberta_v2 as of_torch

import lora_jax
from lora_jax import methods, partition
from lora_jax.errors import InputError
from lora_jax.models import hub
from lora_jax.models.attention.relative import Relative, buckets
from lora_jax.models.deberta_config import SIZES
from lora_jax.quantisation.layers import quantised_layers

torch.set_num_threads(1)

# Reached on a CPU in float32, relative to the largest value of the tensor: 8e-7 and 2e-6. The order of
# summation differs; the tolerances are about ten times that.
LOGITS, GRADIENTS = 1e-5, 2e-5
LENGTHS = [13, 29, 1, 22, 2]  # in rows of 40: several in each, and padding behind them


def split(model):
    return partition.split(model, dict.fromkeys(partition.parameters(model), partition.TRAINABLE))


def outputs(model, batch, loss, key=None):
    """Logits, and the gradients of a loss of them by path."""
    structure, params, rest = split(model)

    @jax.jit
    def both(params):
        def of(p):
            logits = partition.join(structure, p, rest)(*batch, key=key)
            return loss(logits), logits

        return jax.grad(of, has_aux=True)(params)

    gradients, logits = both(params)
    return np.asarray(logits), {k: np.asarray(v) for k, v in gradients.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_all_gradients_equal_pytorch(variant, tmp_path):
    theirs = deberta_models.reference(variant, seed=len(variant))
    theirs.save_pretrained(tmp_path)
    ours, config = deberta_models.load(tmp_path)
    expected = to_ours(dict(theirs.named_parameters()))
    loaded = partition.parameters(ours)
    assert set(loaded) == set(expected)
    for path, value in expected.items():
        np.testing.assert_array_equal(loaded[path], value, err_msg=path)

    torch_inputs, batch = deberta_models.batches(LENGTHS, config.type_vocab_size)
    labels = np.array([0, 2, 1, 1, 0]) % theirs.config.num_labels
    logits = theirs(**torch_inputs).logits
    if theirs.config.num_labels == 1:
        target = np.linspace(-1, 1, len(LENGTHS)).astype(np.float32)
        torch.nn.functional.mse_loss(logits[:, 0], torch.tensor(target)).backward()
        loss = lambda x: jnp.mean((x[:, 0] - target) ** 2)  # noqa: E731
    else:
        torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()
        loss = lambda x: optax.softmax_cross_entropy_with_integer_labels(x, labels).mean()  # noqa: E731
    # What is not used has no gradient in PyTorch, and 0 in JAX.
    named = {
        k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in theirs.named_parameters()
    }
    found, gradients = outputs(ours, batch, loss)
    reached = (
        deviation({"": found}, {"": logits.detach().numpy()}),
        deviation(gradients, to_ours(named)),
    )
    print(f"\ndeviation {variant}: logits {reached[0]:.1e}, gradients {reached[1]:.1e}")
    assert reached[0] < LOGITS
    assert reached[1] < GRADIENTS


def small(tmp_path, variant="v2-xxlarge", **overrides):
    """Our model of a variant, read in another way, and a batch."""
    if not (tmp_path / "config.json").exists():
        deberta_models.reference(variant).save_pretrained(tmp_path)
    model, config = deberta_models.load(tmp_path, **overrides)
    return model, deberta_models.batches(LENGTHS, config.type_vocab_size)[1]


def quick_key(seed):
    """A key whose bits compile faster than the default's."""
    return jax.random.key(seed, impl="unsafe_rbg")


@pytest.mark.slow
@pytest.mark.parametrize("unroll, remat", [(1, "dots"), (2, "none"), (3, "full")])
def test_unroll_and_remat_change_nothing(unroll, remat, tmp_path):
    """With dropout, of relative positions and of the convolution too: it is drawn again alike."""
    loss = lambda x: jnp.sum(jnp.sin(x))  # noqa: E731
    plain = outputs(*small(tmp_path), loss, quick_key(3))
    without = outputs(*small(tmp_path), loss)[0]
    other = outputs(*small(tmp_path, unroll=unroll, remat=remat), loss, quick_key(3))
    # The same operations, fused in other ways; 2e-7 and 8e-7 are reached.
    assert deviation({"": other[0]}, {"": plain[0]}) < 5e-6
    assert deviation(other[1], plain[1]) < 1e-5
    assert np.abs(plain[0] - without).max() > 0.05 * np.abs(without).max()


def test_examples_that_share_a_row_do_not_see_each_other(tmp_path):
    """Nor what is behind them: neither in scores nor in the convolution, whatever is there."""
    model, (inputs, rows, columns) = small(tmp_path)
    run = jax.jit(lambda inputs: model(inputs, rows, columns))
    logits = np.asarray(run(inputs))
    for number, (row, column) in enumerate(zip(rows, columns, strict=True)):
        own = inputs.segments == inputs.segments[row, column]
        others = np.where(own, inputs.tokens, (inputs.tokens + 7) % 50).astype(np.int32)
        np.testing.assert_array_equal(run(inputs._replace(tokens=others))[number], logits[number])
    alone = deberta_models.batches(LENGTHS, 0, shape=(5, 33))[1]
    # Each in a row of its own, of another length: products of other shapes.
    np.testing.assert_allclose(model(*alone), logits, rtol=0, atol=1e-5 * np.abs(logits).max())


def test_the_convolution_belongs_to_the_first_layer(tmp_path):
    """A stack that is cut is the whole one, so the part that begins later has no convolution."""
    model, batch = small(tmp_path)
    whole = np.asarray(model(*batch))
    model.encoder.layers = model.encoder.layers.cut(2)
    np.testing.assert_allclose(model(*batch), whole, rtol=0, atol=1e-6 * np.abs(whole).max())


def test_bfloat16_is_near_float32(tmp_path):
    model, batch = small(tmp_path)
    exact = np.asarray(model(*batch))
    rounded = small(tmp_path, compute_dtype="bfloat16")[0](*batch)
    assert rounded.dtype == jnp.float32
    difference = np.abs(rounded - exact).max() / np.abs(exact).max()
    assert 1e-4 < difference < 0.1  # 8 bits of mantissa, through three layers; 2e-2 is reached


@pytest.mark.parametrize("length", [1, 5, 128, 200, 300])
def test_products_with_positions_are_those_that_are_looked_up(length):
    """In blocks of queries, of which the last may be smaller, against one index for each score in float64."""
    random = np.random.default_rng(length)
    q, k = random.normal(size=(2, 1, 2, length, 4)).astype(np.float32)
    keys, queries = random.normal(size=(2, 2 * length, 2, 4)).astype(np.float32)
    distance = np.arange(length)[:, None] - np.arange(length)
    by_query = np.einsum("bhqd,qkhd->bhqk", q, keys[length - 1 - distance], dtype=np.float64)
    by_key = np.einsum("bhkd,qkhd->bhqk", k, queries[length - 1 + distance], dtype=np.float64)
    keys, queries = jnp.asarray(keys), jnp.asarray(queries)
    for given, expected in (
        (Relative(keys, None), by_query), (Relative(None, queries), by_key),
        (Relative(keys, queries), by_query + by_key),
    ):  # fmt: skip
        found = given.products(jnp.asarray(q), jnp.asarray(k))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)  # sums of 8 float32 products


@pytest.mark.parametrize("count, longest", [(256, 512), (32, 128), (9, 40), (2, 16), (5, 5)])
def test_buckets_are_those_of_transformers(count, longest):
    distances = np.arange(-1500, 1501)
    theirs = of_torch.make_log_bucket_position(torch.tensor(distances), count, longest).numpy()
    span = lambda x: np.clip(x, -count, count - 1)  # noqa: E731  # farther ones have no embedding
    np.testing.assert_array_equal(span(buckets(distances, count, longest)), span(theirs))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"conv_kernel_size": 4}, "conv_kernel_size must be odd"),
        ({"position_buckets": 1}, "position_buckets 1 must be from 2 on"),
        ({"position_buckets": 1024}, "half of it below 511"),
        ({"attention": "splash", "attention_probs_dropout_prob": 0.0}, "no relative positions"),
        ({"architecture": "bert"}, "architecture must be 'deberta-v2', got 'bert'"),
        ({"pos_att_type": ("p2p",)}, "pos_att_type must be a tuple.*'c2p' or 'p2c'"),
        ({"num_attention_heads": 7}, "divisible"),
    ],
)
def test_settings_that_cannot_be_are_errors(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SIZES["deberta-v2-xxlarge"], **changes)


def test_lora_moves_as_in_peft(tmp_path):
    """Three steps of AdamW with LoRA on what serves positions too, and the heads; nothing is dropped."""
    theirs = deberta_models.reference("v2-xxlarge")
    theirs.save_pretrained(tmp_path)
    ours, _ = deberta_models.load(tmp_path)
    targets = ["query_proj", "key_proj", "value_proj"]
    settings = peft.LoraConfig(
        r=2, lora_alpha=6, target_modules=targets, task_type="SEQ_CLS",
        modules_to_save=["classifier", "pooler"],
    )  # fmt: skip
    adapted = peft.get_peft_model(theirs, settings).eval()
    method = methods.lora(".*/attention/(query|key|value)", rank=2, alpha=6, head="head/.*")
    model = method.insert(ours, jax.random.key(0))
    structure, params, frozen = partition.split(model, method.labels(model))
    named = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    random = np.random.default_rng(0)
    for name, parameter in named.items():
        if "lora_" in name:
            parameter.data = torch.tensor(
                random.normal(size=parameter.shape, scale=0.3), dtype=torch.float32
            )
    params = {path: jnp.asarray(value) for path, value in of_peft(named).items()}
    torch_inputs, batch = deberta_models.batches(LENGTHS, 0)
    labels = np.array([0, 2, 1, 1, 0])
    steps = torch.optim.AdamW(named.values(), lr=1e-2, weight_decay=0.01)
    tx = optax.adamw(1e-2, weight_decay=0.01)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        def loss(p):
            logits = partition.join(structure, p, frozen)(*batch)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    start = params
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(
            adapted(**torch_inputs).logits, torch.tensor(labels)
        )
        steps.zero_grad()
        loss.backward()
        steps.step()
        params, state, value = step(params, state)
        assert abs(float(value) - loss.item()) < 1e-5 * loss.item()
    after = of_peft(named)
    for path, expected in after.items():
        moved = np.abs(expected - start[path]).max()
        # A gradient near 0 has a sign by rounding, and Adam's first step is its sign; 8e-5 is reached.
        assert 0.01 < moved < 0.1
        assert np.abs(params[path] - expected).max() < 1e-3 * moved, path


def of_peft(named):
    """PEFT's trained parameters by our paths."""
    plain = {}
    for name, value in named.items():
        name = name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
        plain[name.replace(".default.weight", "")] = value.detach().numpy().copy()
    factors, rest = {}, {}
    for name, value in plain.items():
        (factors if "lora_" in name else rest)[name] = value
    result = to_ours({name: torch.tensor(value) for name, value in rest.items()})
    for name in ("query", "key", "value"):
        for side in "AB":
            stem = f"deberta.encoder.layer.{{}}.attention.self.{name}_proj.lora_{side}"
            layers = [factors[stem.format(i)].T for i in range(len(factors) // 6)]
            path = f"encoder/layers/block/attention/{name}/lora/{side.lower()}"
            result[path] = np.stack(layers)
    return result


@pytest.mark.slow
def test_a_packed_base_computes_with_its_rounded_weights(tmp_path):
    """NF4 as it is read: every linear layer but the head's."""
    sizes = {
        "hidden_size": 64,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "embedding_size": 128,
    }
    theirs = deberta_models.reference("only p2c", num_hidden_layers=1, **sizes)
    theirs.save_pretrained(tmp_path)
    packed, _ = deberta_models.load(tmp_path, base_format="nf4")
    block = "encoder/layers/block/"
    attention = ("query", "key", "value", "position_query", "output")
    assert set(quantised_layers(packed)) == {
        "encoder/embeddings/projection", f"{block}feed_forward/up", f"{block}feed_forward/down",
        *(f"{block}attention/{name}" for name in attention),
    }  # fmt: skip
    batch = deberta_models.batches(LENGTHS, 0)[1]
    run = jax.jit(lambda model: model(*batch))
    rounded, exact = lora_jax.dequantise(packed, jnp.float32), deberta_models.load(tmp_path)[0]
    found, expected, exact = (np.asarray(run(model)) for model in (packed, rounded, exact))
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.abs(found - exact).max() > 1e-2 * np.abs(exact).max()


def test_a_saved_model_is_the_folder_that_it_was_read_from(tmp_path):
    for number, variant in enumerate(
        ("v2-xxlarge", "no buckets, own keys", "absolute", "narrow table")
    ):
        folder, again = tmp_path / f"{number}", tmp_path / f"{number} again"
        deberta_models.reference(variant, num_hidden_layers=1).save_pretrained(folder)
        model, config = deberta_models.load(folder)
        hub.save_classifier(again, model)
        assert hub.read_config(again) == config
        one, other = (load_file(place / "model.safetensors") for place in (folder, again))
        assert one.keys() == other.keys()
        assert all(one[name].tobytes() == other[name].tobytes() for name in one)
        assert all(one[name].shape == other[name].shape for name in one)
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(again)
        assert type(theirs) is transformers.DebertaV2ForSequenceClassification


def test_replaced_activations_would_not_reach_the_convolution(tmp_path):
    deberta_models.reference("v2-xxlarge").save_pretrained(tmp_path / "v2")
    deberta_models.reference("v3").save_pretrained(tmp_path / "v3")
    method = methods.prefix_layer(2)
    with pytest.raises(TypeError, match="convolution over the embeddings.*prefix_embed works"):
        method.insert(deberta_models.load(tmp_path / "v2")[0], jax.random.key(0))
    method.insert(deberta_models.load(tmp_path / "v3")[0], jax.random.key(0))


def test_a_pool_has_no_slot_for_positions(tmp_path):
    deberta_models.reference("v3").save_pretrained(tmp_path)
    model, _ = deberta_models.load(tmp_path)
    with pytest.raises(
        InputError, match="attention/query, which projects the model's relative pos"
    ):
        lora_jax.AdapterPool(model, [methods.lora(["query", "value"], rank=2)])
    lora_jax.AdapterPool(model, [methods.lora(["value", "up"], rank=2)])
