"""The key quantization_config of config.json, as bitsandbytes and transformers have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lora_jax.quantisation.formats import Format
from lora_jax.quantisation.four_bits import FourBits
from lora_jax.reading import Record

KEY = "quantization_config"
OTHER_PACKING = (
    "Quantised bases are read as bitsandbytes packs them, and from GGUF; take the model so, or in float32, "
    "float16 or bfloat16"
)


def quantised_bits(record: Record) -> int | None:
    """Bits of the matrices that bitsandbytes has packed as config.json says; None: none are packed.

    Raises:
      FileError: they are packed by another program, or in a way that is not implemented.
    """
    if record.values.get(KEY) in (None, {}):
        return None
    packing = record.record(KEY, OTHER_PACKING)
    four, eight = (packing.get(f"load_in_{bits}bit", bool, False) for bits in (4, 8))
    # Old versions of transformers wrote no method.
    if four or eight:
        packing.values.setdefault("quant_method", "bitsandbytes")
    if (method := packing.get("quant_method", str)) != "bitsandbytes":
        raise packing.error("quant_method", repr(method), "'bitsandbytes'")
    if four == eight:
        found = f"{four} both there and in load_in_8bit"
        raise packing.error("load_in_4bit", found, "true in one of them")
    storage = packing.get("bnb_4bit_quant_storage", str, "uint8")
    if four and storage != "uint8":
        raise packing.error("bnb_4bit_quant_storage", repr(storage), "'uint8'")
    return 4 if four else 8


def quantization_config(
    format: Format, skipped: Sequence[str], compute_dtype: str
) -> dict[str, Any]:
    """What config.json says of matrices in a packed form: all keys of transformers.

    Args:
      format: of all of them.
      skipped: ends of the names of linear layers that are not packed.
      compute_dtype: type of activations and products.
    """
    four = isinstance(format, FourBits)
    return {
        "_load_in_4bit": four,
        "_load_in_8bit": not four,
        "bnb_4bit_compute_dtype": compute_dtype,
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": format.code if isinstance(format, FourBits) else "fp4",
        "bnb_4bit_use_double_quant": isinstance(format, FourBits) and format.double,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": list(skipped),
        "llm_int8_threshold": 6.0,
        "load_in_4bit": four,
        "load_in_8bit": not four,
        "quant_method": "bitsandbytes",
    }
