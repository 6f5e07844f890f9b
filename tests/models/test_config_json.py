"""config.json: every key is used, fixed, or without effect; every value has a type and a range."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import resource

import jax
import pytest
import tiny_folders
import transformers

from lora_jax.errors import FileError, InputError, MissingFileError
from lora_jax.models import architectures, config_json, deberta_json, encoder_json, hub, llama_json

CLASSES = {
    "bert": (transformers.BertConfig, encoder_json.ENCODER),
    "roberta": (transformers.RobertaConfig, encoder_json.ENCODER),
    "deberta-v2": (transformers.DebertaV2Config, deberta_json.KEYS),
    "gpt2": (transformers.GPT2Config, config_json.GPT2),
}


# Of DeBERTa, what transformers' code takes where its configuration has no such field.
OF_CODE = {
    "embedding_size": None, "position_buckets": -1, "share_att_key": False, "conv_kernel_size": 0,
    "conv_act": "tanh",
}  # fmt: skip
FAMILIES = {
    "llama": transformers.LlamaConfig, "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config, "qwen3": transformers.Qwen3Config,
    "gemma2": transformers.Gemma2Config, "gemma3_text": transformers.Gemma3TextConfig,
}  # fmt: skip
OTHER_ENCODERS = {
    "electra": (transformers.ElectraConfig, encoder_json.ELECTRA),
    "distilbert": (transformers.DistilBertConfig, encoder_json.DISTILBERT),
}
ALL = (
    CLASSES
    | OTHER_ENCODERS
    | {name: (kind, llama_json.keys(name)) for name, kind in FAMILIES.items()}
)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny_folders.write_all(tmp_path_factory.mktemp("folders"))


@pytest.fixture
def written(folders, tmp_path):
    """Writes a folder whose config.json has other values; None takes a key away."""

    def write(kind, **changes):
        values = {**json.loads((folders / kind / "config.json").read_text()), **changes}
        for path in (folders / kind).iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        kept = {key: value for key, value in values.items() if value is not None}
        (tmp_path / "config.json").write_text(json.dumps(kept))
        return tmp_path

    return write


def read_by(kind):
    """The names of the attributes that transformers' model code reads of its configuration."""
    kind = kind.removesuffix("_text").replace("-", "_")
    spec = importlib.util.find_spec(f"transformers.models.{kind}.modeling_{kind}")
    with open(spec.origin) as file:
        tree = ast.parse(file.read())
    ours = lambda node: ast.unparse(node) in ("config", "self.config")  # noqa: E731
    names = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ours(n.value)}
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and n.args]
    return names | {
        n.args[1].value for n in calls if ast.unparse(n.func) == "getattr" and ours(n.args[0])
    }


@pytest.mark.parametrize("kind", ALL)
def test_every_field_of_transformers_is_in_one_list(kind):
    """A field that a new version of transformers brings fails here: decide what it means."""
    theirs, keys = ALL[kind]
    fields = {field.name for field in dataclasses.fields(theirs)} | theirs().to_dict().keys()
    methods = {"to_dict", "get_text_config", "_attn_implementation"}
    # Gemma 3's file has the model of images beside that of texts.
    images = {
        "text_config",
        "vision_config",
        "mm_tokens_per_image",
        "image_token_index",
        "image_token_id",
    }
    found = (fields | read_by(kind)) - methods - {"per_layer_config"}
    assert found - (images if kind == "gemma3_text" else set()) <= keys.known()
    groups = [
        {*map(keys.key, keys.ranges)}, {*keys.fixed}, {*keys.without_effect}, {*keys.same_as},
        {*keys.computed_from},
    ]  # fmt: skip
    assert len(set().union(*groups)) == sum(map(len, groups))  # one list each


@pytest.mark.parametrize("kind", CLASSES)
def test_sizes_are_read_as_they_stand(folders, kind):
    config = architectures.read_config(folders / kind)
    values = json.loads((folders / kind / "config.json").read_text())
    for key in CLASSES[kind][1].ranges:
        assert getattr(config, key) == values.get(key), key


