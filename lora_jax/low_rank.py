"""What LoRA inserts into a layer: a factor pair, or one for each chosen part of a fused projection."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from flax import nnx
from jaxtyping import Array, Float

from lora_jax import factors
from lora_jax.dropout import dropout
from lora_jax.surgery import Inserted


class DropoutKey(nnx.Variable):
    """Random key of one adapted layer's dropout; never a parameter."""


class DropoutRate(nnx.Variable):
    """Rate of one adapted layer's dropout, where it is a number of a run and not of the model."""


class LowRank(Inserted):
    """The factor pair of one weight: what LoRA inserts.

    Attributes:
      a: (*stack, *batch, *inputs, rank).
      b: (*stack, *batch, rank, *outputs).
      scale: alpha/r or alpha/sqrt(r).
      dropout: rate on the input of A, on this branch only (as loralib).
    """

    def __init__(self, a: Array, b: Array, *, alpha: float, scale: float, dropout: float):
        self.a = nnx.LoRAParam(a)
        self.b = nnx.LoRAParam(b)
        self.alpha = alpha
        self.scale = scale
        self.dropout = dropout

    # only while `seed_dropout` has set them
    dropout_key: DropoutKey
    dropout_rate: DropoutRate

    @property
    def rank(self) -> int:
        """Rank of the update."""
        return self.a.shape[-1]

    def pairs(self) -> dict[str, LowRank]:
        """This one, without a part's name."""
        return {"": self}

    def drop(self, inputs: Float[Array, ...]) -> Float[Array, ...]:
        """The branch's input, with dropout if this layer holds a key."""
        key = self.dropout_key[...] if hasattr(self, "dropout_key") else None
        rate = self.dropout_rate[...] if hasattr(self, "dropout_rate") else self.dropout
        return dropout(inputs, rate, key)


class FusedLowRank(Inserted):
    """Factor pairs of chosen parts of a fused projection, one child `LowRank` per part.

    The parts divide the first output axis of the weight: q, k, v are the three of our GPT-2's kernel
    (d, 3, d), or thirds of a kernel (d, 3d). Each part has factors of its own (loralib's
    `MergedLinear`); the other parts get no update.
    """

    def __init__(self, parts: dict[str, LowRank], names: tuple[str, ...], sizes: tuple[int, ...]):
        self.names = names
        self.sizes = sizes
        for name, pair in parts.items():
            setattr(self, name, pair)

    def pairs(self) -> dict[str, LowRank]:
        """The factor pairs of the adapted parts by name."""
        return {name: getattr(self, name) for name in self.names if hasattr(self, name)}

    def slots(self) -> Iterator[tuple[LowRank | None, int, int]]:
        """Yields (factor pair or None, start, size) for every part, in order."""
        start = 0
        for name, size in zip(self.names, self.sizes, strict=True):
            yield getattr(self, name, None), start, size
            start += size


@dataclasses.dataclass(frozen=True)
class Update:
    """How one layer is adapted: what `adapt` needs besides the layer.

    `parts` chooses among the `fused` parts of a fused projection (empty: one whole matrix);
    `fused_sizes` gives their sizes along the first output axis where they are not equal.
    """

    rank: int
    alpha: float
    scaling: factors.Scaling = "alpha/r"
    init: factors.Init = "kaiming"
    std: float = 0.02
    dropout: float = 0.0
    parts: tuple[str, ...] = ()
    fused: tuple[str, ...] = ()
    fused_sizes: tuple[int, ...] = ()
