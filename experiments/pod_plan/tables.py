"""The figures of a plan (`experiments.pod_plan`) and the tables that show several of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ml_collections import ConfigDict

from experiments.runs import text_tables
from lora_jax.costs import chips
from lora_jax.costs.chips import Chip
from lora_jax.sharding.mesh import AXES, RUN

Row = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one train step needs of each device of a topology.

    Attributes:
      topology, devices: the slice.
      mesh: size of each axis; the axis run only for a sweep's program.
      method: as text.
      rows: of a run's batch.
      tokens: of a step: of the batches of all runs.
      trainable, total: numbers of parameters, of all runs; total has the base once.
      arguments, temporaries, peak: bytes per device, see `compiled.Needs`.
      fits: in the chip's memory.
      traffic: bytes that a device sends in a step, by kind of collective.
      flops: of a step, all devices and runs together.
      compute_seconds, link_seconds: what the products take at the chip's peak, and the traffic at its
        links' peak: a step takes at least the longer of the two.
      compile_seconds: on this machine.
      runs: of the program; 1 is the step of a run alone.
      frozen: bytes of the arguments per device that no run changes; None in files of before.
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
    runs: int = 1
    frozen: int | None = None

    @property
    def bound(self) -> float:
        """Tokens per second that the slice cannot exceed, by products and links."""
        return self.tokens / max(self.compute_seconds, self.link_seconds)

    @property
    def serial(self) -> float:
        """The same if links wait for products."""
        return self.tokens / (self.compute_seconds + self.link_seconds)

    @property
    def runs_of_device(self) -> int:
        """Runs whose factors a device holds (its part of them)."""
        return self.runs // self.mesh.get(RUN, 1)

    @property
    def reading_seconds(self) -> float:
        """What reading the arguments once takes at the peak of the chip's memory."""
        return self.arguments / chips.by_topology(self.topology).memory_bandwidth


