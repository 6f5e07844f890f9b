"""Samplers: DDPM, DDIM and Euler as tables of numbers, one row for each step.

What differs between samplers is numbers alone: from x_t and what the model gives follow x_0 and the noise in
x_t, both weighted sums; the next x is a weighted sum of these, of x_t and of fresh noise. Every number here
equals what diffusers 0.42 computes in `DDPMScheduler`, `DDIMScheduler` and `EulerDiscreteScheduler`.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lora_jax.checks import integer
from lora_jax.diffusion.schedule import NoiseSchedule
from lora_jax.errors import InputError
from lora_jax.ranges import Number, OneOf, check

Sampler = Literal["ddpm", "ddim", "euler"]
SAMPLERS = get_args(Sampler)
_NEARLY_ALL_NOISE = 2**-24  # diffusers' a_T for Euler where nothing of the picture is left
_LEAST_VARIANCE = 1e-20  # of DDPM


class Steps(NamedTuple):
    """The numbers of all steps of a sampler, in the order of sampling; float64 but for `timesteps`.

    Attributes:
      timesteps: that the model is told; not whole for some of Euler's.
      input_scale: the model sees x_t times this.
      x0_sample, x0_output: weights of x_t and of the model's output in the predicted x_0.
      noise_sample, noise_output: the same for the predicted noise.
      limit: largest absolute value of the predicted x_0; infinite where it is not cut.
      next_x0, next_noise, next_sample: weights in the next x.
      fresh: weight of fresh noise in it.
    """

    timesteps: Any
    input_scale: Any
    x0_sample: Any
    x0_output: Any
    noise_sample: Any
    noise_output: Any
    limit: Any
    next_x0: Any
    next_noise: Any
    next_sample: Any
    fresh: Any


class Plan(NamedTuple):
    """A sampler's steps, and the standard deviation of the noise that it starts with."""

    steps: Steps
    start: float


def plan(
    schedule: NoiseSchedule,
    sampler: Sampler,
    steps: int,
    eta: float = 0.0,
    *,
    noise_of_cut: bool = False,
) -> Plan:
    """The steps of a sampler.

    Args:
      schedule: of the noise.
      sampler: `ddpm` (Ho et al. 2020), `ddim` (Song et al. 2021) or `euler` (Karras et al. 2022).
      steps: number of them.
      eta: of DDIM: 0 adds no fresh noise, 1 as much as DDPM.
      noise_of_cut: of DDIM where x_0 is cut (`clip_sample`): whether the noise is what is left of x_t beside
        the cut x_0, diffusers' `use_clipped_model_output`. Without it strong guidance on pixels goes astray:
        cutting stops it in x_0 and leaves the noise, which moves the other way.

    Raises:
      InputError: a value is out of its range, or the last steps would lie outside of the schedule.
    """
    check("sampler", sampler, OneOf(SAMPLERS))
    steps = integer("steps", steps)
    eta = check("eta", eta, Number(least=0, most=1))
    if steps > schedule.num_train_timesteps:
        raise InputError(
            f"steps is {steps}, but the schedule has {schedule.num_train_timesteps} only; lower steps"
        )
    if sampler == "euler":
        return _euler(schedule, steps)
    times: Any = timesteps(schedule, steps, "leading").astype(np.int64)
    if times.max() >= schedule.num_train_timesteps:
        raise InputError(
            f"the first of {steps} steps would be {times.max()} (steps_offset {schedule.steps_offset}), but "
            f"the schedule ends at {schedule.num_train_timesteps - 1}; use fewer steps, or another "
            "timestep_spacing"
        )
    if sampler == "ddpm":
        return Plan(_ddpm(schedule, times), 1.0)
    return Plan(_ddim(schedule, times, eta, noise_of_cut), 1.0)


