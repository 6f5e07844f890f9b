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
        ("NVIDIA B200", "b200"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("NVIDIA L40S", "l40s"),
        ("Tesla T4", "t4"),
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
    ("name", "meant"),
    [("rtx4080", "rtx4090"), ("H100", "h100"), ("a100", "a100-40' or 'a100-80"), ("l40", "l40s")],
)
def test_a_name_that_is_nearly_one(name, meant):
    with pytest.raises(ValueError, match=f"unknown chip '{name}'; .*Did you mean '{meant}'"):
        chips.by_name(name)


def test_peaks_by_type():
    """A GPU multiplies float32 in TF32, at half the speed of 16 bits; a TPU in bfloat16."""
    for chip in chips.CHIPS:
        if chip.name.startswith("v"):
            assert chip.peak("float32") == chip.peak("bfloat16") == chip.peak_flops
            with pytest.raises(ValueError, match="has no products in float16"):
                chip.peak("float16")
        elif chip.name != "t4":
            assert chip.peak("float16") == chip.peak("bfloat16")
            assert chip.peak("float16") / chip.peak("float32") == pytest.approx(2, rel=0.03)
    t4 = chips.by_name("t4")
    assert t4.peak("bfloat16") == t4.peak("float32") < t4.peak("float16") / 8
    with pytest.raises(ValueError, match="t4 has no products in int8; it has those in .'bfloat16'"):
        t4.peak("int8")


def test_figures_are_in_bytes_and_seconds():
    """A chip does 70 to 1000 operations per byte of its memory, and fills that in 10 ms to 1 s."""
    for chip in chips.CHIPS:
        peak = chip.float16_flops or chip.peak_flops
        assert 70 < peak / chip.memory_bandwidth < 1000
        assert 0.01 < chip.memory_bytes / chip.memory_bandwidth < 1
        assert 2 < chip.memory_bandwidth / chip.interconnect_bandwidth < 32
    assert len({chip.name for chip in chips.CHIPS}) == len(chips.CHIPS)


def test_mfu():
    chip = chips.by_topology("v4")
    assert chips.mfu(275e12, seconds=0.5, devices=4, chip=chip) == pytest.approx(0.5)
    assert chips.mfu(275e12, seconds=0.5, devices=4, chip=None) is None
