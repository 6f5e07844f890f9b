"""Meshes by name: sizes, what the rest takes, and errors that say what to do."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from ml_collections import ConfigDict

from lora_jax.sharding.mesh import AXES, check_heads, make_mesh, shares


@dataclasses.dataclass(frozen=True)
class Device:
    id: int
    platform: str = "cpu"
    process_index: int = 0


def devices(count):
    return [Device(index) for index in range(count)]


def abstract(**sizes):
    return AbstractMesh(tuple(sizes.get(axis, 1) for axis in AXES), AXES)


@pytest.mark.parametrize(
    ("sizes", "count", "shape"),
    [
        ({}, 1, (1, 1, 1, 1)),
        ({"data": 8}, 8, (1, 8, 1, 1)),
        ({"run": 4, "data": -1}, 8, (4, 2, 1, 1)),
        ({"run": -1, "model": 2}, 8, (4, 1, 1, 2)),
        ({"data": -1}, 6, (1, 6, 1, 1)),
        ({"fsdp": -1}, 1, (1, 1, 1, 1)),
        ({"data": -1, "fsdp": 2, "model": 2}, 8, (1, 2, 2, 2)),
        ({"model": -1, "data": 2}, 6, (1, 2, 1, 3)),
        ({"data": -1, "model": 4}, 4, (1, 1, 1, 4)),
        ({"model": 2, "fsdp": 3}, 6, (1, 1, 3, 2)),
        (ConfigDict({"data": -1, "fsdp": 2, "model": 1}), 4, (1, 2, 2, 1)),
    ],
)
def test_sizes(sizes, count, shape):
    given = devices(count)
    mesh = make_mesh(sizes, given)
    assert mesh.axis_names == AXES == ("run", "data", "fsdp", "model")
    assert mesh.devices.shape == shape and mesh.axis_types == (AxisType.Auto,) * 4
    # Neighbours lie along `model`, the axis with the most traffic.
    assert list(mesh.devices.ravel()) == given
    assert shares(mesh) == shape[1] * shape[2]


def test_all_devices_by_default():
    assert make_mesh({"data": -1}).devices.size == jax.device_count()


@pytest.mark.parametrize(
    ("sizes", "count", "says"),
    [
        ({"tensor": 2}, 2, r"unknown axis 'tensor'; the axes are run, data, fsdp, model"),
        ({"data": 3}, 8, r"data=3 x fsdp=1 x model=1 = 3 is not the number of devices, 8"),
        ({"data": 4, "model": 4}, 8, r"= 16 is not the number of devices, 8"),
        ({}, 2, r"= 1 is not the number of devices, 2.*-1 for one of them"),
        ({"data": -1, "model": 3}, 8, r"fsdp=1 x model=3 = 3 does not divide the number of dev"),
        ({"data": -1, "model": 16}, 8, r"= 16 does not divide the number of devices, 8"),
        ({"data": -1, "fsdp": -1}, 8, r"data and fsdp are both -1"),
        ({"data": -1, "fsdp": -1, "model": -1}, 8, r"data and fsdp and model are"),
        ({"data": 0}, 8, r"mesh.data.*0"),
        ({"fsdp": -2}, 8, r"mesh.fsdp.*-2"),
        ({"model": True}, 1, r"mesh.model.*True"),
        ({"model": 2.0}, 2, r"mesh.model.*2.0"),
        ({"model": "2"}, 2, r"mesh.model.*'2'"),
        ({"model": None}, 2, r"mesh.model.*None"),
    ],
)
def test_what_is_refused(sizes, count, says):
    with pytest.raises((ValueError, TypeError), match=says):
        make_mesh(sizes, devices(count))


@pytest.mark.parametrize("ways", [1, 2, 3, 4, 6, 12])
def test_heads_that_can_be_shared_out(ways):
    check_heads(12, abstract(model=ways))


@pytest.mark.parametrize(("heads", "ways"), [(12, 8), (12, 5), (2, 4), (25, 2)])
def test_heads_that_cannot(heads, ways):
    allowed = [n for n in range(1, heads + 1) if heads % n == 0]
    with pytest.raises(ValueError, match=rf"model={ways} does not divide the model's {heads}") as e:
        check_heads(heads, abstract(model=ways, data=2))
    assert str(e.value).endswith(f"model can be one of {allowed}")


def test_shares_do_not_count_the_model_axis():
    assert shares(abstract(data=2, fsdp=3, model=5)) == 6
    assert np.prod(list(abstract(data=2, fsdp=3, model=5).shape.values())) == 30
