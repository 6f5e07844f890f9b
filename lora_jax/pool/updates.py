"""What a pool inserts: factors with an axis of slots, and heads with one."""

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
from lora_jax.low_rank.kinds import TwoProducts
from lora_jax.low_rank.updates import LowRankUpdate
from lora_jax.low_rank.weights import WeightView
from lora_jax.pool import beside
from lora_jax.pool.routes import Route, SlotNumbers, rows_not_first
from lora_jax.sharding.layout import automatically, sharding_of
from lora_jax.state import Temporary
from lora_jax.surgery import Inserted

Product = Callable[..., Array]
_PARTS = ("slots", "source", "place")
_BOUND = "bound_"


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
        cls,
        weight: WeightView,
        slots: int,
        rank: int,
        dtype: DTypeLike,
        *,
        b_bias: bool,
        lookup_only: bool,
    ) -> PooledPair:
        """A pair whose slots hold zeros: every one of them gives the pre-trained layer.

        Args:
          weight: that the pair is for.
          slots: number of them.
          rank: the largest that an adapter may have.
          dtype: of the factors.
          b_bias: whether B may have a bias.
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
        if lookup_only:
            pair.lookup_only = True
        if weight.gathers:
            pair.outputs = OutputRoute()
        return pair

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
            # Else XLA joins this product and the weight's for GPUs, and copies the weight for it.
            x = jax.lax.optimization_barrier(x)
            of = dict(zip(names, factors, strict=True))
            low = layer.first_product(x, beside.all_a(of["a"])) if "a" in of else jnp.tile(x, count)
            y = layer.second_product(beside.own_columns(low, slots, count), beside.all_b(of["b"]))
            if "b_bias" not in of:
                return y
            own = of["b_bias"][slots]
            between = (1,) * (y.ndim - own.ndim)
            return y + own.reshape(*slots.shape, *between, *own.shape[slots.ndim :])

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
