"""Slices of TPUs and hosts with GPUs by name, and what is said of names that are none."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lora_jax.costs import chips, compiled, topologies
from lora_jax.costs.gpu_targets import TARGETS


@pytest.mark.parametrize(
    "topology", ["v5p:4x4x4", "v5p:2x2", "v4:2x2x1", "v5e:16x16", "v6e:1x1", "v5p:4x4x8_twisted"]
)
def test_slices(topology):
    assert topologies.check(topology).name == topology.partition(":")[0]


@pytest.mark.parametrize("topology", ["h100:8", "h100:2x8", "rtx4090:1", "a100-40:3", "b200:128x4"])
def test_hosts_with_gpus(topology):
    assert topologies.check(topology).name == topology.partition(":")[0]


@pytest.mark.parametrize(
    ("topology", "says"),
    [
        ("v5p:0x4", "'v5p:0x4' must be v5p: and the sizes of a slice"),  # libtpu ends the process
        ("v5p:4x-4", "must be v5p: and the sizes"),
        ("v5e:64x64", "a product of at most 256"),
        ("v5p:99999999999x1x1", "must be v5p: and the sizes"),
        ("v5p:\u0664x4", "must be v5p: and the sizes"),
        ("v5e:2x2x2", "must be v5e: and the sizes"),
        ("v5e:1", "must be v5e: and the sizes .*; one chip is v5e:1x1$"),
        ("v5p:1", "must be v5p: and the sizes .*; one chip is v5p:1x1x1$"),
        ("v5p", "must be v5p: and the sizes"),
        ("v5p:2x2x2x2", "must be v5p: and the sizes"),
        ("v7:2x2", "unknown chip 'v7'"),
        ("h100", "'h100' must be h100: and a number of GPUs, from 1 to the 8 of a host"),
        ("h100:0", "must be h100: and a number of GPUs"),
        ("h100:9", "or h100:HOSTSxGPUS, at most 1,024 hosts with as many GPUs each$"),
        ("h100:16", "Did you mean h100:2x8?"),
        ("h100:2x9", "must be h100: and a number of GPUs"),
        ("h100:0x8", "must be h100: and a number of GPUs"),
        ("h100:4x4x4", "must be h100: and a number of GPUs"),
        ("t4:-1", "must be t4: and a number of GPUs"),
        ("h100:9999x8", "must be h100: and a number of GPUs"),
        ("h100:\u0668", "must be h100: and a number of GPUs"),
        ("rtx4080:1", "unknown chip 'rtx4080'; .*Did you mean 'rtx4090'?"),
    ],
)
def test_names_that_are_no_topology(topology, says):
    with pytest.raises(ValueError, match=says):
        topologies.check(topology)


def without(monkeypatch, *packages):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in packages else find(name, *a)
    )


def test_missing_compilers_are_said_with_their_remedy(monkeypatch):
    without(monkeypatch, "libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin")
    with pytest.raises(ImportError, match="pip install libtpu"):
        topologies.devices("v5e:2x2")
    with pytest.raises(ImportError, match="jax.cuda12.*JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1") as error:
        topologies.devices("h100:8")
    assert f'"jax[cuda12]=={jax.__version__}"' in str(error.value)
    with pytest.raises(
        ValueError, match="unknown chip"
    ):  # before anything is asked to be installed
        topologies.devices("rtx4080:1")


def test_a_slice_that_libtpu_does_not_have(monkeypatch):
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    with pytest.raises(ValueError, match="topology 'v5e:3x5' is not one of v5e"):
        topologies.devices("v5e:3x5")


@pytest.mark.parametrize(("topology", "count"), [("v4:2x2x1", 4), ("v5p:2x2x1", 4), ("v5e:2x4", 8)])
def test_a_device_is_a_whole_chip(topology, count, monkeypatch):
    """The two cores of a v4 or v5p work as one: their memory is in chips.py as that of a chip."""
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    assert len(topologies.devices(topology)) == count


@pytest.fixture
def plugin(monkeypatch):
    if not any(map(importlib.util.find_spec, ("jax_cuda12_plugin", "jax_cuda13_plugin"))):
        pytest.skip("compiling for GPUs needs JAX's plugin for CUDA: pip install jax[cuda12]")
    monkeypatch.setenv(topologies.WITHOUT_DRIVER, "1")


@pytest.mark.parametrize("name", TARGETS)
def test_every_gpu_can_be_compiled_for(plugin, optimised, name):
    """A product whose rows lie on two hosts: its arguments by hand, and the sum over all devices."""
    devices = topologies.devices(f"{name}:2x4")
    assert len(devices) == 8 and {device.process_index for device in devices} == {0, 1}
    chip = chips.by_name(name)
    assert devices[0].device_kind == chip.device_kind
    mesh = Mesh(np.array(devices), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    arguments = [jax.ShapeDtypeStruct((4096, 512), jnp.bfloat16, sharding=rows)] * 2
    whole = NamedSharding(mesh, PartitionSpec())
    product = jax.jit(lambda a, b: a.T @ b, out_shardings=whole)
    found = compiled.needs(product, tuple(arguments), chip)
    assert found.arguments == 2 * 4096 * 512 * 2 // 8 and found.fits
    assert found.traffic["all-reduce"].bytes % (512 * 512 * 2 * 7 // 4) == 0  # bfloat16 or float32
    assert found.traffic["all-reduce"].bytes > 0
