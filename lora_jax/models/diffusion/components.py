"""The models of a folder of diffusers: what each is called there, and how its files are read."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from flax import nnx

from lora_jax.models.config_json import Keys
from lora_jax.models.diffusion import clip_config, names, unet_json, vae_config
from lora_jax.models.diffusion.clip import CLIPTextModel
from lora_jax.models.diffusion.clip_config import CLIPTextConfig
from lora_jax.models.diffusion.unet import UNet
from lora_jax.models.diffusion.unet_config import UNetConfig
from lora_jax.models.diffusion.vae import AutoencoderKL
from lora_jax.models.diffusion.vae_config import VAEConfig
from lora_jax.models.layouts import Layout

AnyModel = UNet | AutoencoderKL | CLIPTextModel
Model = TypeVar("Model", UNet, AutoencoderKL, CLIPTextModel)
Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Component(Generic[Model]):
    """A kind of model, as files have it.

    Attributes:
      name: of its folder.
      library: of Python that the class is from.
      class_name: that it has there; `class_key` is the key of config.json that says so.
      config: dataclass of its sizes and settings.
      make: the model, from (config, rngs).
      keys: of config.json.
      published: what config.json says of a saved model.
      stem: of the names of its files of weights.
      layout: how published tensors relate to parameters, from their paths.
    """

    name: str
    library: str
    class_name: str
    class_key: str
    config: type[Any]
    make: Callable[[Any, nnx.Rngs], Model]
    keys: Keys
    published: Callable[[Any], dict[str, Any]]
    stem: str
    layout: Callable[[Shapes], Layout] = names.layout


_WEIGHTS = "diffusion_pytorch_model"
UNET = Component(
    name="unet", library="diffusers", class_name=unet_json.CLASS, class_key="_class_name",
    config=UNetConfig, make=UNet, keys=unet_json.KEYS, published=unet_json.published, stem=_WEIGHTS,
)  # fmt: skip
VAE = Component(
    name="vae", library="diffusers", class_name=vae_config.CLASS, class_key="_class_name",
    config=VAEConfig, make=AutoencoderKL, keys=vae_config.KEYS, published=vae_config.published,
    stem=_WEIGHTS,
)  # fmt: skip
TEXT_ENCODER = Component(
    name="text_encoder", library="transformers", class_name=clip_config.CLASS, class_key="architectures",
    config=CLIPTextConfig, make=CLIPTextModel, keys=clip_config.KEYS, published=clip_config.published,
    stem="model",
    layout=functools.partial(
        names.layout, prefix="text_model.", heads=r"text_projection\..*", buffers=r"embeddings\.position_ids"
    ),
)  # fmt: skip
COMPONENTS: Mapping[str, Component[Any]] = {c.name: c for c in (UNET, VAE, TEXT_ENCODER)}
