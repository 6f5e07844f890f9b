"""What a diffusion model is trained with: the squared error of its prediction at random noise levels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from lora_jax.diffusion.schedule import NoiseSchedule, add_noise, target

# Of noisy pictures and their timesteps: what the model gives.
Denoise = Callable[[Float[Array, "n h w c"], Int[Array, " n"]], Float[Array, "n h w c"]]


def snr_weights(
    schedule: NoiseSchedule, timesteps: Int[Array, " n"], gamma: float
) -> Float[Array, " n"]:
    """Weights of Min-SNR (Hang et al. 2023): the signal-to-noise ratio counts no more than `gamma`.

    Args:
      schedule: of the noise.
      timesteps: of every picture.
      gamma: 5 in that paper.
    """
    alphas = jnp.asarray(schedule.alphas)[timesteps]
    ratio = alphas / jnp.maximum(1 - alphas, jnp.finfo(alphas.dtype).tiny)
    least = jnp.minimum(ratio, gamma)
    if schedule.prediction_type == "sample":
        return least
    return least / (ratio + (schedule.prediction_type == "v_prediction"))


def denoising_losses(
    schedule: NoiseSchedule,
    denoise: Denoise,
    pictures: Float[Array, "n h w c"],
    noise: Float[Array, "n h w c"],
    timesteps: Int[Array, " n"],
    snr_gamma: float | None = None,
) -> Float[Array, " n"]:
    """The mean squared error of the prediction for every picture.

    Args:
      schedule: of the noise.
      denoise: the model.
      pictures: x_0.
      noise: standard normal.
      timesteps: t of every picture.
      snr_gamma: of `snr_weights`; None weighs all noise levels alike (Ho et al. 2020, eq. 14).
    """
    noisy = add_noise(schedule, pictures, noise, timesteps)
    wanted = target(schedule, pictures, noise, timesteps)
    errors = jnp.square(denoise(noisy, timesteps) - wanted).reshape(len(pictures), -1)
    losses = jnp.mean(errors, axis=1)
    if snr_gamma is None:
        return losses
    return losses * snr_weights(schedule, timesteps, snr_gamma)


def draw(
    schedule: NoiseSchedule, key: Key[Array, ""], pictures: Float[Array, "n h w c"]
) -> tuple[Float[Array, "n h w c"], Int[Array, " n"]]:
    """Noise, and timesteps that are equally probable, for every picture."""
    for_noise, for_steps = jax.random.split(key)
    noise = jax.random.normal(for_noise, pictures.shape, pictures.dtype)
    count = schedule.num_train_timesteps
    return noise, jax.random.randint(for_steps, pictures.shape[:1], 0, count)


def without_some(key: Key[Array, ""], captions: Any, empty: Any, rate: float) -> Any:
    """Captions of which a share is empty, for classifier-free guidance (Ho and Salimans 2022).

    Args:
      key: of the choice.
      captions: a tree of arrays whose first axis is that of the pictures.
      empty: what an empty caption is; broadcasts.
      rate: share of the captions that are emptied.
    """
    first = jax.tree.leaves(captions)[0]
    chosen = jax.random.bernoulli(key, rate, first.shape[:1])

    def emptied(values: Array, none: Array | np.ndarray) -> Array:
        return jnp.where(chosen.reshape(-1, *(1,) * (values.ndim - 1)), none, values)

    return jax.tree.map(emptied, captions, empty)