@pytest.mark.parametrize("kind", CLASSES)
def test_without_a_key_a_field_is_what_transformers_makes_it(written, kind):
    theirs, keys = CLASSES[kind][0](), CLASSES[kind][1]
    fields = {f.name: f for f in dataclasses.fields(architectures.ARCHITECTURES[kind].config)}
    for key in keys.ranges:
        folder = written(kind, **{key: None})
        if fields[key].default is dataclasses.MISSING:
            with pytest.raises(FileError, match=f"{key}: found nothing"):
                architectures.read_config(folder)
        else:
            made = getattr(theirs, key, OF_CODE.get(key, "none"))
            assert getattr(architectures.read_config(folder), key) == made, key


@pytest.mark.parametrize(
    "kind, changes, message",
    [
        ("bert", {"is_decoder": True}, "is_decoder: .*True, expected False.*tokens to the left"),
        ("bert", {"is_decoder": 0}, "is_decoder"),
        ("roberta", {"add_cross_attention": True}, "add_cross_attention"),
        ("bert", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ("bert", {"quantization_config": {"bits": 4}}, "quantization_config.*Quantised bases"),
        ("gpt2", {"auto_map": {"AutoModel": "x.Y"}}, "auto_map.*never run"),
        ("gpt2", {"is_encoder_decoder": True}, "is_encoder_decoder"),
        ("gpt2", {"scale_attn_weights": 1}, "scale_attn_weights"),
        ("roberta", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("roberta", {"hidden_act": ["gelu"]}, "hidden_act"),
        ("bert", {"per_layer_config": {"0": {"hidden_size": 4}}}, "per_layer_config"),
        ("bert", {"num_attention_heads": 0}, "num_attention_heads: found 0, expected an integer from 1"),
        ("bert", {"num_attention_heads": 3}, "hidden_size 8 is not divisible"),
        ("bert", {"hidden_size": True}, "hidden_size: found True"),
        ("bert", {"hidden_size": 8.0}, r"hidden_size: found 8\.0"),
        ("bert", {"vocab_size": "20"}, "vocab_size: found '20'"),
        ("bert", {"layer_norm_eps": 0}, r"layer_norm_eps: found 0, expected a number in \[1.17549e-38, 1\]"),
        ("bert", {"layer_norm_eps": 1e-60}, "layer_norm_eps"),
        ("bert", {"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob: found 1\.0"),
        ("bert", {"hidden_dropout_prob": 10**400}, "hidden_dropout_prob"),
        ("bert", {"classifier_dropout": -0.1}, "classifier_dropout"),
        ("bert", {"initializer_range": float("nan")}, "initializer_range: found None"),
        ("roberta", {"pad_token_id": 19}, "max_position_embeddings 20 leaves no position"),
        ("roberta", {"pad_token_id": -1}, "pad_token_id: found -1"),
        ("deberta-v2", {"conv_groups": 2}, "conv_groups: found conv_groups 2, expected 1"),
        ("deberta-v2", {"hidden_act": "gelu_new"}, "hidden_act"),
        ("deberta-v2", {"conv_act": "swish"}, "conv_act: found 'swish', expected 'gelu', 'tanh' or 'relu'"),
        ("deberta-v2", {"conv_kernel_size": 2}, "conv_kernel_size must be odd"),
        ("deberta-v2", {"pos_att_type": "p2c|p2p"}, "pos_att_type: found 'p2c|p2p', expected a tuple"),
        ("deberta-v2", {"pos_att_type": [1]}, "pos_att_type"),
        ("deberta-v2", {"norm_rel_ebd": "batch_norm"}, "norm_rel_ebd: found 'batch_norm'"),
        ("deberta-v2", {"attention_head_size": 8}, "attention_head_size: found 8, expected 4; other"),
        ("deberta-v2", {"pooler_hidden_size": 4}, "pooler_hidden_size: found 4, expected 8"),
        ("deberta-v2", {"pooler_hidden_act": "mish"}, "pooler_hidden_act"),
        ("deberta-v2", {"cls_dropout": 1}, "cls_dropout: found 1"),
        ("deberta-v2", {"relative_attention": 1}, "relative_attention: found 1, expected True or False"),
        ("deberta-v2", {"position_buckets": 100}, "position_buckets 100 must be from 2 on"),
        ("gpt2", {"n_layer": 10**7}, r"n_layer: found 10000000, expected an integer from 1 to 1,024"),
        ("gpt2", {"hidden_size": 16}, "hidden_size: found 16, expected the value of n_embd, 8"),
        ("gpt2", {"n_inner": 0}, "n_inner"),
        ("bert", {"hidden_size": None}, "hidden_size: found nothing"),
        ("bert", {"model_type": ["bert"]}, "model_type"),
    ],
)  # fmt: skip
def test_other_values_are_refused_by_name(written, kind, changes, message):
    folder = written(kind, **changes)
    with pytest.raises(FileError, match=message) as error:
        architectures.read_config(folder)
    assert str(folder / "config.json") in str(error.value)


def test_other_names_of_gpt2_are_taken(written):
    folder = written("gpt2", n_embd=None, hidden_size=8, n_head=None, num_attention_heads=2)
    config = hub.read_decoder_config(folder)
    assert (config.n_embd, config.n_head) == (8, 2)


@pytest.mark.parametrize(
    "kind, changes",
    [
        ("bert", {"hidden_size": 2**16, "num_hidden_layers": 1024, "intermediate_size": 2**19}),
        ("bert", {"vocab_size": 2**24, "max_position_embeddings": 2**24}),
        ("gpt2", {"n_layer": 1024, "n_embd": 2**16, "n_positions": 2**24}),
        ("gpt2", {"n_embd": 10**9}),
    ],
)
def test_large_sizes_end_before_anything_is_allocated(written, kind, changes):
    """All of them would take terabytes, a head alone of the first one 17 GB."""
    folder = written(kind, **changes)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, limits[1]))
    try:
        with pytest.raises(InputError, match=r"expected an integer|do not fit its config\.json"):
            hub.load(folder, architectures.read_config(folder), 2, KEY)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_rate_of_the_head_is_that_of_transformers(written):
    assert hub.read_config(written("bert")).head_dropout == 0.1
    assert hub.read_config(written("bert", classifier_dropout=0.3)).head_dropout == 0.3
    assert hub.read_config(written("bert", classifier_dropout=0)).head_dropout == 0.0


def test_overrides_are_checked_and_named(folders):
    with pytest.raises(InputError, match=r"hidden_dropout: no such field.*hidden_dropout_prob"):
        hub.read_config(folders / "bert", hidden_dropout=0.0)
    with pytest.raises(
        InputError, match=r"^hidden_dropout_prob must be a number in \[0, 0.999985\]"
    ):
        hub.read_config(folders / "bert", hidden_dropout_prob=2.0)


@pytest.mark.parametrize(
    "content, message",
    [("[]", "expected a JSON object"), ("", "invalid JSON"), ('{"a": ' * 10**5, "nested too deep"),
     ('{"hidden_size": ' + "9" * 10_000 + "}", "too long"), ("\udcff", "not UTF-8")],
)  # fmt: skip
def test_broken_files(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(FileError, match=message) as error:
        architectures.read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


@pytest.mark.parametrize(
    "name, message",
    [("adapter_config.json", r"adapter of PEFT.*merge_and_unload"), ("adapter.json", "its base"),
     ("model/config.json", "The model is in .*model: name that folder"), ("x.txt", r"holds .*x\.txt")],
)  # fmt: skip
def test_folders_of_something_else_say_what_to_do(tmp_path, name, message):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    with pytest.raises(MissingFileError, match=message):
        architectures.read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"seeds": [0]}')  # the folder of a run
    with pytest.raises(FileError, match=message):
        architectures.read_config(tmp_path)
