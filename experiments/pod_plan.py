"""Does a run fit a TPU slice, and on which mesh? Compiled for the TPU, without a TPU.

    pip install libtpu
    python -m experiments.pod_plan --config=configs/pod/gpt3_175b_lora.py --topology=v5p:4x4x4
    python -m experiments.pod_plan --config=configs/pod/gpt2_large_lora.py --topology=v5e:2x4 --search

Compiles the real train step, of the config's method and of full fine-tuning, for the named topology
(v4, v5e, v5p, v6e; the sizes are the slice's) and prints what each device needs. `--search` tries mesh
shapes and batch sizes for the config's method and ranks those that fit. With `--workdir=DIR` the
figures go to DIR/plans.jsonl, and what is there already is not compiled again.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from experiments import tables
from experiments import workdir as workdirs
from experiments.abstract_step import build, head_pattern, model_config
from lora_jax import methods
from lora_jax.costs import chips, compiled
from lora_jax.costs.chips import Chip
from lora_jax.method import Method
from lora_jax.sharding.mesh import AXES, make_mesh, shares
from lora_jax.training.records import to_json


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one train step needs of each device of a topology.

    Attributes:
      topology, devices: the slice.
      mesh: size of each axis.
      method: as text.
      rows, tokens: of a batch.
      trainable, total: numbers of parameters.
      arguments, temporaries, peak: bytes per device, see `compiled.Needs`.
      fits: in the chip's memory.
      traffic: bytes that a device sends in a step, by kind of collective.
      flops: of a step, all devices together.
      compute_seconds, link_seconds: what the products take at the chip's peak, and the traffic at its
        links' peak: a step takes at least the longer of the two.
      compile_seconds: on this machine.
    """

    topology: str
    devices: int
    mesh: dict[str, int]
    method: str
    rows: int
    tokens: int
    trainable: int
    total: int
    arguments: int
    temporaries: int
    peak: int
    fits: bool
    traffic: dict[str, int]
    flops: int
    compute_seconds: float
    link_seconds: float
    compile_seconds: float

    @property
    def bound(self) -> float:
        """Tokens per second that the slice cannot exceed, by products and links."""
        return self.tokens / max(self.compute_seconds, self.link_seconds)

    @property
    def serial(self) -> float:
        """The same if links wait for products."""
        return self.tokens / (self.compute_seconds + self.link_seconds)


