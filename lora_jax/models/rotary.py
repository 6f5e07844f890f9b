"""Rotary position embeddings (Su et al. 2021), with the scalings of the Llama, Qwen and Gemma families.

A head's values i and i + size/2 are a pair, turned by the angle position * frequency[i], as Hugging Face's
weights have them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float, Float32, Int

from lora_jax.errors import InputError
from lora_jax.ranges import Number, OneOf, Range, Whole, check

_Floats = npt.NDArray[np.float32]
Scaling = Literal["default", "linear", "llama3", "yarn"]
_FACTOR = Number(least=1, most=10_000)
_TURNS = Number(above=0, most=10_000)
RANGES: Mapping[str, Range] = {
    "theta": Number(above=1, most=1e12),
    "scaling": OneOf(("default", "linear", "llama3", "yarn")),
    "factor": _FACTOR,
    "original_length": Whole(most=2**24),
    "low": _TURNS,
    "high": _TURNS,
    "attention_factor": Number(above=0, most=100),
}


class Rotation(NamedTuple):
    """Cosines and sines of the angles of every token; see `rotate`."""

    cos: Float[Array, "*kinds rows length half"]
    sin: Float[Array, "*kinds rows length half"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotary:
    """Frequencies of rotary positions.

    Attributes:
      theta: base of the frequencies theta^(-2i/size).
      scaling: how they were stretched for longer texts. "linear": all divided by `factor`. "llama3"
        (Llama 3.1): those that turn less than `low` times in `original_length` tokens divided, those that
        turn more than `high` times not, a line between. "yarn" (Peng et al. 2023): the same by the index
        of the frequency, with an `attention_factor` on cosines and sines.
      factor: see `scaling`.
      original_length: tokens of the longest text before the stretch.
      low: see `scaling`.
      high: see `scaling`.
      attention_factor: of "yarn".
      whole: "yarn" begins and ends its line at whole indices.

    Raises:
      InputError: a value is out of its range, or `high` is not above `low`.
    """

    theta: float = 10_000.0
    scaling: Scaling = "default"
    factor: float = 1.0
    original_length: int = 8192
    low: float = 1.0
    high: float = 4.0
    attention_factor: float = 1.0
    whole: bool = True

    def __post_init__(self) -> None:
        for name, allowed in RANGES.items():
            check(name, getattr(self, name), allowed)
        if self.high <= self.low:
            raise InputError(f"the high factor {self.high} must be above the low one, {self.low}")

    def frequencies(self, size: int) -> Float32[np.ndarray, " half"]:
        """Angle per position of every pair of a head of `size` values."""
        exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
        plain: _Floats = np.divide(1, np.float32(self.theta) ** exponents, dtype=np.float32)
        if self.scaling == "default":
            return plain
        divided: _Floats = plain / np.float32(self.factor)
        if self.scaling == "linear":
            return divided
        kept = self._kept_llama3(plain) if self.scaling == "llama3" else self._kept_yarn(size)
        mixed: _Floats = (divided * (1 - kept) + plain * kept).astype(np.float32)
        return mixed

    def _kept_llama3(self, plain: Float32[np.ndarray, " half"]) -> Float32[np.ndarray, " half"]:
        """How much of a frequency is not divided, from 0 to 1."""
        turns = self.original_length * plain / (2 * math.pi)
        return np.clip((turns - self.low) / (self.high - self.low), 0, 1).astype(np.float32)

    def _kept_yarn(self, size: int) -> Float32[np.ndarray, " half"]:
        def index(turns: float) -> float:
            """Index of the frequency that turns so often in the original length."""
            return (size * math.log(self.original_length / (turns * 2 * math.pi))) / (
                2 * math.log(self.theta)
            )

        first, last = index(self.high), index(self.low)
        if self.whole:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, size - 1)
        last = last + 0.001 if first == last else last
        line = (np.arange(size // 2, dtype=np.float32) - first) / (last - first)
        return np.asarray(1 - np.clip(line, 0, 1), np.float32)


def rotations(
    rotaries: Sequence[Rotary], size: int, positions: Int[Array, "rows length"]
) -> Rotation:
    """Cosines and sines of several kinds of layers, (kinds, rows, length, size/2), float32.

    Args:
      rotaries: of every kind.
      size: of a head.
      positions: of every token in its example.
    """
    frequencies = jnp.asarray(np.stack([rotary.frequencies(size) for rotary in rotaries]))
    factors = jnp.asarray([rotary.attention_factor for rotary in rotaries])[:, None, None, None]
    angles = positions[None, :, :, None].astype(jnp.float32) * frequencies[:, None, None]
    return Rotation(jnp.cos(angles) * factors, jnp.sin(angles) * factors)


def rotate(
    x: Float[Array, "rows length heads size"], rotation: Rotation
) -> Float[Array, "rows length heads size"]:
    """Turns queries or keys by their positions; the products are float32, the result is in the type of x."""
    cos, sin = (part[..., None, :] for part in rotation)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
