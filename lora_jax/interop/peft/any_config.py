"""adapter_config.json of any method of PEFT that can be read, and the methods by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_jax.errors import InputError, brief
from lora_jax.interop.peft.adalora import AdaLoRA
from lora_jax.interop.peft.config import (
    REMEDY,
    PeftConfig,
    check_known,
    check_pattern,
    check_types,
    read_lora,
)
from lora_jax.interop.peft.ia3 import IA3
from lora_jax.interop.peft.lycoris import LoHa, LoKr
from lora_jax.interop.peft.norms import Norms
from lora_jax.interop.peft.variants import Variant
from lora_jax.interop.peft.vera import VeRA

LORA = "LORA"
VARIANTS: Mapping[str, Variant] = {
    variant.peft_type: variant for variant in (IA3(), VeRA(), LoHa(), LoKr(), AdaLoRA(), Norms())
}


def variant_of(values: Mapping[str, Any]) -> Variant | None:
    """The method of an adapter_config.json; None for LoRA."""
    return VARIANTS.get(str(values.get("peft_type")))


def read(values: Mapping[str, Any], ignore: Sequence[str] = ()) -> PeftConfig:
    """Checks the keys and values of an adapter_config.json.

    Args:
      values: of the file.
      ignore: keys that may be there although they are not known here; regular expressions.

    Raises:
      InputError: a method that cannot be read, unknown keys, or values that we have nothing for.
    """
    kind, variant = values.get("peft_type"), variant_of(values)
    if kind == LORA:
        return read_lora(values, ignore)
    if variant is None:
        raise InputError(
            f"peft_type is {brief(kind)}; adapters of PEFT's {LORA}, {', '.join(VARIANTS)} can be read. "
            f"Convert it in PEFT (peft.convert_to_lora, for methods that have it). {REMEDY}"
        )
    check_known(values, variant.known, ignore)
    settings = PeftConfig(values)
    check_types(settings, variant.types)
    if variant.peft_type in ("LOHA", "LOKR"):
        for key in ("rank_pattern", "alpha_pattern"):
            check_pattern(settings, key)
    modes = ("none", "all", variant.own_bias) if variant.own_bias else ("none",)
    if (mode := settings.get("bias", "none")) not in modes:
        raise InputError(f"bias={brief(mode)}; PEFT's {kind} has {', '.join(modes)}")
    variant.check(settings)
    return settings
