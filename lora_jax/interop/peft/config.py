"""adapter_config.json of PEFT: what its keys mean for us, and which values we cannot follow."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lora_jax.errors import InputError, brief
from lora_jax.expressions import Expression

CONFIG = "adapter_config.json"
# Keys that say how the adapter was made or where it is from; what it computes does not depend on them.
_NOTED = (
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "inference_mode",
    "loftq_config", "lora_ga_config", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "task_type", "velora_config",
)  # fmt: skip
_USED = (
    "alpha_pattern", "bias", "ensure_weight_tying", "exclude_modules", "fan_in_fan_out",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_bias",
    "lora_dropout", "modules_to_save", "r", "rank_pattern", "target_modules", "target_parameters",
    "trainable_token_indices", "use_dora", "use_rslora",
)  # fmt: skip
# What another value than nothing would change, and we do not have.
_ABSENT: Mapping[str, str] = {
    "alora_invocation_tokens": "activated LoRA acts behind certain tokens only",
    "arrow_config": "Arrow chooses among several adapters by the input",
    "kasa_config": "KaSA has a diagonal between A and B",
    "layer_replication": "the model would have some layers several times",
    "megatron_config": "the layers would be Megatron's",
    "monteclora_config": "MonteCLoRA draws its factors at random",
    "use_bdlora": "BD-LoRA has factors of blocks",
    "use_qalora": "QA-LoRA pools the inputs of A",
}
REMEDY = (
    "Merge it in PEFT instead (model.merge_and_unload().save_pretrained(DIR)) and name DIR as the model, or "
    "train it again with lora_jax"
)
_FROM_BASE = ("pissa", "olora")  # initial factors that follow from the base alone
_ITERATED = re.compile(r"pissa_niter_(?P<count>\d{1,4})")  # nearly: see `initial`
_OTHER_BASE = ("pissa_niter_", "corda", "lora_ga", "loftq")

Types = Mapping[str, type | tuple[type, ...]]
_ALL_TYPES: Types = {
    "target_modules": (list, str), "modules_to_save": list, "exclude_modules": (list, str),
    "layers_to_transform": (list, int), "layers_pattern": (list, str), "fan_in_fan_out": bool,
}  # fmt: skip
_TYPES: Types = {
    "r": int, "lora_alpha": (int, float), "lora_dropout": (int, float), "rank_pattern": dict,
    "alpha_pattern": dict, "bias": str, "use_rslora": bool, "use_dora": bool, "lora_bias": bool,
    "target_parameters": list, "trainable_token_indices": (list, dict), "ensure_weight_tying": bool,
    "init_lora_weights": (bool, str),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PeftConfig:
    """The settings of an adapter of PEFT that say what it computes.

    Attributes:
      values: all keys as stored.
    """

    values: Mapping[str, Any]

    def get(self, key: str, default: Any) -> Any:
        """A value; PEFT's default where it is absent or null."""
        value = self.values.get(key)
        return default if value is None else value

    @property
    def scaling(self) -> str:
        """Ours, of `use_rslora`."""
        return "alpha/sqrt(r)" if self.get("use_rslora", False) else "alpha/r"

    @property
    def bias(self) -> str:
        """Which biases train, in LoRA's words."""
        found = str(self.get("bias", "none"))
        return "lora_only" if found == "vera_only" else found

    @property
    def initial(self) -> str | None:
        """The start of the factors where it changed the base (`pissa`, `olora`), else None."""
        if self.iterations:
            return "pissa"
        name = self.get("init_lora_weights", True)
        return name.lower() if isinstance(name, str) and name.lower() in _FROM_BASE else None

    @property
    def iterations(self) -> int:
        """Of the randomised decomposition that PiSSA started from; 0: it was exact, or another start."""
        name = self.get("init_lora_weights", True)
        found = _ITERATED.fullmatch(name.lower()) if isinstance(name, str) else None
        return int(found["count"]) if found else 0

    def rank(self, module: str) -> int:
        """r of a module, by its name in transformers."""
        value: int = of_pattern(
            self.get("rank_pattern", {}), module, self.get("r", 8), "rank_pattern"
        )
        return value

    def alpha(self, module: str) -> float:
        """lora_alpha of a module."""
        whole = self.get("lora_alpha", 8)
        value: float = of_pattern(self.get("alpha_pattern", {}), module, whole, "alpha_pattern")
        return value

    def tokens(self, module: str) -> list[int] | None:
        """The rows of a module that train, where its rows do."""
        chosen = self.values.get("trainable_token_indices")
        if isinstance(chosen, Mapping):
            ends = [name for name in chosen if module == name or module.endswith(f".{name}")]
            return list(chosen[ends[0]]) if ends else None
        return None if chosen is None else list(chosen)


