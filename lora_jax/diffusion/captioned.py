"""A small diffusion model of pixels: the U-Net of Stable Diffusion and a table of words as its text encoder.

A folder of one holds config.json, model.safetensors and scheduler_config.json.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from safetensors.numpy import save as to_safetensors

from lora_jax import partition
from lora_jax.diffusion import schedule_json
from lora_jax.diffusion.schedule import NoiseSchedule
from lora_jax.diffusion.words import Words
from lora_jax.errors import FileError, InputError, SettingError
from lora_jax.files import write_bytes, write_json
from lora_jax.models.config_json import Keys, fields
from lora_jax.models.diffusion.unet import UNet
from lora_jax.models.diffusion.unet_config import RANGES, UNetConfig
from lora_jax.ranges import Whole, check
from lora_jax.reading import read_object
from lora_jax.tensor_files import Tensors

CONFIG, WEIGHTS = "config.json", "model.safetensors"
KIND = "lora_jax.CaptionedUNet"
_KEYS = Keys(ranges=RANGES, fixed={})


class CaptionedUNet(nnx.Module):
    """A U-Net whose context is the words of captions.

    Attributes:
      words: table of embeddings, a row for each word.
      unet: predicts the noise, or what else it was trained to predict.
    """

    def __init__(self, words: int, config: UNetConfig, rngs: nnx.Rngs):
        """Random values.

        Args:
          words: rows of the table.
          config: of the U-Net.
          rngs: of the values.
        """
        self.words = nnx.Embed(words, config.cross_attention_dim, rngs=rngs)
        self.unet = UNet(config, rngs)

    def __call__(
        self,
        sample: Float[Array, "n height width channels"],
        timesteps: Float[Array, " n"] | Int[Array, " n"],
        captions: Int[Array, "n length"],
    ) -> Float[Array, "n height width channels"]:
        """The prediction for noisy pictures at their timesteps, given the numbers of captions' words."""
        return self.unet(sample, timesteps, self.words(captions))


@dataclasses.dataclass(frozen=True)
class Captioned:
    """A model with all that it needs to draw.

    Attributes:
      model: the network.
      words: of captions.
      schedule: of the noise that it was trained with.
    """

    model: CaptionedUNet
    words: Words
    schedule: NoiseSchedule

    @property
    def config(self) -> UNetConfig:
        """Sizes of the U-Net; `sample_size` is the side of the pictures."""
        return self.model.unet.config

    def save(self, folder: Path, values: Mapping[str, Any] | None = None) -> None:
        """Writes it into a folder that is there.

        Args:
          folder: for the three files.
          values: parameters by path that are written in place of the model's.
        """
        unet = {
            name: value for name, value in dataclasses.asdict(self.config).items() if name in RANGES
        }
        named = {"kind": KIND, "words": self.words.words, "length": self.words.length, "unet": unet}
        write_json(folder / CONFIG, named)
        schedule_json.write(folder, self.schedule)
        held = partition.parameters(self.model) if values is None else values
        arrays = {path: np.asarray(held[path], order="C") for path in sorted(held)}
        write_bytes(folder / WEIGHTS, to_safetensors(arrays))


def new(words: Words, config: UNetConfig, schedule: NoiseSchedule, seed: int) -> Captioned:
    """A model with random values."""
    return Captioned(CaptionedUNet(len(words.words), config, nnx.Rngs(seed)), words, schedule)


def load(folder: Path) -> Captioned:
    """Reads the model of a folder.

    Raises:
      MissingFileError, FileError: a file is missing or broken, or it is another kind of model.
    """
    record = read_object(folder / CONFIG)
    if record.values.get("kind") != KIND:
        raise record.error("kind", repr(record.values.get("kind")), f"{KIND!r}")
    unet = record.record("unet")
    if unknown := sorted(unet.values.keys() - RANGES.keys()):
        raise unet.error(unknown[0], "an unknown setting", f"one of {', '.join(RANGES)}")
    try:
        words = Words(
            tuple(record.strings("words")), check("length", record.get("length", int), Whole())
        )
        config = UNetConfig(**fields(unet, _KEYS))
    except (InputError, TypeError) as error:
        raise SettingError(record.path, "", error) from error
    schedule = schedule_json.read(folder / schedule_json.FILE)
    model = nnx.eval_shape(lambda: CaptionedUNet(len(words.words), config, nnx.Rngs(0)))
    tensors = Tensors(folder / WEIGHTS)
    tensors.check_types()
    values = tensors.read()
    expected = {path: tuple(leaf.shape) for path, leaf in partition.parameters(model).items()}
    found = {path: value.shape for path, value in values.items()}
    if odd := sorted(path for path in {*expected, *found} if expected.get(path) != found.get(path)):
        path = odd[0]
        raise FileError(
            tensors.path,
            path,
            str(found.get(path, "no such tensor")),
            str(expected.get(path, "nothing")),
        )
    structure, _ = partition.all_frozen(model)
    made = partition.join(structure, {}, {path: jnp.asarray(v) for path, v in values.items()})
    assert isinstance(made, CaptionedUNet)
    return Captioned(made, words, schedule)
