"""Bottleneck adapters against PyTorch, and what methods do with them.

The reference puts adapters into `transformers` models with hooks, as the NLU code of microsoft/LoRA
does, and reads one example at a time where ours are packed.
"""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers
from flax import nnx

import lora_jax
from lora_jax import adapters, methods, partition
from lora_jax.data.batch import Batch, Inputs
from lora_jax.models import encoder, gpt2
from lora_jax.models.attention.spans import of_segments
from lora_jax.models.encoder import Classifier, EncoderConfig
from lora_jax.models.gpt2 import GPT2, GPT2Config
from lora_jax.models.hub import HEAD
from lora_jax.models.layouts import LAYOUTS
from lora_jax.models.sublayer import Context, PreNorm
from lora_jax.models.tensors import to_published
from lora_jax.training.optimizer import adamw
from lora_jax.training.step import classification_loss, completion_loss, make_train_step

torch.set_num_threads(1)

# Relative to the largest value of a tensor, in float32; only the order of summation differs. Reached
# on a CPU: logits 6e-7 (with a cache 4e-7), gradients 2e-6.
LOGITS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 2e-5

VOCAB, WIDTH, LAYERS, POSITIONS = 50, 16, 3, 14
KEY = jax.random.key(5, impl="unsafe_rbg")  # compiles faster
KINDS, PLACES = ("bert", "roberta", "gpt2"), ("houlsby", "pfeiffer", "lin")
OF_PLACE = dict(zip(PLACES, (methods.adapter_h, methods.adapter_p, methods.adapter_l), strict=True))
every_place = pytest.mark.parametrize("place", PLACES)
every_kind = pytest.mark.parametrize("kind", KINDS)
DIAGONAL = list(zip(KINDS, PLACES, strict=True))
diagonal = pytest.mark.parametrize("kind, place", DIAGONAL)
_ENCODER = EncoderConfig(
    "bert",
    vocab_size=VOCAB,
    hidden_size=WIDTH,
    num_hidden_layers=LAYERS,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=POSITIONS,
    type_vocab_size=2,
    hidden_dropout_prob=0.2,
)
CONFIGS = {
    "bert": _ENCODER,
    "roberta": dataclasses.replace(
        _ENCODER, architecture="roberta", layer_norm_eps=1e-5, type_vocab_size=1, position_offset=2
    ),
    "gpt2": GPT2Config(
        WIDTH,
        LAYERS,
        2,
        vocab_size=VOCAB,
        n_positions=POSITIONS,
        embd_pdrop=0.1,
        attn_pdrop=0.2,
        resid_pdrop=0.2,
    ),
}


