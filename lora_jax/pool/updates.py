"""The factors that a pool inserts, with an axis of slots."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Inexact, Int, Num

from lora_jax.errors import InputError
from lora_jax.low_rank.dora import rescaled
from lora_jax.low_rank.kinds import TwoProducts
from lora_jax.low_rank.pairs import LowRankUpdate
from lora_jax.low_rank.updates import BaseCall
from lora_jax.low_rank.weights import WeightView
from lora_jax.pool import beside
from lora_jax.pool.routed import Bound, OutputRoute, Routed
from lora_jax.pool.routes import Route, rows_not_first
from lora_jax.sharding.layout import automatically, sharding_of

Product = Callable[..., Array]
_BOUND = "bound_"  # and the form and name of a factor


class PooledPair(LowRankUpdate, Routed):
    """The factor pairs of several adapters for one weight: x W + scale_s * x A_s B_s for tokens of slot s.

    The scale of each adapter is in its A, and ranks below the pool's are filled up with zeros. Where an
    adapter may have DoRA, the result is multiplied by m / ||W + scale_s * A_s B_s||, which is known when
    it enters.

    Attributes:
      a: (*stack, slots, *batch, *inputs, rank).
      b: (*stack, slots, *batch, rank, *outputs).
      b_bias: (*stack, slots, *batch, *outputs), where an adapter has one.
      ratio: (*stack, slots, *batch, *outputs), where an adapter has DoRA; 1 for the others.
      outputs: slots of the output layer, where the weight is a tied table.
    """

    outputs: OutputRoute
    ratio: nnx.LoRAParam[Array]

    @classmethod
    def empty(
        cls,
        weight: WeightView,
        slots: int,
        rank: int,
        dtype: DTypeLike,
        *,
        b_bias: bool,
        dora: bool,
        lookup_only: bool,
    ) -> PooledPair:
        """A pair whose slots hold zeros: every one of them gives the pre-trained layer.

        Args:
          weight: that the pair is for.
          slots: number of them.
          rank: the largest that an adapter may have.
          dtype: of the factors.
          b_bias: whether B may have a bias.
          dora: whether an adapter may have magnitudes.
          lookup_only: whether a table's update is for lookups only.
        """
        roles, stack = weight.roles, len(weight.layer.stack_shape())
        batch, inputs, outputs = roles.sizes(weight.shape)
        lead = (*batch[:stack], slots, *batch[stack:])
        pair = cls(
            jnp.zeros((*lead, *inputs, rank), dtype),
            jnp.zeros((*lead, rank, *outputs), dtype),
            alpha=1.0, scale=1.0, dropout=0.0,
        )  # fmt: skip
        axes = (*roles.batch[:stack], None, *roles.batch[stack:])
        weight.layout.give(pair.a, (*axes, *roles.inputs, None))
        weight.layout.give(pair.b, (*axes, None, *roles.outputs))
        if b_bias:
            pair.b_bias = nnx.LoRAParam(jnp.zeros((*lead, *outputs), dtype))
            weight.layout.give(pair.b_bias, (*axes, *roles.outputs))
        if dora:
            pair.ratio = nnx.LoRAParam(jnp.ones((*lead, *outputs), jnp.float32))
            weight.layout.give(pair.ratio, (*axes, *roles.outputs))
        if lookup_only:
            pair.lookup_only = True
        if weight.gathers:
            pair.outputs = OutputRoute()
        return pair

    def output(self, weight: WeightView, inputs: Num[Array, ...], base: BaseCall) -> Array:
        """x W + x A_s B_s, times each slot's ratio."""
        if not hasattr(self, "ratio"):
            return super().output(weight, inputs, base)
        outputs = base(inputs)
        low = self.low_rank_output(weight, inputs, outputs)
        route = next(iter(self.routes().values()))
        ratio = _on_outputs(weight, route, self.ratio[...], outputs.ndim)
        return rescaled(weight, outputs, outputs, low, ratio)

    def attend(
        self, weight: WeightView, query: Float[Array, "... features"], base: BaseCall
    ) -> Float[Array, "... rows"]:
        """(q * ratio_s) (W + A_s B_s)^T."""
        if hasattr(self, "ratio") and not self.lookup_only:
            (route,) = self.outputs.routes().values()
            own = _on_outputs(weight, route, self.ratio[...], query.ndim)
            query = query * own.astype(query.dtype)
        return super().attend(weight, query, base)

    def low_rank_output(
        self, weight: WeightView, inputs: Num[Array, ...], outputs: Inexact[Array, ...]
    ) -> Inexact[Array, ...]:
        """x A_s B_s for every token's slot s, in the type of the layer's outputs."""
        routes = self.routes()
        names = ["a", "b", "b_bias"] if hasattr(self, "b_bias") else ["a", "b"]
        form = self._form(routes, inputs.shape, names, outputs.shape[-1], gathers=weight.gathers)
        route = routes[form]
        if len(route.lead) > 1 and not weight.layer.by_token():
            raise InputError(
                f"{type(weight.layer).__name__} is not known to treat every token by itself, as packed rows "
                "of several adapters need; give every row one slot, or let its method by_token return True"
            )
        if weight.gathers:
            inputs = _rows_of(route, inputs, self.a[...])
            names = names[1:]
        else:
            inputs = inputs.astype(outputs.dtype)
        of_form = self._beside if form == "beside" else self._by_slot
        function, factors = of_form(weight, form, route, names, outputs.dtype)
        result: Array = automatically(function, sharding_of(outputs), inputs, *factors)
        if result.shape != outputs.shape:
            raise rows_not_first(result.shape)
        return result

    def _by_slot(
        self, weight: WeightView, form: str, route: Route, names: list[str], dtype: Any
    ) -> tuple[Product, list[Array]]:
        """The product of each row, or tile, with its own factors; and these."""
        product: Product = (
            functools.partial(_by_rows, weight) if weight.gathers else weight.low_rank_output
        )

        def of_slot(x: Array, *own: Array) -> Array:
            if "b_bias" not in names:
                return product(x, *own)
            y = product(x, *own[:-1])
            return y + weight.on_outputs(own[-1], y.ndim)

        factors = [self._factor(form, route, name).astype(dtype) for name in names]
        return lambda *arrays: route.apply(of_slot, *arrays), factors

    def _beside(
        self, weight: WeightView, _: str, route: Route, names: list[str], dtype: Any
    ) -> tuple[Product, list[Array]]:
        """The products with the factors of all slots; and these."""
        layer, slots = weight.layer, route.slots
        assert isinstance(layer, TwoProducts)  # see `beside.possible`
        count = self.b.shape[0]

        def product(x: Array, *factors: Array) -> Array:
            route.check(x)
            of = dict(zip(names, factors, strict=True))
            low = layer.first_product(x, beside.all_a(of["a"])) if "a" in of else jnp.tile(x, count)
            y = layer.second_product(beside.own_columns(low, slots, count), beside.all_b(of["b"]))
            if "b_bias" not in of:
                return y
            return y + _on_outputs(weight, route, of["b_bias"], y.ndim)

        values = {name: getattr(self, name)[...] for name in names}
        return product, [
            beside.in_type(v, dtype) if name == "b" else v.astype(dtype)
            for name, v in values.items()
        ]

    def _form(
        self,
        routes: Mapping[str, Route],
        inputs: tuple[int, ...],
        names: list[str],
        outputs: int,
        *,
        gathers: bool,
    ) -> str:
        """Side by side where that is less work, else the form for which less is copied."""
        if "beside" in routes:
            lead = len(routes["beside"].lead)
            tokens = math.prod(inputs[lead:] if gathers else inputs[lead:-1])
            columns = self.b.shape[0] * self.b.shape[1]
            if len(routes) == 1 or beside.less_work(columns, tokens, by_token=lead > 1):
                return "beside"
            routes = {form: route for form, route in routes.items() if form != "beside"}
        factors = sum(getattr(self, n).get_value()[0].size for n in names)

        def moved(form: str) -> int:
            once = hasattr(self, f"{_BOUND}{form}_b")  # these are gathered already
            return routes[form].moved(inputs, 0 if once else factors, outputs)

        return min(routes, key=moved)

    def _factor(self, form: str, route: Route, name: str) -> Array:
        """A factor of every row, or tile, of a form."""
        bound = vars(self).get(f"{_BOUND}{form}_{name}")
        return route.gathered(getattr(self, name)[...]) if bound is None else bound[...]

    def bind(self, form: str, stack: int, *, gathers: bool) -> None:
        """Gathers the factors of the batch once, for programs that call the model again and again.

        Args:
          form: of the batch's slots, in which the calls are.
          stack: number of axes that a stack of layers has in front.
          gathers: whether the weight is a table, whose A is not gathered as a whole.
        """
        of_first = getattr(self, f"{form}_slots")[...]
        slots = of_first.reshape(*of_first.shape[:stack], -1)[(0,) * stack]
        for name in ("b", "b_bias") if gathers else ("a", "b", "b_bias"):
            if hasattr(self, name):
                values = jnp.take(getattr(self, name)[...], slots, axis=stack)
                setattr(self, f"{_BOUND}{form}_{name}", Bound(values))

    def low_rank_logits(
        self,
        weight: WeightView,
        query: Float[Array, "... features"],
        logits: Float[Array, "... rows"],
    ) -> Float[Array, "... rows"]:
        """(q B_s^T) A_s^T for every output's slot s."""
        (route,) = self.outputs.routes().values()
        factors = [route.gathered(f[...]).astype(logits.dtype) for f in (self.a, self.b)]
        return automatically(
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


def _on_outputs(
    weight: WeightView, route: Route, of_slots: Inexact[Array, ...], ndim: int
) -> Inexact[Array, ...]:
    """Values (slots, *batch, *outputs) of every row's or token's slot, for a result with `ndim` axes."""
    lead = len(route.lead)

    def of_one(values: Array) -> Array:
        placed = weight.on_outputs(values, ndim)
        if placed.shape[:lead] != (1,) * lead:
            raise rows_not_first(placed.shape)
        return placed.reshape(placed.shape[lead:])

    for _ in range(lead):
        of_one = jax.vmap(of_one)
    return of_one(of_slots[route.of_tokens()])


def _rows_of(
    route: Route, inputs: Int[Array, ...], a: Float[Array, "slots rows rank"]
) -> Float[Array, "... rank"]:
    """The rows of A for the numbers that a table gets, each of its token's slot."""
    route.check(inputs)
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
