"""Prefix-embedding and prefix-layer tuning against PyTorch `transformers`, with tokens by hand."""

from __future__ import annotations

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

import lora_jax
from lora_jax import adapters, methods, partition
from lora_jax.data.batch import Batch, Inputs
from lora_jax.decoding.beam import BeamSearch, beam_search
from lora_jax.models import hub
from lora_jax.models.gpt2 import GPT2, SIZES
from lora_jax.training import optimizer, step

torch.set_num_threads(1)

# Largest deviation of a tensor relative to its largest value, ours in float32 from PyTorch in
# float64. Reached on a CPU: outputs 5e-7 (with a cache too), gradients 1.8e-6.
OUTPUT_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 2e-5

VOCAB, LAYERS, WIDTH, POSITIONS = 50, 3, 16, 40
PREFIX, INFIX = 3, 2
SPECIAL = np.arange(VOCAB, VOCAB + PREFIX + INFIX)
OFFSET = {"bert": 0, "roberta": 2, "gpt2": 0}  # index of the first position
HEADS = {"bert": {"output": ""}, "roberta": {"dense": "dense.", "output": "out_proj."}, "gpt2": {}}
QV = {".*/qkv": {"parts": ("q", "v"), "fused": ("q", "k", "v")}}
KEY = jax.random.key(0, impl="unsafe_rbg")  # compiles faster
MAKE = {"embed": methods.prefix_embed, "layer": methods.prefix_layer}
both = pytest.mark.parametrize("name", MAKE)
each = pytest.mark.parametrize("kind", OFFSET)


def method_for(kind, name, **arguments):
    return MAKE[name](PREFIX, INFIX, head=hub.HEAD if HEADS[kind] else None, std=0.5, **arguments)