def packed():
    """Rows with several examples and padding, the examples, and some tokens of each."""
    rng = np.random.default_rng(0)
    inputs = Inputs(*np.zeros((4, 3, POSITIONS), np.int32))
    inputs.tokens[...] = 9  # padding must not be read
    examples, starts, chosen = [], [], []
    for row, lengths in enumerate([(5, 1, 7), (12,), (3, 6)]):
        for number, n in enumerate(lengths, 1):
            start = sum(lengths[: number - 1])
            own = slice(start, start + n)
            examples.append(rng.integers(2, VOCAB, n))  # ids 0 and 1 are the encoders' padding
            starts.append((row, start))
            chosen += [(row, start + i) for i in range(0, n, 2)]
            inputs.tokens[row, own], inputs.segments[row, own] = examples[-1], number
            inputs.positions[row, own] = np.arange(n)
            inputs.types[row, start + n // 2 : start + n] = 1
    return inputs, examples, np.array(starts).T, np.array(chosen).T


INPUTS, EXAMPLES, STARTS, CHOSEN = packed()


def batch(kind):
    inputs = INPUTS if kind == "bert" else INPUTS._replace(types=np.zeros_like(INPUTS.types))
    at, classes = (CHOSEN, VOCAB) if kind == "gpt2" else (STARTS, 3)
    targets = np.random.default_rng(1).integers(0, classes, at.shape[1])
    return Batch(inputs, *at, targets, np.ones(at.shape[1], np.float32))


def build(config, outputs):
    rngs = nnx.Rngs(params=0)
    encoder = isinstance(config, EncoderConfig)
    return Classifier(config, outputs, rngs) if encoder else GPT2(config, rngs)


@functools.cache
def base(kind):
    """A model with random values everywhere, large enough that attention is not flat."""
    return randomised(nnx.eval_shape(lambda: build(CONFIGS[kind], 3)), lambda path: True, 0.2)


def with_values(model, values):
    """A copy of the model with the parameters in `values` replaced."""
    everything = dict.fromkeys(partition.parameters(model), partition.TRAINABLE)
    structure, params, rest = partition.split(model, everything)
    assert {k: params[k].shape for k in values} == {k: v.shape for k, v in values.items()}
    return partition.join(structure, {**params, **values}, rest)


def randomised(model, chosen=lambda path: "/adapter/" in path, std=0.3):
    """A copy with random values in the chosen leaves, scales of norms around 1."""
    rng = np.random.default_rng(2)
    return with_values(model, {
        path: jnp.asarray(rng.normal(path.endswith("scale"), std, leaf.shape), jnp.float32)
        for path, leaf in sorted(partition.parameters(model).items()) if chosen(path)
    })  # fmt: skip


def adapter_leaves(model):
    params = partition.parameters(model)
    return {path: np.asarray(leaf) for path, leaf in params.items() if "/adapter/" in path}


def head(kind):
    return None if kind == "gpt2" else HEAD


def inserted(kind, place, size=4, **arguments):
    """A method and the base model with its adapters, at their initial values."""
    method = OF_PLACE[place](size, head=head(kind), **arguments)
    return method, method.insert(base(kind), KEY)


@functools.partial(jax.jit, static_argnames="kind")
def run(model, kind, key=None):
    return model(*batch(kind)[:3], key=key)


def torch_model(kind, model, place, leaves, activation):
    """The model in PyTorch with adapters made of `leaves`: our stacked ones, by our paths."""
    config, params = CONFIGS[kind], partition.parameters(model)
    if kind == "gpt2":
        own = transformers.GPT2Config(
            vocab_size=VOCAB, n_positions=POSITIONS, n_embd=WIDTH, n_layer=LAYERS, n_head=2
        )
        theirs, epsilon = transformers.GPT2LMHeadModel(own), config.layer_norm_epsilon
    else:
        name, epsilon = {"bert": "Bert", "roberta": "Roberta"}[kind], config.layer_norm_eps
        fields = dataclasses.asdict(config)
        own = getattr(transformers, f"{name}Config")(
            **{k: v for k, v in fields.items() if k not in ("architecture", "position_offset")},
            num_labels=3, pad_token_id=1 if kind == "roberta" else 0,
        )  # fmt: skip
        theirs = getattr(transformers, f"{name}ForSequenceClassification")(own)
    weights = to_published(
        {p: v for p, v in params.items() if "adapter/" not in p and not p.startswith("head/")},
        LAYOUTS[kind],
    )
    for path, name in head_names(kind).items():
        weights[name] = np.asarray(params[path]).T
    state = {name: torch.tensor(value) for name, value in weights.items()}
    lost = theirs.load_state_dict(state, strict=False)
    assert not lost.unexpected_keys and set(lost.missing_keys) <= {"lm_head.weight"}
    theirs.eval()

    def adapter(sublayer, layer):
        p = {k.split("/adapter/")[1]: v[layer] for k, v in leaves.items() if sublayer in k}
        act = {"swish": torch.nn.functional.silu, "relu": torch.relu}.get(
            activation, torch.nn.functional.gelu
        )

        def f(h):
            if place == "lin":
                scale, bias = p["norm/scale"], p["norm/bias"]
                h = torch.nn.functional.layer_norm(h, (WIDTH,), scale, bias, epsilon)
            return act(h @ p["down/kernel"] + p["down/bias"]) @ p["up/kernel"] + p["up/bias"]

        return f

    def adds(module, f):
        module.register_forward_hook(lambda module, args, out: out + f(out))

    def pfeiffer_output(output, f):
        def forward(hidden, x):
            h = output.dropout(output.dense(hidden))
            return output.LayerNorm(h + f(output.LayerNorm(h + x)) + x)

        output.forward = forward

    blocks = theirs.transformer.h if kind == "gpt2" else theirs.base_model.encoder.layer
    for layer, block in enumerate(blocks):
        last = adapter("feed_forward", layer)
        if place == "houlsby":
            attention = (
                block.attn.resid_dropout if kind == "gpt2" else block.attention.output.dropout
            )
            adds(attention, adapter("attention", layer))
            adds(block.mlp.dropout if kind == "gpt2" else block.output.dropout, last)
        elif place == "pfeiffer" and kind != "gpt2":
            pfeiffer_output(block.output, last)
        else:
            adds(block, last)
    return theirs


def head_names(kind):
    """Our leaves of the head -> torch names."""
    bert, roberta = {"output": "classifier"}, {"dense": "classifier.dense"}
    names = {"bert": bert, "roberta": {**roberta, "output": "classifier.out_proj"}, "gpt2": {}}
    return {
        f"head/{module}/{ours}": f"{name}.{leaf}"
        for module, name in names[kind].items()
        for ours, leaf in (("kernel", "weight"), ("bias", "bias"))
    }


def torch_logits(kind, theirs):
    """Of the slots of the packed batch, one example at a time."""
    logits = []
    for tokens in EXAMPLES:
        types = np.arange(len(tokens)) >= len(tokens) // 2 if kind == "bert" else 0 * tokens
        more = {} if kind == "gpt2" else {"token_type_ids": torch.tensor(types[None]).long()}
        out = theirs(torch.tensor(tokens[None]), **more).logits
        logits.append(out[0, ::2] if kind == "gpt2" else out)
    return torch.cat(logits)


def deviation(ours, reference):
    """Largest difference, relative to each leaf's largest value."""
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in reference.items()}
    assert all(v.dtype == jnp.float32 for v in ours.values())
    return max(np.abs(ours[k] - v).max() / np.abs(v).max() for k, v in reference.items())


