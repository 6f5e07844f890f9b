"""Which slot of a pool every token uses, and how the tokens of one slot are brought together.

A batch names a slot for each of its rows, or for each token where rows are packed. Each adapted layer
multiplies its inputs by the factors of their slots. There are three forms:

    rows    every row has one slot: its factors are gathered, and multiply the row
    tiles   rows, or tokens, are sorted by slot into tiles of a few, each of one slot; the factors of a tile
            are gathered, and multiply the tile; the results go back to their places
    beside  the factors of all slots side by side multiply all tokens; what is not of a token's own slot
            becomes 0 between the two products, see `beside`

In each of them what is in one slot, a NaN too, reaches no tokens of another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Num

from lora_jax.errors import InputError
from lora_jax.state import Temporary

Numbers = Array | np.ndarray
Slots = Int[Numbers, " rows"] | Int[Numbers, "rows length"]
TOKENS_OF_A_TILE = 32
ROWS_OF_A_TILE = 8


class SlotNumbers(Temporary[Array]):
    """Of the calls that follow: which slot of a pool each row, or tile, uses. Never a parameter."""


class Route(NamedTuple):
    """Which slots the first axes of activations use.

    Attributes:
      slots: of every row; with tiles, of every tile, (groups, tiles).
      source: number of the token at each place of the tiles, (groups, tiles, size); places that no token
        has repeat another one. None without tiles.
      place: place in the tiles of every token, (groups, tokens); None without tiles.
      lead: sizes of the axes of activations that are rows, or rows and tokens.
    """

    slots: Int[Array, ...]
    source: Int[Array, "groups tiles size"] | None
    place: Int[Array, "groups tokens"] | None
    lead: tuple[int, ...]

    def of_tokens(self) -> Int[Array, ...]:
        """The slot of every row or token, in the shape `lead`."""
        if self.source is None or self.place is None:
            return self.slots
        size = self.source.shape[-1]
        slots = jnp.take_along_axis(self.slots, self.place // size, axis=1)
        return slots.reshape(self.lead)

    def gathered(self, factor: Num[Array, "slots ..."]) -> Num[Array, "parts ..."]:
        """A factor of every row, or tile."""
        return factor[self.slots.reshape(-1)]

    def moved(self, inputs: tuple[int, ...], factors: int, outputs: int) -> int:
        """Values that are copied for one layer: what the choice between two forms goes by.

        Args:
          inputs: shape of the activations.
          factors: values of one slot's factors.
          outputs: values of a result's last axis.
        """
        parts = int(np.prod(self.slots.shape)) * factors
        if self.source is None:
            return parts
        per_place = int(np.prod(inputs[len(self.lead) :]))
        per_token = per_place // inputs[-1]
        return parts + int(np.prod(self.source.shape)) * (per_place + per_token * outputs)

    def apply(
        self,
        function: Callable[..., Array],
        inputs: Num[Array, ...],
        *factors: Num[Array, "parts ..."],
    ) -> Array:
        """Calls a function of inputs and one slot's factors, for each part of the inputs with its own.

        Args:
          function: of inputs as the layer takes them, of fewer rows or tokens, and of the factors.
          inputs: (*lead, ...).
          factors: of every row or tile, see `gathered`.
        """
        self.check(inputs)
        of_one_row = jax.vmap(lambda x, *own: function(x[None], *own)[0])
        if self.source is None or self.place is None:
            result: Array = of_one_row(inputs, *factors)
            return result
        of_tokens = len(self.lead) > 1
        each = of_one_row if of_tokens else jax.vmap(function)
        groups, tiles, size = self.source.shape
        rest = inputs.shape[len(self.lead) :]
        tokens = inputs.reshape(groups, self.place.shape[1], *rest)
        sorted_ = jax.vmap(lambda x, source: x[source])(tokens, self.source)
        result = each(sorted_.reshape(groups * tiles, size, *rest), *factors)
        if result.shape[1:2] != (size,):
            raise rows_not_first(result.shape)
        result = result.reshape(groups, tiles * size, *result.shape[2:])
        back = jax.vmap(lambda y, place: y[place])(result, self.place)
        whole: Array = back.reshape(*self.lead, *back.shape[2:])
        return whole

    def check(self, inputs: Num[Array, ...]) -> None:
        """Raises InputError for activations of another batch."""
        if inputs.shape[: len(self.lead)] != self.lead:
            raise InputError(
                f"a layer with a pool gets inputs of shape {inputs.shape}, but the batch was routed as "
                f"{self.lead}: its first axes must be the batch's. Layers that see one row per output are "
                "named in the model's `per_output`, and get `outputs` (see lora_jax.pool.route)"
            )


def rows_not_first(shape: tuple[int, ...]) -> InputError:
    """The error for a layer whose result has another axis in front of the rows."""
    return InputError(
        f"row by row a layer gives {shape}: a pool takes layers whose inputs and results have the batch's "
        "rows as their first axis; leave the layer out"
    )


def of_rows(slots: Int[Array, " rows"]) -> Route:
    """The route of rows that have one slot each."""
    return Route(slots, None, None, slots.shape)


def number_of_tiles(count: int, capacity: int, size: int) -> int:
    """Tiles with which any batch of so many tokens has enough: every slot may leave one in part unused."""
    return count // size + min(capacity, count)


def of_tiles(slots: Slots, capacity: int, groups: int = 1, size: int = 0) -> Route:
    """The route of tokens, or rows, in tiles.

    Args:
      slots: of every row or token.
      capacity: number of slots that there are.
      groups: parts of the batch that are sorted by themselves: as many as a mesh splits it into.
      size: tokens of a tile; 0 for the usual number.

    Raises:
      ValueError: the groups do not divide the rows.
    """
    if groups < 1 or slots.shape[0] % groups:
        raise InputError(f"{groups} groups do not divide {slots.shape[0]} rows")
    size = size or (TOKENS_OF_A_TILE if slots.ndim > 1 else ROWS_OF_A_TILE)
    flat = jnp.asarray(slots).reshape(groups, -1)
    count = flat.shape[1]
    tiles = number_of_tiles(count, capacity, size)

    def sort(own: Int[Array, " tokens"]) -> tuple[Array, Array, Array]:
        order = jnp.argsort(own, stable=True)
        counts = jnp.bincount(own, length=capacity)
        used = (counts + size - 1) // size
        first_tile, first = jnp.cumsum(used) - used, jnp.cumsum(counts) - counts
        by_order = own[order]
        places = first_tile[by_order] * size + jnp.arange(count) - first[by_order]
        place = jnp.zeros(count, jnp.int32).at[order].set(places.astype(jnp.int32))
        source = jnp.zeros(tiles * size, jnp.int32).at[places].set(order.astype(jnp.int32))
        numbers = jnp.searchsorted(jnp.cumsum(used), jnp.arange(tiles), side="right")
        slots_of_tiles = jnp.minimum(numbers, capacity - 1).astype(jnp.int32)
        return slots_of_tiles, source.reshape(tiles, size), place

    return Route(*jax.vmap(sort)(flat), slots.shape)


def packed_slots(
    segments: Int[Numbers, "rows length"],
    rows: Int[Numbers, " n"],
    columns: Int[Numbers, " n"],
    slots: Int[Numbers, " n"],
) -> Int[Array, "rows length"]:
    """The slot of every token of packed rows, in which each segment has an adapter of its own.

    Args:
      segments: number of every token's segment; 0 is padding, which gets slot 0.
      rows: row of one token of each example.
      columns: its column.
      slots: of each example.
    """
    count = segments.shape[0] * segments.shape[1] + 1  # segments are numbered over all rows
    numbers = jnp.asarray(segments)[rows, columns]
    table = jnp.zeros(count, jnp.int32).at[numbers].set(jnp.asarray(slots, jnp.int32))
    return table.at[0].set(0)[jnp.asarray(segments)]
