"""What the tensors of a style file are called: by diffusers, by PEFT, and by kohya's scripts.

| form | the first factor of a module of the U-Net, and of the text encoder |
|---|---|
| kohya | `lora_unet_down_blocks_0_..._to_q.lora_down.weight`, `lora_te_text_model_...`; `.alpha` beside |
| diffusers | `unet.down_blocks.0...to_q.lora.down.weight`, `text_encoder....lora_linear_layer.down.weight` |
| diffusers, before 0.17 | `unet.down_blocks.0...attn1.processor.to_q_lora.down.weight` |
| PEFT | `unet.down_blocks.0...to_q.lora_A.weight` |

Factors are as PyTorch has them: `down` is (rank, inputs) or (rank, inputs, height, width), `up` is (outputs,
rank) or (outputs, rank, 1, 1). The update is alpha / rank times their product; without an alpha it is 1.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from lora_jax.errors import InputError
from lora_jax.patterns import some

UNET, TEXT_ENCODER = "unet", "text_encoder"
Side = Literal["down", "up", "alpha"]
_SIDES: Mapping[str, Side] = {"down": "down", "up": "up", "A": "down", "B": "up"}
KOHYA = {UNET: "lora_unet_", TEXT_ENCODER: "lora_te_"}
_KOHYA = re.compile(
    r"(lora_unet|lora_te1?)_(?P<module>.+?)\.(lora_(?P<side>down|up)\.weight|alpha)"
)
_DOTTED = re.compile(
    r"((?P<part>unet|text_encoder)\.|base_model\.model\.)?(?P<module>(?!lora_|transformer\.).+?)\."
    r"((lora(_linear_layer)?\.(?P<old>down|up)|lora_(?P<peft>[AB])(\.default)?|lora_(?P<new>down|up))"
    r"\.weight|alpha)"
)
_PROCESSOR = re.compile(
    r"((?P<part>unet)\.)?(?P<attention>.+)\.processor\.(?P<projection>to_(q|k|v|out))_lora"
    r"\.(?P<side>down|up)\.weight"
)
_OTHERS = {
    "hada_": "LoHa", "lokr_": "LoKr", "lora_mid": "LoRA with a third factor", "dora_scale": "DoRA",
    "magnitude": "DoRA", "oft_": "OFT", ".diff": "whole weights", "lora_te2": "Stable Diffusion XL",
    "text_encoder_2": "Stable Diffusion XL", "lora_transformer": "a transformer",
    "transformer.": "a transformer", "lora_B.bias": "trained biases", "lora_up.bias": "trained biases",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Place:
    """What a tensor is.

    Attributes:
      part: `unet` or `text_encoder`.
      module: its name in that model, with dots; in kohya's form with underscores.
      side: a factor, or alpha.
    """

    part: str
    module: str
    side: Side


def place(name: str) -> Place | None:
    """What a tensor of this name is; None for names of no known form."""
    if match := _KOHYA.fullmatch(name):
        part = UNET if match[1] == "lora_unet" else TEXT_ENCODER
        return Place(part, match["module"], _SIDES[match["side"]] if match["side"] else "alpha")
    if match := _PROCESSOR.fullmatch(name):
        projection = match["projection"].replace("to_out", "to_out.0")
        return Place(UNET, f"{match['attention']}.{projection}", _SIDES[match["side"]])
    if match := _DOTTED.fullmatch(name):
        side = match["old"] or match["peft"] or match["new"]
        return Place(match["part"] or UNET, match["module"], _SIDES[side] if side else "alpha")
    return None


def places(names: Iterable[str], path: Path) -> dict[str, Place]:
    """What each tensor is.

    Args:
      names: of the tensors.
      path: of their file, for messages.

    Raises:
      InputError: names of no known form; the message says what they are, where that is known.
    """
    found = {name: place(name) for name in names}
    if unknown := [name for name, one in found.items() if one is None]:
        kinds = {kind for mark, kind in _OTHERS.items() if any(mark in name for name in unknown)}
        what = f": that is {' and '.join(sorted(kinds))}" if kinds else ""
        raise InputError(
            f"{path}: {len(unknown)} tensors are no factors of LoRA on Stable Diffusion 1.x or 2.x{what}. "
            f"The first: {some(unknown)}. Only LoRA's two factors and alpha are read"
        )
    if not found:
        raise InputError(f"{path} holds no tensors; a style has the factors of LoRA")
    return {name: one for name, one in found.items() if one is not None}


def kohya(part: str, module: str, side: Side) -> str:
    """The name of a tensor in kohya's form.

    Args:
      part: `unet` or `text_encoder`.
      module: its name there, with dots.
      side: a factor, or alpha.
    """
    end = "alpha" if side == "alpha" else f"lora_{side}.weight"
    return f"{KOHYA[part]}{module.replace('.', '_')}.{end}"


def diffusers(part: str, module: str, side: Side) -> str:
    """The name of a factor in diffusers' form, see `kohya`."""
    layer = "lora" if part == UNET else "lora_linear_layer"
    return f"{part}.{module}.{layer}.{side}.weight"
