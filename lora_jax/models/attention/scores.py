"""How products of queries and keys become scores."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class Scores:
    """How products of queries and keys become scores.

    Attributes:
      scale: factor; None: 1 / sqrt(size of a head).
      cap: scores are cap tanh(score / cap), as Gemma 2 has them; None: as they are.
    """

    scale: float | None = None
    cap: float | None = None

    def of_size(self, size: int) -> float:
        """The factor for heads of a size."""
        return size**-0.5 if self.scale is None else self.scale

    def capped(self, scores: Float[Array, ...]) -> Float[Array, ...]:
        """The scores within the cap."""
        return scores if self.cap is None else self.cap * jnp.tanh(scores / self.cap)


PLAIN = Scores()
