"""What an adapter puts into its slot of a pool."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from lora_jax.adapter_files import Adapter
from lora_jax.errors import InputError
from lora_jax.low_rank.dora import DoRAUpdate
from lora_jax.low_rank.layers import adapted_layers, factor_path
from lora_jax.low_rank.weights import WeightView
from lora_jax.pool import beside
from lora_jax.pool.places import Inserted


def slot_values(
    adapter: Adapter,
    of_method: Inserted,
    room: Mapping[str, tuple[int, ...]],
    dtype: DTypeLike,
    where: str,
) -> dict[str, np.ndarray]:
    """The values of an adapter for each leaf of a pool, in the shape of one slot; zeros where it has none.

    Of DoRA the magnitudes, in whose place `ratios` are to come: these read the base, and take longer.

    Args:
      adapter: checked to be of the pool's base.
      of_method: of its method.
      room: shape of one slot by path, heads' leaves at the paths that adapters have.
      dtype: of the factors on the device.
      where: name of the adapter, for messages.

    Raises:
      InputError: it has leaves that the pool has not, or larger ones.
    """
    values = {
        path: np.full(shape, path.endswith("/ratio"), np.float32) for path, shape in room.items()
    }
    for path, value in adapter.values.items():
        array = np.asarray(value, np.float32)
        if path in of_method.shapes:
            if array.shape != of_method.shapes[path]:
                raise InputError(
                    f"{where}: {path} has shape {array.shape}, its method makes {of_method.shapes[path]}"
                )
            pair, _, side = path.rpartition("/")
            if side == "magnitude":
                path = f"{pair}/ratio"
            if side in ("a", "b_bias"):
                array = array * np.float32(of_method.scales[pair])
        if path not in room:
            raise InputError(
                f"{where} adapts {path}, and the pool has no room for it; name its method when the pool is "
                "made: AdapterPool(base, [method, ...])"
            )
        values[path] = _fitted(array, room[path], f"{where}: {path}")
    for pair in of_method.scales:
        a, b = f"{pair}/a", f"{pair}/b"
        if b in adapter.values:
            values[a], values[b] = beside.finite_b(values[a], values[b], np.dtype(dtype))
    return values


def ratios(base: nnx.Module, adapter: Adapter) -> dict[str, np.ndarray]:
    """m / ||W + scale * A B|| of an adapter's DoRA layers, by the path of its leaf; empty without any.

    Args:
      base: pre-trained.
      adapter: of it.
    """
    if not any(path.endswith("/magnitude") for path in adapter.values):
        return {}
    model = adapter.method.insert(base, jax.random.key(0))
    found = {}
    for path, layer in adapted_layers(model).items():
        for part, (pair, weight) in layer.lora.members_with_weights(WeightView(layer)).items():
            if isinstance(pair, DoRAUpdate):
                place = factor_path(path, layer, part)
                for name in ("a", "b", "magnitude"):
                    getattr(pair, name)[...] = jax.numpy.asarray(adapter.values[f"{place}/{name}"])
                found[f"{place}/ratio"] = np.asarray(pair.ratio(weight))
    return found


def _fitted(array: np.ndarray, shape: tuple[int, ...], where: str) -> np.ndarray:
    """An array filled up with zeros to a larger shape."""
    if array.ndim != len(shape) or any(a > b for a, b in zip(array.shape, shape, strict=True)):
        raise InputError(
            f"{where} has shape {array.shape}, and the pool has room for {shape}: make it with a method of "
            "this rank (of a server: --rank), or a base with a head of this width (--outputs)"
        )
    missing = [(0, b - a) for a, b in zip(array.shape, shape, strict=True)]
    return np.pad(array, missing) if any(after for _, after in missing) else array
