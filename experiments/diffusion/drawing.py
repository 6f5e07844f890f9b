"""Drawing pictures with a base, or with an adapted one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from experiments.diffusion.bases import Base
from lora_jax.diffusion import samplers, sampling

_POINTS = 2**14  # of the inputs that are drawn at once: 256 of 8 x 8, 4 of 64 x 64


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How pictures are drawn.

    Attributes:
      sampler, steps, guidance: see `samplers.plan` and `sampling.sample`.
      seed: of the noise.
    """

    sampler: samplers.Sampler
    steps: int
    guidance: float
    seed: int

    def noise(self, base: Base, count: int) -> np.ndarray:
        """What pictures start with: the same for all adapters of a base."""
        return np.asarray(jax.random.normal(jax.random.key(self.seed), (count, *base.shape)))

    def function(self, base: Base) -> Callable[[nnx.Module, Any], jax.Array]:
        """Of a model and a batch of `noise` and `captions`: what it draws."""
        cuts = base.schedule.clip_sample
        plan = samplers.plan(base.schedule, self.sampler, self.steps, noise_of_cut=cuts)
        empty, key = base.empty, jax.random.key(self.seed + 1)

        def draw(model: nnx.Module, batch: Any) -> jax.Array:
            shape = batch["captions"].shape
            return sampling.sample(
                model, plan, batch["noise"], batch["captions"],  # type: ignore[arg-type]
                empty=jnp.broadcast_to(empty, shape), guidance=self.guidance, key=key,
            )  # fmt: skip

        return draw

    def batches(self, base: Base, captions: Sequence[str]) -> list[dict[str, np.ndarray]]:
        """Noise and captions, in batches of one size where there are many."""
        noise, encoded = self.noise(base, len(captions)), base.encode(captions)
        most = max(1, _POINTS // (base.shape[0] * base.shape[1]))
        return [
            {"noise": noise[start : start + most], "captions": encoded[start : start + most]}
            for start in range(0, len(captions), most)
        ]


def draw(base: Base, model: nnx.Module, captions: Sequence[str], how: Drawing) -> np.ndarray:
    """Pictures of captions."""
    function, batches = nnx.jit(how.function(base)), how.batches(base, captions)
    shown = tqdm(batches, desc=f"drawing {len(captions)} pictures", disable=None)
    inputs = [np.asarray(function(model, batch)) for batch in shown]
    return base.to_pictures(np.concatenate(inputs))
