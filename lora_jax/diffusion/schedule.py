"""Schedules of noise: how much of a picture is left after t steps of noising.

x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise, with a_t the product of 1 - beta up to t (Ho et al. 2020, eq. 4).
Values are those of `diffusers` 0.42, in float32 as there, since published weights were trained with them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lora_jax.ranges import Flag, Number, OneOf, OrNone, Whole, check_settings, setting

Betas = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
Prediction = Literal["epsilon", "v_prediction", "sample"]
Spacing = Literal["leading", "linspace", "trailing"]
Variance = Literal["fixed_small", "fixed_small_log", "fixed_large"]
_LARGEST_BETA = 0.999  # of squaredcos_cap_v2


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """A schedule of noise, and what samplers need to know of it. Names and defaults are those of diffusers.

    Attributes:
      num_train_timesteps: steps of the noising.
      beta_start, beta_end: variance of the first and of the last step's noise.
      beta_schedule: between them: `linear`, linear in its root (`scaled_linear`, Stable Diffusion's), or the
        cosine of Nichol and Dhariwal 2021 (`squaredcos_cap_v2`), which has no use for the two ends.
      prediction_type: what the model gives: the noise (epsilon), v of Salimans and Ho 2022, or x_0 (sample).
      timestep_spacing: which steps a sampler with fewer steps visits; None: as its sampler does in diffusers,
        `linspace` for Euler and `leading` for the others.
      steps_offset: added to the steps of `leading`.
      clip_sample: whether DDPM and DDIM cut the predicted x_0 to the range of pictures.
      clip_sample_range: its largest absolute value.
      set_alpha_to_one: whether DDIM's last step arrives at a picture without noise, or at step 0's noise.
      variance_type: of the noise that DDPM adds; the first two are the same.
      rescale_betas_zero_snr: whether nothing of the picture is left after the last step (Lin et al. 2023).
    """

    num_train_timesteps: int = setting(1000, Whole(least=2, most=10**6))
    beta_start: float = setting(1e-4, Number(above=0, below=1))
    beta_end: float = setting(0.02, Number(above=0, below=1))
    beta_schedule: Betas = setting("linear", OneOf(get_args(Betas)))
    prediction_type: Prediction = setting("epsilon", OneOf(get_args(Prediction)))
    timestep_spacing: Spacing | None = setting(
        None, OrNone(of=OneOf(get_args(Spacing)), none="the sampler's own")
    )
    steps_offset: int = setting(0, Whole(least=0, most=10**6))
    clip_sample: bool = setting(True, Flag())
    clip_sample_range: float = setting(1.0, Number(above=0))
    set_alpha_to_one: bool = setting(True, Flag())
    variance_type: Variance = setting("fixed_small", OneOf(get_args(Variance)))
    rescale_betas_zero_snr: bool = setting(False, Flag())

    def __post_init__(self) -> None:
        check_settings(self)

    @functools.cached_property
    def betas(self) -> Float[np.ndarray, " steps"]:
        """The variance of every step's noise."""
        steps, start, end = self.num_train_timesteps, self.beta_start, self.beta_end
        if self.beta_schedule == "squaredcos_cap_v2":
            left = [
                math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(steps + 1)
            ]
            pairs = itertools.pairwise(left)
            betas = np.array([min(1 - after / before, _LARGEST_BETA) for before, after in pairs])
        elif self.beta_schedule == "scaled_linear":
            betas = np.linspace(start**0.5, end**0.5, steps).astype(np.float32) ** 2
        else:
            betas = np.linspace(start, end, steps)
        betas = betas.astype(np.float32)
        return _zero_terminal(betas) if self.rescale_betas_zero_snr else betas

    @functools.cached_property
    def alphas(self) -> Float[np.ndarray, " steps"]:
        """a_t of every step: the share of the picture in the variance."""
        return np.cumprod(np.float32(1) - self.betas, dtype=np.float32)


def _zero_terminal(betas: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " steps"]:
    """Betas after which nothing of the picture is left (Lin et al. 2023, algorithm 1)."""
    roots = np.sqrt(np.cumprod(np.float32(1) - betas, dtype=np.float32))
    roots = (roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))
    alphas = roots**2
    return np.float32(1) - np.concatenate([alphas[:1], alphas[1:] / alphas[:-1]])


def roots(
    schedule: NoiseSchedule, timesteps: Int[Array, " n"], like: Float[Array, "n h w c"]
) -> tuple[Float[Array, "n 1 1 1"], Float[Array, "n 1 1 1"]]:
    """sqrt(a_t) and sqrt(1 - a_t), with axes that broadcast over pictures.

    Args:
      schedule: of the noise.
      timesteps: of every picture.
      like: pictures.
    """
    alphas = jnp.asarray(schedule.alphas, like.dtype)[timesteps]
    alphas = alphas.reshape(-1, *(1,) * (like.ndim - 1))
    return jnp.sqrt(alphas), jnp.sqrt(1 - alphas)


def add_noise(
    schedule: NoiseSchedule,
    pictures: Float[Array, "n h w c"],
    noise: Float[Array, "n h w c"],
    timesteps: Int[Array, " n"],
) -> Float[Array, "n h w c"]:
    """x_t of pictures x_0.

    Args:
      schedule: of the noise.
      pictures: x_0.
      noise: standard normal.
      timesteps: t of every picture, from 0.
    """
    signal, spread = roots(schedule, timesteps, pictures)
    return signal * pictures + spread * noise


def target(
    schedule: NoiseSchedule,
    pictures: Float[Array, "n h w c"],
    noise: Float[Array, "n h w c"],
    timesteps: Int[Array, " n"],
) -> Float[Array, "n h w c"]:
    """What the model should give for x_t: the noise, v = sqrt(a_t) noise - sqrt(1 - a_t) x_0, or x_0."""
    if schedule.prediction_type == "epsilon":
        return noise
    if schedule.prediction_type == "sample":
        return pictures
    signal, spread = roots(schedule, timesteps, pictures)
    return signal * noise - spread * pictures
