"""What a command sets for its whole process before JAX starts, where it computes on CPUs; and on which.

An allocator that gives freed memory back at once makes every train step ask the kernel for its buffers anew,
20,000 page faults in a step of a small encoder. And XLA takes half the width of vectors that a processor with
AVX-512 has. LORA_JAX_TUNE=0 leaves the process as it is.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any

_CPUINFO = Path("/proc/cpuinfo")
_OFF = "LORA_JAX_TUNE"
_WIDTH = "xla_cpu_prefer_vector_width"
# Of glibc's malloc.h, as mallopt(3) says. One arena, since others map what is above 64 MB however large the
# threshold is; XLA allocates few and large buffers.
_MALLOC = {
    "M_MMAP_THRESHOLD": (-3, 2**30),
    "M_TRIM_THRESHOLD": (-1, 2**31 - 1),
    "M_TOP_PAD": (-2, 2**26),
    "M_ARENA_MAX": (-8, 1),
}
_applied: dict[str, Any] = {}


def tune() -> None:
    """Sets what makes programs on CPUs faster; to be called before JAX starts a backend.

    Nothing is set where JAX may find an accelerator, nor what the user has set: in XLA_FLAGS, or of malloc by
    its own variables (MALLOC_..., GLIBC_TUNABLES).
    """
    if os.environ.get(_OFF) == "0" or not _only_cpus():
        return
    if not _chosen_by_user() and platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        if set_now := {n: v for n, (number, v) in _MALLOC.items() if mallopt(number, v)}:
            _applied["malloc"] = set_now
    given = os.environ.get("XLA_FLAGS", "")
    if _WIDTH not in given and processor()["avx512f"]:
        os.environ["XLA_FLAGS"] = f"{given} --{_WIDTH}=512".strip()
        _applied["xla_flags"] = f"--{_WIDTH}=512"


def applied() -> dict[str, Any]:
    """What `tune` has set in this process, for run records."""
    return dict(_applied)


def processor() -> dict[str, Any]:
    """The processor of this machine, for records of times.

    Returns:
      name, family and model numbers (null where the system does not say), whether it has AVX-512
      (avx512f), and the cores that this process may use.
    """
    fields: dict[str, str] = {}
    if _CPUINFO.is_file():
        for line in _CPUINFO.read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "name": fields.get("model name") or platform.processor() or platform.machine(),
        "family": fields.get("cpu family"),
        "model": fields.get("model"),
        "avx512f": "avx512f" in fields.get("flags", "").split(),
        "cores": cores,
    }


def _only_cpus() -> bool:
    """Whether JAX will compute on CPUs, as far as that can be known before it looks for devices."""
    if platforms := os.environ.get("JAX_PLATFORMS", ""):
        return platforms == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    modules = ("jax_plugins", "libtpu")
    return not plugins and all(importlib.util.find_spec(name) is None for name in modules)


def _chosen_by_user() -> bool:
    return "malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(
        name.startswith("MALLOC_") for name in os.environ
    )
