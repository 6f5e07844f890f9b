"""What the keys of a config.json mean here: used, fixed to a value, or without effect.

The lists cover every field of the configuration classes of transformers (a test compares them). A key
that is in no list is one that transformers does not know either: it has no effect there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lora_jax.errors import FileError, InputError, MissingFileError, SettingError, brief
from lora_jax.gguf.container import SUFFIX
from lora_jax.models import gguf_config, gpt2
from lora_jax.models.quantization_json import OTHER_PACKING, quantised_bits
from lora_jax.ranges import Range
from lora_jax.reading import Record, read_object

# Ids of special tokens: the check of the tokenizer compares them (`lora_jax.data.tokenizers`).
TOKEN_IDS = (
    "pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "unk_token_id",
    "mask_token_id",
)  # fmt: skip

# About a program that runs the model, about its outputs, about heads, or about where it is from.
WITHOUT_EFFECT = (
    "transformers_version", "architectures", "output_hidden_states", "output_attentions",
    "return_dict", "dtype", "torch_dtype", "chunk_size_feed_forward", "id2label", "label2id",
    "num_labels", "problem_type", "use_cache", "_name_or_path", "tie_last_hidden_states",
    "quantization_config",  # how matrices are stored: `quantised_bits` has looked at it
)  # fmt: skip

# What changes the model wherever it stands, and of which nothing but this is implemented.
FIXED: Mapping[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "position_embedding_type": ("absolute",),
    "pruned_heads": ({}, [], None),
    "per_layer_config": (None, {}),
    "auto_map": (None, {}),
    "compression_config": (None, {}),
}

# Why a value is refused, and what to do; keys that are not here need no more than their value.
_REMEDIES = {
    "compression_config": OTHER_PACKING,
    "auto_map": "The model has code of its own, which is never run here",
    "is_decoder": "An encoder that was trained as a decoder sees only tokens to the left, which is "
    "another model",
    "pruned_heads": "Models with pruned attention heads are not implemented",
    "tie_word_embeddings": "A GPT-2 with its own output embedding is not implemented",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keys:
    """The keys of an architecture's config.json.

    Attributes:
      ranges: of the fields of the configuration here that are taken from the file as they stand.
      fixed: those that change the model, each with the values that are implemented; the first one is
        what it is without the key.
      without_effect: those that change nothing of what is computed here.
      names: of the fields that the file has under another name, that name.
      same_as: other names of the fields, which transformers takes too.
      computed_from: those that other fields of the configuration are computed from.
      defaults: of the fields without a key, where those of the configuration here are others.
    """

    ranges: Mapping[str, Range]
    fixed: Mapping[str, tuple[Any, ...]]
    without_effect: tuple[str, ...] = WITHOUT_EFFECT
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    same_as: Mapping[str, str] = dataclasses.field(default_factory=dict)
    computed_from: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def key(self, field: str) -> str:
        """What the file calls a field."""
        return self.names.get(field, field)

    def known(self) -> set[str]:
        """All of them."""
        return {
            "model_type", *map(self.key, self.ranges), *self.fixed, *self.without_effect, *self.same_as,
            *self.computed_from, *TOKEN_IDS,
        }  # fmt: skip


GPT2 = Keys(
    ranges=gpt2.RANGES,
    fixed={
        **FIXED,
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "tie_word_embeddings": (True,),
    },
    without_effect=(
        *WITHOUT_EFFECT,
        "is_decoder",  # it is one, whatever the file says
        # Of heads for classification and multiple choice.
        "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels",
        "summary_first_dropout", "summary_last_dropout", "classifier_dropout", "hidden_dropout",
        "reorder_and_upcast_attn",  # the type of a product in float16
        "n_ctx",  # of old versions: n_positions once more
    ),
    same_as={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    defaults={"embd_pdrop": 0.1, "attn_pdrop": 0.1, "resid_pdrop": 0.1},
)  # fmt: skip


def read(folder: Path) -> Record:
    """The config.json of a model folder, or what a GGUF file says in its place.

    Raises:
      MissingFileError, FileError, OSError: none, or no JSON object.
    """
    if folder.suffix == SUFFIX:
        return gguf_config.read(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise MissingFileError(f"{path} is missing. {without_config(folder)}")
    return read_object(path)


def without_config(folder: Path) -> str:
    """What a folder without a model's config.json seems to be, and what to do."""
    if (folder / "adapter_config.json").is_file():
        return (
            f"{folder} is an adapter of PEFT, not a model. Merge it into its base and save that: "
            "PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(new); copy "
            "the base's tokenizer files beside it"
        )
    if (folder / "adapter.json").is_file():
        return (
            f"{folder} is an adapter of this project, not a model: name its base as the model, and "
            "the adapter as config.adapter"
        )
    if (folder / "model" / "config.json").is_file():
        return f"The model is in {folder / 'model'}: name that folder"
    held = ", ".join(sorted(p.name for p in folder.iterdir())[:12]) if folder.is_dir() else ""
    return (
        f"A model folder needs config.json, safetensors and tokenizer files, and this one holds "
        f"{held or 'nothing'}"
    )


