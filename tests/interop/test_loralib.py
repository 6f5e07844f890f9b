"""State dicts of loralib: the released one, numeric equality with loralib itself, and errors."""

from __future__ import annotations

import deberta_models
import jax
import loralib
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from configs.glue import roberta_base_lora
from lora_jax import methods, partition
from lora_jax.data.batch import Inputs
from lora_jax.interop.loralib import from_state_dict
from lora_jax.interop.loralib_export import layer_settings, to_state_dict
from lora_jax.low_rank import contraction
from lora_jax.models import hub

torch.set_num_threads(1)
KEY = jax.random.key(0, impl="rbg")
SIZES = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 20, "num_labels": 3,
}  # fmt: skip
ENCODER = {  # every linear layer of a block, with loralib's settings
    "attention.self.query": {"r": 4, "lora_alpha": 8},
    "attention.self.key": {"r": 4, "lora_alpha": 8},
    "attention.self.value": {"r": 4, "lora_alpha": 8},
    "attention.output.dense": {"r": 4, "lora_alpha": 8},
    "intermediate.dense": {"r": 4, "lora_alpha": 8},
    "output.dense": {"r": 4, "lora_alpha": 8},
}
PAPER = {name: ENCODER[name] for name in ("attention.self.query", "attention.self.value")}
DEBERTA = {  # the paper's, and the keys, which project positions as queries do
    f"attention.self.{name}_proj": {"r": 4, "lora_alpha": 8} for name in ("query", "key", "value")
}
DECODER = {
    "attn.c_attn": {"r": 3, "lora_alpha": 12, "enable_lora": [True, False, True]},
    "attn.c_proj": {"r": 2, "lora_alpha": 12},
    "mlp.c_fc": {"r": 4, "lora_alpha": 12},
    "mlp.c_proj": {"r": 1, "lora_alpha": 12},
}
FUSED = {"attn.c_attn": DECODER["attn.c_attn"]}


# --- The released checkpoint (paper.md, section 6.3) ----------------------------------------------

QUERY = "4.81 3.90 3.80 4.44 4.62 4.72 5.11 6.13 6.16 6.92 7.21 6.39"
VALUE = "2.63 2.99 3.47 3.62 3.91 4.18 4.69 4.72 4.21 3.74 2.99 2.72"
SHARES = "0.63 0.44 0.43 0.39 0.32 0.34 0.43 0.69 0.54 0.84 0.94 0.99"


@pytest.fixture(scope="module")
def released(real_data):
    path = (
        real_data / "adapters/microsoft_lora_roberta_base_mnli/roberta_base_lora_mnli.safetensors"
    )
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    return load_file(path)


def test_released_checkpoint(released):
    converted = from_state_dict(released, alpha=16, layers=12)
    counts = {
        group: sum(v.size for p, v in converted.values.items() if converted.groups[p] == group)
        for group in ("lora", "head")
    }
    assert len(released) == 52 and counts == {"lora": 294_912, "head": 592_899}
    roles = contraction.Contraction((0,), (1,), (2,))
    for name, norms in (("query", QUERY), ("value", VALUE)):
        path = f"encoder/layers/block/attention/{name}/lora"
        a, b = converted.values[f"{path}/a"], converted.values[f"{path}/b"]
        assert a.shape == (12, 768, 8) and b.shape == (12, 8, 768)
        delta = np.asarray(contraction.delta(roles, a, b, 1.0))
        assert " ".join(f"{x:.2f}" for x in np.linalg.norm(delta, axis=(1, 2))) == norms
    a, b = (converted.values[f"encoder/layers/block/attention/query/lora/{side}"] for side in "ab")
    small = np.linalg.qr(a)[1] @ np.linalg.qr(np.swapaxes(b, 1, 2))[1].swapaxes(1, 2)
    energy = np.linalg.svd(small, compute_uv=False) ** 2
    assert " ".join(f"{x:.2f}" for x in energy[:, 0] / energy.sum(1)) == SHARES


