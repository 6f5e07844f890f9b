"""The packed forms by name, as configs and commands have them."""

from __future__ import annotations

from collections.abc import Mapping

from lora_jax.errors import InputError, brief, did_you_mean
from lora_jax.gguf.packing import PACK
from lora_jax.quantisation.formats import Format
from lora_jax.quantisation.four_bits import FourBits
from lora_jax.quantisation.ggml import Ggml
from lora_jax.quantisation.int8 import Int8

FORMATS: Mapping[str, Format] = {
    "nf4": FourBits("nf4"),
    "nf4_single": FourBits("nf4", double=False),
    "fp4": FourBits("fp4"),
    "int8": Int8(),
    "int8_blocks": Int8(64),
    **{kind.lower(): Ggml(kind) for kind in PACK},
}


def format_of(name: str | Format) -> Format:
    """The packed form of a name; a `Format` is taken as it is.

    Raises:
      ValueError: no such name.
    """
    if isinstance(name, Format):
        return name
    if not isinstance(name, str) or name not in FORMATS:
        meant = did_you_mean(name, FORMATS) if isinstance(name, str) else ""
        raise InputError(
            f"format must be one of {', '.join(FORMATS)}, or a Format with settings of its own such as "
            f"FourBits('nf4', block=128); got {brief(name)}{meant}"
        )
    return FORMATS[name]


def name_of(form: Format) -> str:
    """The name of a packed form, or what one writes for it."""
    return next((name for name, other in FORMATS.items() if other == form), str(form))
