"""What a compiled program needs, against sizes counted by hand."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lora_jax.costs import chips, compiled, topologies

GIB = 2**30


def mesh(devices=None):
    devices = jax.devices()[:1] if devices is None else devices
    return Mesh(np.array(devices).reshape(-1, 1), ("data", "model"))


def shape(sizes, mesh, *spec, dtype=jnp.float32):
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)


@pytest.fixture(scope="module")
def chips_of_a_host(optimised):
    """Four v5e devices to compile for."""
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")
        patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        yield topologies.devices("v5e:2x2")


def test_on_this_machine():
    one_device = mesh()
    arguments = (shape((256, 128), one_device), shape((128, 64), one_device, dtype=jnp.bfloat16))
    assert compiled.argument_bytes(arguments) == 256 * 128 * 4 + 128 * 64 * 2
    found = compiled.needs(jax.jit(lambda a, b: a @ b.astype(a.dtype)), arguments, None)
    assert found.arguments == compiled.argument_bytes(arguments)
    assert found.peak == found.arguments + found.temporaries
    assert found.temporaries >= 256 * 64 * 4  # the result at least
    assert found.fits and found.traffic == {} and found.sent == 0


def test_split_arguments_and_traffic_on_a_tpu_topology(chips_of_a_host):
    """Rows over four chips: each holds a quarter, and the sum over rows is reduced."""
    four_chips = mesh(chips_of_a_host)
    arguments = (shape((4096, 1024), four_chips, "data"), shape((4096, 1024), four_chips, "data"))
    product = jax.jit(
        lambda a, b: a.T @ b, out_shardings=NamedSharding(four_chips, PartitionSpec())
    )
    found = compiled.needs(product, arguments, chips.by_topology("v5e:2x2"))
    assert found.arguments == 2 * 1024 * 1024 * 4
    # a ring all-reduce of the float32 product: each chip sends 2 x 3/4 of it
    assert found.traffic["all-reduce"].bytes == 2 * 1024 * 1024 * 4 * 3 // 4
    assert found.sent == sum(moved.bytes for moved in found.traffic.values())
    assert found.fits


def test_what_does_not_fit_is_said_with_its_size(chips_of_a_host):
    four_chips = mesh(chips_of_a_host)
    argument = shape((60000, 60000), four_chips)
    found = compiled.needs(jax.jit(lambda x: (x + 1, x * 2)), (argument,), chips.by_name("v5e"))
    assert not found.fits and found.traffic == {}
    assert found.arguments == 60000**2 * 4
    # the argument and two results of its size; the compiler rounds to 10 MiB and pads
    assert found.peak == pytest.approx(3 * 60000**2 * 4, rel=0.01)


def test_a_chip_with_too_little_memory(chips_of_a_host):
    """The compiler's own limit is the real chip's; ours counts too."""
    four_chips = mesh(chips_of_a_host)
    small = dataclasses.replace(chips.by_name("v5e"), memory_bytes=2**20)
    assert not compiled.needs(jax.jit(jnp.sin), (shape((512, 1024), four_chips),), small).fits


def test_other_failures_of_the_compiler_are_not_taken_for_memory():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 22.40G of 15.75G hbm."
    )
    assert compiled.asked_for(message) == int(22.4 * GIB)
    assert compiled.asked_for("INTERNAL: something else") is None
