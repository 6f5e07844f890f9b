"""The nets and the methods that are compared on them."""

from __future__ import annotations

import re

from flax import nnx
from ml_collections import ConfigDict

from lora_jax import methods
from lora_jax.errors import InputError
from lora_jax.method import Method
from lora_jax.models.hub import HEAD
from lora_jax.models.vision.files import VisionConfig
from lora_jax.models.vision.resnet import ResNetConfig
from lora_jax.models.vision.vit import ViTConfig

_LORA = re.compile(r"lora_([1-9][0-9]{0,3})")
_HEAD_SIZE = 12  # of a ViT's attention
_PATCHES = 4  # of a side


def net(config: ConfigDict) -> VisionConfig:
    """The configuration of a small ResNet or ViT for pictures of the config's size."""
    width, depth, size = config.model.width, config.model.depth, config.data.size
    if config.model.kind == "resnet":
        return ResNetConfig(
            embedding_size=width, hidden_sizes=(width, 2 * width, 4 * width), depths=(depth,) * 3,
            layer_type="basic", stem="small", downsample_in_first_stage=True,
        )  # fmt: skip
    # Unrolled, since XLA's count of FLOPs takes the body of a loop once.
    hidden = 3 * width
    return ViTConfig(
        hidden_size=hidden, num_hidden_layers=depth, num_attention_heads=max(1, hidden // _HEAD_SIZE),
        intermediate_size=2 * hidden, image_size=size, patch_size=max(1, size // _PATCHES),
        unroll=depth,
    )  # fmt: skip


def method(name: str, kind: str) -> Method:
    """A method by its name; the head, which has the digits already, trains with all of them.

    Args:
      name: head, norms, full, or lora_RANK.
      kind: of the net.

    Raises:
      InputError: no such name.
    """
    if match := _LORA.fullmatch(name):
        targets = nnx.Conv if kind == "resnet" else "all-linear"
        return methods.lora(targets, rank=int(match[1]), head=HEAD)
    plain = {"head": methods.head_only, "norms": methods.norms, "full": methods.full}
    if name not in plain:
        raise InputError(
            f"methods: there is no {name!r}; known are {', '.join(plain)}, and lora_RANK such as lora_4"
        )
    return plain[name](HEAD)


def statistics_move(name: str, setting: str) -> bool:
    """Whether BatchNorm normalises by the batch, and moves its statistics, while a method trains.

    Under a frozen base they would be those of the few examples, seen through weights that do not follow.
    """
    return name in ("norms", "full") if setting == "auto" else setting == "move"
