"""What a command sets for its whole process before JAX starts, where it computes on CPUs; and on which.

An allocator that gives freed memory back at once makes every train step ask the kernel for its buffers anew,
20,000 page faults in a step of a small encoder. And XLA takes half the width of vectors that a processor with
AVX-512 has. LORA_JAX_TUNE=0 (or false, no, off) leaves the process as it is.
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
_SWITCH = "LORA_JAX_TUNE"
_OFF = ("0", "false", "no", "off")
_WIDTH = "xla_cpu_prefer_vector_width"
# Of glibc's malloc.h, as mallopt(3) says. One arena, since others map what is above 64 MB however large the
# threshold is; XLA allocates few and large buffers.
_MALLOC = {
    "M_MMAP_THRESHOLD": (-3, 2**30, 2**25),  # older versions take the second at most
    "M_TRIM_THRESHOLD": (-1, 2**31 - 1),
    "M_TOP_PAD": (-2, 2**26),
    "M_ARENA_MAX": (-8, 1),
}
_applied: dict[str, Any] = {}
_left: list[str] = []  # why other things were left as they were


def tune() -> None:
    """Sets what makes programs on CPUs faster; to be called before JAX starts a backend.

    Nothing is set where JAX may find an accelerator, nor what the user has set: in XLA_FLAGS, or of malloc by
    its own variables (MALLOC_..., GLIBC_TUNABLES).
    """
    _left.clear()
    if os.environ.get(_SWITCH, "").strip().lower() in _OFF:
        _left.append(f"{_SWITCH} is {os.environ[_SWITCH]}")
    elif elsewhere := _not_only_cpus():
        _left.append(f"JAX may compute on an accelerator: {elsewhere}")
    else:
        _tune()


def _tune() -> None:
    own = _chosen_by_user()
    _left.extend(f"the user's {name} stays" for name in own)
    if not own and platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        taken = {
            name: next((value for value in values if mallopt(number, value)), None)
            for name, (number, *values) in _MALLOC.items()
        }
        if set_now := {name: value for name, value in taken.items() if value is not None}:
            _applied["malloc"] = set_now
    given = os.environ.get("XLA_FLAGS", "").strip()
    named = next((flag for flag in (_WIDTH, "xla_cpu_max_isa") if flag in given), "")
    # A file of flags, to which none can be added.
    file = given if given and not given.startswith("-") else ""
    if kept := named or file:
        _left.append(f"the user's {kept} in XLA_FLAGS stays")
    elif processor()["avx512f"]:
        os.environ["XLA_FLAGS"] = f"{given} --{_WIDTH}=512".strip()
        _applied["xla_flags"] = f"--{_WIDTH}=512"


def applied() -> dict[str, Any]:
    """What `tune` has set in this process, for run records."""
    return dict(_applied)


def left() -> list[str]:
    """Why `tune` has left something as it was, for run records."""
    return list(_left)


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


def _not_only_cpus() -> str:
    """Why JAX may not compute on CPUs, as far as that is known before it looks for devices; else empty."""
    if platforms := os.environ.get("JAX_PLATFORMS", ""):
        return "" if platforms == "cpu" else f"JAX_PLATFORMS is {platforms}"
    plugins = [point.name for point in importlib.metadata.entry_points(group="jax_plugins")]
    found = [name for name in ("jax_plugins", "libtpu") if importlib.util.find_spec(name)]
    if not (plugins or found):
        return ""
    return f"{', '.join(plugins or found)} is installed and JAX_PLATFORMS is not cpu"


def _chosen_by_user() -> list[str]:
    """The variables by which the user has set glibc's allocator."""
    tunables = ["GLIBC_TUNABLES"] if "malloc" in os.environ.get("GLIBC_TUNABLES", "") else []
    return tunables + sorted(name for name in os.environ if name.startswith("MALLOC_"))
