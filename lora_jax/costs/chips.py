"""Limits of accelerators (memory, FLOPs, bandwidths), and the model FLOPs utilisation."""

from __future__ import annotations

import dataclasses
import math
import re

from lora_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator, as its maker specifies it.

    Attributes:
      name: short name; for a TPU the beginning of its topologies' names ("v5p:4x4x4").
      device_kind: `jax.Device.device_kind`; for second names of some chips see `by_device_kind`.
      memory_bytes: high-bandwidth memory, nominal; libtpu 0.0.52 leaves a program 15.75 GiB on v5e,
        95.73 on v5p and 31.24 on v6e.
      peak_flops: FLOPs per second of dense matrix products in bfloat16.
      memory_bandwidth: bytes per second.
      interconnect_bandwidth: bytes per second that a chip can send over all its links together (ICI,
        NVLink), which is half of a "bidirectional" figure.
      host_chips: largest number of chips of one host machine; the virtual machines of larger v5e and
        v6e slices have 4 of the 8.
    """

    name: str
    device_kind: str
    memory_bytes: int
    peak_flops: float
    memory_bandwidth: float
    interconnect_bandwidth: float
    host_chips: int


_GIB = 2**30

# TPUs: the pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" of Google Cloud's documentation, section
# System architecture (cloud.google.com/tpu/docs/v5p and so on). The ICI figure of v4 is not there: it
# is 6 links of 50 GB/s in each direction (Jouppi et al. 2023, "TPU v4").
# GPUs: NVIDIA's data sheets of A100 (SXM), H100 (SXM) and H200; dense figures, half of "with sparsity".
# Hosts of GPUs: DGX and HGX machines. A sheet's GB of memory are GiB, as the drivers report them.
CHIPS = (
    Chip("v4", "TPU v4", 32 * _GIB, 275e12, 1200e9, 300e9, 4),
    Chip("v5e", "TPU v5 lite", 16 * _GIB, 197e12, 819e9, 200e9, 8),
    Chip("v5p", "TPU v5", 95 * _GIB, 459e12, 2765e9, 600e9, 4),
    Chip("v6e", "TPU v6 lite", 32 * _GIB, 918e12, 1638e9, 400e9, 8),
    Chip("a100-40", "NVIDIA A100-SXM4-40GB", 40 * _GIB, 312e12, 1555e9, 300e9, 8),
    Chip("a100-80", "NVIDIA A100-SXM4-80GB", 80 * _GIB, 312e12, 2039e9, 300e9, 8),
    Chip("h100", "NVIDIA H100 80GB HBM3", 80 * _GIB, 989e12, 3350e9, 450e9, 8),
    Chip("h200", "NVIDIA H200", 141 * _GIB, 989e12, 4800e9, 450e9, 8),
)

_PODS = {"v4": 4096, "v5e": 256, "v5p": 8960, "v6e": 256}  # chips, from the same pages
_SHAPE = re.compile(r"(?P<sizes>[0-9]{1,4}(x[0-9]{1,4}){0,2})(_(un)?twisted)?")
_OTHER_KINDS = {"TPU v5e": "v5e", "TPU v5p": "v5p", "TPU v6e": "v6e"}


def by_device_kind(kind: str) -> Chip | None:
    """The chip whose JAX device kind is `kind`; None for CPUs and chips that are not in `CHIPS`.

    Another variant of a chip ("NVIDIA H100 PCIe") is another chip, because its figures differ.
    """
    known = {chip.device_kind: chip for chip in CHIPS}
    known |= {kind: by_name(name) for kind, name in _OTHER_KINDS.items()}
    return known.get(kind)


def by_topology(topology: str) -> Chip:
    """The chip of a topology such as `v5p:4x4x4`, or `v5p` alone.

    Raises:
      ValueError: no chip of `CHIPS` has the name before the colon.
    """
    return by_name(topology.partition(":")[0])


def check_topology(topology: str) -> Chip:
    """The chip of a TPU topology, after a check of its shape.

    libtpu would end the process on a size of 0, and takes slices that are larger than a pod.

    Raises:
      ValueError: an unknown chip, one that is no TPU, or sizes that no slice of it has.
    """
    chip, shape = by_topology(topology), topology.partition(":")[2]
    if chip.name not in _PODS:
        raise InputError(f"topology {topology!r}: {chip.name} is no TPU; these are {list(_PODS)}")
    sizes = _SHAPE.fullmatch(shape)
    chips = math.prod(int(size) for size in sizes["sizes"].split("x")) if sizes else 0
    if not 0 < chips <= _PODS[chip.name]:
        raise InputError(
            f"topology {topology!r} must be {chip.name}: and the sizes of a slice, one to three positive "
            f"numbers with x between them and a product of at most {_PODS[chip.name]:,}, such as "
            f"{chip.name}:2x4"
        )
    return chip


def by_name(name: str) -> Chip:
    """The chip with this short name.

    Raises:
      ValueError: no chip has it; the message lists the known names.
    """
    for chip in CHIPS:
        if chip.name == name:
            return chip
    raise InputError(f"unknown chip {name!r}; known chips are {[chip.name for chip in CHIPS]}")


def mfu(flops: float, seconds: float, devices: int, chip: Chip | None) -> float | None:
    """Model FLOPs utilisation (Chowdhery et al. 2022, appendix B), a fraction of the peak.

    Args:
      flops: of the model, for all devices together; see `costs.flops`.
      seconds: time that they took.
      devices: number of chips that ran them.
      chip: the kind of chip; if it is unknown, None, so is the utilisation.
    """
    return None if chip is None else flops / (seconds * devices * chip.peak_flops)
