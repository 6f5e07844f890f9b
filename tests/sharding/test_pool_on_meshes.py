"""Pools split over data, fsdp and model axes of eight CPU devices: the values of one device."""

import pytest


@pytest.fixture(scope="module")
def records(on_eight_devices):
    return on_eight_devices("pool_on_meshes.py")


@pytest.mark.parametrize(
    "mesh",
    [*(pytest.param(mesh, marks=pytest.mark.slow) for mesh in ("data", "fsdp")), "mixed", "beside"],
)
def test_values_are_those_of_one_device(records, mesh):
    record = records[mesh]
    assert record["difference"] < 1e-5 * record["largest"]
    assert record["tokens"]


def test_slots_are_split_as_their_weight(records):
    assert records["mixed"]["split"][:3] == [None, None, "fsdp"]  # layers, slots, inputs


@pytest.mark.slow
def test_slots_are_split_on_meshes_of_one_axis(records):
    assert records["data"]["split"][:4] in ([], [None] * 4) or not any(
        axis and "fsdp" in axis for axis in records["data"]["split"][:2]
    )
    assert records["fsdp"]["split"][:3] == [None, None, "fsdp"]
