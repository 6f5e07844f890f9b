"""Telling a model with slots which of them a batch uses."""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from lora_jax.checks import integer, one_of
from lora_jax.low_rank.layers import adapted_layers
from lora_jax.low_rank.weights import LayerWithWeight
from lora_jax.models.sublayer import AttentionSublayer
from lora_jax.pool import beside
from lora_jax.pool.routed import PooledModule
from lora_jax.pool.routes import (
    ROWS_OF_A_TILE,
    Route,
    Slots,
    number_of_tiles,
    of_rows,
    of_tiles,
)
from lora_jax.pool.updates import PooledPair

Form = Literal["auto", "rows", "tiles", "beside"]


def route(
    model: nnx.Module,
    slots: Slots,
    outputs: Int[Array | np.ndarray, " n"] | None = None,
    *,
    looped: bool = False,
    form: Form = "auto",
    groups: int = 1,
) -> None:
    """Says which slot each row, or token, of the next batch uses, in place.

    Use it on the copy of the model that a program makes (`AdapterPool.model`), as `seed_dropout`.

    Args:
      model: from `AdapterPool.model`.
      slots: of every row, or of every token where rows are packed.
      outputs: of every output, for the modules that see one row for each (`per_output` of the model's
        class: heads, output layers); those of the rows if not given.
      looped: whether the program calls the model again and again, as decoding does: the batch's factors
        are gathered once then, which takes memory for those of every row or tile.
      form: how rows find their factors, see `routes`; "auto" chooses by the kind of this process's devices
        and the shapes of each layer. Tokens are never in rows. Layers that cannot take factors side by
        side, as convolutions, take another form.
      groups: parts of the batch that are sorted by themselves; as many as a mesh splits it into.
    """
    one_of("form", form, get_args(Form))
    groups = integer("groups", groups)
    slots = jnp.asarray(slots, jnp.int32)
    if outputs is None and slots.ndim == 1:
        outputs = slots
    of_batch = _routes(slots, _slots_of(model), form, groups)
    of_outputs = {} if outputs is None else {"rows": of_rows(jnp.asarray(outputs, jnp.int32))}
    seen_per_output = tuple(f"{path}/" for path in _per_output(model))
    for path, layer in adapted_layers(model).items():
        stack = layer.stack_shape()
        at_outputs = bool(seen_per_output) and f"{path}/".startswith(seen_per_output)
        for pair in layer.lora.members().values():
            if not isinstance(pair, PooledPair):
                continue
            routes = of_outputs if at_outputs else _of_layer(of_batch, layer, form)
            pair.set_routes(routes, stack)
            if hasattr(pair, "outputs"):
                pair.outputs.set_routes(of_outputs)
            if looped and not at_outputs and "beside" not in routes:
                pair.bind(list(routes)[-1], len(stack), gathers=layer.gathers)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, PooledModule):
            module.set_routes(of_outputs)
        if isinstance(module, AttentionSublayer) and slots.ndim > 1:
            module.keeps_apart = True


def _of_layer(routes: dict[str, Route], layer: LayerWithWeight, form: Form) -> dict[str, Route]:
    """Those that a layer can take; of these the one that was asked for."""
    if "beside" in routes and not beside.possible(layer):
        return {other: route for other, route in routes.items() if other != "beside"}
    return {form: routes[form]} if form == "beside" else routes


def _routes(slots: Array, capacity: int, form: Form, groups: int) -> dict[str, Route]:
    """The forms of a batch's slots; the last one is that for a few tokens of every row."""
    by_token, device = slots.ndim > 1, jax.default_backend()
    if form == "auto" and device != "cpu":
        form = "rows" if device != "tpu" and not by_token else "beside"
    if form == "beside":
        others = _routes(slots, capacity, "tiles" if by_token else "rows", groups)
        return {"beside": Route(slots, None, None, slots.shape), **others}
    if by_token:
        return {"tiles": of_tiles(slots, capacity, groups)}
    rows = len(slots) // groups
    fewer = number_of_tiles(rows, capacity, ROWS_OF_A_TILE) < rows
    if form == "rows" or (form == "auto" and not fewer):
        return {"rows": of_rows(slots)}
    tiles = of_tiles(slots, capacity, groups)
    return {"tiles": tiles} if form == "tiles" else {"rows": of_rows(slots), "tiles": tiles}


def _per_output(model: nnx.Module) -> tuple[str, ...]:
    """Paths of the modules that see one row for each output, from the classes of the model's parts."""
    found = []
    for keys, module in nnx.iter_modules(model):
        path = "/".join(map(str, keys))
        for name in getattr(type(module), "per_output", ()):
            found.append(f"{path}/{name}".removeprefix("/"))
    return tuple(found)


def _slots_of(model: nnx.Module) -> int:
    for layer in adapted_layers(model).values():
        for pair in layer.lora.members().values():
            if isinstance(pair, PooledPair):
                return pair.a.shape[len(layer.stack_shape())]
    return 1
