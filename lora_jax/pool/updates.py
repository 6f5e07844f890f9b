"""What a pool inserts: factors with an axis of slots, and heads with one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Inexact, Int, Num

from lora_jax.errors import InputError
from lora_jax.low_rank.updates import BaseCall, LowRankUpdate
from lora_jax.low_rank.weights import WeightView
from lora_jax.pool.routes import Route, SlotNumbers, rows_not_first
from lora_jax.sharding.layout import automatically, sharding_of
from lora_jax.surgery import Inserted

_ROUTED = ("slots", "source", "place")
Product = Callable[..., Array]


class Routed(Inserted):
    """Base of what reads the slots of a batch: a `Route`, as Variables that belong to the calls that follow.

    Attributes:
      lead: sizes of the route's axes.
    """

    lead: tuple[int, ...] = ()

    def set_route(self, route: Route, stack: tuple[int, ...] = ()) -> None:
        """Takes the slots of a batch.

        Args:
          route: of the activations that this module sees.
          stack: sizes of the axes that a stack of layers adds in front of every Variable.
        """
        self.forget_route()
        for name in _ROUTED:
            if (values := getattr(route, name)) is not None:
                stacked = jnp.broadcast_to(values, (*stack, *values.shape))
                setattr(self, name, SlotNumbers(stacked))
        self.lead = route.lead

    def forget_route(self) -> None:
        """Takes the slots of an earlier batch away."""
        for name in (*_ROUTED, "lead"):
            if name in vars(self):
                delattr(self, name)

    def route(self) -> Route:
        """The slots of the batch.

        Raises:
          InputError: there are none.
        """
        found = {name: vars(self).get(name) for name in _ROUTED}
        if found["slots"] is None:
            raise InputError(
                "the model has a pool of adapters, and the batch does not say which ones it uses: call "
                "lora_jax.pool.route(model, slots) first, or the pool's own compiled functions"
            )
        slots, source, place = (None if v is None else v[...] for v in found.values())
        return Route(slots, source, place, self.lead)  # type: ignore[arg-type]


class OutputRoute(Routed):
    """The slots of a table that is the output layer too: its logits have one row for each output."""


class PooledPair(LowRankUpdate, Routed):
    """The factor pairs of several adapters for one weight: x W + scale_s * x A_s B_s for tokens of slot s.

    The scale of each adapter is in its A, and ranks below the pool's are filled up with zeros.

    Attributes:
      a: (*stack, slots, *batch, *inputs, rank).
      b: (*stack, slots, *batch, rank, *outputs).
      b_bias: (*stack, slots, *batch, *outputs), where an adapter has one.
      outputs: slots of the output layer, where the weight is a tied table.
    """

    outputs: OutputRoute

    @classmethod
    def empty(
        cls, weight: WeightView, slots: int, rank: int, *, b_bias: bool, lookup_only: bool
    ) -> PooledPair:
        """A pair whose slots hold zeros: every one of them gives the pre-trained layer.

        Args:
          weight: that the pair is for.
          slots: number of them.
          rank: the largest that an adapter may have.
          b_bias: whether B may have a bias.
          lookup_only: whether a table's update is for lookups only.
        """
        roles, stack = weight.roles, len(weight.layer.stack_shape())
        batch, inputs, outputs = roles.sizes(weight.shape)
        lead = (*batch[:stack], slots, *batch[stack:])
        pair = cls(
            jnp.zeros((*lead, *inputs, rank), jnp.float32),
            jnp.zeros((*lead, rank, *outputs), jnp.float32),
            alpha=1.0, scale=1.0, dropout=0.0,
        )  # fmt: skip
        axes = (*roles.batch[:stack], None, *roles.batch[stack:])
        weight.layout.give(pair.a, (*axes, *roles.inputs, None))
        weight.layout.give(pair.b, (*axes, None, *roles.outputs))
        if b_bias:
            pair.b_bias = nnx.LoRAParam(jnp.zeros((*lead, *outputs), jnp.float32))
            weight.layout.give(pair.b_bias, (*axes, *roles.outputs))
        if lookup_only:
            pair.lookup_only = True
        if weight.gathers:
            pair.outputs = OutputRoute()
        return pair

    def low_rank_output(
        self, weight: WeightView, inputs: Num[Array, ...], outputs: Inexact[Array, ...]
    ) -> Inexact[Array, ...]:
        """x A_s B_s for every token's slot s, in the type of the layer's outputs."""
        dtype, route = outputs.dtype, self.route()
        if len(route.lead) > 1 and not weight.layer.by_token():
            raise InputError(
                f"{type(weight.layer).__name__} is not known to treat every token by itself, as packed rows "
                "of several adapters need; give every row one slot, or let its method by_token return True"
            )
        a, factors = self.a[...], [self.b[...].astype(dtype)]
        if hasattr(self, "b_bias"):
            factors.append(self.b_bias[...].astype(dtype))
        product: Product = weight.low_rank_output
        if weight.gathers:
            inputs, product = _rows_of(route, inputs, a), functools.partial(_by_rows, weight)
        else:
            inputs, factors = inputs.astype(dtype), [a.astype(dtype), *factors]

        def of_slot(x: Array, *own: Array) -> Array:
            if not hasattr(self, "b_bias"):
                return product(x, *own)
            y = product(x, *own[:-1])
            return y + weight.on_outputs(own[-1], y.ndim)

        result: Array = automatically(
            lambda *arrays: route.apply(of_slot, *arrays), sharding_of(outputs), inputs, *factors
        )
        if result.shape != outputs.shape:
            raise rows_not_first(result.shape)
        return result

    def attend(
        self, weight: WeightView, query: Float[Array, "... features"], base: BaseCall
    ) -> Float[Array, "... rows"]:
        """q W^T + (q B_s^T) A_s^T for every output's slot s."""
        logits = base(query)
        if self.lookup_only:
            return logits
        route = self.outputs.route()
        factors = (self.a[...].astype(logits.dtype), self.b[...].astype(logits.dtype))
        return logits + automatically(
            lambda *arrays: route.apply(weight.low_rank_logits, *arrays),
            sharding_of(logits), query.astype(logits.dtype), *factors,
        )  # fmt: skip

    def scaled_product(self, weight: WeightView) -> Float[Array, ...]:
        """Raises InputError: every slot has another one."""
        raise InputError(
            "a pool has as many updates as slots, and no merged weight; merge one adapter: "
            "lora_jax.merge(lora_jax.attach(base, adapter))"
        )

    def bias_delta(self, weight: WeightView) -> Float[Array, ...] | None:
        """None here; `low_rank_output` adds each slot's."""
        return None


def _rows_of(
    route: Route, inputs: Int[Array, ...], a: Float[Array, "slots rows rank"]
) -> Float[Array, "... rank"]:
    """The rows of A for the numbers that a table gets, each of its token's slot."""
    slots = route.of_tokens()
    slots = slots.reshape(slots.shape + (1,) * (inputs.ndim - slots.ndim))
    numbers = jnp.zeros_like(inputs) if a.shape[1] == 1 else inputs
    return a[slots, numbers]


def _by_rows(
    weight: WeightView, rows: Float[Array, "... rank"], b: Float[Array, "rank features"]
) -> Float[Array, "... features"]:
    """What a table makes of rows of A that are found already."""
    table = rows.reshape(-1, rows.shape[-1])
    numbers = jnp.arange(len(table)).reshape(rows.shape[:-1])
    return weight.low_rank_output(numbers, table, b)


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
        route = self.route()
        graphdef, state = nnx.split(self.each)
        every = jax.lax.map(lambda own: nnx.merge(graphdef, own)(x, *args, **kwargs), state)
        slots = route.of_tokens()
        numbers = jnp.arange(len(x))
        own: Array = every[slots, numbers]
        return own