def size_text(number: int) -> str:
    """Bytes in a unit of the number's size."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= unit / 2:
            return f"{number / unit:.2f} {name}"
    return f"{number} B"


def comparison(lora: Plan, full: Plan, chip: Chip) -> str:
    """The two plans side by side, as a Markdown table."""
    rows = [
        _trained(lora, full),
        *_memory(lora, full),
        _fits(lora, full, chip),
        *_traffic(lora, full, "sent per device and step"),
        _flops("PFLOP a step", lora, full),
        *_least(lora, full),
        _compiled(lora, full),
    ]
    return _table(("", lora.method.partition("(")[0], "full", "ratio"), rows)


def sweep_comparison(sweep: Plan, single: Plan, chip: Chip) -> str:
    """A program of several runs beside one run at a time, and what the shared base saves.

    Memory is that of a device while either program works. Traffic, products and seconds are of one
    step of all runs: a step of the program, or `sweep.runs` steps of the single run's, whose rank is
    the program's.
    """
    times = sweep.runs
    frozen = [
        ("of these the frozen base, per device", size_text(a), size_text(b), _ratio(a, b))
        for a, b in [(sweep.frozen, single.frozen)]
        if a is not None and b is not None
    ]
    arguments, *memory = _memory(sweep, single)
    reading = [plan.reading_seconds * n for plan, n in ((sweep, 1), (single, times))]
    fits = sweep.fits, single.fits
    rows = [
        _trained(sweep, single),
        arguments,
        *frozen,
        *memory,
        _fits(sweep, single, chip),
        *_traffic(sweep, single, "sent per device", times),
        _flops("PFLOP", sweep, single, times),
        *_least(sweep, single, times),
        _seconds("to read the arguments from memory once", *reading),
        _speeds("runs x tokens/s at most, by products and links", sweep.bound, single.bound, fits),
        _speeds("the same, if links wait for products", sweep.serial, single.serial, fits),
        _compiled(sweep, single),
    ]
    head = ("one step of all runs", f"{times} runs, one program", "one run at a time", "ratio")
    return f"{_table(head, rows)}\n\n{_saved(sweep)}"


def _saved(sweep: Plan) -> str:
    count, frozen = sweep.runs_of_device, sweep.frozen or 0
    if count == 1:
        return f"A device has one run and, for it, the base: {size_text(frozen)}. None is shared."
    return (
        f"A device has the base once ({size_text(frozen)}) for its {count} runs. As programs of their "
        f"own at the same time, on this mesh, they would have it {count} times: "
        f"{size_text((count - 1) * frozen)} more on each device, "
        f"{size_text((count - 1) * frozen * sweep.devices)} more on all {sweep.devices}."
    )


def _ratio(a: float, b: float) -> str:
    return f"{a / b:.3f}" if b else "-"


def _seconds(name: str, a: float, b: float) -> Row:
    return name, f"{a:.3g} s", f"{b:.3g} s", _ratio(a, b)


def _speeds(name: str, a: float, b: float, fits: tuple[bool, bool]) -> Row:
    shown = [f"{speed:,.0f}" if own else "-" for speed, own in zip((a, b), fits, strict=True)]
    return name, *shown, _ratio(a, b) if all(fits) else "-"


def _trained(one: Plan, other: Plan) -> Row:
    a, b = one.trainable, other.trainable
    return "trained values", f"{a:,}", f"{b:,}", _ratio(a, b)


def _memory(one: Plan, other: Plan) -> list[Row]:
    return [
        (f"{name}, per device", size_text(a), size_text(b), _ratio(a, b))
        for name, a, b in (
            ("arguments: weights, optimizer state, batch", one.arguments, other.arguments),
            ("temporaries: activations, gradients", one.temporaries, other.temporaries),
            ("peak", one.peak, other.peak),
        )
    ]


def _fits(one: Plan, other: Plan, chip: Chip) -> Row:
    fits = ["yes" if plan.fits else "no" for plan in (one, other)]
    return f"fits {chip.name} ({size_text(chip.memory_bytes)})", *fits, ""


def _traffic(one: Plan, other: Plan, what: str, times: int = 1) -> list[Row]:
    rows: list[Row] = []
    for kind in sorted(one.traffic | other.traffic):
        a, b = one.traffic.get(kind, 0), other.traffic.get(kind, 0) * times
        sent = [size_text(n) if plan.fits else "-" for n, plan in ((a, one), (b, other))]
        known = one.fits and other.fits
        rows.append((f"{kind}, {what}", *sent, _ratio(a, b) if known else "-"))
    return rows


def _flops(name: str, one: Plan, other: Plan, times: int = 1) -> Row:
    a, b = one.flops, other.flops * times
    return name, f"{a / 1e15:.4g}", f"{b / 1e15:.4g}", _ratio(a, b)


def _least(one: Plan, other: Plan, times: int = 1) -> list[Row]:
    rows = [_seconds("at least, by products", one.compute_seconds, other.compute_seconds * times)]
    if one.fits and other.fits:  # else the traffic is not known
        rows.append(_seconds("at least, by links", one.link_seconds, other.link_seconds * times))
    return rows


def _compiled(one: Plan, other: Plan) -> Row:
    return "compiled here in", *(f"{p.compile_seconds:.0f} s" for p in (one, other)), ""


def _table(head: Row, rows: Sequence[Row]) -> str:
    return text_tables.pipe_table(head, rows)


def ranking(plans: Sequence[Plan]) -> str:
    """The plans of a search: those that fit first, by tokens per second if nothing overlaps.

    Of sweeps the tokens are those of all runs.
    """
    sweeps = any(plan.runs > 1 for plan in plans)
    axes = AXES if sweeps else AXES[1:]
    ordered = sorted(plans, key=lambda p: (not p.fits, -p.serial, p.peak))
    speeds = ("runs x tokens/s at most" if sweeps else "tokens/s at most", "without overlap")
    counts = ("runs", "rows") if sweeps else ("rows",)
    rows: list[Row] = []
    for plan in ordered:
        bounds = [f"{value:,.0f}" if plan.fits else "-" for value in (plan.bound, plan.serial)]
        sent = size_text(sum(plan.traffic.values())) if plan.fits else "-"
        rows.append(
            (*(str(plan.mesh.get(axis, 1)) for axis in axes),
             *(str(getattr(plan, count)) for count in counts), size_text(plan.peak),
             "yes" if plan.fits else "no", sent, *bounds)
        )  # fmt: skip
    return _table((*axes, *counts, "peak", "fits", "sent a step", *speeds), rows)


def mesh_text(mesh: dict[str, int]) -> str:
    """Sizes of a mesh's axes."""
    return ", ".join(f"{axis}={size}" for axis, size in mesh.items())


def title(plan: Plan, config: ConfigDict) -> str:
    """What is compiled, in a line or two."""
    return (
        f"{config.model.size}, {plan.total:,} values; {plan.topology}, {plan.devices} devices; "
        f"{mesh_text(plan.mesh)}; {plan.rows} rows of {config.length} tokens, remat "
        f"{config.model.remat}\n{plan.method}\n"
    )


def sweep_title(sweep: Plan, single: Plan, config: ConfigDict) -> str:
    """The same of a sweep and of one run at a time."""
    batch = "the same for all runs" if config.orders == "shared" else "of its own for each run"
    base = sweep.total - sweep.trainable
    return (
        f"{config.model.size}, {sweep.runs} runs of {single.trainable:,} values over {base:,} frozen; "
        f"{sweep.topology}, {sweep.devices} devices; {mesh_text(sweep.mesh)} (one run at a time: "
        f"{mesh_text(single.mesh)}); a batch {batch}, {sweep.rows} rows of {config.length} tokens, remat "
        f"{config.model.remat}\n{sweep.method}\n"
    )
