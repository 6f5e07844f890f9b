"""config.json of BERT, RoBERTa, and the encoders that are one of them in other names."""

from __future__ import annotations

from typing import Any

from lora_jax.models import encoder_config, ranges
from lora_jax.models.config_json import FIXED, WITHOUT_EFFECT, Keys
from lora_jax.models.encoder_config import DistilBertConfig, ElectraConfig, EncoderConfig
from lora_jax.reading import Record

_FIXED = {**FIXED, "hidden_act": ("gelu",), "is_decoder": (False,)}
# An output embedding is of a language model's head, which is not used.
_WITHOUT_EFFECT = (*WITHOUT_EFFECT, "tie_word_embeddings")

ENCODER = Keys(
    ranges=encoder_config.RANGES, fixed=_FIXED, without_effect=_WITHOUT_EFFECT
)  # fmt: skip
ELECTRA = Keys(
    ranges=ElectraConfig.allowed,
    fixed=_FIXED,
    without_effect=(
        *_WITHOUT_EFFECT,
        # Of a head for multiple choice.
        "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels",
        "summary_first_dropout", "summary_last_dropout",
    ),
)  # fmt: skip
# Our names of what a DistilBERT's file has in others; transformers takes some of ours there, too.
_DISTILBERT_NAMES = {
    "hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim", "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout", "classifier_dropout": "seq_classif_dropout",
}  # fmt: skip
DISTILBERT = Keys(
    ranges={
        **{
            name: allowed
            for name, allowed in encoder_config.RANGES.items()
            if name not in ("type_vocab_size", "layer_norm_eps")  # which no file can change
        },
        "classifier_dropout": ranges.RATE,
    },
    names=_DISTILBERT_NAMES,
    same_as={
        name: name for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")
    },
    fixed={**FIXED, "activation": ("gelu",)},
    without_effect=(
        *_WITHOUT_EFFECT,
        "sinusoidal_pos_embds",  # of a new model: a file has the table, whatever it began as
        "qa_dropout",  # of another head
    ),
)  # fmt: skip

# By model_type, the class of transformers. Multilingual and French RoBERTas have names of their own.
ROBERTAS = {
    "roberta": "RobertaModel", "xlm-roberta": "XLMRobertaModel", "camembert": "CamembertModel",
}  # fmt: skip
_CLASSES = {
    **ROBERTAS, "bert": "BertModel", "electra": "ElectraModel", "distilbert": "DistilBertModel",
}  # fmt: skip


def roberta_fields(name: str, record: Record) -> dict[str, Any]:
    """RoBERTa's first position comes after its padding index."""
    padding = record.integer("pad_token_id", 0) if "pad_token_id" in record.values else 1
    return {"architecture": name, "position_offset": padding + 1}


def published(config: EncoderConfig) -> dict[str, Any]:
    """What config.json says of a saved model without a head."""
    name = config.architecture
    keys = {DistilBertConfig: DISTILBERT, ElectraConfig: ELECTRA}.get(type(config), ENCODER)
    fields = {keys.names.get(field, field): getattr(config, field) for field in keys.ranges}
    if name in ROBERTAS:  # which says where positions begin
        fields["pad_token_id"] = config.position_offset - 1
    return {"model_type": name, "architectures": [_CLASSES[name]], **fields}
