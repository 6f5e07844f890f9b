"""Limits of accelerators (memory, FLOPs, bandwidths), and the model FLOPs utilisation."""

from __future__ import annotations

import dataclasses
import difflib

from lora_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator, as its maker specifies it.

    Attributes:
      name: short name: the beginning of its topologies' names ("v5p:4x4x4", "h100:8").
      device_kind: `jax.Device.device_kind`; for second names of some chips see `by_device_kind`.
      memory_bytes: of a TPU nominal: libtpu 0.0.52 leaves a program 15.75 GiB on v5e, 95.73 on v5p and
        31.24 on v6e. Of a GPU what CUDA reports, of which its context and libraries take some hundred
        MiB.
      peak_flops: FLOPs per second of dense matrix products in bfloat16.
      memory_bandwidth: bytes per second.
      interconnect_bandwidth: bytes per second that a chip can send over all its links together (ICI,
        NVLink; without these PCIe), which is half of a "bidirectional" figure.
      host_chips: largest number of chips of one host machine; the virtual machines of larger v5e and
        v6e slices have 4 of the 8.
      float16_flops: as `peak_flops`, in float16; None where that is no type of the chip's products.
      float32_flops: as `peak_flops`, of float32 at JAX's default precision: a GPU multiplies in TF32
        where it has that, a TPU in bfloat16, which None stands for.
    """

    name: str
    device_kind: str
    memory_bytes: int
    peak_flops: float
    memory_bandwidth: float
    interconnect_bandwidth: float
    host_chips: int
    float16_flops: float | None = None
    float32_flops: float | None = None

    def peak(self, dtype: str) -> float:
        """FLOPs per second of dense matrix products in a type: bfloat16, float16 or float32.

        Raises:
          ValueError: the chip has no products in it.
        """
        peaks = {
            "bfloat16": self.peak_flops,
            "float16": self.float16_flops,
            "float32": self.float32_flops or self.peak_flops,
        }
        found = peaks.get(dtype)
        if found is None:
            known = [name for name, flops in peaks.items() if flops]
            raise InputError(f"{self.name} has no products in {dtype}; it has those in {known}")
        return found


_MIB, _GIB = 2**20, 2**30

# TPUs: the pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" of Google Cloud's documentation, section
# System architecture (cloud.google.com/tpu/docs/v5p and so on). The ICI figure of v4 is not there: it
# is 6 links of 50 GB/s in each direction (Jouppi et al. 2023, "TPU v4").
# GPUs: NVIDIA's data sheets of A100 (SXM), H100 (SXM), H200, HGX B200, L40S and T4, and the tables of the
# white papers "Ampere GA102" (RTX 3090) and "Ada GPU architecture" (RTX 4090), with accumulation in
# float32; dense figures, half of "with sparsity". T4 has no bfloat16: XLA multiplies in float32 there.
# Memory: of A100, H100, H200 and B200 as XLA's descriptions of them have it (openxla/xla,
# xla/backends/gpu/target_config/specs); of the others the least that messages of PyTorch in public logs
# show under Linux ("a total capacity of 23.52 GiB"). Hosts of GPUs: DGX and HGX machines, or 8 cards.
CHIPS = (
    Chip("v4", "TPU v4", 32 * _GIB, 275e12, 1200e9, 300e9, 4),
    Chip("v5e", "TPU v5 lite", 16 * _GIB, 197e12, 819e9, 200e9, 8),
    Chip("v5p", "TPU v5", 95 * _GIB, 459e12, 2765e9, 600e9, 4),
    Chip("v6e", "TPU v6 lite", 32 * _GIB, 918e12, 1638e9, 400e9, 8),
    Chip("a100-40", "NVIDIA A100-SXM4-40GB", 42_331_013_120, 312e12, 1555e9, 300e9, 8, 312e12, 156e12),
    Chip("a100-80", "NVIDIA A100-SXM4-80GB", 85_100_068_864, 312e12, 2039e9, 300e9, 8, 312e12, 156e12),
    Chip("h100", "NVIDIA H100 80GB HBM3", 84_942_979_072, 989e12, 3350e9, 450e9, 8, 989e12, 494e12),
    Chip("h200", "NVIDIA H200", 151_397_597_184, 989e12, 4800e9, 450e9, 8, 989e12, 494e12),
    Chip("b200", "NVIDIA B200", 191_514_411_008, 2250e12, 7700e9, 900e9, 8, 2250e12, 1100e12),
    Chip("rtx4090", "NVIDIA GeForce RTX 4090", 24_080 * _MIB, 165.2e12, 1008e9, 32e9, 8, 165.2e12, 82.6e12),
    Chip("rtx3090", "NVIDIA GeForce RTX 3090", 24_121 * _MIB, 71e12, 936e9, 32e9, 8, 71e12, 35.6e12),
    Chip("l40s", "NVIDIA L40S", 45_461 * _MIB, 362e12, 864e9, 32e9, 8, 362e12, 183e12),
    Chip("t4", "Tesla T4", 14_930 * _MIB, 8.1e12, 320e9, 16e9, 8, 65e12, 8.1e12),
)  # fmt: skip

_OTHER_KINDS = {"TPU v5e": "v5e", "TPU v5p": "v5p", "TPU v6e": "v6e"}


def by_device_kind(kind: str) -> Chip | None:
    """The chip whose JAX device kind is `kind`; None for CPUs and chips that are not in `CHIPS`.

    Another variant of a chip ("NVIDIA H100 PCIe") is another chip, because its figures differ.
    """
    known = {chip.device_kind: chip for chip in CHIPS}
    known |= {kind: by_name(name) for kind, name in _OTHER_KINDS.items()}
    return known.get(kind)


def by_topology(topology: str) -> Chip:
    """The chip of a topology such as `v5p:4x4x4` or `h100:8`, or the name alone.

    Raises:
      ValueError: no chip of `CHIPS` has the name before the colon.
    """
    return by_name(topology.partition(":")[0])


def by_name(name: str) -> Chip:
    """The chip with this short name.

    Raises:
      ValueError: no chip has it; the message lists the known names.
    """
    for chip in CHIPS:
        if chip.name == name:
            return chip
    names = [chip.name for chip in CHIPS]
    given = name.lower()[:100]
    near = [known for known in names if given and known.startswith(given)]
    near = near or difflib.get_close_matches(given, names, 1)
    meant = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise InputError(f"unknown chip {name[:100]!r}; known chips are {names}.{meant}")


def mfu(flops: float, seconds: float, devices: int, chip: Chip | None) -> float | None:
    """Model FLOPs utilisation (Chowdhery et al. 2022, appendix B), a fraction of the peak.

    Args:
      flops: of the model, for all devices together; see `costs.flops`.
      seconds: time that they took.
      devices: number of chips that ran them.
      chip: the kind of chip; if it is unknown, None, so is the utilisation.
    """
    return None if chip is None else flops / (seconds * devices * chip.peak_flops)