def logits_and_gradients(method, model, kind, key=None):
    """Logits, and the gradients of the method's trainable leaves."""
    structure, trainable, frozen = partition.split(model, method.labels(model))
    own = batch(kind)

    def loss(p):
        logits = partition.join(structure, p, frozen)(*own[:3], key=key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, own.labels).mean(), logits

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(trainable)
    return logits, {k: np.asarray(v) for k, v in gradients.items()}


@pytest.mark.parametrize("place, activation", [
    ("houlsby", "swish"), ("pfeiffer", "relu"), ("lin", "gelu"),
])  # fmt: skip
@every_kind
def test_logits_and_gradients_equal_pytorch(kind, place, activation):
    method, model = inserted(kind, place, activation=activation)
    model = randomised(model)
    leaves = {
        path: torch.tensor(leaf, requires_grad=True) for path, leaf in adapter_leaves(model).items()
    }
    assert len(leaves) == {"houlsby": 8, "pfeiffer": 4, "lin": 6}[place]
    theirs = torch_model(kind, model, place, leaves, activation)
    expected = torch_logits(kind, theirs)
    torch.nn.functional.cross_entropy(expected, torch.tensor(batch(kind).labels)).backward()
    gradients = {path: leaf.grad.numpy() for path, leaf in leaves.items()}
    for path, name in head_names(kind).items():
        gradients[path] = theirs.get_parameter(name).grad.numpy().T
    expected = expected.detach().numpy()
    logits, own = logits_and_gradients(method, model, kind)
    reached = deviation({"": logits}, {"": expected}), deviation(own, gradients)
    print(f"\ndeviation {kind} {place}: logits {reached[0]:.1e}, gradients {reached[1]:.1e}")
    assert reached[0] < LOGITS_TOLERANCE and reached[1] < GRADIENT_TOLERANCE
    assert deviation({"": run(base(kind), kind)}, {"": expected}) > 0.1  # the adapters matter