def timesteps(schedule: NoiseSchedule, steps: int, default: str) -> Any:
    """The timesteps that a sampler visits, from the last one down (Lin et al. 2023, table 2).

    Args:
      schedule: of the noise.
      steps: number of steps.
      default: spacing where the schedule names none.
    """
    total, spacing = schedule.num_train_timesteps, schedule.timestep_spacing or default
    if spacing == "linspace":
        times = np.linspace(0, total - 1, steps)[::-1]
        return times if default == "linspace" else times.round()
    if spacing == "leading":
        times = np.arange(steps, dtype=np.float64)[::-1] * (total // steps) + schedule.steps_offset
        return times
    return np.round(np.arange(total, 0, -total / steps)) - 1


def _predictions(schedule: NoiseSchedule, alpha: Any) -> dict[str, Any]:
    """The weights with which x_0 and the noise follow from x_t and the model's output."""
    signal, spread = np.sqrt(alpha), np.sqrt(1 - alpha)
    zero, one = np.zeros_like(alpha), np.ones_like(alpha)
    limit = schedule.clip_sample_range if schedule.clip_sample else np.inf
    with np.errstate(divide="ignore", invalid="ignore"):  # a_T = 0: epsilon says nothing of x_0
        names = {
            "epsilon": (1 / signal, -spread / signal, zero, one),
            "sample": (zero, one, 1 / spread, -signal / spread),
            "v_prediction": (signal, -spread, spread, signal),
        }
    kinds = ("x0_sample", "x0_output", "noise_sample", "noise_output")
    chosen = dict(zip(kinds, names[schedule.prediction_type], strict=True))
    return {**chosen, "limit": limit * one, "input_scale": one}


def _ddpm(schedule: NoiseSchedule, times: Any) -> Steps:
    """Equations 7 and 11 of Ho et al. 2020, from each of the timesteps to the next one."""
    alphas = schedule.alphas.astype(np.float64)
    alpha, before = alphas[times], np.append(alphas[times[1:]], 1.0)
    beta = 1 - alpha / before
    small = np.maximum((1 - before) / (1 - alpha) * beta, _LEAST_VARIANCE)
    variance = beta if schedule.variance_type == "fixed_large" else small
    return Steps(
        timesteps=times, **_predictions(schedule, alpha),
        next_x0=np.sqrt(before) * beta / (1 - alpha), next_noise=0 * alpha,
        next_sample=np.sqrt(1 - beta) * (1 - before) / (1 - alpha),
        fresh=np.where(times > 0, np.sqrt(variance), 0.0),
    )  # fmt: skip


def _ddim(schedule: NoiseSchedule, times: Any, eta: float, noise_of_cut: bool) -> Steps:
    """Equations 12 and 16 of Song et al. 2021."""
    alphas = schedule.alphas.astype(np.float64)
    earlier = times - schedule.num_train_timesteps // len(times)
    last = 1.0 if schedule.set_alpha_to_one else alphas[0]
    alpha, before = alphas[times], np.where(earlier >= 0, alphas[np.maximum(earlier, 0)], last)
    spread = eta * np.sqrt((1 - before) / (1 - alpha) * (1 - alpha / before))
    found = Steps(
        timesteps=times, **_predictions(schedule, alpha), next_x0=np.sqrt(before),
        next_noise=np.sqrt(1 - before - spread**2), next_sample=0 * alpha, fresh=spread,
    )  # fmt: skip
    if not noise_of_cut:
        return found
    of_sample = found.next_noise / np.sqrt(
        1 - alpha
    )  # the noise is (x_t - sqrt(a_t) x_0) / sqrt(1 - a_t)
    return found._replace(
        next_x0=found.next_x0 - np.sqrt(alpha) * of_sample,
        next_noise=0 * alpha,
        next_sample=of_sample,
    )


def _euler(schedule: NoiseSchedule, steps: int) -> Plan:
    """Algorithm 2 of Karras et al. 2022 without its correction and without fresh noise.

    Its x is x_t / sqrt(a_t), with noise of standard deviation sigma.
    """
    alphas = schedule.alphas.astype(np.float64)
    if schedule.rescale_betas_zero_snr:
        alphas[-1] = _NEARLY_ALL_NOISE
    times: Any = timesteps(schedule, steps, "linspace")
    sigmas = np.sqrt((1 - alphas) / alphas)
    sigma = np.interp(times, np.arange(len(sigmas)), sigmas)
    ratio = np.append(sigma[1:], 0.0) / sigma
    scale = 1 / np.sqrt(sigma**2 + 1)
    predicted = _predictions(schedule, scale**2)
    if schedule.prediction_type != "sample":  # of x_t = scale * x
        predicted["x0_sample"] = predicted["x0_sample"] * scale
    predicted |= {"input_scale": scale, "limit": np.full_like(sigma, np.inf)}
    start = float(sigma.max())
    if (schedule.timestep_spacing or "linspace") == "leading":
        start = float(np.sqrt(start**2 + 1))
    found = Steps(
        timesteps=times, **predicted, next_x0=1 - ratio, next_noise=0 * sigma, next_sample=ratio,
        fresh=0 * sigma,
    )  # fmt: skip
    return Plan(found, start)


def advance(
    at: Steps,
    sample: Float[Array, "*shape"],
    output: Float[Array, "*shape"],
    fresh: Float[Array, "*shape"],
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """One step: the next x, and the predicted x_0.

    Args:
      at: one row of the steps.
      sample: x_t.
      output: what the model gave for `sample * at.input_scale`.
      fresh: standard normal noise; without effect where `at.fresh` is 0.
    """
    x0 = jnp.clip(at.x0_sample * sample + at.x0_output * output, -at.limit, at.limit)
    noise = at.noise_sample * sample + at.noise_output * output
    following = at.next_x0 * x0 + at.next_noise * noise + at.next_sample * sample
    return following + at.fresh * fresh, x0
