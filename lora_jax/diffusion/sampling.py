"""Drawing pictures with a diffusion model: all steps of a sampler as one compiled loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from lora_jax.diffusion.samplers import Plan, Steps, advance
from lora_jax.ranges import Number, check

# Of x, the timesteps of every picture, and captions: what the model gives.
Model = Callable[[Array, Array, Any], Array]


def sample(
    model: Model,
    plan: Plan,
    noise: Float[Array, "n h w c"],
    captions: Any,
    *,
    empty: Any = None,
    guidance: float = 1.0,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "n h w c"]:
    """Draws one picture for each caption, as one `lax.scan`.

    Args:
      model: of x, timesteps (n,) and captions.
      plan: the sampler's steps, from `samplers.plan`.
      noise: standard normal; equal noise and captions give equal pictures but for fresh noise.
      captions: what the model reads of every picture, a tree of arrays whose first axis is n.
      empty: the same of empty captions, for guidance.
      guidance: w of classifier-free guidance (Ho and Salimans 2022): the output is `without + w * (with -
        without)`; at 1 the model runs once a step, and `empty` is not read.
      key: of fresh noise; needed by samplers that add some.

    Returns:
      Pictures, or latents where the model is one of latents.

    Raises:
      InputError: `guidance` is below 0.
    """
    check("guidance", guidance, Number(least=0))
    steps = Steps(*(jnp.asarray(v, noise.dtype) for v in plan.steps))
    both = captions
    if guidance != 1:
        both = jax.tree.map(lambda none, of: jnp.concatenate([none, of]), empty, captions)
    copies = 2 if guidance != 1 else 1

    def output(x: Array, at: Steps) -> Array:
        seen = jnp.concatenate([x * at.input_scale] * copies)
        given = model(seen, jnp.full(len(seen), at.timesteps), both)
        if copies == 1:
            return given
        without, of_captions = jnp.split(given, 2)
        return without + guidance * (of_captions - without)

    def step(x: Array, numbered: tuple[Steps, Array]) -> tuple[Array, None]:
        at, number = numbered
        fresh = jnp.zeros_like(x)
        if key is not None:
            fresh = jax.random.normal(jax.random.fold_in(key, number), x.shape, x.dtype)
        return advance(at, x, output(x, at), fresh)[0], None

    numbers = jnp.arange(len(steps.timesteps))
    return jax.lax.scan(step, noise * plan.start, (steps, numbers))[0]