def check_classifier(folder: Path, ending: str = "ForSequenceClassification") -> None:
    """Raises FileError if config.json does not say that the model classifies whole texts, or pictures.

    The heads of models that classify tokens have the same names and shapes.

    Args:
      folder: of the model.
      ending: of the names of transformers' classes of such models.
    """
    record = read(folder)
    names = record.strings("architectures", [])
    if not any(name.endswith(ending) for name in names):
        raise record.error("architectures", repr(names), f"one that ends in {ending}")


def check_fixed(record: Record, keys: Keys) -> None:
    """Raises FileError if a key that changes the model has a value that is not implemented."""
    quantised_bits(record)
    for key, allowed in keys.fixed.items():
        value = record.values.get(key, allowed[0])
        if not any(type(value) is type(right) and value == right for right in allowed):
            shown = (
                ["no such key"] if allowed[0] is None else [repr(right) for right in allowed[:2]]
            )
            raise FileError(
                record.path, key, f"{key} {value!r}", " or ".join(dict.fromkeys(shown)),
                _REMEDIES.get(key, "Other values are not implemented"),
            )  # fmt: skip


def fields(record: Record, keys: Keys) -> dict[str, Any]:
    """The checked values of the fields that the configuration takes from the file.

    Raises:
      FileError: a value of another type or out of its range, or two names of one field that differ.
    """
    given = {name: keys.key(name) for name in keys.ranges if keys.key(name) in record.values}
    for other, name in keys.same_as.items():
        if other in record.values:
            first = given.setdefault(name, other)
            if (found := record.values[other]) != (value := record.values[first]):
                raise record.error(other, repr(found), f"the value of {first}, {value!r}")
    values = {}
    for name, key in given.items():
        value, allowed = record.values[key], keys.ranges[name]
        if not allowed.accepts(value):
            raise record.error(key, brief(value), str(allowed))
        values[name] = allowed.plain(value)
    return {**keys.defaults, **values}


def configuration(
    record: Record,
    kind: type[Any],
    keys: Keys,
    derived: Callable[[Record], Mapping[str, Any]],
    overrides: Mapping[str, Any],
) -> Any:
    """A model's configuration from its config.json.

    Args:
      record: from `read`.
      kind: dataclass of the configuration.
      keys: of the file.
      derived: fields that are computed from it.
      overrides: fields that replace those of the file.

    Raises:
      FileError: a key that the configuration needs is not there, or a value that is not implemented or out
        of its range.
      InputError: an override that is no field, or out of its range.
    """
    check_fixed(record, keys)
    values = {**fields(record, keys), **derived(record)}
    known = dataclasses.fields(kind)
    for field in known:
        needed = field.default is dataclasses.MISSING and field.name not in values
        if needed and (allowed := keys.ranges.get(field.name)):
            raise record.error(keys.key(field.name), "nothing", str(allowed))
    try:
        config = kind(**values)
    except InputError as error:
        raise SettingError(record.path, "", error) from error
    if unknown := overrides.keys() - {field.name for field in known}:
        raise InputError(
            f"{', '.join(sorted(unknown))}: no such field; a model of type "
            f"{record.values['model_type']} has {', '.join(field.name for field in known)}"
        )
    return dataclasses.replace(config, **overrides)
