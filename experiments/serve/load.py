"""What --model is: a decoder or a classifier."""

from __future__ import annotations

from pathlib import Path

from experiments.serve.app import AnyServed
from experiments.serve.classifier import ServedClassifier
from experiments.serve.decoder import ServedDecoder
from experiments.serve.served import Base, Sizes
from lora_jax.errors import InputError
from lora_jax.models import architectures, hub
from lora_jax.models.encoder import EncoderConfig


def load(model: str, adapters: str, base_format: str, sizes: Sizes) -> AnyServed:
    """Reads a base and the adapters that are there.

    Args:
      model: see `hub.find`.
      adapters: folder whose subfolders are adapters or runs; "" for none.
      base_format: of the base's matrices, see `models.base_formats`.
      sizes: how much is served at once.

    Raises:
      InputError: something is missing or broken.
    """
    if adapters and not Path(adapters).is_dir():
        raise InputError(f"--adapters={adapters} is not a folder")
    folder = hub.find(model)
    config = architectures.read_config(folder, base_format=base_format)
    if isinstance(config, EncoderConfig):
        return ServedClassifier(Base(model, folder, config), adapters, sizes)
    return ServedDecoder(Base(model, folder, config), adapters, sizes)