@pytest.mark.parametrize("kind, key", [("roberta", None), ("gpt2", KEY)])
@pytest.mark.slow
def test_adapter_d_is_adapter_p_without_the_lower_adapters(kind, key):
    """With dropout too: a cut stack draws the same."""
    full, dropped = (
        m(4, *layers, head=head(kind))
        for m, layers in ((methods.adapter_p, ()), (methods.adapter_d, (2,)))
    )
    model = randomised(dropped.insert(base(kind), KEY))
    upper = adapter_leaves(model)
    assert len(upper) == 4 and all("layers/last_2/block/feed_forward/" in path for path in upper)
    assert sum(v.size for v in upper.values()) == 2 * (2 * WIDTH * 4 + 4 + WIDTH)

    name = lambda path: path.replace("/last_2", "")  # noqa: E731
    lower = lambda leaf: jnp.concatenate([jnp.zeros_like(leaf[:1]), leaf])  # noqa: E731
    whole = with_values(
        full.insert(base(kind), KEY), {name(path): lower(leaf) for path, leaf in upper.items()}
    )
    logits, gradients = logits_and_gradients(dropped, model, kind, key)
    expected, reference = logits_and_gradients(full, whole, kind, key)
    assert deviation({"": logits}, {"": np.asarray(expected)}) < LOGITS_TOLERANCE
    reference = {k: v[1:] if "/block/" in k else v for k, v in reference.items()}
    own = {name(path): value for path, value in gradients.items()}
    assert deviation(own, reference) < GRADIENT_TOLERANCE


FULL_SIZE = {**encoder.SIZES, **gpt2.SIZES}


@pytest.mark.parametrize("name, method, size, count", [
    ("roberta-large", "adapter_p", (64,), 3_171_840), ("roberta-large", "adapter_p", (16,), 811_392),
    ("roberta-large", "adapter_h", (64,), 6_343_680), ("roberta-large", "adapter_h", (8,), 835_968),
    ("roberta-base", "adapter_p", (48,), 894_528), ("roberta-base", "adapter_d", (48, 4), 298_176),
    ("gpt2-medium", "adapter_l", (6,), 368_784), ("gpt2-medium", "adapter_l", (224,), 11_089_152),
    ("gpt2-medium", "adapter_h", (112,), 11_064_576),
    ("gpt2-large", "adapter_l", (8,), 875_808), ("gpt2-large", "adapter_l", (248,), 23_002_848),
    ("gpt3-175b", "adapter_h", (1,), 7_078_080), ("gpt3-175b", "adapter_h", (8,), 40_109_568),
])  # fmt: skip
def test_counts_of_the_paper(name, method, size, count):
    """From shapes alone; the head and the base are in groups of their own."""
    config = FULL_SIZE[name]
    own = getattr(methods, method)(*size, head=HEAD if name.startswith("roberta") else None)
    model = nnx.eval_shape(lambda: own.insert(build(config, 2), jax.random.key(0)))
    counts = own.summary(model).counts()
    heads = {"roberta-base": {"head": 592_130}, "roberta-large": {"head": 1_051_650}}.get(name, {})
    frozen = {"roberta-base": 124_055_040, "roberta-large": 354_310_144, "gpt2-medium": 354_823_168,
              "gpt2-large": 774_030_080, "gpt3-175b": 174_604_259_328}[name]  # fmt: skip
    total, trainable = frozen + count + sum(heads.values()), count + sum(heads.values())
    assert counts == {
        "adapter": count, **heads, "frozen": frozen, "trainable": trainable, "total": total
    }  # fmt: skip


def first_block(model):
    model = getattr(model, "encoder", model)
    graphdef, state = nnx.split(model.layers.block)
    return nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[0], state))


@every_place
@every_kind
def test_start_is_the_base_model_or_near_it(kind, place):
    zero, one, half = (inserted(kind, place, std=std)[1] for std in (0.0, 0.02, 0.01))
    x, out = jnp.asarray(np.random.default_rng(4).normal(size=(2, 5, WIDTH)), jnp.float32)
    for name in ("attention", "feed_forward"):
        own, plain = (getattr(first_block(m), name) for m in (zero, base(kind)))
        np.testing.assert_array_equal(own.residual(x, out), plain.residual(x, out))
    for key in (None, KEY) if (kind, place) in DIAGONAL else (None,):
        # One more addition, of zero, and other fusions: 4e-7 is reached.
        expected = np.asarray(run(base(kind), kind, key))
        assert deviation({"": run(zero, kind, key)}, {"": expected}) < 3e-6
    at_base = run(base(kind), kind)
    far, near = (float(jnp.abs(run(m, kind) - at_base).max()) for m in (one, half))
    print(f"\nstart {kind} {place}: {far:.1e}, ratio {far / near:.3f}")
    # Both kernels are of size std, so what is added is of size std^2; swish bends a little.
    assert 1e-4 < far < 0.05 and far / near == pytest.approx(4, rel=0.03)


