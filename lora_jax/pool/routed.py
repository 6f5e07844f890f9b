"""What reads the slots of a batch: Variables that belong to the calls that follow, and modules with slots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lora_jax.errors import InputError
from lora_jax.pool.routes import Route, SlotNumbers
from lora_jax.state import Temporary
from lora_jax.surgery import Inserted

_PARTS = ("slots", "source", "place")


class Bound(Temporary[Array]):
    """A factor of each row, or tile, of the calls that follow; never a parameter."""


class Routed(Inserted):
    """Base of what reads the slots of a batch, which are Variables that belong to the calls that follow.

    Attributes:
      lead: sizes of the axes of every form that the batch's slots are there in, by its name.
    """

    lead: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def set_routes(self, routes: Mapping[str, Route], stack: tuple[int, ...] = ()) -> None:
        """Takes the slots of a batch.

        Args:
          routes: of the activations that this module sees, `rows` or `tiles` or both.
          stack: sizes of the axes that a stack of layers adds in front of every Variable.
        """
        self.forget_routes()
        for form, route in routes.items():
            for name in _PARTS:
                if (values := getattr(route, name)) is not None:
                    stacked = jnp.broadcast_to(values, (*stack, *values.shape))
                    setattr(self, f"{form}_{name}", SlotNumbers(stacked))
        self.lead = tuple((form, route.lead) for form, route in routes.items())

    def forget_routes(self) -> None:
        """Takes the slots of an earlier batch away."""
        of_batch = [n for n, v in vars(self).items() if isinstance(v, SlotNumbers | Bound)]
        for name in (*of_batch, *(["lead"] if "lead" in vars(self) else [])):
            delattr(self, name)

    def routes(self) -> dict[str, Route]:
        """The slots of the batch by form.

        Raises:
          InputError: there are none.
        """
        if not self.lead:
            raise InputError(
                "the model has a pool of adapters, and the batch does not say which ones it uses: call "
                "lora_jax.pool.route(model, slots) first, or the pool's own compiled functions"
            )
        found = {}
        for form, lead in self.lead:
            parts = (vars(self).get(f"{form}_{name}") for name in _PARTS)
            slots, source, place = (None if part is None else part[...] for part in parts)
            found[form] = Route(slots, source, place, lead)  # type: ignore[arg-type]
        return found


class OutputRoute(Routed):
    """The slots of a table that is the output layer too: its logits have one row for each output."""


class PooledModule(Routed):
    """Several modules of one kind, such as the heads of several tasks, one for each slot.

    All of them run on all inputs, one after the other, and each input takes what its slot gave: heads are
    small, and gathering one for every input would copy it.

    Attributes:
      each: a module whose leaves have an axis of slots in front.
    """

    def __init__(self, each: nnx.Module):
        self.each = each

    def __call__(
        self, x: Float[Array, "n width"], *args: Any, **kwargs: Any
    ) -> Float[Array, "n outputs"]:
        """What the slot of every input makes of it."""
        (route,) = self.routes().values()
        graphdef, state = nnx.split(self.each)
        every = jax.lax.map(lambda own: nnx.merge(graphdef, own)(x, *args, **kwargs), state)
        slots = route.of_tokens()
        numbers = jnp.arange(len(x))
        own: Array = every[slots, numbers]
        return own
