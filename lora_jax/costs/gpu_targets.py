"""What XLA's compiler must know of a GPU to compile for it where there is none.

XLA reads it as the text of its message `GpuTargetConfigProto`; `text` writes that for the chips of
`TARGETS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from lora_jax.costs import chips


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """Limits that all chips of a compute capability have.

    Attributes:
      capability: compute capability, (major, minor).
      accelerated: whether XLA uses what this capability alone has ("sm_90a").
      shared_memory: bytes of shared memory of a multiprocessor.
      shared_memory_of_block: bytes of it that one block may ask for.
      threads: of a multiprocessor.
      lanes: float32 units of a multiprocessor.
    """

    capability: tuple[int, int]
    accelerated: bool = False
    shared_memory: int
    shared_memory_of_block: int
    threads: int
    lanes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A chip as the compiler sees it; its memory and name are those of `chips.CHIPS`.

    Attributes:
      architecture: limits of its compute capability.
      multiprocessors: number of them.
      l2_cache: bytes.
      clock: boost clock in GHz.
    """

    architecture: Architecture
    multiprocessors: int
    l2_cache: int
    clock: float


_KIB, _MIB = 2**10, 2**20

# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; a block may ask for all
# but the KiB that the system takes of a multiprocessor's shared memory (from 8.0 on).
_TURING = Architecture(
    capability=(7, 5), shared_memory=64 * _KIB, shared_memory_of_block=64 * _KIB, threads=1024, lanes=64
)  # fmt: skip
_AMPERE = Architecture(
    capability=(8, 0), shared_memory=164 * _KIB, shared_memory_of_block=163 * _KIB, threads=2048, lanes=64
)  # fmt: skip
_AMPERE_GA10X = Architecture(
    capability=(8, 6), shared_memory=100 * _KIB, shared_memory_of_block=99 * _KIB, threads=1536, lanes=128
)  # fmt: skip
_ADA = dataclasses.replace(_AMPERE_GA10X, capability=(8, 9))
_HOPPER = Architecture(
    capability=(9, 0), accelerated=True, shared_memory=228 * _KIB, shared_memory_of_block=227 * _KIB,
    threads=2048, lanes=128,
)  # fmt: skip
_BLACKWELL = dataclasses.replace(_HOPPER, capability=(10, 0))

# A100, H100, H200, B200: XLA's own descriptions (openxla/xla, xla/backends/gpu/target_config/specs).
# The others: NVIDIA's white papers "Turing GPU architecture" (T4), "Ampere GA102" (RTX 3090) and "Ada GPU
# architecture" (RTX 4090), and the data sheet of L40S, whose AD102 has the whole L2 cache.
TARGETS: Mapping[str, Target] = {
    "a100-40": Target(architecture=_AMPERE, multiprocessors=108, l2_cache=40 * _MIB, clock=1.41),
    "a100-80": Target(architecture=_AMPERE, multiprocessors=108, l2_cache=40 * _MIB, clock=1.41),
    "h100": Target(architecture=_HOPPER, multiprocessors=132, l2_cache=50 * _MIB, clock=1.98),
    "h200": Target(architecture=_HOPPER, multiprocessors=132, l2_cache=50 * _MIB, clock=1.98),
    "b200": Target(architecture=_BLACKWELL, multiprocessors=148, l2_cache=132_644_864, clock=1.965),
    "rtx4090": Target(architecture=_ADA, multiprocessors=128, l2_cache=72 * _MIB, clock=2.52),
    "rtx3090": Target(architecture=_AMPERE_GA10X, multiprocessors=82, l2_cache=6 * _MIB, clock=1.695),
    "l40s": Target(architecture=_ADA, multiprocessors=142, l2_cache=96 * _MIB, clock=2.52),
    "t4": Target(architecture=_TURING, multiprocessors=40, l2_cache=4 * _MIB, clock=1.59),
}  # fmt: skip

_ALIKE: Mapping[str, int] = {  # on all of them
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 48 * _KIB,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
    "thread_dim_limit_x": 1024,
    "thread_dim_limit_y": 1024,
    "thread_dim_limit_z": 64,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
}
# The cuDNN that XLA's newest descriptions name; the program does not depend on a later one.
_CUDNN = {"major": 9, "minor": 10}


def capability(device_kind: str) -> tuple[int, int] | None:
    """Compute capability of a kind of GPU; None for one that is not in `TARGETS`.

    Args:
      device_kind: as JAX names it.
    """
    chip = chips.by_device_kind(device_kind)
    target = TARGETS.get(chip.name) if chip else None
    return target.architecture.capability if target else None


def text(name: str) -> str:
    """The description of a chip for XLA, a `GpuTargetConfigProto` in protobuf's text format.

    Args:
      name: a key of `TARGETS`.

    Raises:
      KeyError: no such key.
    """
    target, chip = TARGETS[name], chips.by_name(name)
    of, (major, minor) = target.architecture, target.architecture.capability
    capability: dict[str, object] = {"major": major, "minor": minor}
    if of.accelerated:
        capability["feature_extension"] = "ACCELERATED_FEATURES"
    info = {
        **_ALIKE,
        "shared_memory_per_core": of.shared_memory,
        "shared_memory_per_block_optin": of.shared_memory_of_block,
        "threads_per_core_limit": of.threads,
        "core_count": target.multiprocessors,
        "fpus_per_core": of.lanes,
        "memory_bandwidth": round(chip.memory_bandwidth),
        "l2_cache_size": target.l2_cache,
        "clock_rate_ghz": target.clock,
        "device_memory_size": chip.memory_bytes,
        "cuda_compute_capability": capability,
    }
    return _message(
        {
            "gpu_device_info": info,
            "platform_name": '"CUDA"',
            "dnn_version_info": _CUDNN,
            "device_description_str": f'"{chip.device_kind}"',
        }
    )


def _message(fields: Mapping[str, object], indent: str = "") -> str:
    lines = []
    for name, value in fields.items():
        if isinstance(value, Mapping):
            lines.append(f"{indent}{name} {{\n{_message(value, indent + '  ')}{indent}}}\n")
        else:
            lines.append(f"{indent}{name}: {value}\n")
    return "".join(lines)
