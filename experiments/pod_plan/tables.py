"""Tables of the figures of several train steps."""

from __future__ import annotations

from collections.abc import Sequence

from ml_collections import ConfigDict

from experiments.pod_plan.figures import StepFigures
from experiments.runs import text_tables
from lora_jax.costs.chips import Chip
from lora_jax.sharding.mesh import AXES

Row = tuple[str, ...]


def size_text(number: int) -> str:
    """Bytes in a unit of the number's size."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= unit / 2:
            return f"{number / unit:.2f} {name}"
    return f"{number} B"


def comparison(lora: StepFigures, full: StepFigures, chip: Chip) -> str:
    """LoRA and full fine-tuning side by side, as a Markdown table."""
    rows = [
        _trained(lora, full),
        *_memory(lora, full),
        _fits(lora, full, chip),
        *_traffic(lora, full, "sent per device and step"),
        _flops("PFLOP a step", lora, full),
        *_least(lora, full),
        _compiled(lora, full),
    ]
    return text_tables.pipe_table(("", lora.method.partition("(")[0], "full", "ratio"), rows)


def sweep_comparison(sweep: StepFigures, single: StepFigures, chip: Chip) -> str:
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
    reading = [step.reading_seconds * n for step, n in ((sweep, 1), (single, times))]
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
    return f"{text_tables.pipe_table(head, rows)}\n\n{_saved(sweep)}"


def _saved(sweep: StepFigures) -> str:
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
    shown = [f"{speed:,.0f}" if known else "-" for speed, known in zip((a, b), fits, strict=True)]
    return name, *shown, _ratio(a, b) if all(fits) else "-"


def _trained(first: StepFigures, second: StepFigures) -> Row:
    a, b = first.trainable, second.trainable
    return "trained values", f"{a:,}", f"{b:,}", _ratio(a, b)


def _memory(first: StepFigures, second: StepFigures) -> list[Row]:
    return [
        (f"{name}, per device", size_text(a), size_text(b), _ratio(a, b))
        for name, a, b in (
            ("arguments: weights, optimizer state, batch", first.arguments, second.arguments),
            ("temporaries: activations, gradients", first.temporaries, second.temporaries),
            ("peak", first.peak, second.peak),
        )
    ]


def _fits(first: StepFigures, second: StepFigures, chip: Chip) -> Row:
    fits = ["yes" if step.fits else "no" for step in (first, second)]
    return f"fits {chip.name} ({size_text(chip.memory_bytes)})", *fits, ""


def _traffic(first: StepFigures, second: StepFigures, what: str, times: int = 1) -> list[Row]:
    rows: list[Row] = []
    for kind in sorted(first.traffic | second.traffic):
        a, b = first.traffic.get(kind, 0), second.traffic.get(kind, 0) * times
        sent = [size_text(n) if step.fits else "-" for n, step in ((a, first), (b, second))]
        known = first.fits and second.fits
        rows.append((f"{kind}, {what}", *sent, _ratio(a, b) if known else "-"))
    return rows


def _flops(name: str, first: StepFigures, second: StepFigures, times: int = 1) -> Row:
    a, b = first.flops, second.flops * times
    return name, f"{a / 1e15:.4g}", f"{b / 1e15:.4g}", _ratio(a, b)


def _least(first: StepFigures, second: StepFigures, times: int = 1) -> list[Row]:
    rows = [
        _seconds("at least, by products", first.compute_seconds, second.compute_seconds * times)
    ]
    if first.fits and second.fits:  # else the traffic is not known
        rows.append(_seconds("at least, by links", first.link_seconds, second.link_seconds * times))
    return rows


def _compiled(first: StepFigures, second: StepFigures) -> Row:
    return "compiled here in", *(f"{p.compile_seconds:.0f} s" for p in (first, second)), ""


def ranking(steps: Sequence[StepFigures]) -> str:
    """The steps of a search: those that fit first, by tokens per second if nothing overlaps.

    Of sweeps the tokens are those of all runs.
    """
    sweeps = any(step.runs > 1 for step in steps)
    axes = AXES if sweeps else AXES[1:]
    ordered = sorted(steps, key=lambda p: (not p.fits, -p.serial, p.peak))
    speeds = ("runs x tokens/s at most" if sweeps else "tokens/s at most", "without overlap")
    counts = ("runs", "rows") if sweeps else ("rows",)
    rows: list[Row] = []
    for step in ordered:
        bounds = [f"{value:,.0f}" if step.fits else "-" for value in (step.bound, step.serial)]
        sent = size_text(sum(step.traffic.values())) if step.fits else "-"
        rows.append(
            (*(str(step.mesh.get(axis, 1)) for axis in axes),
             *(str(getattr(step, count)) for count in counts), size_text(step.peak),
             "yes" if step.fits else "no", sent, *bounds)
        )  # fmt: skip
    return text_tables.pipe_table((*axes, *counts, "peak", "fits", "sent a step", *speeds), rows)


def mesh_text(mesh: dict[str, int]) -> str:
    """Sizes of a mesh's axes."""
    return ", ".join(f"{axis}={size}" for axis, size in mesh.items())


def title(step: StepFigures, config: ConfigDict) -> str:
    """What is compiled, in a line or two."""
    return (
        f"{config.model.size}, {step.total:,} values; {step.topology}, {step.devices} devices; "
        f"{mesh_text(step.mesh)}; {step.rows} rows of {config.length} tokens, remat "
        f"{config.model.remat}\n{step.method}\n"
    )


def sweep_title(sweep: StepFigures, single: StepFigures, config: ConfigDict) -> str:
    """What is compiled for a sweep, and for one run at a time, in a line or two."""
    batch = "the same for all runs" if config.orders == "shared" else "of its own for each run"
    base = sweep.total - sweep.trainable
    return (
        f"{config.model.size}, {sweep.runs} runs of {single.trainable:,} values over {base:,} frozen; "
        f"{sweep.topology}, {sweep.devices} devices; {mesh_text(sweep.mesh)} (one run at a time: "
        f"{mesh_text(single.mesh)}); a batch {batch}, {sweep.rows} rows of {config.length} tokens, remat "
        f"{config.model.remat}\n{sweep.method}\n"
    )
