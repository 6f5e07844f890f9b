"""Classifiers of pictures from folders in the layout of Hugging Face, such as `google/vit-base-patch16-224`
and `microsoft/resnet-50`: config.json beside safetensors.

    folder = places.find(NAME)  # a folder, package:NAME or a hub name
    config = read_config(folder)
    model = load(folder, config, num_outputs=10, key=jax.random.key(0))

Every tensor must be used, known to be unneeded, or it is an error that names it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from lora_jax import partition, state
from lora_jax.errors import FileError, InputError
from lora_jax.models import config_json
from lora_jax.models.config_json import FIXED, WITHOUT_EFFECT, Keys
from lora_jax.models.hub import HEAD, head_values
from lora_jax.models.layouts import LAYOUTS, Layout
from lora_jax.models.model_files import open_files
from lora_jax.models.tensors import plan
from lora_jax.models.vision import resnet, vit
from lora_jax.models.vision.resnet import ResNet, ResNetConfig
from lora_jax.models.vision.vit import ViT, ViTConfig

_SQUARES = ("image_size", "patch_size")
VisionConfig = ResNetConfig | ViTConfig


def _resnet_layout(config: ResNetConfig) -> Layout:
    """Names of a ResNet's tensors, which depend on the depths of its stages."""
    names = {
        "stem/conv": "embedder.embedder.convolution",
        "stem/norm": "embedder.embedder.normalization",
    }
    for stage, depth in enumerate(config.depths):
        for block in range(depth):
            ours, theirs = (
                f"stages/{stage}/blocks/{block}",
                f"encoder.stages.{stage}.layers.{block}",
            )
            inside = {"shortcut": "shortcut", **{f"convs/{n}": f"layer.{n}" for n in range(3)}}
            for module, name in inside.items():
                names[f"{ours}/{module}/conv"] = f"{theirs}.{name}.convolution"
                names[f"{ours}/{module}/norm"] = f"{theirs}.{name}.normalization"
    return Layout(
        prefix="resnet.",
        names=names,
        heads=r"classifier\..*",
        buffers=r".*\.num_batches_tracked",  # which PyTorch needs where momentum is None
        head={"head/output": "classifier.1"},
    )  # fmt: skip


def _square(record: config_json.Record) -> dict[str, Any]:
    """Sizes of pictures and patches, which a file may have as [side, side]."""
    found = {}
    for key in _SQUARES:
        if key not in record.values:
            continue
        value = record.values[key]
        sides = value if isinstance(value, list) and value else [value]
        if any(side != sides[0] for side in sides) or not vit.RANGES[key].accepts(sides[0]):
            raise record.error(key, repr(value)[:80], f"{vit.RANGES[key]}, the side of a square")
        found[key] = sides[0]
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Kind:
    """How models of one model_type are read and made."""

    config: type[ResNetConfig] | type[ViTConfig]
    model: type[ResNet] | type[ViT]
    keys: Keys
    layout: Callable[[Any], Layout]
    derived: Callable[[config_json.Record], Mapping[str, Any]] = lambda record: {}


_BACKBONE = ("out_features", "out_indices", "stage_names")  # of models without a head
KINDS: Mapping[str, _Kind] = {
    "resnet": _Kind(
        config=ResNetConfig,
        model=ResNet,
        keys=Keys(
            ranges=resnet.RANGES,
            fixed={**FIXED, "hidden_act": ("relu",)},
            without_effect=(*WITHOUT_EFFECT, *_BACKBONE),
        ),
        layout=_resnet_layout,
    ),
    "vit": _Kind(
        config=ViTConfig,
        model=ViT,
        keys=Keys(
            ranges={name: r for name, r in vit.RANGES.items() if name not in _SQUARES},
            fixed={**FIXED, "hidden_act": ("gelu",)},
            # The pooler is of models without a head, the encoder's stride of masked pictures.
            without_effect=(*WITHOUT_EFFECT, "pooler_output_size", "pooler_act", "encoder_stride"),
            computed_from=_SQUARES,
        ),
        layout=lambda config: LAYOUTS["vit"],
        derived=_square,
    ),
}


def read_config(folder: Path, **overrides: Any) -> VisionConfig:
    """A configuration from config.json; `overrides` replace fields (dropout, `stem`).

    Raises:
      FileNotFoundError: no config.json.
      ValueError: an architecture or setting that is not implemented, or a value out of its range.
    """
    record = config_json.read(folder)
    name = record.values.get("model_type")
    if not isinstance(name, str) or name not in KINDS:
        raise FileError(
            record.path, "", f"model_type {name!r}"[:80], f"one of {', '.join(KINDS)}",
            "" if "model_type" in record.values else config_json.without_config(folder),
        )  # fmt: skip
    kind = KINDS[name]
    config: VisionConfig = config_json.configuration(
        record, kind.config, kind.keys, kind.derived, overrides
    )
    return config


def make(config: VisionConfig, num_outputs: int, rngs: nnx.Rngs) -> ResNet | ViT:
    """A model with random values."""
    model: ResNet | ViT = KINDS[config.architecture].model(config, num_outputs, rngs)  # type: ignore[arg-type]
    return model


def load(
    folder: Path,
    config: VisionConfig,
    num_outputs: int,
    key: Key[Array, ""],
    dtype: jax.typing.DTypeLike = jnp.float32,
    head: Literal["fresh", "published"] = "fresh",
) -> ResNet | ViT:
    """A pre-trained model, with BatchNorm's running statistics where it has them.

    All names, types and shapes are checked before anything is read or made.

    Args:
      folder: from `places.find`.
      config: from `read_config`.
      num_outputs: classes.
      key: for the initial values of a fresh head.
      dtype: type of the pre-trained parameters; head and statistics are float32.
      head: "published" takes the head of the folder, which must have `num_outputs` outputs.

    Raises:
      FileNotFoundError, ValueError: files missing or broken; tensors missing, extra, misshapen, of
        integers, or not finite.
    """
    if head not in ("fresh", "published"):
        raise InputError(f"head must be 'fresh' or 'published', got {head!r}")
    if head == "published":
        config_json.check_classifier(folder, "ForImageClassification")
    files = open_files(folder)
    random = lambda: make(config, num_outputs, nnx.Rngs(params=key))  # noqa: E731
    abstract = nnx.eval_shape(random)
    of_head = [p for p in partition.parameters(abstract) if re.fullmatch(HEAD, p)]
    shapes = {
        path: leaf.shape
        for path, leaf in state.values(abstract, "parameter", "statistic").items()
        if head == "published" or path not in of_head
    }
    planned = plan(
        files.shapes,
        KINDS[config.architecture].layout(config),
        shapes,
        config.depth if isinstance(config, ViTConfig) else 1,
        f"{files.folder} ({config.architecture})",
    )
    files.check_types(planned.names())
    statistics = state.values(abstract, "statistic")
    leaves: partition.Params = {}
    for path, source in planned.sources.items():
        kind = jnp.float32 if path in statistics or path in of_head else dtype
        leaves[path] = source.leaf(files.read(source.names, kind))
    if head == "fresh":
        leaves |= jax.jit(lambda: head_values(random()))()
    structure, _ = partition.all_frozen(abstract)
    model = partition.join(structure, leaves, {})
    assert isinstance(model, ResNet | ViT)
    return model