class Planner:
    """Compiles steps of one config for one topology; remembers them in a file if there is one."""

    def __init__(self, config: ConfigDict, topology: str, workdir: Path | None):
        self.config = config
        self.topology = topology
        self.chip: Chip = chips.by_topology(topology)
        self.devices = compiled.topology_devices(topology)
        self.path = None if workdir is None else workdir / "plans.jsonl"
        self.known: dict[str, dict[str, Any]] = {}
        if self.path is not None and self.path.exists():
            lines = map(json.loads, self.path.read_text().splitlines())
            self.known = {line["key"]: line["plan"] for line in lines}

    def plan(self, method: Method, mesh: dict[str, int], rows: int) -> Plan:
        """Compiles one step.

        Raises:
          ValueError: the mesh fits neither the devices nor the model, or the rows not the mesh.
        """
        own = make_mesh(mesh, self.devices)
        if rows % shares(own):
            raise ValueError(
                f"mesh: data x fsdp = {shares(own)} does not divide the batch's {rows} rows; set "
                "config.rows to a multiple"
            )
        sizes = {axis: own.shape[axis] for axis in AXES}
        plain = {
            k: v for k, v in workdirs.plain(self.config).items() if k not in ("mesh", "search")
        }
        key = to_json([plain, self.topology, str(method), sizes, rows], indent=None)
        if key not in self.known:
            self.known[key] = dataclasses.asdict(self._compile(method, own, sizes, rows))
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a") as file:
                    line = {"key": key, "plan": self.known[key]}
                    file.write(to_json(line, indent=None) + "\n")
        return Plan(**self.known[key])

    def _compile(self, method: Method, mesh: Any, sizes: dict[str, int], rows: int) -> Plan:
        step = build(self.config, method, mesh, rows)
        needs = compiled.needs(step.function, step.arguments, self.chip)
        count = len(self.devices)
        return Plan(
            self.topology, count, sizes, str(method), rows, rows * self.config.length,
            step.trainable, step.total, needs.arguments, needs.temporaries, needs.peak, needs.fits,
            {kind: own.bytes for kind, own in needs.traffic.items()}, step.flops,
            step.flops / (count * self.chip.peak_flops),
            needs.sent / self.chip.interconnect_bandwidth, needs.compile_seconds,
        )  # fmt: skip

    def candidates(self, method: Method) -> Iterator[tuple[dict[str, int], int]]:
        """Meshes and batch sizes of a search, without those that cannot fit.

        Arguments alone (weights, optimizer state) may be more than a device has: no need to compile.
        """
        count, heads = len(self.devices), model_config(self.config).heads
        for model in self.config.search.model:
            if heads % model or count % model:
                continue
            for fsdp in _divisors(count // model):
                mesh = {"data": count // model // fsdp, "fsdp": fsdp, "model": model}
                for rows in self.config.search.rows:
                    if rows % (count // model):
                        continue
                    try:
                        step = build(self.config, method, make_mesh(mesh, self.devices), rows)
                    except ValueError:  # a width that the mesh does not divide
                        continue
                    if compiled.argument_bytes(step.arguments) < self.chip.memory_bytes:
                        yield mesh, rows


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _size(number: int) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= unit / 2:
            return f"{number / unit:.2f} {name}"
    return f"{number} B"


def comparison(lora: Plan, full: Plan, chip: Chip) -> str:
    """The two plans side by side, as a Markdown table."""

    def ratio(a: float, b: float) -> str:
        return f"{a / b:.3f}" if b else "-"

    rows: list[tuple[str, ...]] = [
        ("trained values", f"{lora.trainable:,}", f"{full.trainable:,}",
         ratio(lora.trainable, full.trainable)),
    ]  # fmt: skip
    for name, field in (
        ("arguments: weights, optimizer state, batch", "arguments"),
        ("temporaries: activations, gradients", "temporaries"),
        ("peak", "peak"),
    ):
        a, b = getattr(lora, field), getattr(full, field)
        rows.append((f"{name}, per device", _size(a), _size(b), ratio(a, b)))
    fits = ["yes" if plan.fits else "no" for plan in (lora, full)]
    rows.append((f"fits {chip.name} ({_size(chip.memory_bytes)})", *fits, ""))
    for kind in sorted(lora.traffic | full.traffic):
        a, b = (plan.traffic.get(kind, 0) for plan in (lora, full))
        sent = [_size(size) if plan.fits else "-" for size, plan in ((a, lora), (b, full))]
        rows.append((f"{kind}, sent per device and step", *sent, ratio(a, b)))
    rows.append(
        ("PFLOP a step", *(f"{p.flops / 1e15:.4g}" for p in (lora, full)),
         ratio(lora.flops, full.flops))
    )  # fmt: skip
    a, b = lora.compute_seconds, full.compute_seconds
    rows.append(("at least, by products", f"{a:.3g} s", f"{b:.3g} s", ratio(a, b)))
    if lora.fits and full.fits:  # else the traffic is not known
        a, b = lora.link_seconds, full.link_seconds
        rows.append(("at least, by links", f"{a:.3g} s", f"{b:.3g} s", ratio(a, b)))
    rows.append(
        ("compiled here in", *(f"{p.compile_seconds:.0f} s" for p in (lora, full)), "")
    )  # fmt: skip
    head = ("", lora.method.partition("(")[0], "full", "ratio")
    lines: list[tuple[str, ...]] = [head, ("---",) * 4, *rows]
    return tables.grid(lines)


def ranking(plans: Sequence[Plan]) -> str:
    """The plans of a search: those that fit first, by tokens per second if nothing overlaps."""
    ordered = sorted(plans, key=lambda p: (not p.fits, -p.serial, p.peak))
    speeds = ("tokens/s at most", "without overlap")
    head = ("data", "fsdp", "model", "rows", "peak", "fits", "sent a step", *speeds)
    lines: list[tuple[str, ...]] = [head, ("---",) * len(head)]
    for plan in ordered:
        bounds = [f"{value:,.0f}" if plan.fits else "-" for value in (plan.bound, plan.serial)]
        sent = _size(sum(plan.traffic.values())) if plan.fits else "-"
        lines.append(
            (*(str(plan.mesh[axis]) for axis in AXES), str(plan.rows), _size(plan.peak),
             "yes" if plan.fits else "no", sent, *bounds)
        )  # fmt: skip
    return tables.grid(lines)


def title(plan: Plan, config: ConfigDict) -> str:
    """What is compiled, in a line or two."""
    mesh = ", ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
    return (
        f"{config.model.size}, {plan.total:,} values; {plan.topology}, {plan.devices} devices; {mesh}; "
        f"{plan.rows} rows of {config.length} tokens, remat {config.model.remat}\n{plan.method}\n"
    )


def search(planner: Planner, method: Method) -> list[Plan]:
    """Compiles every candidate for the config's method."""
    todo = list(planner.candidates(method))
    if not todo:
        raise ValueError(
            "no mesh and batch size of config.search can fit: weights and optimizer state alone are "
            "more than a device has, or data x fsdp never divides the rows"
        )
    bar = tqdm(todo, desc="plans", unit="plan")
    return [planner.plan(method, mesh, rows) for mesh, rows in bar]


def main(_: list[str]) -> None:
    """Command line."""
    logging.set_verbosity(logging.WARNING)
    # Nothing runs here: no accelerator is taken, and libtpu does not look for a TPU machine.
    jax.config.update("jax_platforms", "cpu")
    config = _CONFIG.value
    with workdirs.readable_errors():
        workdir = Path(_WORKDIR.value) if _WORKDIR.value else None
        head = head_pattern(config)
        method = methods.create(head=head, **config.method.to_dict())
        planner = Planner(config, _TOPOLOGY.value or "", workdir)
        if _SEARCH.value:
            print(ranking(search(planner, method)))
            return
        mesh = config.mesh.to_dict()
        own = planner.plan(method, mesh, config.rows)
        full = planner.plan(methods.full(head), mesh, config.rows)
        print(title(own, config))
        print(comparison(own, full, planner.chip))


if __name__ == "__main__":
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # for libtpu where there is no TPU
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    _CONFIG = config_flags.DEFINE_config_file("config", None, "Plan.")
    _TOPOLOGY = flags.DEFINE_string("topology", None, "TPU topology, such as v5p:4x4x4.")
    _SEARCH = flags.DEFINE_bool("search", False, "Try meshes and batch sizes.")
    _WORKDIR = flags.DEFINE_string("workdir", "", "Folder for the figures.")
    flags.mark_flags_as_required(["config", "topology"])
    app.run(main, flags_parser=workdirs.parse_flags)
