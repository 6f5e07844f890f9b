"""The diffusion models that are adapted: small ones of this project, and Stable Diffusion in a folder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from experiments.runs import command_line
from experiments.runs.folder import is_run
from lora_jax import digests
from lora_jax.diffusion import captioned, schedule_json
from lora_jax.diffusion.schedule import NoiseSchedule
from lora_jax.errors import InputError, MissingFileError, brief
from lora_jax.models.diffusion.pipeline import INDEX, load_pipeline
from lora_jax.models.diffusion.vae import AutoencoderKL
from lora_jax.run_files import MODEL
from lora_jax.run_folder import RESULT

_TEXTS = 32  # captions that are encoded at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """A model with what stands around it. What it draws are its `inputs`: pixels, or latents.

    Attributes:
      name: the folder, of a small model that of its run.
      model: of (inputs, timesteps, captions).
      schedule: of the noise.
      shape: of one input.
      size, channels: of pictures.
      rows: of captions, the numbers of their words or tokens.
      text_encoder: of these numbers; None where the model itself reads them.
      to_inputs: of pictures.
      to_pictures: of inputs.
      digest: of the weights.
      words: number of a word's row in the table; None where texts are encoded.
    """

    name: str
    model: nnx.Module
    schedule: NoiseSchedule
    shape: tuple[int, int, int]
    size: int
    channels: int
    rows: Callable[[Sequence[str]], np.ndarray]
    to_inputs: Callable[[np.ndarray], np.ndarray]
    to_pictures: Callable[[np.ndarray], np.ndarray]
    digest: str
    words: Callable[[str], int] | None = None
    text_encoder: nnx.Module | None = None

    def encode(self, captions: Sequence[str]) -> np.ndarray:
        """Captions as the model reads them; the first axis is that of the captions."""
        rows = self.rows(captions)
        if self.text_encoder is None:
            return rows
        parts = (jnp.asarray(rows[s : s + _TEXTS]) for s in range(0, len(rows), _TEXTS))
        return np.concatenate([np.asarray(_context(self.text_encoder, part)) for part in parts])

    @property
    def empty(self) -> np.ndarray:
        """An empty caption."""
        return self.encode([""])


def of_captioned(made: captioned.Captioned, name: str, digest: str = "") -> Base:
    """A small model of pixels."""
    side, channels = made.config.sample_size, made.config.in_channels
    return Base(
        name=name, model=made.model, schedule=made.schedule, shape=(side, side, channels), size=side,
        channels=channels, rows=made.words.encode, to_inputs=lambda pictures: pictures,
        to_pictures=lambda inputs: inputs, digest=digest, words=made.words.number,
    )  # fmt: skip


def read(name: str, size: int, dtype: str) -> Base:
    """The base of a config.

    Args:
      name: folder of a run of `experiments.diffusion`, of its model, or of Stable Diffusion.
      size: of the pictures, where it is free: Stable Diffusion's.
      dtype: of Stable Diffusion's weights.

    Raises:
      MissingFileError, FileError: there is no model, or it is broken.
    """
    folder = Path(name).expanduser()
    if (folder / INDEX).is_file():
        return _stable_diffusion(folder, size, dtype)
    inner = folder / MODEL if (folder / MODEL).is_dir() else folder
    without = inner == folder and is_run(folder)
    if without or not (inner / captioned.CONFIG).is_file():
        why = "is a run of an adapter, or in its first epoch: it " if without else ""
        raise MissingFileError(
            f"{folder} {why}has neither {INDEX} (Stable Diffusion as diffusers saves it) nor "
            f"{MODEL}/{captioned.CONFIG} (a run of experiments.diffusion); name the folder of one of them. "
            "One file of Stable Diffusion becomes a folder by diffusers: "
            "StableDiffusionPipeline.from_single_file(file).save_pretrained(folder)"
        )
    run = inner.parent if inner.name == MODEL and is_run(inner.parent) else inner
    if run != inner and not (run / RESULT).is_file():
        command_line.say(f"{run} has not ended; this is the model of its best epoch so far")
    return of_captioned(captioned.load(inner), str(run), _digest(inner))


def _digest(folder: Path) -> str:
    weights = sorted([*folder.rglob("*.safetensors"), *folder.rglob("*.json")])
    return digests.of_files(weights)


def _stable_diffusion(folder: Path, size: int, dtype: str) -> Base:
    """Stable Diffusion 1.x or 2.x: U-Net, autoencoder, text encoder, tokenizer and schedule."""
    schedule = schedule_json.read(folder / "scheduler" / schedule_json.FILE)
    made = load_pipeline(folder, dtype, compute_dtype=dtype)
    vae, texts, tokenizer = made.vae, made.text_encoder, made.tokenizer
    factor, latent = vae.config.factor, vae.config.latent_channels
    if size % factor:
        raise InputError(
            f"pictures of {size} pixels: the autoencoder of {folder} takes multiples of {factor}"
        )
    length = min(tokenizer.model_max_length, texts.config.max_position_embeddings)

    def rows(captions: Sequence[str]) -> np.ndarray:
        found = tokenizer(list(captions), verbose=False)["input_ids"]
        if long := [text for text, ids in zip(captions, found, strict=True) if len(ids) > length]:
            command_line.say(
                f"of {len(long)} captions only the first {length} tokens are read, with those of start and "
                f"end; the first is {brief(long[0])}"
            )
        whole = tokenizer(list(captions), padding="max_length", truncation=True, max_length=length)
        return np.asarray(whole["input_ids"], np.int32)

    return Base(
        name=str(folder), model=made.unet, schedule=schedule,
        shape=(size // factor, size // factor, latent), size=size, channels=vae.config.in_channels,
        rows=rows, text_encoder=texts, digest=_digest(folder),
        # One by one: a picture of 512 x 512 takes gigabytes on its way through the autoencoder.
        to_inputs=lambda pictures: _each(functools.partial(_latents, vae), pictures, "encoding pictures"),
        to_pictures=lambda inputs: _each(functools.partial(_pictures, vae), inputs, "decoding pictures"),
    )  # fmt: skip


def _each(function: Callable[[np.ndarray], jax.Array], values: np.ndarray, what: str) -> np.ndarray:
    """The function of each value, with a progress bar."""
    bar = tqdm(values, desc=what, leave=False, disable=None)
    return np.concatenate([np.asarray(function(value[None])) for value in bar])


@nnx.jit
def _latents(vae: AutoencoderKL, pictures: jax.Array) -> jax.Array:
    return vae.to_latents(pictures)


@nnx.jit
def _pictures(vae: AutoencoderKL, latents: jax.Array) -> jax.Array:
    return vae.to_images(latents)


@nnx.jit
def _context(texts: nnx.Module, tokens: jax.Array) -> jax.Array:
    context: jax.Array = texts(tokens)  # type: ignore[operator]
    return context