@every_place
def test_initial_values(place):
    size, std, params = 40, 0.05, {}
    for name, key in (("one", KEY), ("again", KEY), ("other", jax.random.fold_in(KEY, 1))):
        model = OF_PLACE[place](size, std=std).insert(base("roberta"), key)
        params[name] = adapter_leaves(model)
    np.testing.assert_equal(params["again"], params["one"])
    draws = []
    for path, leaf in params["one"].items():
        assert leaf.dtype == jnp.float32 and len(leaf) == LAYERS
        if path.endswith("kernel"):
            draws += [*leaf.reshape(LAYERS, -1), *params["other"][path].reshape(LAYERS, -1)]
        else:
            np.testing.assert_array_equal(leaf, np.float32(path.endswith("scale")))
    assert len(draws) == 2 * 2 * LAYERS * (2 if place == "houlsby" else 1)
    # Five standard errors: no two of layers, sublayers, down, up and keys share their draws.
    n = WIDTH * size
    assert np.abs(np.corrcoef(draws) - np.eye(len(draws))).max() < 5 / np.sqrt(n)
    np.testing.assert_allclose(np.std(draws, axis=1), std, rtol=5 / np.sqrt(2 * n))
    if place == "lin":
        adapter = model.encoder.layers.block.feed_forward.adapter
        assert adapter.norm.epsilon == CONFIGS["roberta"].layer_norm_eps


def test_adapter_follows_the_sublayers_dropout():
    """A constant adapter shifts every value alike, so no dropout comes after it."""
    _, model = inserted("gpt2", "houlsby", std=0.0)
    block, plain = first_block(model), first_block(base("gpt2"))
    x = jnp.ones((1, 5, WIDTH))
    context = Context(
        of_segments(jnp.zeros((1, 5), int), causal=False), jnp.zeros((1, 5), jnp.int32)
    )
    for name, args in (("attention", (context, (KEY, KEY))), ("feed_forward", (KEY,))):
        sublayer = getattr(block, name)
        sublayer.adapter.up.bias[...] = jnp.arange(1.0, WIDTH + 1)
        shift = sublayer(x, *args) - getattr(plain, name)(x, *args)
        expected = np.broadcast_to(np.arange(1, WIDTH + 1), x.shape)
        np.testing.assert_allclose(shift, expected, rtol=0, atol=1e-5)


@diagonal
def test_only_adapter_and_head_train(kind, place):
    method, model = inserted(kind, place)
    labels = method.labels(model)
    structure, trainable, frozen = partition.split(model, labels)
    groups = {"adapter"} if kind == "gpt2" else {"adapter", "head"}
    assert {labels[path] for path in trainable} == groups
    before = jax.tree.map(np.array, (trainable, frozen))
    optimizer = adamw({path: labels[path] for path in trainable}, 1e-2, weight_decay=0.1)
    loss = completion_loss() if kind == "gpt2" else classification_loss
    step = make_train_step(structure, loss, optimizer)
    trainable = jax.tree.map(jnp.copy, trainable)  # the step donates them; the base keeps its head
    new, _, _, metrics = step(trainable, optimizer.init(trainable), frozen, batch(kind), KEY)
    assert np.isfinite(metrics["loss"]) and new.keys() == before[0].keys()
    for path, old in before[0].items():
        changed = np.asarray(new[path]) != old
        layers = changed.reshape(LAYERS, -1) if "/block/" in path else changed[None]
        assert all(layer.any() for layer in layers), path
    after = partition.parameters(partition.join(structure, new, frozen))
    for path, old in before[1].items():
        assert np.asarray(after[path]).tobytes() == old.tobytes(), path


