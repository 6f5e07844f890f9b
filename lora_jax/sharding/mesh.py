"""Device meshes: a grid of devices with the axes `run`, `data`, `fsdp` and `model`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from lora_jax.checks import integer
from lora_jax.errors import InputError

# What is split along an axis:
# run: the runs of a sweep. Every part has its own copy of the base; nothing is sent along the axis.
# data: the examples of a batch. Every part has its own copy of the parameters.
# fsdp: the examples too, and the parameters and the optimizer state (ZeRO-3).
# model: attention heads and feed-forward units (tensor parallelism). The last axis, with the most
#   traffic: devices next to each other in the list of devices are neighbours along it.
RUN = "run"
AXES = (RUN, "data", "fsdp", "model")
REST = -1
AnyMesh = Mesh | AbstractMesh  # an abstract mesh has the axes and their sizes, but no devices


@runtime_checkable
class Sizes(Protocol):
    """Sizes by axis: a dict, or another mapping such as a ConfigDict."""

    def get(self, key: str, default: int, /) -> Any:
        """The size of an axis."""
        ...

    def __iter__(self) -> Iterator[str]:
        """The axes that are set."""
        ...


def make_mesh(sizes: Sizes, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of these sizes over all devices (of all hosts).

    Args:
      sizes: size of each axis of `AXES`; missing ones are 1. One of them may be -1 and takes the
        devices that the others leave.
      devices: the devices, `jax.devices()` by default.

    Raises:
      ValueError: an axis is unknown, a size is not a positive integer, or the product of the sizes
        is not the number of devices.
    """
    if unknown := sorted(set(sizes) - set(AXES)):
        raise InputError(f"mesh: unknown axis {unknown[0]!r}; the axes are {', '.join(AXES)}")
    devices = jax.devices() if devices is None else list(devices)
    rest = [axis for axis in AXES if sizes.get(axis, 1) == REST]
    if len(rest) > 1:
        raise InputError(f"mesh: {' and '.join(rest)} are both -1; one axis can take what is left")
    known = {axis: integer(f"mesh.{axis}", sizes.get(axis, 1)) for axis in AXES if axis not in rest}
    product = math.prod(known.values())
    if rest and len(devices) % product == 0:
        known[rest[0]] = len(devices) // product
    elif product != len(devices):
        shown = " x ".join(f"{axis}={size}" for axis, size in known.items())
        verb = "does not divide" if rest else "is not"
        raise InputError(
            f"mesh: {shown} = {product} {verb} the number of devices, {len(devices)}. Set the sizes so "
            "that their product is that number; -1 for one of them takes what the others leave"
        )
    shape = tuple(known[axis] for axis in AXES)
    return Mesh(_arranged(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arranged(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """The devices in the mesh's shape; TPUs so that neighbours in the mesh have a direct link."""
    if devices[0].platform == "tpu" and len(devices) > 1:
        from jax.experimental import mesh_utils

        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return np.asarray(devices).reshape(shape)


def check_heads(heads: int, mesh: AnyMesh) -> None:
    """Raises ValueError if the axis `model` does not divide the attention heads of a layer."""
    ways = mesh.shape["model"]
    if heads % ways:
        allowed = [n for n in range(1, heads + 1) if heads % n == 0]
        raise InputError(
            f"mesh: model={ways} does not divide the model's {heads} attention heads; "
            f"model can be one of {allowed}"
        )


def shares(mesh: AnyMesh) -> int:
    """Number of parts into which a mesh splits the rows of a batch."""
    return int(mesh.shape["data"] * mesh.shape["fsdp"])
