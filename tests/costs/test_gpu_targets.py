"""Descriptions of GPUs for XLA, against those that XLA publishes."""

from __future__ import annotations

import re

import pytest

from lora_jax.costs import chips, gpu_targets, topologies


def read(text):
    """The fields of a message in protobuf's text format, nested ones as a dict: a reader of its own."""
    tokens = re.findall(r'"[^"]*"|[{}]|[^\s{}:]+', text)

    def message(place):
        fields = {}
        while place < len(tokens) and tokens[place] != "}":
            name, value = tokens[place], tokens[place + 1]
            assert name not in fields, name
            if value == "{":
                fields[name], place = message(place + 2)
            else:
                fields[name], place = value, place + 2
        return fields, place + 1

    return message(0)[0]


# openxla/xla, xla/backends/gpu/target_config/specs/: a100_sxm_40, a100_sxm_80, h100_sxm, h200, b200 (2026).
# Capability, multiprocessors, float32 units, threads, shared memory, the same for a block, L2 cache, clock,
# memory, bandwidth.
PUBLISHED = {
    "a100-40": ("8.0", 108, 64, 2048, 167936, 166912, 41943040, 1.41, 42331013120, 1555200000000),
    "a100-80": ("8.0", 108, 64, 2048, 167936, 166912, 41943040, 1.41, 85100068864, 2039040000000),
    "h100": ("9.0", 132, 128, 2048, 233472, 232448, 52428800, 1.98, 84942979072, 3352320000000),
    "h200": ("9.0", 132, 128, 2048, 233472, 232448, 52428800, 1.98, 151397597184, 4800000000000),
    "b200": ("10.0", 148, 128, 2048, 233472, 232448, 132644864, 1.965, 191514411008, 7672320000000),
}
_FIELDS = (
    "core_count", "fpus_per_core", "threads_per_core_limit", "shared_memory_per_core",
    "shared_memory_per_block_optin", "l2_cache_size", "clock_rate_ghz", "device_memory_size",
)  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_against_what_xla_publishes(name):
    target = read(gpu_targets.text(name))
    info, (capability, *numbers, bandwidth) = target["gpu_device_info"], PUBLISHED[name]
    version = info["cuda_compute_capability"]
    assert f"{version['major']}.{version['minor']}" == capability
    assert [float(info[field]) for field in _FIELDS] == numbers
    assert float(info["memory_bandwidth"]) == pytest.approx(
        bandwidth, rel=0.005
    )  # rounded in sheets
    accelerated = version.get("feature_extension") == "ACCELERATED_FEATURES"
    assert accelerated == (capability in ("9.0", "10.0"))
    assert target["platform_name"] == '"CUDA"'
    assert target["device_description_str"] == f'"{chips.by_name(name).device_kind}"'
    assert target["dnn_version_info"] == {"major": "9", "minor": "10"}


def test_all_descriptions_have_the_same_fields():
    fields = [
        read(gpu_targets.text(name))["gpu_device_info"].keys() for name in gpu_targets.TARGETS
    ]
    assert all(each == fields[0] for each in fields)
    # what XLA's own descriptions of all chips have, of what its compiler reads
    assert {"threads_per_block_limit", "threads_per_warp", "registers_per_core_limit"} < fields[0]


def test_peaks_follow_from_the_descriptions():
    """Products in float32 without tensor cores: two operations of every unit in a cycle.

    Of the data sheets' figures this one does not depend on tensor cores, so it checks multiprocessors,
    units and clock against figures from elsewhere: 67, 91.6, 82.6, 35.6, 8.1 and 19.5 TFLOPS.
    """
    sheets = {
        "h100": 67, "h200": 67, "l40s": 91.6, "rtx4090": 82.6, "rtx3090": 35.6, "t4": 8.1, "a100-80": 19.5,
    }  # fmt: skip
    for name, teraflops in sheets.items():
        target = gpu_targets.TARGETS[name]
        lanes = target.multiprocessors * target.architecture.lanes
        assert 2 * lanes * target.clock * 1e9 == pytest.approx(teraflops * 1e12, rel=0.01)


def test_gpus_are_the_chips_that_are_described():
    described = {chip.name for chip in chips.CHIPS if topologies.is_gpu(chip)}
    assert described == gpu_targets.TARGETS.keys()
    assert {chip.name for chip in chips.CHIPS} - described == {"v4", "v5e", "v5p", "v6e"}
