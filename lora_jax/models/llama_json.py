"""The families of the Llama kind: what their config.json says, and what they have that it does not say.

The defaults are those of the configuration classes of transformers (a test compares them).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from lora_jax.models.config_json import FIXED, WITHOUT_EFFECT, Keys
from lora_jax.models.llama_config import RANGES, LayerKind, LlamaConfig
from lora_jax.models.rotary_json import read_rotary, written_rotary
from lora_jax.ranges import Whole
from lora_jax.reading import Record

FULL, SLIDING = "full_attention", "sliding_attention"
_WINDOW = Whole(most=2**24)
# About training, or other ways to compute the same.
_WITHOUT_EFFECT = (*WITHOUT_EFFECT, "pretraining_tp", "is_decoder", "cache_implementation")
_ROTARY = ("rope_parameters", "rope_scaling", "rope_theta", "rope_local_base_freq")
_WINDOWS = (
    "layer_types", "sliding_window", "use_sliding_window", "max_window_layers",
    "sliding_window_pattern", "_sliding_window_pattern",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """What the models of a family have in common.

    Attributes:
      defaults: of the keys of config.json that our fields are named by, where they differ from ours.
      always: fields that no key says.
      only: keys that the family has of those that not all have.
      windows: tokens that its sliding layers see, without a key.
      pattern: which layers slide where `layer_types` does not say: "none", "all", "after" (those from
        max_window_layers on), or every layer but each n-th one.
      pattern_key: of config.json, which gives another n; "" if there is none.
      theta: of rotary positions, of layers that see all tokens and of sliding ones.
      gelu: whether its gate is GELU.
    """

    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    always: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    only: tuple[str, ...] = ()
    windows: int | None = None
    pattern: str | int = "none"
    pattern_key: str = ""
    theta: tuple[float, float] = (10_000.0, 10_000.0)
    gelu: bool = False


_GEMMA: Mapping[str, Any] = {
    "post_norms": True, "norm_offset": 1.0, "scaled_embeddings": True, "activation": "gelu_pytorch_tanh"
}  # fmt: skip
_GEMMA_DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True, "query_pre_attn_scalar": 256
}  # fmt: skip
_CAPS = ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping")
FAMILIES: Mapping[str, Family] = {
    "llama": Family(only=("attention_bias", "mlp_bias")),
    "mistral": Family(
        defaults={"num_key_value_heads": 8, "max_position_embeddings": 4096 * 32},
        windows=4096, pattern="all",
    ),
    "qwen2": Family(
        defaults={"num_key_value_heads": 32, "max_position_embeddings": 32768},
        always={"attention_bias": True}, windows=4096, pattern="after",
    ),
    "qwen3": Family(
        defaults={"num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768},
        always={"head_norms": True}, only=("attention_bias",), windows=4096, pattern="after",
    ),
    "gemma2": Family(
        defaults={**_GEMMA_DEFAULTS, "max_position_embeddings": 8192, "final_logit_softcapping": 30.0,
                  "attn_logit_softcapping": 50.0},
        always=_GEMMA, only=("attention_bias", *_CAPS), windows=4096, pattern=2, gelu=True,
    ),
    "gemma3_text": Family(
        defaults={**_GEMMA_DEFAULTS, "max_position_embeddings": 131_072},
        always={**_GEMMA, "head_norms": True},
        only=("attention_bias", "query_pre_attn_scalar", "final_logit_softcapping"),
        windows=4096, pattern=6, pattern_key="sliding_window_pattern", theta=(1_000_000.0, 10_000.0),
        gelu=True,
    ),
}  # fmt: skip


@functools.cache
def keys(name: str) -> Keys:
    """The keys of a family's config.json."""
    family = FAMILIES[name]
    optional = ("attention_bias", "mlp_bias", *_CAPS)
    left_out = {key for key in optional if key not in family.only}
    activation = ("gelu_pytorch_tanh",) if family.gelu else ("silu",)
    # Attention with no mask is an encoder's; other factors would change the model.
    both: dict[str, tuple[Any, ...]] = {}
    if family.gelu:
        both["use_bidirectional_attention"] = (None, False)
    if name == "gemma3_text":  # which transformers does not read there
        both["attn_logit_softcapping"] = (None,)
    absent: dict[str, tuple[Any, ...]] = {"partial_rotary_factor": (None, 1.0, 1)}
    # Old files of Gemma have the older key, too, whose value means nothing.
    named = (
        {"hidden_activation": (*activation, None)} if family.gelu else {"hidden_act": activation}
    )
    return Keys(
        ranges={key: allowed for key, allowed in RANGES.items() if key not in left_out},
        fixed={**FIXED, **named, **both, **absent},
        without_effect=(*_WITHOUT_EFFECT, *(("hidden_act",) if family.gelu else ())),
        computed_from=(*_ROTARY, *(_WINDOWS if family.windows else ())),
        defaults=family.defaults,
    )  # fmt: skip


