"""Device meshes by name: `run`, `data`, `fsdp` and `model`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from lora_jax.checks import integer

# run: whole runs of a sweep; each part has a base of its own. Nothing is sent along it.
# data: examples; parameters are whole on every device (but for the other axes).
# fsdp: examples too, and parameters and optimizer state are split (ZeRO-3).
# model: attention heads and feed-forward units (tensor parallelism). Neighbours come last.
RUN = "run"
AXES = (RUN, "data", "fsdp", "model")
REST = -1


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of these sizes over all devices (of all hosts).

    Args:
      sizes: size of each axis of `AXES`; missing ones are 1. At most one may be -1: all devices that
        the others leave.
      devices: the devices, `jax.devices()` by default.

    Raises:
      ValueError: an unknown axis, a size that is no positive integer, or sizes whose product is not
        the number of devices.
    """
    if unknown := sorted(set(sizes) - set(AXES)):
        raise ValueError(f"mesh: unknown axis {unknown[0]!r}; the axes are {', '.join(AXES)}")
    devices = jax.devices() if devices is None else list(devices)
    rest = [axis for axis in AXES if sizes.get(axis) == REST]
    if len(rest) > 1:
        raise ValueError(f"mesh: {' and '.join(rest)} are both -1; one axis can take what is left")
    given = {axis: integer(f"mesh.{axis}", sizes.get(axis, 1)) for axis in AXES if axis not in rest}
    product = math.prod(given.values())
    if rest and len(devices) % product == 0:
        given[rest[0]] = len(devices) // product
    elif product != len(devices):
        shown = " x ".join(f"{axis}={size}" for axis, size in given.items())
        verb = "does not divide" if rest else "is not"
        raise ValueError(
            f"mesh: {shown} = {product} {verb} the number of devices, {len(devices)}. Set the sizes so "
            "that their product is that number; -1 for one of them takes what the others leave"
        )
    shape = tuple(given[axis] for axis in AXES)
    return Mesh(_arranged(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arranged(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """The devices in the mesh's shape; on TPUs along the chips' own links."""
    if devices[0].platform == "tpu" and len(devices) > 1:
        from jax.experimental import mesh_utils

        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return np.asarray(devices).reshape(shape)


def check_heads(heads: int, mesh: Mesh) -> None:
    """Raises ValueError if attention heads cannot be shared out over the axis `model`."""
    ways = mesh.shape["model"]
    if heads % ways:
        allowed = [n for n in range(1, heads + 1) if heads % n == 0]
        raise ValueError(
            f"mesh: model={ways} does not divide the model's {heads} attention heads; "
            f"model can be one of {allowed}"
        )


def shares(mesh: Mesh) -> int:
    """Number of parts in which a batch is split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
