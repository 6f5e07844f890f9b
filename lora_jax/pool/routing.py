"""Telling a model with slots which of them a batch uses."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from lora_jax.low_rank.layers import adapted_layers
from lora_jax.models.sublayer import AttentionSublayer
from lora_jax.pool.routes import Route, Slots, of_rows, of_tiles
from lora_jax.pool.updates import PooledModule, PooledPair, Routed


def route(
    model: nnx.Module,
    slots: Slots,
    outputs: Int[Array | np.ndarray, " n"] | None = None,
    *,
    tiles: bool = False,
    groups: int = 1,
) -> None:
    """Says which slot each row, or token, of the next batch uses, in place.

    Use it on the copy of the model that a program makes (`AdapterPool.model`), as `seed_dropout`.

    Args:
      model: from `AdapterPool.model`.
      slots: of every row, or of every token where rows are packed.
      outputs: of every output, for the modules that see one row for each (`per_output` of the model's
        class: heads, output layers); those of the rows if not given.
      tiles: whether rows are sorted into tiles too; tokens always are.
      groups: parts of the batch that are sorted by themselves; as many as a mesh splits it into.
    """
    slots = jnp.asarray(slots, jnp.int32)
    if outputs is None and slots.ndim == 1:
        outputs = slots
    capacity = _slots_of(model)
    of_batch = of_tiles(slots, capacity, groups) if tiles or slots.ndim > 1 else of_rows(slots)
    of_outputs = None if outputs is None else of_rows(jnp.asarray(outputs, jnp.int32))
    seen_per_output = tuple(f"{path}/" for path in _per_output(model))
    for path, layer in adapted_layers(model).items():
        stack = layer.stack_shape()
        at_outputs = f"{path}/".startswith(seen_per_output) if seen_per_output else False
        for pair in layer.lora.pairs().values():
            if isinstance(pair, PooledPair):
                _set(pair, of_outputs if at_outputs else of_batch, stack)
                if hasattr(pair, "outputs"):
                    _set(pair.outputs, of_outputs, stack)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, PooledModule):
            _set(module, of_outputs, ())
        if isinstance(module, AttentionSublayer) and slots.ndim > 1:
            module.keeps_apart = True


def _set(module: Routed, found: Route | None, stack: tuple[int, ...]) -> None:
    if found is None:
        module.forget_route()
    else:
        module.set_route(found, stack)


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
        for pair in layer.lora.pairs().values():
            if isinstance(pair, PooledPair):
                return pair.a.shape[len(layer.stack_shape())]
    return 1