def derived(name: str, record: Record) -> dict[str, Any]:
    """The fields of the configuration that are computed from config.json.

    Raises:
      FileError: a value of another type, out of its range, or not implemented.
    """
    family = FAMILIES[name]
    sliding = _sliding(family, record)
    window = _window(family, record) if any(sliding) else None
    wide, narrow = read_rotary(record, family.theta, (FULL, SLIDING))
    every = [LayerKind(window, narrow) if slides else LayerKind(None, wide) for slides in sliding]
    kinds = tuple(dict.fromkeys(every)) or (LayerKind(None, wide),)
    fields = {**family.always, "architecture": name, "kinds": kinds}
    if len(kinds) > 1:
        fields["layer_kinds"] = tuple(kinds.index(kind) for kind in every)
    biased = name != "qwen2" and record.get("attention_bias", bool, False)
    return {**fields, "attention_output_bias": biased}


def _sliding(family: Family, record: Record) -> list[bool]:
    """Which layers see a window of tokens only."""
    count = record.integer("num_hidden_layers", most=2**10)
    if record.values.get("layer_types") is not None and family.pattern not in ("none", "all"):
        types = record.strings("layer_types")
        for number, kind in enumerate(types):
            if kind not in (FULL, SLIDING):
                raise record.error(f"layer_types[{number}]", repr(kind), f"{FULL!r} or {SLIDING!r}")
        if len(types) != count:
            raise record.error("layer_types", f"{len(types)} layers", f"{count}")
        return [kind == SLIDING for kind in types]
    if isinstance(family.pattern, int):
        pattern = family.pattern
        if family.pattern_key and family.pattern_key in record.values:
            pattern = record.integer(family.pattern_key, most=2**10)
        return [bool((layer + 1) % pattern) for layer in range(count)]
    if family.pattern == "all":
        return [record.values.get("sliding_window", family.windows) is not None] * count
    if family.pattern == "after" and record.get("use_sliding_window", bool, False):
        if record.values.get("sliding_window", family.windows) is None:
            return [False] * count
        first = (
            record.integer("max_window_layers", 0) if "max_window_layers" in record.values else 28
        )
        return [layer >= first for layer in range(count)]
    return [False] * count


def _window(family: Family, record: Record) -> int:
    """Tokens that sliding layers see."""
    if "sliding_window" not in record.values:
        assert family.windows is not None
        return family.windows
    value = record.values["sliding_window"]
    if not _WINDOW.accepts(value):
        raise record.error("sliding_window", repr(value)[:80], str(_WINDOW))
    return int(value)


def published(config: LlamaConfig) -> dict[str, Any]:
    """What config.json says of a saved model: the inverse of reading it."""
    name, family = config.architecture, FAMILIES[config.architecture]
    values = {key: getattr(config, key) for key in keys(name).ranges}
    if (scalar := config.query_pre_attn_scalar) is not None and scalar == int(scalar):
        values["query_pre_attn_scalar"] = int(scalar)  # transformers takes no other numbers
    values["num_key_value_heads"] = config.shared_heads
    if config.head_dim is None and "head_dim" not in family.defaults:
        del values["head_dim"]  # it is what the width and the heads say
    else:
        values["head_dim"] = config.head_size
    of_layers = config.layer_kinds or (0,) * config.depth
    kinds = [config.kinds[kind] for kind in of_layers]
    rotary = {FULL if k.window is None else SLIDING: written_rotary(k.rotary) for k in config.kinds}
    window = next((kind.window for kind in config.kinds if kind.window is not None), None)
    values["rope_parameters"] = rotary if name == "gemma3_text" else next(iter(rotary.values()))
    if family.windows is not None:
        values["sliding_window"] = window
    if family.pattern == "after":
        values["use_sliding_window"] = window is not None
    if family.pattern not in ("none", "all"):
        values["layer_types"] = [FULL if kind.window is None else SLIDING for kind in kinds]
    values["hidden_activation" if family.gelu else "hidden_act"] = config.activation
    return {"model_type": name, "architectures": [_CLASSES[name]], **values}


_CLASSES = {
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM", "gemma2": "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM",
}  # fmt: skip
