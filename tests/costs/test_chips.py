"""The table of chips and the utilisation."""

from __future__ import annotations

import pytest

from lora_jax.costs import chips


@pytest.mark.parametrize(
    "kind, name",
    [
        ("TPU v4", "v4"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5e", "v5e"),
        ("TPU v6 lite", "v6e"),
        ("TPU v6e", "v6e"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
    ],
)
def test_device_kinds(kind, name):
    found = chips.by_device_kind(kind)
    assert found is not None and found.name == name


@pytest.mark.parametrize("kind", ["cpu", "TPU v4 lite", "NVIDIA H100 PCIe", "", "TPU v99"])
def test_unknown_device_kinds(kind):
    assert chips.by_device_kind(kind) is None


def test_topologies():
    assert chips.by_topology("v5p:4x4x4").peak_flops == 459e12
    assert chips.by_topology("v5e").host_chips == 8
    with pytest.raises(ValueError, match=r"'v7'.*'v4', 'v5e', 'v5p', 'v6e'"):
        chips.by_topology("v7:2x2x1")


@pytest.mark.parametrize(
    "topology", ["v5p:4x4x4", "v5p:2x2", "v4:2x2x1", "v5e:16x16", "v6e:1x1", "v5p:4x4x8_twisted"]
)
def test_slices(topology):
    assert chips.check_topology(topology).name == topology.partition(":")[0]


@pytest.mark.parametrize(
    ("topology", "says"),
    [
        ("v5p:0x4", "'v5p:0x4' must be v5p: and the sizes of a slice"),  # libtpu ends the process
        ("v5p:4x-4", "must be v5p: and the sizes"),
        ("v5e:64x64", "a product of at most 256"),
        ("v5p:99999999999x1x1", "must be v5p: and the sizes"),
        ("v5p:\u0664x4", "must be v5p: and the sizes"),
        ("v5p", "must be v5p: and the sizes"),
        ("v5p:2x2x2x2", "must be v5p: and the sizes"),
        ("h100:2x2", "h100 is no TPU; these are .'v4'"),
        ("v7:2x2", "unknown chip 'v7'"),
    ],
)
def test_slices_that_no_chip_has(topology, says):
    with pytest.raises(ValueError, match=says):
        chips.check_topology(topology)


def test_figures_are_in_bytes_and_seconds():
    """A chip does 100 to 1000 operations per byte of its memory, and fills that in 10 ms to 1 s."""
    for chip in chips.CHIPS:
        assert 100 < chip.peak_flops / chip.memory_bandwidth < 1000
        assert 0.01 < chip.memory_bytes / chip.memory_bandwidth < 1
        assert 2 < chip.memory_bandwidth / chip.interconnect_bandwidth < 20
    assert len({chip.name for chip in chips.CHIPS}) == len(chips.CHIPS)


def test_mfu():
    chip = chips.by_topology("v4")
    assert chips.mfu(275e12, seconds=0.5, devices=4, chip=chip) == pytest.approx(0.5)
    assert chips.mfu(275e12, seconds=0.5, devices=4, chip=None) is None
