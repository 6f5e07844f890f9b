"""A whole Stable Diffusion 1.x or 2.x from a folder in diffusers' layout, and such a folder again."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lora_jax.errors import InputError, MissingFileError
from lora_jax.files import make_folder, to_json, write_bytes
from lora_jax.models.diffusion.clip import CLIPTextModel
from lora_jax.models.diffusion.components import COMPONENTS, TEXT_ENCODER, UNET, VAE
from lora_jax.models.diffusion.files import load, save_model
from lora_jax.models.diffusion.unet import UNet
from lora_jax.models.diffusion.vae import AutoencoderKL
from lora_jax.models.stack import Remat
from lora_jax.reading import Record, read_object

INDEX = "model_index.json"
_SCHEDULER, _SCHEDULER_FILE, _TOKENIZER = "scheduler", "scheduler_config.json", "tokenizer"
# Parts that a folder may name and that change nothing of what is computed here.
_UNUSED = ("safety_checker", "feature_extractor", "requires_safety_checker")
_TOKENS = ("bos_token", "eos_token", "pad_token")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The models that make an image of a text, and what belongs to them.

    Attributes:
      unet: predicts the noise of latent images.
      vae: latent images of images, and back.
      text_encoder: the context of the U-Net, from token ids.
      tokenizer: a PreTrainedTokenizerBase of transformers; texts are padded to its `model_max_length`.
      scheduler: the values of scheduler_config.json: the noise of each time, what is predicted.
    """

    unet: UNet
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: Any
    scheduler: Mapping[str, Any]

    def __post_init__(self) -> None:
        pairs = (
            ("the text encoder's hidden_size", self.text_encoder.config.hidden_size,
             "the U-Net's cross_attention_dim", self.unet.config.cross_attention_dim),
            ("the autoencoder's latent_channels", self.vae.config.latent_channels,
             "the U-Net's out_channels", self.unet.config.out_channels),
            ("the autoencoder's latent_channels", self.vae.config.latent_channels,
             "the U-Net's in_channels", self.unet.config.in_channels),
        )  # fmt: skip
        for one, size, other, wanted in pairs:
            if size != wanted:
                raise InputError(
                    f"{one} is {size}, and {other} {wanted}: they are not of one pipeline "
                    "from texts to pictures"
                )


def load_pipeline(
    folder: str | os.PathLike[str],
    dtype: jax.typing.DTypeLike = jnp.float32,
    *,
    compute_dtype: str = "float32",
    remat: Remat = "none",
    variant: str | None = None,
) -> Pipeline:
    """Reads a folder that `save_pretrained` of diffusers' StableDiffusionPipeline, or `save_pipeline`, wrote.

    Safety checkers and feature extractors are not read. Only safetensors and JSON are; no code is run.

    Args:
      folder: with model_index.json, and a folder for each part.
      dtype: of all parameters.
      compute_dtype: type of activations and products, "float32" or "bfloat16".
      remat: what the backward pass of U-Net and text encoder computes again, see `UNetConfig`.
      variant: in the names of the files of weights, such as "fp16", see `files.load`.

    Raises:
      FileNotFoundError: no such folder, or a part is missing.
      ValueError: a part of another class (as in Stable Diffusion XL), or see `files.load`.
    """
    # With the extra `data`; the models alone do without it.
    from lora_jax.data.tokenizers import load_tokenizer

    folder = Path(folder)
    if not (folder / INDEX).is_file():
        raise MissingFileError(
            f"{folder / INDEX} is missing. A pipeline is a folder with {INDEX} and the folders unet, vae, "
            "text_encoder, tokenizer and scheduler, as save_pretrained of diffusers writes it; one file "
            "(.safetensors, .ckpt) becomes such a folder by StableDiffusionPipeline.from_single_file(file)"
            ".save_pretrained(folder)"
        )
    _check_index(read_object(folder / INDEX))
    settings = {"variant": variant, "compute_dtype": compute_dtype}
    text_encoder = load(folder / TEXT_ENCODER.name, TEXT_ENCODER, dtype, remat=remat, **settings)
    scheduler = folder / _SCHEDULER / _SCHEDULER_FILE
    return Pipeline(
        scheduler=read_object(scheduler).values,
        tokenizer=load_tokenizer(
            folder / _TOKENIZER, _TOKENS, vocab_size=text_encoder.config.vocab_size
        ),
        text_encoder=text_encoder,
        unet=load(folder / UNET.name, UNET, dtype, remat=remat, **settings),
        vae=load(folder / VAE.name, VAE, dtype, **settings),
    )


def _check_index(record: Record) -> None:
    """Raises FileError if model_index.json names parts of other kinds, or more of them."""
    for name, component in COMPONENTS.items():
        found, right = record.values.get(name), [component.library, component.class_name]
        if found != right:
            raise record.error(name, repr(found)[:80], f"{right}; others are not implemented")
    for name in (_SCHEDULER, _TOKENIZER):
        record.get(name, list)
    known = (*COMPONENTS, _SCHEDULER, _TOKENIZER, *_UNUSED)
    for name, value in record.values.items():
        if not name.startswith("_") and name not in known and value not in (None, [None, None]):
            raise record.error(
                name,
                repr(value)[:80],
                "no such part: this is another pipeline than Stable Diffusion 1 or 2",
            )


def save_pipeline(folder: str | os.PathLike[str], pipeline: Pipeline) -> None:
    """Writes a folder that `load_pipeline` reads again, and diffusers' StableDiffusionPipeline.

    Args:
      folder: is made if it is not there.
      pipeline: what to write; adapters must be merged into their models before.

    Raises:
      ValueError: see `files.save_model`.
    """
    folder = Path(folder)
    make_folder(folder)
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline"}
    for name, component in COMPONENTS.items():
        save_model(folder / name, getattr(pipeline, name))
        index[name] = [component.library, component.class_name]
    make_folder(folder / _SCHEDULER)
    text = to_json(dict(pipeline.scheduler)) + "\n"
    write_bytes(folder / _SCHEDULER / _SCHEDULER_FILE, text.encode())
    pipeline.tokenizer.save_pretrained(str(folder / _TOKENIZER))
    index |= {
        _SCHEDULER: ["diffusers", pipeline.scheduler.get("_class_name", "DDIMScheduler")],
        _TOKENIZER: ["transformers", type(pipeline.tokenizer).__name__],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }
    write_bytes(folder / INDEX, (to_json(index) + "\n").encode())