def of_pattern(patterns: Mapping[str, Any], module: str, default: Any, kind: str) -> Any:
    """The value of the first pattern that names the end of a module's name, as PEFT's `get_pattern_key`."""
    for key, value in patterns.items():
        if Expression(rf"(.*\.)?({key})", kind).matches(module):
            return value
    return default


def check_known(values: Mapping[str, Any], known: Collection[str], ignore: Sequence[str]) -> None:
    """Raises InputError for keys that are neither known nor to be ignored."""
    if unknown := [key for key in values if key not in known]:
        left = [key for key in unknown if not any(re.fullmatch(p, key) for p in ignore)]
        if left:
            raise InputError(
                f"unknown keys {', '.join(left[:5])}: they may change what the adapter computes. If you know "
                f"that they do not, name them: ignore=[{left[0]!r}] (--ignore={left[0]})"
            )


def read_lora(values: Mapping[str, Any], ignore: Sequence[str] = ()) -> PeftConfig:
    """Checks the settings of a LoRA.

    Args:
      values: of adapter_config.json.
      ignore: keys that may be there although they are not known here; regular expressions.

    Raises:
      InputError: unknown keys, or values that we have nothing for.
    """
    check_known(values, (*_USED, *_NOTED, *_ABSENT), ignore)
    for key, why in _ABSENT.items():
        if values.get(key) not in (None, False, [], {}):
            raise InputError(
                f"{key}={brief(values[key])}: {why}, and we have no such thing. {REMEDY}"
            )
    config = PeftConfig(values)
    check_types(config, _TYPES)
    for key in ("rank_pattern", "alpha_pattern"):
        check_pattern(config, key)
    if config.bias not in ("none", "all", "lora_only"):
        raise InputError(f"bias={brief(config.bias)}; PEFT has none, all and lora_only")
    _check_initial(config)
    if config.get("use_dora", False) and config.get("lora_bias", False):
        raise InputError("lora_bias and use_dora together: PEFT itself has no such layer")
    return config


def check_types(config: PeftConfig, own: Types) -> None:
    """Raises InputError for values that are not of the types that PEFT writes; `own` are a method's own."""
    for key, kind in {**_ALL_TYPES, **own}.items():
        value = config.values.get(key)
        number = isinstance(value, bool) and kind not in (bool, (bool, str))
        if value is not None and (not isinstance(value, kind) or number):
            raise InputError(f"{key}={brief(value)}: not of the type that PEFT writes")
    for key in (
        "target_modules",
        "target_parameters",
        "modules_to_save",
        "exclude_modules",
        "layers_pattern",
        "feedforward_modules",
    ):
        value = config.values.get(key)
        if isinstance(value, list) and not all(isinstance(item, str) for item in value):
            raise InputError(f"{key}={brief(value)}: not a list of names")
    tokens = config.values.get("trainable_token_indices")
    lists = list(tokens.values()) if isinstance(tokens, dict) else [tokens or []]
    if not all(isinstance(found, list) and all(type(i) is int for i in found) for found in lists):
        raise InputError(f"trainable_token_indices={brief(tokens)}: not lists of numbers")
    layers = config.values.get("layers_to_transform")
    if isinstance(layers, list) and not all(type(layer) is int for layer in layers):
        raise InputError(f"layers_to_transform={brief(layers)}: not a list of numbers")


def check_pattern(config: PeftConfig, key: str) -> None:
    """Raises InputError for values of a pattern that are no numbers."""
    for name, value in config.get(key, {}).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{key}: {name} has {brief(value)}, which is no number")


def _check_initial(config: PeftConfig) -> None:
    name = config.get("init_lora_weights", True)
    if config.initial:
        return
    if isinstance(name, str) and name.lower().startswith(_OTHER_BASE):
        raise InputError(
            f"init_lora_weights={name!r} changed the base's weights in a way that does not follow from the "
            "base alone. Save it in PEFT as a plain adapter of rank 2r: model.save_pretrained(DIR, "
            "path_initial_model_for_weight_conversion=FOLDER_OF_THE_INITIAL_ADAPTER); or save the changed "
            "base, set init_lora_weights to true in its adapter_config.json, and name it as the model"
        )