def test_released_checkpoint_comes_back_bit_for_bit(released):
    back = to_state_dict(from_state_dict(released, alpha=16).values)
    assert back.keys() == released.keys()
    for key, value in released.items():
        assert back[key].dtype == value.dtype and back[key].tobytes() == value.tobytes(), key
        assert back[key].flags.c_contiguous and back[key].shape == value.shape


def test_released_checkpoint_has_the_method_of_the_config(released):
    """Evaluation refuses an adapter of another method than the config's."""
    config = roberta_base_lora.get_config("mnli,script").method.to_dict()
    assert methods.create(head=hub.HEAD, **config) == from_state_dict(released, alpha=16.0).method


# --- Equality with loralib ------------------------------------------------------------------------


def replaced(model, block, settings):
    """Puts loralib's layers over the linear ones of every block, with random A and B."""
    for layer in block(model):
        for name, arguments in settings.items():
            parent, _, child = name.rpartition(".")
            old = layer.get_submodule(name)
            conv = isinstance(old, transformers.pytorch_utils.Conv1D)
            inputs, outputs = old.weight.shape if conv else reversed(old.weight.shape)
            kind = loralib.MergedLinear if "enable_lora" in arguments else loralib.Linear
            new = kind(
                inputs, outputs, fan_in_fan_out=conv, **{"merge_weights": False, **arguments}
            )
            new.weight.data.copy_(old.weight.data)
            new.bias.data.copy_(old.bias.data)
            torch.nn.init.normal_(new.lora_A, std=0.3)
            torch.nn.init.normal_(new.lora_B, std=0.3)
            setattr(layer.get_submodule(parent), child, new)
    return model