@diagonal
def test_bfloat16_base_with_float32_adapters(kind, place):
    method, _ = inserted(kind, place)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), base(kind))
    model = randomised(method.insert(half, KEY))
    for path, leaf in partition.parameters(model).items():
        assert leaf.dtype == (jnp.float32 if "adapter/" in path else jnp.bfloat16), path
    # A scan refuses a carry whose type changes, so the layers' outputs are bfloat16.
    logits = run(model, kind)
    expected = run(randomised(method.insert(base(kind), KEY)), kind)
    reached = deviation({"": logits}, {"": np.asarray(expected)})
    print(f"\ndeviation bfloat16 {kind} {place} {reached:.1e}")
    assert 1e-4 < reached < 0.1


@diagonal
def test_folder_strip_and_summary(kind, place, tmp_path):
    method, model = inserted(kind, place)
    model = randomised(model, lambda path: "/adapter/" in path or path.startswith("head/"))
    labels = method.labels(model)
    _, trained, _ = partition.split(model, labels)
    of_base = adapters.fingerprint(adapters.base_parameters(base(kind), head(kind)))
    lora_jax.save_adapter(tmp_path, trained, labels, method, of_base)
    adapter = lora_jax.load_adapter(tmp_path)
    assert adapter.method == method
    fresh = adapter.method.insert(base(kind), jax.random.fold_in(KEY, 1))
    structure, start, frozen = partition.split(fresh, adapter.method.labels(fresh))
    values = adapters.apply_adapter(adapter, start, of_base)
    again = partition.join(structure, values, frozen)
    np.testing.assert_array_equal(run(again, kind), run(model, kind))

    stripped = lora_jax.strip(model)
    assert nnx.graphdef(stripped) == nnx.graphdef(base(kind))
    heads = {k: v for k, v in trained.items() if k.startswith("head/")}
    expected = run(with_values(base(kind), heads), kind)
    np.testing.assert_array_equal(run(stripped, kind), expected)
    cut = methods.adapter_d(4, 2).insert(base(kind), KEY)
    assert nnx.graphdef(lora_jax.strip(cut)) == nnx.graphdef(base(kind))

    text, each = str(method.summary(model)), LAYERS * (2 * WIDTH * 4 + 4 + WIDTH)
    each += 2 * LAYERS * WIDTH * (place == "lin")
    total = each * (2 if place == "houlsby" else 1)
    for part in (
        "layers/block/feed_forward ",
        f"{place} adapter, size 4,",
        f" {each:,}",
        f" {total:,}",
    ):
        assert part in text, text


QUERY = r".*/query"
JSON_METHODS = [
    methods.adapter_h(8, activation="gelu", std=0.1, targets=".*/attention", head=HEAD),
    methods.adapter_p(3), methods.adapter_l(2, std=0), methods.adapter_d(4, 2, activation="swish"),
    methods.lora(QUERY, rank=2) + methods.adapter_h(1, head=HEAD),
    methods.adapter_h(np.int64(5), std=np.float32(0.5)),
]  # fmt: skip


@pytest.mark.parametrize("method", JSON_METHODS, ids=lambda method: method.name)
def test_json_gives_the_method_back(method):
    assert methods.from_json(json.loads(json.dumps(method.to_json()))) == method
    assert len({str(other.to_json()) for other in JSON_METHODS}) == len(JSON_METHODS)


def test_defaults_are_those_of_the_public_code():
    own = [m(4).insertions[0] for m in OF_PLACE.values()]
    own.append(methods.adapter_d(4, 1).insertions[1])
    assert [i.activation for i in own] == ["swish", "relu", "relu", "relu"]
    assert [i.place for i in own] == [*PLACES, "pfeiffer"] and {i.std for i in own} == {0.02}


