"""Devices to compile for where there are none: slices of TPUs and hosts with GPUs, by name.

"v5p:4x4x4" is a slice of 64 TPUs, "h100:8" a host with 8 GPUs, "h100:2x8" two such hosts.
"""

from __future__ import annotations

import importlib.util
import math
import re
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from lora_jax.costs import chips, gpu_targets
from lora_jax.costs.chips import Chip
from lora_jax.costs.gpu_targets import TARGETS
from lora_jax.errors import InputError

# By it JAX's plugin for CUDA loads where there is no driver; set before JAX looks for plugins.
WITHOUT_DRIVER = "JAX_SKIP_CUDA_CONSTRAINTS_CHECK"
_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")

_PODS = {
    "v4": 4096,
    "v5e": 256,
    "v5p": 8960,
    "v6e": 256,
}  # chips, from the pages that chips.py names
_ONE = {"v5e": "1x1", "v6e": "1x1"}  # slices of two sizes; of the others a slice has three
_SLICE = re.compile(r"(?P<sizes>[0-9]{1,4}(x[0-9]{1,4}){1,2})(_(un)?twisted)?")
_HOSTS = re.compile(r"(?:(?P<hosts>[0-9]{1,4})x)?(?P<each>[0-9]{1,4})")
_MOST_HOSTS = 1024


def is_gpu(chip: Chip) -> bool:
    """Whether a chip is a GPU."""
    return chip.name in TARGETS


def check(topology: str) -> Chip:
    """The chip of a topology, after a check of its shape.

    libtpu would end the process on a size of 0, and takes slices that are larger than a pod.

    Raises:
      ValueError: an unknown chip, or sizes that no slice or host of it has.
    """
    chip = chips.by_topology(topology)
    if is_gpu(chip):
        _hosts(topology, chip)
        return chip
    sizes = _SLICE.fullmatch(topology.partition(":")[2])
    count = math.prod(int(size) for size in sizes["sizes"].split("x")) if sizes else 0
    flat = chip.name in _ONE and sizes is not None and sizes["sizes"].count("x") != 1
    if flat or not 0 < count <= _PODS[chip.name]:
        raise InputError(
            f"topology {topology!r} must be {chip.name}: and the sizes of a slice, two or three positive "
            f"numbers with x between them and a product of at most {_PODS[chip.name]:,}, such as "
            f"{chip.name}:2x4; one chip is {chip.name}:{_ONE.get(chip.name, '1x1x1')}"
        )
    return chip


def _hosts(topology: str, chip: Chip) -> tuple[int, int]:
    """Hosts of a topology of GPUs, and GPUs of each."""
    found = _HOSTS.fullmatch(topology.partition(":")[2])
    hosts, each = (int(found["hosts"] or 1), int(found["each"])) if found else (0, 0)
    if 1 <= hosts <= _MOST_HOSTS and 1 <= each <= chip.host_chips:
        return hosts, each
    more, rest = divmod(hosts * each, chip.host_chips)
    meant = more > 1 and not rest and more <= _MOST_HOSTS
    raise InputError(
        f"topology {topology!r} must be {chip.name}: and a number of GPUs, from 1 to the "
        f"{chip.host_chips} of a host, or {chip.name}:HOSTSxGPUS, at most {_MOST_HOSTS:,} hosts with as many "
        f"GPUs each" + (f". Did you mean {chip.name}:{more}x{chip.host_chips}?" if meant else "")
    )


def devices(topology: str) -> list[jax.Device]:
    """The devices of a topology, to compile for where there are none.

    For GPUs the environment variable `WITHOUT_DRIVER` must be 1 before JAX looks for its plugins.

    Raises:
      ImportError: the compiler's package is not installed.
      ValueError: the chip is unknown or has no such topology.
    """
    chip = check(topology)
    given = _gpu_arguments(topology, chip) if is_gpu(chip) else _tpu_arguments(topology)
    from jax.experimental import topologies

    try:
        description = topologies.get_topology_desc(**given)
    except (jax.errors.JaxRuntimeError, ValueError, RuntimeError) as error:
        hint = f"; the plugin must be of jax's version, {jax.__version__}" if is_gpu(chip) else ""
        raise InputError(
            f"topology {topology!r} is not one of {chip.name}: {error}{hint}"
        ) from error
    return list(description.devices)


def tracing_for(device: jax.Device) -> AbstractContextManager[Any]:
    """While it lasts, programs without a mesh are traced for a device that may not be there.

    Models choose by it how they compute attention.
    """
    kind = Mesh(np.array([device]), ("one",)).abstract_mesh.abstract_device
    return jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=kind))


def _tpu_arguments(topology: str) -> dict[str, Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            "compiling for TPUs needs the package libtpu (no TPU): pip install libtpu"
        )
    given = {"platform": "tpu", "topology_name": topology}
    # The two cores of a v4 are one device, as on its hosts; without it there would be two of half a chip.
    return {**given, "chip_config_name": "megacore"} if topology.startswith("v4:") else given


def _gpu_arguments(topology: str, chip: Chip) -> dict[str, Any]:
    if not any(importlib.util.find_spec(name) for name in _PLUGINS):
        raise ImportError(
            "compiling for GPUs needs JAX's plugin for CUDA (5 GB, no GPU), best in an environment of "
            f'its own: pip install "jax[cuda12]=={jax.__version__}"; without a driver the environment '
            f"variable {WITHOUT_DRIVER}=1 lets it load"
        )
    hosts, each = _hosts(topology, chip)
    text = gpu_targets.text(chip.name)
    return {"platform": "cuda", "topology": f"1x{hosts}x{each}", "target_config": text}
