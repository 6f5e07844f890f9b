"""Ray's machines: the resources of a program, and joining a cluster or starting one on this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import socket
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from lora_jax.errors import InputError

_CONNECT = 10.0  # seconds for which a cluster may keep silent


@dataclasses.dataclass(frozen=True)
class Machines:
    """Where programs are trained, and what each of them gets.

    Attributes:
      address: of a cluster; `auto` is the one that this machine belongs to, "" this machine alone.
      cpus: cores of a program.
      gpus: GPUs of a program.
      resources: numbers of other resources of Ray, by name.
      retries: how often a program is started again that died or failed.
    """

    address: str = ""
    cpus: float = 1
    gpus: float = 0
    resources: Mapping[str, float] = dataclasses.field(default_factory=dict)
    retries: int = 2

    @property
    def needs(self) -> dict[str, float]:
        """All of a program's resources, by the names that Ray gives those of a machine."""
        every = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        return {name: count for name, count in every.items() if count}


def parse_resources(text: str) -> dict[str, float]:
    """`TPU=4,accelerator=1` as a mapping.

    Raises:
      ValueError: it is not written so, or names CPU or GPU, which have flags.
    """
    result: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, number = (side.strip() for side in part.partition("="))
        try:
            count = float(number)
        except ValueError:
            count = math.nan
        if not name or not 0 < count < math.inf:
            raise InputError(
                f"resources {text!r}: {part!r} is not NAME=NUMBER with a number above 0, such as TPU=4"
            )
        if name in ("CPU", "GPU"):
            raise InputError(f"resources {text!r}: give {name} with --ray_{name.lower()}s")
        if name in result:
            raise InputError(f"resources {text!r}: {name} is there twice")
        result[name] = count
    return result


def define_flags() -> Callable[[], Machines | None]:
    """Defines `--engine` and `--ray_...`; returns what reads them: None without Ray."""
    engine = flags.DEFINE_enum(
        "engine", "here", ["here", "ray"], "Train in this process, or through Ray."
    )
    address = flags.DEFINE_string(
        "ray_address", "", "Ray's cluster: 'auto' or HOST:PORT; '' starts Ray on this machine."
    )
    cpus = flags.DEFINE_float("ray_cpus", 1, "CPU cores of a program.", lower_bound=0)
    gpus = flags.DEFINE_float("ray_gpus", 0, "GPUs of a program.", lower_bound=0)
    resources = flags.DEFINE_string("ray_resources", "", "Other needs of a program, as 'TPU=4'.")
    retries = flags.DEFINE_integer(
        "ray_retries", 2, "How often a program that died is started again.", lower_bound=0
    )

    def read() -> Machines | None:
        if engine.value == "here":
            return None
        if "hosts" in flags.FLAGS and flags.FLAGS.hosts:
            raise InputError(
                "--hosts joins the hosts of one program; leave it out with --engine=ray"
            )
        return Machines(
            address.value, cpus.value, gpus.value, parse_resources(resources.value), retries.value
        )

    return read


def load() -> Any:
    """The package `ray`, which is an optional one.

    Raises:
      ImportError: it is not installed; the message has the remedy.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            f"--engine=ray needs Ray ({error}): pip install -r requirements-ray.txt"
        ) from error
    return ray


@contextlib.contextmanager
def joined(machines: Machines) -> Iterator[Any]:
    """Ray with the cluster joined, or with one of this machine; leaves it after if it joined here.

    Raises:
      ImportError: Ray is not installed.
      ValueError: there is no cluster, or this machine lacks the resources that a program needs.
    """
    ray = load()
    joins = not ray.is_initialized()
    if joins:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        address = machines.address or "local"
        if host := re.fullmatch(r"(?P<name>[^:/]+):(?P<port>[0-9]{1,5})", address):
            _reach(host["name"], int(host["port"]))
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", r"os\.fork", RuntimeWarning)  # an exec follows it
                ray.init(
                    address,
                    include_dashboard=False if address == "local" else None,
                    log_to_driver=False,
                    logging_level="error",
                )
        except (ConnectionError, RuntimeError, AssertionError) as error:
            raise InputError(
                f"Ray's cluster {address!r}: {error}. Run this command on a machine where "
                "`ray start --head` or `ray start --address=HOST:6379` was run"
            ) from error
    try:
        _check(machines, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        yield ray
    finally:
        if joins:
            ray.shutdown()


def _reach(host: str, port: int) -> None:
    """Raises if nothing answers at the address: Ray itself would wait for minutes."""
    try:
        socket.create_connection((host, port), _CONNECT).close()
    except OSError as error:
        raise InputError(
            f"nothing answers at --ray_address={host}:{port} ({error}); start a cluster there with "
            f"`ray start --head --port={port}`"
        ) from error


def _check(machines: Machines, cluster: Sequence[Mapping[str, float]]) -> None:
    """Programs that no machine could ever take are an error here, and a warning in a cluster."""
    needs = machines.needs
    if not any(all(m.get(k, 0) >= count for k, count in needs.items()) for m in cluster):
        asked = ", ".join(f"{name}={count:g}" for name, count in needs.items())
        text = (
            f"no machine has the resources that a program needs ({asked}); see --ray_cpus, --ray_gpus "
            "and --ray_resources"
        )
        if not machines.address:
            raise InputError(text)
        print(f"{text}. Waiting for one to join the cluster", file=sys.stderr)
    for name in ("GPU", "TPU"):
        if any(machine.get(name) for machine in cluster) and not needs.get(name):
            flag = "--ray_gpus=1" if name == "GPU" else "--ray_resources=TPU=4"
            print(f"machines have {name}s, but programs ask for none: {flag}", file=sys.stderr)