@pytest.mark.parametrize("order", [1, -1], ids=["lora-adapter", "adapter-lora"])
def test_lora_beside_an_adapter(order):
    adapter = methods.adapter_h(4, head=HEAD)
    one, two = (methods.lora([QUERY, ".*/(up|down)"], rank=2), adapter)[::order]
    method = one + two
    model = randomised(
        method.insert(base("bert"), KEY), lambda path: "/lora/" in path or "/adapter/" in path
    )
    groups = {}
    for path, group in method.labels(model).items():
        groups.setdefault(group, set()).add(path)
    alone = adapter.insert(base("bert"), KEY)
    assert groups["adapter"] == {p for p, g in adapter.labels(alone).items() if g == "adapter"}
    layer = "encoder/layers/block"
    assert groups["lora"] == {
        f"{layer}/{name}/lora/{factor}" for factor in "ab"
        for name in ("attention/query", "feed_forward/up", "feed_forward/down")
    }  # fmt: skip
    assert [row.path for row in method.summary(model).layers if row.rule == ".*/(up|down)"] == [
        f"{layer}/feed_forward/{name}" for name in ("down", "up")
    ]
    logits, gradients = logits_and_gradients(method, model, "bert")
    assert gradients.keys() == groups["adapter"] | groups["lora"] | groups["head"]
    assert all(np.abs(g).max() > 1e-6 for g in gradients.values())
    merged = lora_jax.merge(model)
    assert nnx.graphdef(merged) == nnx.graphdef(alone)
    reached = deviation({"": run(merged, "bert")}, {"": np.asarray(logits)})
    assert reached < LOGITS_TOLERANCE  # W + A B against x W + x A B
    for whole in (model, merged):
        assert nnx.graphdef(lora_jax.strip(whole)) == nnx.graphdef(base("bert"))


@pytest.mark.parametrize(
    "method", [*(m(4) for m in OF_PLACE.values()), methods.adapter_d(4, 2)], ids=lambda m: m.name
)
def test_cached_decoding_equals_full_passes(method):
    model = randomised(method.insert(base("gpt2"), KEY))
    rng, lengths, steps, rows = np.random.default_rng(3), np.array([3, 6]), 4, np.arange(2)
    texts = rng.integers(0, VOCAB, (2, max(lengths) + steps))
    columns = np.arange(texts.shape[1])
    whole = Inputs(texts, np.ones_like(texts), columns + 0 * texts, 0 * texts)
    everywhere = np.repeat(rows, len(columns)), np.tile(columns, len(rows))
    full = jax.jit(lambda m: m(whole, *everywhere))(model).reshape(*texts.shape, VOCAB)
    prompts = np.where(columns < lengths[:, None], texts, 9)[:, : max(lengths)]
    logits, cache = jax.jit(lambda m: m.prefill(prompts, lengths, 1, steps))(model)
    step, worst = jax.jit(lambda m, tokens, cache: m.decode_step(tokens, cache)), 0.0
    for i in range(steps + 1):
        at = lengths - 1 + i
        own = logits if i == 0 else logits[:, 0]
        worst = max(worst, deviation({"": own}, {"": np.asarray(full[rows, at])}))
        if i < steps:
            logits, cache = step(model, texts[rows, at + 1][:, None], cache)
    print(f"\ndeviation with a cache, {method.name}: {worst:.1e}")
    assert worst < LOGITS_TOLERANCE


@pytest.mark.wrong_types
@every_place
@pytest.mark.parametrize("arguments, message", [
    ({"size": 0}, "size must be a positive integer, got 0"),
    ({"size": True}, "size must be a positive integer, got True"),
    ({"size": 2.5}, "size must be a positive integer, got 2.5"),
    ({"size": 4, "activation": "tanh"}, r"'gelu', 'relu' or 'swish', got 'tanh'"),
    ({"size": 4, "std": -0.1}, "std must be a finite number from 0 on, got -0.1"),
    ({"size": 4, "std": float("nan")}, "std must be a finite number from 0 on, got nan"),
    ({"size": 4, "std": float("inf")}, "std must be a finite number from 0 on, got inf"),
    ({"size": 4, "std": "0.1"}, "std must be a finite number from 0 on, got '0.1'"),
    ({"size": 4, "targets": [".*/attention"]}, "targets must be one regular expression"),
])  # fmt: skip
def test_wrong_arguments_are_errors(place, arguments, message):
    with pytest.raises(ValueError, match=message):
        OF_PLACE[place](**arguments)


