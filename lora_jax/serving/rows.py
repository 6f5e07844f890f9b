"""The rows of a running batch on the device, and the programs that fill and advance them.

Every row is a conversation of its own length, with an adapter of its own. The keys and values of what a row
has read lie in `Rows.read`, those of the few steps of one call in the cache that decoding has anyway
(`models.cache`); after the call they move over. So models need nothing new for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from lora_jax.models.cache import Cache, KeysValues, empty_cache
from lora_jax.models.decoder import Decoder
from lora_jax.partition import Params
from lora_jax.pool.pool import AdapterPool
from lora_jax.pool.routing import route
from lora_jax.serving.choosing import Choice, choose

Ready = tuple[Params, Params, Int[np.ndarray, " rows"]]


class Rows(NamedTuple):
    """A running batch.

    Attributes:
      read: keys and values of the tokens read, (layers, rows, heads, room, size).
      lengths: number of them.
      newest: the token that comes next, chosen and not read yet.
    """

    read: KeysValues
    lengths: Int[Array, " rows"]
    newest: Int[Array, " rows"]


class Programs:
    """The compiled programs of a batch of a fixed number of rows.

    Attributes:
      count: rows.
      room: tokens of the longest conversation.
      steps: tokens that a call of `advance` adds to every row.
    """

    def __init__(self, pool: AdapterPool[Any], count: int, room: int, steps: int):
        self.pool, self.count, self.room, self.steps = pool, count, room, steps
        jit = jax.jit if pool.placement is None else pool.placement.jit
        self._begin: Callable[..., Any] = jit(self._begun, donate_argnums=2)
        self._advance: Callable[..., Any] = jit(self._advanced, donate_argnums=2)

    def empty(self) -> Rows:
        """A batch whose rows have read nothing."""

        def keys_values() -> KeysValues:
            model = self._model(self.pool.slots, self.pool.frozen, jnp.zeros(1, jnp.int32))
            _, cache = model.prefill(jnp.zeros((1, 1), jnp.int32), jnp.ones(1, jnp.int32), 1, 1)
            return cache.prompt

        one = jax.eval_shape(keys_values)
        read = KeysValues(
            *(
                jnp.zeros((x.shape[0], self.count, x.shape[2], self.room, x.shape[4]), x.dtype)
                for x in one
            )
        )
        return Rows(read, jnp.zeros(self.count, jnp.int32), jnp.zeros(self.count, jnp.int32))

    def begin(
        self, ready: Ready, rows: Rows, at: int, prompt: Any, choice: Choice
    ) -> tuple[Rows, Array]:
        """Reads a prompt into a row: the batch, and the first token of its continuation.

        Args:
          ready: the pool with the row's adapter, `AdapterPool.ready`.
          rows: the batch; it must not be used afterwards.
          at: number of the row.
          prompt: token ids, padded behind, and their number.
          choice: of one row.
        """
        (slots, frozen, number), (tokens, length) = ready, prompt
        begun: tuple[Rows, Array] = self._begin(
            slots, frozen, rows, number, jnp.int32(at), tokens, length, choice
        )
        return begun

    def advance(self, ready: Ready, rows: Rows, active: Any, choice: Choice) -> tuple[Rows, Array]:
        """Continues every row by `steps` tokens: the batch, and the tokens (rows, steps).

        Args:
          ready: the pool with the rows' adapters.
          rows: the batch; it must not be used afterwards.
          active: whether a row is in use; the others do not grow.
          choice: of every row.
        """
        slots, frozen, numbers = ready
        further: tuple[Rows, Array] = self._advance(slots, frozen, rows, numbers, active, choice)
        return further

    def _model(self, slots: Params, frozen: Params, numbers: Array) -> Decoder:
        model = self.pool.model(slots, frozen)
        route(model, numbers, looped=True)
        assert isinstance(model, Decoder)
        return model

    def _begun(
        self, slots: Params, frozen: Params, rows: Rows, number: Array, at: Array,
        tokens: Array, length: Array, choice: Choice,
    ) -> tuple[Rows, Array]:  # fmt: skip
        model = self._model(slots, frozen, number)
        logits, cache = model.prefill(tokens, length, 1, 1)
        first = choose(logits, choice, length)
        read = KeysValues(
            *(
                jax.lax.dynamic_update_slice(whole, own, (0, at, 0, 0, 0))
                for whole, own in zip(rows.read, cache.prompt, strict=True)
            )
        )
        lengths, newest = rows.lengths.at[at].set(length[0]), rows.newest.at[at].set(first[0])
        return Rows(read, lengths, newest), first

    def _advanced(
        self, slots: Params, frozen: Params, rows: Rows, numbers: Array, active: Array,
        choice: Choice,
    ) -> tuple[Rows, Array]:  # fmt: skip
        model = self._model(slots, frozen, numbers)
        lengths = jnp.where(active, rows.lengths, 0)
        cache = empty_cache(rows.read, lengths, 1, self.steps)

        def step(carry: tuple[Array, Cache], _: None) -> tuple[tuple[Array, Cache], Array]:
            newest, cache = carry
            logits, cache = model.decode_step(newest[:, None], cache)
            newest = choose(logits[:, 0], choice, lengths + cache.step)
            return (newest, cache), newest

        (newest, cache), tokens = jax.lax.scan(step, (rows.newest, cache), length=self.steps)
        read = KeysValues(
            *(
                _appended(whole, new[:, :, :, : self.steps, 0], lengths)
                for whole, new in zip(rows.read, cache.generated, strict=True)
            )
        )
        return Rows(read, lengths + self.steps * active, newest), tokens.T


def _appended(whole: Array, new: Array, lengths: Array) -> Array:
    """Keys or values with those of new tokens behind each row's own.

    Args:
      whole: (layers, rows, heads, room, size).
      new: (layers, rows, heads, steps, size).
      lengths: of every row.
    """
    write = jax.vmap(
        lambda row, own, at: jax.lax.dynamic_update_slice(row, own, (0, 0, at, 0)),
        in_axes=(1, 1, 0), out_axes=1,
    )  # fmt: skip
    appended: Array = write(whole, new, lengths)
    return appended