def randomise(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(std=0.3)
            if "LayerNorm.weight" in name or (".ln_" in name and name.endswith("weight")):
                p.add_(1)
    return model


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Random base models as folders, by architecture."""
    root = tmp_path_factory.mktemp("bases")
    bert = transformers.BertConfig(**SIZES)
    roberta = transformers.RobertaConfig(**SIZES, pad_token_id=1)
    gpt2 = transformers.GPT2Config(vocab_size=40, n_positions=20, n_embd=16, n_layer=3, n_head=2)
    deberta = transformers.DebertaV2Config(**SIZES, **deberta_models.PUBLISHED_KIND)
    models = {
        "bert": transformers.BertForSequenceClassification(bert),
        "roberta": transformers.RobertaForSequenceClassification(roberta),
        "gpt2": transformers.GPT2LMHeadModel(gpt2),
        "deberta-v2": transformers.DebertaV2ForSequenceClassification(deberta),
    }
    for name, model in models.items():
        randomise(model).save_pretrained(root / name)
    return root


def reference(folder, settings):
    """The model of a folder with loralib's layers, in evaluation mode."""
    kind = {
        "bert": transformers.BertForSequenceClassification,
        "roberta": transformers.RobertaForSequenceClassification,
        "gpt2": transformers.GPT2LMHeadModel,
        "deberta-v2": transformers.DebertaV2ForSequenceClassification,
    }[folder.name]
    blocks = {
        "bert": lambda m: m.bert.encoder.layer,
        "roberta": lambda m: m.roberta.encoder.layer,
        "gpt2": lambda m: m.transformer.h,
        "deberta-v2": lambda m: m.deberta.encoder.layer,
    }[folder.name]
    torch.manual_seed(1)
    return replaced(kind.from_pretrained(folder), blocks, settings).eval()


def state_of(model):
    """What the authors' scripts save: the contraction, and the head of a classifier."""
    state = loralib.lora_state_dict(model)
    heads = ("classifier.", "pooler.")
    state |= {k: v for k, v in model.state_dict().items() if k.startswith(heads)}
    return {key: value.numpy() for key, value in state.items()}


def ours(folder, converted):
    """Our model on the same base with a converted adapter."""
    if folder.name == "gpt2":
        base = hub.load_decoder(folder, hub.read_decoder_config(folder))
    else:
        base = hub.load_classifier(folder, hub.read_config(folder), 3, KEY)
    adapted = converted.method.insert(base, KEY)
    structure, trainable, frozen = partition.split(adapted, converted.method.labels(adapted))
    assert {p: v.shape for p, v in trainable.items()} == {
        p: v.shape for p, v in converted.values.items()
    }
    return partition.join(structure, converted.values, frozen)


TOKENS = np.random.default_rng(0).integers(3, 40, (4, 9))


def logits_of(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


def difference(folder, model, converted):
    """Largest difference of our logits and PyTorch's, relative to the largest logit.

    For equal models 3e-7 to 4e-6 is measured: float32 sums in another order, through 3 layers. The
    limit in the tests is 2e-5. Half of alpha gives 0.4 to 1.2.
    """
    expected = logits_of(model)
    columns = np.broadcast_to(np.arange(TOKENS.shape[1]), TOKENS.shape)
    inputs = Inputs(TOKENS, np.ones_like(TOKENS), columns, np.zeros_like(TOKENS))
    if folder.name == "gpt2":
        at = np.indices(TOKENS.shape).reshape(2, -1)
        expected = expected.reshape(-1, expected.shape[-1])
    else:
        at = np.arange(len(TOKENS)), np.zeros(len(TOKENS), int)
    result = np.asarray(jax.jit(lambda model: model(inputs, *at))(ours(folder, converted)))
    return np.abs(result - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(
    "name, settings, options",
    [
        ("roberta", PAPER, {}),
        ("roberta", {**ENCODER, "output.dense": {"r": 2, "lora_alpha": 8}}, {}),
        ("bert", ENCODER, {}),
        ("deberta-v2", DEBERTA, {}),
        ("gpt2", DECODER, {}),
        ("gpt2", {"attn.c_attn": {"r": 2, "lora_alpha": 12, "enable_lora": [True] * 3}},
         {"parts": ("v", "k", "q")}),
        ("gpt2", {"attn.c_attn": {"r": 2, "lora_alpha": 12, "enable_lora": [False, True, False]}},
         {"parts": ("k",)}),
    ],
    ids=["paper", "ranks", "all", "deberta", "decoder", "q,k,v", "k"],
)  # fmt: skip
def test_logits_equal_those_of_loralib(folders, name, settings, options):
    folder, alpha = folders / name, next(iter(settings.values()))["lora_alpha"]
    model = reference(folder, settings)
    state = state_of(model)
    converted = from_state_dict(state, alpha=alpha, layers=3, **options)
    assert converted.architecture == name and converted.layers == 3
    assert difference(folder, model, converted) < 2e-5
    # And back: equal keys and bits, and loralib takes them.
    back = to_state_dict(converted.values, name)
    assert back.keys() == state.keys()
    assert all(back[key].tobytes() == state[key].tobytes() for key in state)
    empty = reference(folder, settings)
    for key, p in empty.named_parameters():
        if "lora_" in key or key.startswith(("classifier.", "pooler.dense")):
            torch.nn.init.zeros_(p)
    result = empty.load_state_dict({k: torch.tensor(v) for k, v in back.items()}, strict=False)
    assert not result.unexpected_keys and not any("lora_" in k for k in result.missing_keys)
    np.testing.assert_array_equal(logits_of(empty), logits_of(model))
    expected = {k: {"lora_dropout": 0.0, **v} for k, v in settings.items()}
    assert layer_settings(converted.method, converted.values, name) == expected


def test_logits_are_others_with_another_alpha(folders):
    """The check above can fail: alpha 8 for 16 is the mistake of microsoft/LoRA issue #151."""
    model = reference(folders / "roberta", PAPER)
    converted = from_state_dict(state_of(model), alpha=4)
    assert difference(folders / "roberta", model, converted) > 0.05


def test_whole_state_dict_of_a_merged_model(folders):
    """Issue #190: its base weights hold the update; the factors alone are right."""
    settings = {name: {**layer, "merge_weights": True} for name, layer in PAPER.items()}
    model = reference(folders / "roberta", settings).eval()
    query = model.roberta.encoder.layer[0].attention.self.query
    assert query.merged
    whole = {key: value.numpy() for key, value in model.state_dict().items()}
    message = r"keys are neither.*roberta\.embeddings.*merged into them.*ignore_base"
    with pytest.raises(ValueError, match=message):
        from_state_dict(whole, alpha=8)
    converted = from_state_dict(whole, alpha=8, ignore_base=True)
    assert converted.values.keys() == from_state_dict(state_of(model), alpha=8).values.keys()
    assert difference(folders / "roberta", model, converted) < 2e-5


def test_trained_biases_are_not_lost_silently(folders):
    state = {"roberta.encoder.layer.0.attention.self.query.bias": np.zeros(16, np.float32)}
    state |= state_of(reference(folders / "roberta", PAPER))
    with pytest.raises(ValueError, match="1 keys are neither.*query.bias.*biases too"):
        from_state_dict(state, alpha=8)


@pytest.mark.parametrize("prefix", ["module.", "module.transformer.", "transformer."])
def test_prefixes_of_the_authors_gpt2_files(folders, prefix):
    state = state_of(reference(folders / "gpt2", FUSED))
    expected = from_state_dict(state, alpha=32)
    if prefix == "transformer.":
        renamed = {key.removeprefix(prefix): value for key, value in state.items()}
    else:
        renamed = {prefix + k.removeprefix("transformer."): v for k, v in state.items()}
        renamed = {k.replace("module.h.", "module.transformer.h."): v for k, v in renamed.items()}
    converted = from_state_dict(renamed, alpha=32)
    assert converted.method == expected.method and converted.values.keys() == expected.values.keys()
    assert all(np.array_equal(converted.values[p], v) for p, v in expected.values.items())


def test_written_prefix_is_the_one_the_authors_gpt2_code_strips(folders):
    model = reference(folders / "gpt2", FUSED)
    converted = from_state_dict(state_of(model), alpha=32)
    keys = to_state_dict(converted.values, prefix="module.").keys()
    stripped = {key.removeprefix("module.transformer.") for key in keys}
    assert stripped == {n for n, _ in model.transformer.named_parameters() if "lora_" in n}


def test_file_like_the_released_gpt2_ones_comes_back_bit_for_bit():
    """As the authors' GPT-2 files: r = 4 for q and v, keys with the prefix of DDP."""
    random, rank, width = np.random.default_rng(0), 4, 6
    shapes = {"A": (2 * rank, width), "B": (2 * width, rank)}
    state = {
        f"module.transformer.h.{layer}.attn.c_attn.lora_{side}": random.normal(size=shape).astype(
            "f"
        )
        for layer in range(3)
        for side, shape in shapes.items()
    }
    converted = from_state_dict(state, alpha=32, layers=3)
    path = "layers/block/attention/qkv/lora"
    for part, index in (("q", 0), ("v", 1)):
        a, b = converted.values[f"{path}/{part}/a"], converted.values[f"{path}/{part}/b"]
        assert a.shape == (3, width, rank) and b.shape == (3, rank, 1, width)
        for layer in range(3):
            stem = f"module.transformer.h.{layer}.attn.c_attn.lora_"
            rows = np.split(state[f"{stem}A"], 2)[index], np.split(state[f"{stem}B"], 2)[index]
            np.testing.assert_array_equal(a[layer], rows[0].T)
            np.testing.assert_array_equal(b[layer, :, 0], rows[1].T)
    back = to_state_dict(converted.values, prefix="module.")
    assert back.keys() == state.keys()
    for key, value in state.items():
        assert back[key].dtype == value.dtype and back[key].shape == value.shape, key
        assert back[key].flags.c_contiguous and back[key].tobytes() == value.tobytes(), key


def test_state_dict_without_head(folders):
    state = state_of(reference(folders / "roberta", PAPER))
    factors_only = {key: value for key, value in state.items() if "lora_" in key}
    converted = from_state_dict(factors_only, alpha=8)
    assert (
        set(converted.groups.values()) == {"lora"}
        and dict(converted.method.spec)["lora"]["head"] is None
    )
    with pytest.raises(ValueError, match="no head.*give the architecture.*bert.*gpt2.*roberta"):
        to_state_dict(converted.values)
    with pytest.raises(ValueError, match="must be one of.*'deberta'"):
        to_state_dict(converted.values, "deberta")
    assert to_state_dict(converted.values, "roberta").keys() == factors_only.keys()
    assert all(key.startswith("bert.") for key in to_state_dict(converted.values, "bert"))


def test_bfloat16_becomes_float32(folders):
    state = state_of(reference(folders / "roberta", PAPER))
    half = {k: np.asarray(jax.numpy.asarray(v, jax.numpy.bfloat16)) for k, v in state.items()}
    converted = from_state_dict(half, alpha=8)
    assert {v.dtype for v in converted.values.values()} == {np.dtype(np.float32)}


def test_rslora_gets_the_alpha_of_its_scale(folders):
    converted = from_state_dict(state_of(reference(folders / "roberta", PAPER)), alpha=8)
    method = methods.lora(r".*/(query|value)", rank=4, alpha=8, scaling="alpha/sqrt(r)")
    assert layer_settings(method, converted.values)["attention.self.query"]["lora_alpha"] == 16


# --- What is refused ------------------------------------------------------------------------------

STEM = "roberta.encoder.layer.{}.attention.self.{}.lora_{}"


@pytest.fixture
def state():
    random = np.random.default_rng(0)
    result = {}
    for layer in range(2):
        for name in ("query", "value"):
            result[STEM.format(layer, name, "A")] = random.normal(size=(2, 6))
            result[STEM.format(layer, name, "B")] = random.normal(size=(6, 2))
    shapes = {"dense.weight": (6, 6), "dense.bias": (6,), "out_proj.weight": (3, 6)}
    for name, shape in {**shapes, "out_proj.bias": (3,)}.items():
        result[f"classifier.{name}"] = random.normal(size=shape)
    return result


A0, B1 = STEM.format(0, "query", "A"), STEM.format(1, "value", "B")
PEFT = "base_model.model.roberta.encoder.layer.0.attention.self.query.lora_A.weight"


@pytest.mark.parametrize(
    "change, message",
    [
        ({B1: None}, r"1 factors are missing: .*layer\.1\.attention\.self\.value\.lora_B\."),
        ({A0: None, A0.replace("A", "B"): None}, r"2 factors are missing"),
        ({B1: np.zeros((6, 3))}, r"layer\.1.*lora_B has shape \(6, 3\), that of layer 0 has \(6, 2\)"),
        ({A0: np.zeros((3, 6))}, r"layer\.1\.attention\.self\.query\.lora_A has shape \(2, 6\)"),
        ({A0: np.zeros((2, 6, 1))}, r"query\.lora_A has shape \(2, 6, 1\), expected 2 axes"),
        ({A0: np.zeros((2, 6), int)}, r"query\.lora_A has type int64"),
        ({A0: np.full((2, 6), np.nan)}, r"query\.lora_A holds numbers that are not finite"),
        ({A0.replace("query", "query_proj"): np.zeros((2, 6))}, r"can be converted.*query_proj"),
        ({"roberta.embeddings.word_embeddings.lora_A": np.zeros((2, 9))}, "word_emb.*embeddings c"),
        ({"classifier.dense.bias": None}, r"head of roberta lacks classifier\.dense\.bias"),
        ({"classifier.out_proj.bias": np.zeros(4)}, r"\.out_proj\.bias has shape \(4,\).* 3 rows"),
        ({"classifier.weight": np.zeros((3, 6))}, r"1 keys are neither.*classifier\.weight"),
        ({f"module.{A0}": np.zeros((2, 6))}, "twice, with and without"),
    ],
)  # fmt: skip
def test_bad_state_dicts(state, change, message):
    state |= change
    with pytest.raises(ValueError, match=message):
        from_state_dict({k: v for k, v in state.items() if v is not None}, alpha=16)


def test_factors_of_two_ranks(state):
    state |= {STEM.format(layer, "query", "A"): np.zeros((3, 6)) for layer in range(2)}
    with pytest.raises(ValueError, match=r"self\.query: lora_A is \(3, 6\) and lora_B \(6, 2\)"):
        from_state_dict(state, alpha=16)


@pytest.mark.parametrize(
    "keys, message",
    [
        (["roberta.encoder.layer.0.attention.self.query.weight"], "not a loralib state dict"),
        ([], "not a loralib state dict"),
        ([PEFT], r"roberta\.encoder\.layer\.N.*PEFT's, whose format is not loralib's"),
        (["distilbert.transformer.layer.0.attention.q_lin.lora_A"], "no supported layer"),
    ],
)
def test_other_files(keys, message):
    with pytest.raises(ValueError, match=message):
        from_state_dict(dict.fromkeys(keys, np.zeros((2, 6))), alpha=16)


@pytest.mark.parametrize(
    "layers, message",
    [(1, r"factors for roberta\.encoder\.layer\.1, but the model has 1 layers"),
     (3, r"4 factors are missing: roberta\.encoder\.layer\.2\.")],
)  # fmt: skip
def test_another_number_of_layers(state, layers, message):
    with pytest.raises(ValueError, match=message):
        from_state_dict(state, alpha=16, layers=layers)


@pytest.mark.parametrize(
    "alpha, message", [(None, "alpha is needed.*16 .*66.55.*GPT-2 files have 32"), (0, "positive")]
)
def test_alpha_is_needed(state, alpha, message):
    with pytest.raises(ValueError, match=message):
        from_state_dict(state, alpha=alpha)


@pytest.mark.parametrize(
    "parts, message",
    [(("q",), r"with the parts q has \(1\*r, 16\) and \(16, r\).*by lora_B they are 2"),
     (("q", "k", "v"), r"lora_A is \(6, 16\) and lora_B \(32, 3\).*\(3\*r, 16\)"),
     (("q", "o"), "parts must be some of q, k, v, got"),
     (("q", "q"), "parts must be"), ((), "parts must be")],
)  # fmt: skip
def test_wrong_parts(folders, parts, message):
    state = state_of(reference(folders / "gpt2", FUSED))
    with pytest.raises(ValueError, match=message):
        from_state_dict(state, alpha=32, parts=parts)


def test_leaves_without_a_place(state):
    values = from_state_dict(state, alpha=16).values
    with pytest.raises(ValueError, match="1 leaves have no place.*encoder/embeddings/word/lora/a"):
        to_state_dict({**values, "encoder/embeddings/word/lora/a": np.zeros((9, 2))})
    block = "layers/block/attention/qkv/lora"
    uneven = {f"{block}/{p}/{s}": np.zeros((2, 6, r) if s == "a" else (2, r, 1, 6))
              for p, r in (("q", 2), ("v", 3)) for s in "ab"}  # fmt: skip
    with pytest.raises(ValueError, match="one rank and width for all parts"):
        to_state_dict(uneven)
    flat = {f"{block}/q/a": np.zeros((2, 6, 2)), f"{block}/q/b": np.zeros((2, 2, 6))}
    with pytest.raises(ValueError, match=r"qkv/lora/q/b has shape \(2, 2, 6\), expected \(layers"):
        to_state_dict(flat)
    with pytest.raises(ValueError, match="no place"):  # loralib splits c_attn, this one is whole
        to_state_dict({f"{block}/{side}": np.zeros((2, 6, 2)) for side in "ab"})


@pytest.mark.parametrize(
    "architecture, leaf",
    [("roberta", "encoder/layers/block/attention/query/lora/magnitude"),
     ("gpt2", "layers/block/attention/qkv/lora/q/magnitude")],
)  # fmt: skip
def test_magnitudes_of_dora_have_no_place(state, architecture, leaf):
    """loralib would load the factors alone, as another model."""
    values = dict(from_state_dict(state, alpha=16).values)
    if architecture == "gpt2":
        shapes = {"a": (2, 6, 2), "b": (2, 2, 1, 6)}
        values = {leaf.replace("magnitude", side): np.zeros(s) for side, s in shapes.items()}
    to_state_dict(values)
    message = (
        f"1 leaves have no place in a loralib file, for example {leaf}: .*DoRA.*lora_jax.merge"
    )
    with pytest.raises(ValueError, match=message):
        to_state_dict({**values, leaf: np.ones((2, 6), np.float32)})
    with pytest.raises(ValueError, match=message):  # it is the reason that is named first
        to_state_dict({**values, leaf: np.ones((2, 6)), "a/bias": np.ones(6)}, architecture)