@pytest.mark.parametrize("method, error, message", [
    (methods.adapter_h(4, targets="layers/block/atention"), ValueError,
     r"'layers/block/atention' matches no path.*Nearest paths:\n.*\n  layers/block/attention\n"),
    (methods.adapter_p(4, targets=".*/output"), TypeError,
     r"layers/block/attention/output is a flax\S+Linear, .*Subclass lora_jax.models.sublayer.Sublayer"),
    (methods.adapter_h(4) + methods.adapter_l(4), ValueError,
     "layers/block/feed_forward has an adapter already"),
    (methods.adapter_d(4, LAYERS), ValueError, "cannot take the last 3 of 3 layers"),
    # Cuts come first, so a path of the uncut stack is an error in either order.
    (methods.adapter_h(4, targets="layers/block/attention") + methods.adapter_d(4, 1), ValueError,
     r"'layers/block/attention' matches no path.*\n  layers/(first|last_1)/block/attention"),
])  # fmt: skip
def test_insertions_that_do_not_fit_are_errors(method, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        method.insert(base("gpt2"), KEY)
    assert not adapter_leaves(base("gpt2"))


def test_a_sublayer_without_a_scale_is_an_error():
    class Bare(PreNorm):
        def __init__(self, **attributes):
            vars(self).update(attributes)

    unscaled = nnx.LayerNorm(WIDTH, use_scale=False, rngs=nnx.Rngs(0))
    for module in (Bare(), Bare(norm=unscaled)):
        with pytest.raises(TypeError, match="Bare.*give it a `norm` with a scale"):
            methods.adapter_h(2, targets="own").insert(nnx.Dict(own=module), KEY)


@pytest.mark.parametrize("order", [1, -1])
def test_biases_of_the_model_and_of_the_adapter_stay_apart(order):
    one, two = (methods.bitfit(), methods.adapter_h(4))[::order]
    counts = {
        m.name: m.summary(m.insert(base("gpt2"), KEY)).counts() for m in (one, two, one + two)
    }
    both = counts[(one + two).name]
    assert both["bias"] == counts["bitfit"]["bias"]
    assert both["adapter"] == counts["adapter_h"]["adapter"]


def test_two_kinds_at_different_sublayers():
    method = methods.adapter_h(4, targets=".*/attention") + methods.adapter_l(2)
    model = method.insert(base("gpt2"), KEY)
    layers = method.summary(model).layers
    assert [row.path.rpartition("/")[2] for row in layers] == ["attention", "feed_forward"]
    with pytest.raises(ValueError, match="has an adapter already"):
        method.insert(model, KEY)


def test_adapter_in_a_module_of_the_users():
    class Mixer(PreNorm):
        def __init__(self):
            self.norm = nnx.LayerNorm(WIDTH, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.residual(x, jnp.tanh(self.norm(x)))

    model = nnx.Dict(mixers=nnx.List([Mixer(), Mixer()]))
    method = methods.adapter_h(2, targets=r"mixers/\d", activation="relu", std=0.5)
    model, x = method.insert(model, KEY), np.linspace(-1, 1, WIDTH) ** 3
    p = {k: np.asarray(v) for k, v in partition.parameters(model).items()}
    out = np.tanh((x - x.mean()) / np.sqrt(x.var() + 1e-6))
    for i, own in enumerate(model["mixers"]):
        down, up = (p[f"mixers/{i}/adapter/{name}/kernel"] for name in ("down", "up"))
        expected = x + out + np.maximum(out @ down, 0) @ up
        np.testing.assert_allclose(own(jnp.asarray(x, jnp.float32)), expected, atol=2e-6)
    assert lora_jax.strip(model)["mixers"][0].__class__ is Mixer


@every_place
def test_equal_insertions_are_one_program(place):
    method, model = inserted("gpt2", place)
    other = OF_PLACE[place](4).insert(base("gpt2"), jax.random.fold_in(KEY, 1))
    abstract = nnx.eval_shape(lambda: method.insert(build(CONFIGS["gpt2"], 3), KEY))
    for same in (other, abstract):
        assert nnx.graphdef(same) == nnx.graphdef(model)
        assert hash(nnx.graphdef(same)) == hash(nnx.graphdef(model))
    shapes = lambda m: {k: (v.shape, v.dtype) for k, v in partition.parameters(m).items()}  # noqa: E731
    assert shapes(abstract) == shapes(model)
    traces = []
    count = jax.jit(lambda m: traces.append(0))
    for own in (model, other):
        count(own)
    assert len(traces) == 1
