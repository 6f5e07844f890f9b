"""config.json of DeBERTa v2 and v3."""

from __future__ import annotations

from typing import Any

from lora_jax.errors import brief
from lora_jax.models.config_json import FIXED, WITHOUT_EFFECT, Keys
from lora_jax.models.deberta_config import LAYER_NORM, NO_NORM, RANGES, DebertaConfig
from lora_jax.models.ranges import OPTIONAL_RATE
from lora_jax.ranges import Several
from lora_jax.reading import Record

# Read here, as the file has them in other forms or under another name.
_DERIVED = ("pos_att_type", "norm_rel_ebd", "classifier_dropout")
_HEAD_RATE = "cls_dropout"
_WIDTHS = ("pooler_hidden_size", "attention_head_size")  # for which there is one value

KEYS = Keys(
    ranges={name: allowed for name, allowed in RANGES.items() if name not in _DERIVED},
    fixed={**FIXED, "hidden_act": ("gelu",), "is_decoder": (False,), "conv_groups": (1,)},
    # Of heads for language models.
    without_effect=(*WITHOUT_EFFECT, "tie_word_embeddings", "legacy"),
    computed_from=("pos_att_type", "norm_rel_ebd", _HEAD_RATE, *_WIDTHS),
)


def derived(record: Record) -> dict[str, Any]:
    """The fields that are written in other ways in config.json.

    Raises:
      FileError: a value that is not implemented.
    """
    parts = tuple(_words(record, "pos_att_type"))
    norms = _words(record, "norm_rel_ebd")
    rate = record.values.get(_HEAD_RATE)
    for key, value, allowed in (
        ("pos_att_type", parts, RANGES["pos_att_type"]),
        ("norm_rel_ebd", norms, Several(of=RANGES["norm_rel_ebd"], empty="none")),
        (_HEAD_RATE, rate, OPTIONAL_RATE),
    ):
        if not allowed.accepts(value):
            bars = "" if key == _HEAD_RATE else ", or one text with | between several"
            raise record.error(key, brief(record.values[key]), f"{allowed}{bars}")
    _check_widths(record)
    norm = LAYER_NORM if LAYER_NORM in norms else NO_NORM
    return {"pos_att_type": parts, "norm_rel_ebd": norm, "classifier_dropout": rate}


def _words(record: Record, key: str) -> list[str]:
    """A list of texts, or one text with bars between them."""
    value = record.values.get(key)
    if value is None:
        return []
    if isinstance(value, str):
        return [word.strip() for word in value.lower().split("|")]
    return record.strings(key, [])


def _check_widths(record: Record) -> None:
    """Raises FileError for a head or a pooler of another width than the model gives it."""
    hidden, heads = (record.values.get(k) for k in ("hidden_size", "num_attention_heads"))
    if not isinstance(hidden, int) or not isinstance(heads, int) or heads < 1:
        return  # refused by their own ranges
    for key, width in zip(_WIDTHS, (hidden, hidden // heads), strict=True):
        if (found := record.values.get(key, width)) != width:
            raise record.error(key, brief(found), f"{width}; other widths are not implemented")


def published(config: DebertaConfig) -> dict[str, Any]:
    """What config.json says of a saved model without a head."""
    fields = {name: getattr(config, name) for name in KEYS.ranges}
    if config.embedding_size is None:
        del fields["embedding_size"]
    return {
        "model_type": "deberta-v2",
        "architectures": ["DebertaV2Model"],
        **fields,
        "pos_att_type": list(config.pos_att_type),
        "norm_rel_ebd": config.norm_rel_ebd,
        _HEAD_RATE: config.classifier_dropout,
        "pooler_hidden_size": config.hidden_size,
    }
