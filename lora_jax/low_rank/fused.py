"""Fused projections: one weight for several parts, of which some have an update."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from lora_jax.errors import InputError
from lora_jax.low_rank.settings import UpdateSettings
from lora_jax.low_rank.updates import BaseCall, PartUpdate, WeightUpdate
from lora_jax.low_rank.weights import WeightView


class FusedUpdate(WeightUpdate):
    """Updates of chosen parts of a fused projection, one child for each.

    The parts divide the first output axis of the weight: q, k, v are the three of our GPT-2's kernel
    (d, 3, d), or thirds of a kernel (d, 3d). Each part has factors of its own (loralib's
    `MergedLinear`); the other parts get no update.

    Attributes:
      names: of all parts, in order.
      sizes: of all parts along that axis.
    """

    def __init__(
        self, parts: dict[str, PartUpdate], names: tuple[str, ...], sizes: tuple[int, ...]
    ):
        self.names = names
        self.sizes = sizes
        for name, update in parts.items():
            setattr(self, name, update)

    def members(self) -> dict[str, PartUpdate]:
        """The updates of the adapted parts by name."""
        return {name: getattr(self, name) for name in self.names if hasattr(self, name)}

    def members_with_weights(self, weight: WeightView) -> dict[str, tuple[PartUpdate, WeightView]]:
        """The updates of the adapted parts, each with its part of the weight."""
        return {
            name: (update, part)
            for name, update, part in self._all_parts(weight)
            if update is not None
        }

    def _all_parts(self, weight: WeightView) -> Iterator[tuple[str, PartUpdate | None, WeightView]]:
        """Yields the name of every part, in order, its update if it has one, and its weight."""
        for name, part in zip(self.names, weight.parts(self.sizes), strict=True):
            yield name, getattr(self, name, None), part

    def output(self, weight: WeightView, inputs: Num[Array, ...], base: BaseCall) -> Array:
        """The outputs of all parts, joined."""
        outputs = base(inputs)
        axis = weight.output_axis(outputs.ndim)
        pieces = []
        for _, update, part in self._all_parts(weight):

            def base_part(x: Array, part: WeightView = part) -> Array:
                return part.sliced(outputs if x is inputs else base(x), axis)

            if update is None:
                pieces.append(base_part(inputs))
            else:
                pieces.append(update.output(part, inputs, base_part))
        return jnp.concatenate(pieces, axis=axis)

    def merged(self, weight: WeightView) -> Float[Array, ...]:
        """The merged weights of all parts, joined."""
        return self._joined(weight, lambda part: part.values(), lambda u, part: u.merged(part))

    def delta(self, weight: WeightView) -> Float[Array, ...]:
        """The deltas of all parts, joined; zero for a part without an update."""
        return self._joined(
            weight, lambda part: jnp.zeros(part.shape, jnp.float32), lambda u, part: u.delta(part)
        )

    def bias_delta(self, weight: WeightView) -> Float[Array, ...] | None:
        """Those of all parts, joined; zero for a part without a bias."""
        axis, pieces, found = len(weight.roles.batch), [], False
        for _, update, part in self._all_parts(weight):
            own = None if update is None else update.bias_delta(part)
            batch, _, outputs = part.roles.sizes(part.shape)
            pieces.append(jnp.zeros(batch + outputs, jnp.float32) if own is None else own)
            found = found or own is not None
        return jnp.concatenate(pieces, axis=axis) if found else None

    def _joined(
        self,
        weight: WeightView,
        untouched: Callable[[WeightView], Array],
        updated: Callable[[PartUpdate, WeightView], Array],
    ) -> Float[Array, ...]:
        pieces = [
            untouched(part) if update is None else updated(update, part)
            for _, update, part in self._all_parts(weight)
        ]
        return jnp.concatenate(pieces, axis=weight.roles.outputs[0])


def part_sizes(settings: UpdateSettings, total: int, path: str) -> tuple[int, ...]:
    """Sizes of the parts of a fused projection.

    Args:
      settings: with the names of all parts, and of the adapted ones.
      total: size of the first output axis, which they divide.
      path: of the layer, for messages.

    Raises:
      ValueError: unknown, missing or reserved names, or sizes that do not add up.
    """
    unknown = [part for part in settings.parts if part not in settings.fused]
    if unknown or not settings.parts:
        raise InputError(f"{path}: choose parts among {settings.fused}, got {settings.parts}")
    taken = [p for p in settings.parts if p in ("names", "sizes") or hasattr(FusedUpdate, p)]
    if taken:
        raise InputError(f"{path}: a part cannot be called {taken[0]!r}; choose another name")
    count = len(settings.fused)
    sizes = settings.fused_sizes or (total // count,) * count
    if len(sizes) != count or sum(sizes) != total:
        raise InputError(
            f"{path}: the parts {settings.fused} must divide the first output axis of size {total}; "
            f"got sizes {sizes}. Give `fused_sizes` if the parts are not equal"
        )
    return sizes