def torch_model(kind):
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=VOCAB, n_embd=WIDTH, n_layer=LAYERS, n_head=2, n_positions=POSITIONS,
            embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0,
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(config)
    sizes = {
        "vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_labels": 3,
        "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2, "pad_token_id": OFFSET[kind] // 2, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    if kind == "bert":
        return transformers.BertForSequenceClassification(transformers.BertConfig(**sizes))
    config = transformers.RobertaConfig(**sizes, layer_norm_eps=1e-5)
    return transformers.RobertaForSequenceClassification(config)


def head_of(kind, theirs, read):
    """What `read` gives of each parameter of PyTorch's head, by our path."""
    named = dict(theirs.named_parameters())
    return {
        f"head/{ours}/{leaf}": read(named[f"classifier.{module}{own}"]).numpy().T
        for ours, module in HEADS[kind].items()
        for leaf, own in (("kernel", "weight"), ("bias", "bias"))
    }


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """PyTorch's model in float64 and ours, by kind, with equal random weights."""
    made = {}

    def get(kind, dtype=jnp.float32):
        if (kind, dtype) in made:
            return made[kind, dtype]
        theirs, generator = torch_model(kind).eval(), torch.Generator().manual_seed(len(kind))
        for name, p in theirs.named_parameters():
            scale = float(("ln_" in name or "LayerNorm" in name) and "weight" in name)
            p.data.normal_(scale, 0.3, generator=generator)
        folder = tmp_path_factory.mktemp(kind)
        theirs.save_pretrained(folder)
        if kind == "gpt2":
            ours = hub.load_decoder(folder, hub.read_decoder_config(folder), dtype)
        else:
            ours = hub.load_classifier(folder, hub.read_config(folder), 3, KEY, dtype)
        for path, value in head_of(kind, theirs, torch.Tensor.detach).items():
            _, layer, leaf = path.split("/")
            getattr(getattr(ours.head, layer), leaf)[...] = jnp.asarray(value)
        made[kind, dtype] = theirs.double(), ours
        return made[kind, dtype]

    return get


def texts(kind):
    """Token ids of three examples, and where their completions begin (if a decoder's)."""
    rng, result, starts = np.random.default_rng(1), [], []
    for words, completion in ((5, 4), (2, 1), (7, 3)):
        parts = [SPECIAL[:PREFIX], rng.integers(2, VOCAB, words), SPECIAL[PREFIX:]]
        parts += [rng.integers(2, VOCAB, completion)] if kind == "gpt2" else []
        result.append(np.concatenate(parts))
        starts.append(PREFIX + words + INFIX)
    return result, starts


def types_of(ids):
    return (np.arange(len(ids)) >= len(ids) // 2).astype(np.int32)


def batch_of(kind):
    """Two examples packed into one row, one with padding behind it; slots with an unused one."""
    examples, starts = texts(kind)
    inputs, slots = Inputs(*np.zeros((4, 2, 30), np.int32)), []
    inputs.tokens[...], inputs.positions[...] = VOCAB - 1, 30  # padding must not be read
    places = [(0, 0), (0, len(examples[0])), (1, 0)]
    for number, (ids, start, at) in enumerate(zip(examples, starts, places, strict=True)):
        row, column = at
        span = slice(column, column + len(ids))
        inputs.tokens[row, span], inputs.segments[row, span] = ids, number + 1
        inputs.positions[row, span], inputs.types[row, span] = np.arange(len(ids)), types_of(ids)
        if kind == "gpt2":
            slots += [(row, column + i - 1, ids[i]) for i in range(start, len(ids))]
        else:
            slots.append((row, column + PREFIX, number))  # the classification token
    rows, columns, labels = np.array([*slots, slots[0]], np.int32).T
    return Batch(inputs, rows, columns, labels, np.array([1.0] * len(slots) + [0], np.float32))


def torch_hidden(kind, theirs, vectors, ids):
    """The last hidden states of one example, special tokens put in by hand.

    `vectors` of one layer go into `inputs_embeds`; those of all layers overwrite each layer's input
    in a hook, over embeddings that are zero.
    """
    ids = torch.as_tensor(np.asarray(ids)).long()
    own, core, hooks = ids - VOCAB, theirs.base_model, []
    put = lambda x, v: torch.where(own[:, None] >= 0, v[own.clamp(min=0)], x)  # noqa: E731
    x = core.get_input_embeddings()(ids.clamp(max=VOCAB - 1))
    if vectors.ndim == 2:
        x = put(x, vectors)
    else:
        x = torch.where(own[:, None] >= 0, 0.0, x)
        layers = core.h if kind == "gpt2" else core.encoder.layer
        change = lambda _, args, v: (put(args[0], v), *args[1:])  # noqa: E731
        for layer, v in zip(layers, vectors, strict=True):
            hooks.append(layer.register_forward_pre_hook(partial(change, v=v)))
    places, more = OFFSET[kind] + torch.arange(len(ids)), {"use_cache": False}
    if kind != "gpt2":
        more = {"token_type_ids": torch.tensor(types_of(ids))[None]}
    result = core(inputs_embeds=x[None], position_ids=places[None], **more).last_hidden_state[0]
    for hook in hooks:
        hook.remove()
    return result


def torch_outputs(kind, theirs, vectors):
    """Outputs of the slots of `batch_of`, one example at a time."""
    outputs = []
    for ids, start in zip(*texts(kind), strict=True):
        hidden = torch_hidden(kind, theirs, vectors, ids)
        if kind == "gpt2":
            outputs.append(theirs.lm_head(hidden[start - 1 : -1]))
        else:  # their heads read the first token
            first = hidden[None, PREFIX:]
            outputs.append(
                theirs.classifier(theirs.bert.pooler(first) if kind == "bert" else first)
            )
    return torch.cat(outputs)


def loss_of(kind):
    return step.completion_loss(0.1) if kind == "gpt2" else step.classification_loss


def all_gradients(kind, model, batch):
    """Outputs, loss and gradients, with every parameter trainable."""
    structure, params, rest = partition.split(model, methods.full().labels(model))

    def objective(p):
        own = partition.join(structure, p, rest)
        return loss_of(kind)(own, batch, None), own(*batch[:3])

    (loss, outputs), gradients = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    return np.asarray(outputs)[:-1], loss, jax.tree.map(np.asarray, gradients)


_forward = jax.jit(lambda model, *batch: model(*batch))  # compiled once per structure


def forward(model, batch):
    return np.asarray(_forward(model, *batch[:3]))[:-1]


def arrays(model):
    return {path: np.asarray(value) for path, value in partition.parameters(model).items()}


def vectors_of(adapted):
    [value] = [v for path, v in arrays(adapted).items() if path.endswith("special/embedding")]
    return value


def torch_vectors(adapted):
    return torch.tensor(vectors_of(adapted), dtype=torch.float64, requires_grad=True)


def deviation(ours, reference):
    return np.abs(np.asarray(ours) - reference).max() / np.abs(reference).max()


@each
@both
def test_outputs_loss_and_gradients_equal_pytorch(kind, name, pretrained):
    """Also of segments packed into one row; the decoder's loss begins at the last infix token."""
    theirs, base = pretrained(kind)
    method, batch = method_for(kind, name), batch_of(kind)
    adapted = method.insert(base, KEY)
    vectors = torch_vectors(adapted)
    outputs, loss, gradients = all_gradients(kind, adapted, batch)
    if kind == "gpt2":
        read = batch.inputs.tokens[batch.rows, batch.columns]
        assert (read[[0, 4, 5]] == SPECIAL[-1]).all()

    theirs.zero_grad()
    expected, targets = torch_outputs(kind, theirs, vectors), torch.tensor(batch.labels[:-1]).long()
    smoothing, share = 0.0, 1.0
    if kind == "gpt2":  # the public code's denominator
        smoothing, share = 0.1, len(targets) / (len(targets) + 1e-4)
    their_loss = torch.nn.functional.cross_entropy(expected, targets, label_smoothing=smoothing)
    (their_loss * share).backward()
    np.testing.assert_allclose(loss, their_loss.item() * share, rtol=1e-5)
    reference = head_of(kind, theirs, lambda p: p.grad)
    [own] = {p for p, g in method.labels(adapted).items() if g != "frozen"} - set(reference)
    reference[own] = vectors.grad.numpy()
    norms = np.linalg.norm(reference[own], axis=-1)  # of every vector, the last layer's too
    assert norms.shape[-1] == PREFIX + INFIX and norms.min() > 1e-3 * norms.max()
    reached = (
        deviation(outputs, expected.detach().numpy()),
        max(deviation(gradients[path], value) for path, value in reference.items()),
    )
    print(f"\n{kind} {name}: outputs {reached[0]:.1e}, gradients {reached[1]:.1e}")
    assert reached[0] < OUTPUT_TOLERANCE and reached[1] < GRADIENT_TOLERANCE

    # `jnp.take` fills what is out of bounds with NaN; behind a LayerNorm a `where` that hides it
    # leaves it in the gradients.
    assert all(np.isfinite(g).all() for g in gradients.values())
    if kind != "gpt2":  # the row that stands in for special tokens; GPT-2's is an output too
        assert not gradients["encoder/embeddings/word/embedding"][VOCAB - 1].any()


@each
@both
def test_prefix_layer_reads_no_embedding_of_a_special_token(kind, name, pretrained):
    """NaN there would spread to all outputs of its segment, as it does with prefix_embed."""
    adapted, batch = method_for(kind, name).insert(pretrained(kind)[1], KEY), batch_of(kind)
    expected = forward(adapted, batch)
    places = (adapted if kind == "gpt2" else adapted.encoder).embeddings.position.embedding
    places[...] = places[...].at[OFFSET[kind] : OFFSET[kind] + PREFIX].set(jnp.nan)
    if name == "embed":
        expected = np.full_like(expected, np.nan)
    np.testing.assert_array_equal(forward(adapted, batch), expected)


def prompts():
    """Prompts of different lengths, padded behind with tokens that must not be read."""
    examples = [ids[:start].tolist() for ids, start in zip(*texts("gpt2"), strict=True)]
    padded = np.full((len(examples), 14), VOCAB - 1)
    for row, ids in zip(padded, examples, strict=True):
        row[: len(ids)] = ids
    return examples, padded, np.array(list(map(len, examples)))


def next_logits(theirs, vectors, text):
    with torch.no_grad():
        return theirs.lm_head(torch_hidden("gpt2", theirs, vectors, text)[-1]).numpy()


@both
def test_cached_decoding_equals_full_passes(name, pretrained):
    theirs, base = pretrained("gpt2")
    adapted = method_for("gpt2", name).insert(base, KEY)
    reference = partial(next_logits, theirs, torch_vectors(adapted))
    own, padded, lengths = prompts()
    beams, steps, rng, worst = 2, 4, np.random.default_rng(2), 0.0
    advance = jax.jit(lambda m, tokens, cache: m.decode_step(tokens, cache))
    logits, cache = jax.jit(lambda m, *a: m.prefill(*a, beams, steps))(adapted, padded, lengths)
    logits, pasts = np.repeat(logits[:, None], beams, axis=1), [[t] * beams for t in own]
    paths = jnp.broadcast_to(jnp.arange(beams)[:, None], cache.paths.shape)
    for _ in range(steps):
        worst = max(worst, deviation(logits, np.array([[*map(reference, row)] for row in pasts])))
        new = rng.integers(0, VOCAB, (3, beams))
        logits, cache = advance(adapted, new, cache._replace(paths=paths))
        pasts = [[[*t, int(n)] for t, n in zip(*pair, strict=True)] for pair in zip(pasts, new)]
    print(f"\n{name}: with a cache {worst:.1e}")
    assert logits.shape == (3, beams, VOCAB) and worst < OUTPUT_TOLERANCE


def slow_beam_search(logits, prompt, settings):
    """The rules in plain loops; tests/decoding/test_beam.py has all of them."""
    alive, finished = [([], 0.0)], []
    for _ in range(settings.max_tokens):
        candidates = []
        for history, total in alive:
            values = logits(prompt + history)
            values = values - np.logaddexp.reduce(values)
            candidates += [([*history, t], total + v) for t, v in enumerate(values)]
        candidates = sorted(candidates, key=lambda c: -c[1])[: settings.beams]
        alive = [c for c in candidates if c[0][-1] not in settings.end_tokens]
        finished += [c for c in candidates if c[0][-1] in settings.end_tokens]
    return max((t / len(h) ** settings.length_penalty, h) for h, t in finished + alive)


@pytest.mark.parametrize("name, beams", [("embed", 1), ("embed", 3), ("layer", 3)])
def test_beam_search_equals_a_slow_reference(name, beams, pretrained):
    theirs, base = pretrained("gpt2")
    adapted = method_for("gpt2", name).insert(base, KEY)
    reference = partial(next_logits, theirs, torch_vectors(adapted))
    own, padded, lengths = prompts()
    settings = BeamSearch((5, 7), beams=beams, no_repeat_ngram=0, max_tokens=5)
    found = jax.jit(lambda m, *a: beam_search(m, *a, settings))(adapted, padded, lengths)
    for i, text in enumerate(own):
        score, tokens = slow_beam_search(reference, text, settings)
        assert found.tokens[i, : found.lengths[i]].tolist() == tokens and max(tokens) < VOCAB
        np.testing.assert_allclose(found.scores[i], score, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method, count", [
    (methods.prefix_embed(32, 8), 491_520), (methods.prefix_embed(64, 8), 884_736),
    (methods.prefix_embed(128, 8), 1_671_168), (methods.prefix_embed(256, 8), 3_244_032),
    (methods.prefix_embed(512, 8), 6_389_760), (methods.prefix_layer(2, 2), 4_718_592),
    (methods.prefix_layer(8, 8), 18_874_368),
    (methods.lora(QV, rank=8) + methods.prefix_embed(8, 4), 37_896_192),
])  # fmt: skip
def test_counts_of_gpt3(method, count):
    model = nnx.eval_shape(
        lambda: method.insert(GPT2(SIZES["gpt3-175b"], nnx.Rngs(0)), jax.random.key(0))
    )
    counts = method.summary(model).counts()
    assert counts["trainable"] == count and counts["frozen"] == 174_604_259_328


@each
@both
def test_without_special_tokens_nothing_changes(kind, name, pretrained):
    _, base = pretrained(kind)
    batch, adapted = batch_of(kind), method_for(kind, name).insert(base, KEY)
    batch.inputs.tokens[...] %= VOCAB
    np.testing.assert_array_equal(forward(adapted, batch), forward(base, batch))


def test_initial_values(pretrained):
    _, base = pretrained("gpt2")
    table = np.asarray(base.embeddings.token.embedding[...])
    rows = vectors_of(methods.prefix_embed(20, 4).insert(base, KEY))
    chosen = [np.flatnonzero((table == row).all(1)).item() for row in rows]
    assert len(set(chosen)) > 10
    # 3,200 and 4,800 values: a sample's own std is within about 1%, its mean within 0.001.
    normal = methods.prefix_embed(200, init="normal", std=0.05)
    stacked = methods.prefix_layer(100, std=0.05)
    for method in (normal, stacked):
        values, again = (vectors_of(method.insert(base, KEY)) for _ in range(2))
        other = vectors_of(method.insert(base, jax.random.fold_in(KEY, 1)))
        assert abs(values.std() - 0.05) < 0.0025 and abs(values.mean()) < 0.005
        np.testing.assert_array_equal(values, again)
        assert (values != other).mean() > 0.99
    assert values.shape == (LAYERS, 100, WIDTH) and (values[0] != values[1]).mean() > 0.99


# --- Training, combination, files -----------------------------------------------------------------


@pytest.mark.parametrize("kind, name, dtype", [
    ("roberta", "embed", jnp.float32), ("bert", "layer", jnp.bfloat16),
    ("gpt2", "layer", jnp.float32), ("gpt2", "embed", jnp.bfloat16),
])  # fmt: skip
def test_a_step_moves_the_vectors_and_the_head_only(kind, name, dtype, pretrained):
    method, batch = method_for(kind, name), batch_of(kind)
    adapted = method.insert(pretrained(kind, dtype)[1], KEY)
    labels, before = method.labels(adapted), arrays(adapted)
    assert set(labels.values()) == {"prefix", "frozen"} | ({"head"} if HEADS[kind] else set())
    structure, trainable, frozen = partition.split(adapted, labels)
    tx = optimizer.adamw({p: labels[p] for p in trainable}, 1e-2, max_grad_norm=1.0)
    run = step.make_train_step(structure, loss_of(kind), tx)
    given = jax.tree.map(jnp.copy, trainable)  # donated
    new, _, _, metrics = run(given, tx.init(trainable), frozen, batch, KEY)
    assert np.isfinite(metrics["loss"])
    for path, value in arrays(partition.join(structure, new, frozen)).items():
        if labels[path] == "frozen":
            assert value.dtype == dtype and value.tobytes() == before[path].tobytes(), path
        else:
            assert value.dtype == jnp.float32 and (value != before[path]).mean() > 0.9, path
    if dtype == jnp.bfloat16:
        exact = method.insert(pretrained(kind)[1], KEY)
        reached = deviation(forward(adapted, batch), forward(exact, batch))
        print(f"\nbfloat16 {kind} {name}: {reached:.1e}")
        assert reached < 0.05  # 8 bits of mantissa


def moved(model, labels):
    """A copy with random values added to the trainable leaves, and those leaves."""
    structure, trainable, frozen = partition.split(model, labels)
    rng = np.random.default_rng(0)
    new = {
        p: v + jnp.asarray(0.2 * rng.normal(size=v.shape), v.dtype) for p, v in trainable.items()
    }
    return partition.join(structure, new, frozen), new


@pytest.mark.parametrize("lora_first", [True, False])
@pytest.mark.parametrize("kind, name", [("bert", "layer"), ("gpt2", "embed"), ("gpt2", "layer")])
def test_combination_with_lora(kind, name, lora_first, pretrained):
    _, base = pretrained(kind)
    update = methods.lora(QV if kind == "gpt2" else ".*/(query|value)", rank=2)
    own = method_for(kind, name)
    method = update + own if lora_first else own + update
    adapted, batch = method.insert(base, KEY), batch_of(kind)
    counts = method.summary(adapted).counts()
    assert counts["prefix"] == (PREFIX + INFIX) * WIDTH * (LAYERS if name == "layer" else 1)
    assert counts["lora"] == 2 * LAYERS * 2 * WIDTH * 2 and method.special_tokens == (PREFIX, INFIX)
    adapted, _ = moved(adapted, method.labels(adapted))
    merged, expected = lora_jax.merge(adapted), forward(adapted, batch)
    without = own.insert(base, KEY)
    assert nnx.graphdef(merged) == nnx.graphdef(without)
    np.testing.assert_array_equal(vectors_of(merged), vectors_of(adapted))
    # Sums in another order: 6e-7 reached.
    assert deviation(forward(merged, batch), expected) < OUTPUT_TOLERANCE
    for model in (adapted, merged, without):
        assert nnx.graphdef(lora_jax.strip(model)) == nnx.graphdef(base)
    np.testing.assert_equal(arrays(lora_jax.strip(without)), arrays(base))


@both
def test_adapter_folder(name, pretrained, tmp_path):
    _, base = pretrained("bert")
    method, batch = method_for("bert", name), batch_of("bert")
    labels = method.labels(method.insert(base, KEY))
    trained, trainable = moved(method.insert(base, KEY), labels)
    mark = adapters.fingerprint(adapters.base_parameters(base, hub.HEAD))
    adapters.save_adapter(tmp_path, trainable, labels, method, mark)
    loaded = adapters.load_adapter(tmp_path)
    assert loaded.method == method and loaded.method.special_tokens == (PREFIX, INFIX)
    fresh = loaded.method.insert(base, jax.random.fold_in(KEY, 1))
    structure, own, frozen = partition.split(fresh, loaded.method.labels(fresh))
    again = partition.join(structure, adapters.apply_adapter(loaded, own, mark), frozen)
    assert deviation(forward(fresh, batch), forward(trained, batch)) > 0.01
    np.testing.assert_array_equal(forward(again, batch), forward(trained, batch))


@pytest.mark.parametrize("method, special", [
    (methods.prefix_embed(3), (3, 0)),
    (methods.prefix_embed(0, 2, init="normal", std=0.1, head="head/.*"), (0, 2)),
    (methods.prefix_layer(4, 1, std=0.3, tokens=".*/word"), (4, 1)),
    (methods.lora("x") + methods.prefix_layer(1, 5), (1, 5)), (methods.lora("x"), (0, 0)),
])  # fmt: skip
def test_json_and_special(method, special):
    assert methods.from_json(json.loads(json.dumps(method.to_json()))) == method
    assert method.special_tokens == special


# --- Errors ---------------------------------------------------------------------------------------


@pytest.mark.wrong_types
@both
@pytest.mark.parametrize("arguments, message", [
    ((0, 0), "both 0"), ((-1, 2), "prefix .* got -1"), ((2, -1), "infix .* got -1"),
    ((True, 2), "prefix .* got True"), ((2, False), "infix .* got False"), ((2.0,), "got 2.0"),
])  # fmt: skip
def test_wrong_numbers_of_tokens_are_errors(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        MAKE[name](*arguments)


@pytest.mark.wrong_types
def test_an_unknown_init_is_an_error():
    with pytest.raises(ValueError, match="'vocabulary' or 'normal', got 'zeros'"):
        methods.prefix_embed(2, init="zeros")


@pytest.mark.parametrize("tokens, error, message", [
    (".*/wrod", ValueError, r"word embedding.*wrod(.|\n)*encoder/embeddings/word"),
    (".*/(position|word)", ValueError, "several modules.*position.*word"),
    ("pooler", TypeError, "pooler is a .*Linear.*plain nnx.Embed"),
])  # fmt: skip
@both
def test_embeddings_that_do_not_fit_are_errors(name, tokens, error, message, pretrained):
    with pytest.raises(error, match=message):
        MAKE[name](2, tokens=tokens).insert(pretrained("bert")[1], KEY)


@both
def test_methods_that_do_not_go_together_are_errors(name, pretrained):
    _, base = pretrained("bert")
    own, update = MAKE[name](2), methods.lora(".*/word", rank=2)
    with pytest.raises(TypeError, match="embeddings/word is a .*LoRA.*plain nnx.Embed"):
        (update + own).insert(base, KEY)
    with pytest.raises(TypeError, match="embeddings/word is a .*Embed"):
        (own + update).insert(base, KEY)
    for other in MAKE.values():
        with pytest.raises(ValueError, match="two methods have special tokens"):
            _ = (own + other(1, 1)).special_tokens
        with pytest.raises(TypeError, match="another method"):
            (own + other(1, 1)).insert(base, KEY)


def test_prefix_layer_needs_blocks():
    class Bag(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(9, 4, rngs=rngs)

    bag = Bag(nnx.Rngs(0))
    with pytest.raises(TypeError, match="Bag holds no .*Block.*prefix_embed works"):
        methods.prefix_layer(2, tokens="embed").insert(bag, KEY)
    extended = methods.prefix_embed(2, tokens="embed").insert(bag, KEY)
    assert extended.embed(np.array([[8, 9, 10]])).shape == (1, 3, 4)
