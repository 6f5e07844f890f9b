"""Tables of the figures of several train steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from experiments.plan.figures import StepFigures
from experiments.runs import text_tables
from lora_jax.costs import topologies
from lora_jax.costs.chips import Chip
from lora_jax.sharding.mesh import AXES

Row = tuple[str, ...]
Steps = Sequence[StepFigures]


def size_text(number: int) -> str:
    """Bytes in a unit of the number's size."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= unit / 2:
            return f"{number / unit:.2f} {name}"
    return f"{number} B"


def comparison(steps: Mapping[str, StepFigures], chip: Chip) -> str:
    """Variants of a step side by side, by name, as a Markdown table.

    The last one is what the others are divided by.
    """
    *names, last = steps
    each = list(steps.values())
    ratios = ["ratio"] if len(names) == 1 else [f"{name} / {last}" for name in names]
    rows = [
        _numbers("trained values", "{:,}", [step.trainable for step in each]),
        *_memory(each),
        _fits(each, chip),
        *_share(each, chip),
        *_traffic(each, "sent per device and step"),
        _numbers("PFLOP a step", "{:.4g}", [step.flops / 1e15 for step in each]),
        *_least(each),
        _compiled(each),
    ]
    return text_tables.pipe_table(("", *steps, *ratios), rows)


def sweep_comparison(sweep: StepFigures, single: StepFigures, chip: Chip) -> str:
    """A program of several runs beside one run at a time, and what the shared base saves.

    Memory is that of a device while either program works. Traffic, products and seconds are of one
    step of all runs: a step of the program, or `sweep.runs` steps of the single run's, whose rank is
    the program's.
    """
    both, times = (sweep, single), (1, sweep.runs)
    frozen = [step.frozen for step in both if step.frozen is not None]
    arguments, *memory = _memory(both)
    rows = [
        _numbers("trained values", "{:,}", [step.trainable for step in both]),
        arguments,
        *([_sizes("of these the frozen base, per device", frozen)] if len(frozen) == 2 else []),
        *memory,
        _fits(both, chip),
        *_share(both, chip),
        *_traffic(both, "sent per device", times),
        _numbers("PFLOP", "{:.4g}", [s.flops / 1e15 * n for s, n in zip(both, times, strict=True)]),
        *_least(both, times),
        _seconds(
            "to read the arguments from memory once",
            [step.reading_seconds * n for step, n in zip(both, times, strict=True)],
        ),
        _speeds("runs x tokens/s at most, by products and links", both, [s.bound for s in both]),
        _speeds("the same, if links wait for products", both, [s.serial for s in both]),
        _compiled(both),
    ]
    head = ("one step of all runs", f"{sweep.runs} runs, one program", "one run at a time", "ratio")
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


def _numbers(name: str, form: str, values: Sequence[float], known: Sequence[bool] = ()) -> Row:
    """A row of numbers, and of what all but the last are of the last.

    Args:
      name: of the row.
      form: of a number.
      values: one for each step.
      known: which of them are known; all by default.
    """
    known = known or [True] * len(values)
    shown = [form.format(value) if k else "-" for value, k in zip(values, known, strict=True)]
    return name, *shown, *_ratios(values, known)


def _ratios(values: Sequence[float], known: Sequence[bool]) -> list[str]:
    *others, last = values
    return [
        f"{value / last:.3f}" if last and k and known[-1] else "-"
        for value, k in zip(others, known, strict=False)
    ]


def _sizes(name: str, values: Sequence[int], known: Sequence[bool] = ()) -> Row:
    """A row of bytes."""
    known = known or [True] * len(values)
    shown = [size_text(value) if k else "-" for value, k in zip(values, known, strict=True)]
    return name, *shown, *_ratios(values, known)


def _seconds(name: str, values: Sequence[float], known: Sequence[bool] = ()) -> Row:
    return _numbers(name, "{:.3g} s", values, known)


def _speeds(name: str, steps: Steps, speeds: Sequence[float]) -> Row:
    return _numbers(name, "{:,.0f}", speeds, [step.fits for step in steps])


def _memory(steps: Steps) -> list[Row]:
    return [
        _sizes(f"{name}, per device", values)
        for name, values in (
            ("arguments: weights, optimizer state, batch", [step.arguments for step in steps]),
            ("temporaries: activations, gradients", [step.temporaries for step in steps]),
            ("peak", [step.peak for step in steps]),
        )
    ]


def _without_ratios(name: str, cells: Sequence[str]) -> Row:
    return name, *cells, *[""] * (len(cells) - 1)


def _fits(steps: Steps, chip: Chip) -> Row:
    name = f"fits {chip.name} ({size_text(chip.memory_bytes)})"
    return _without_ratios(name, ["yes" if step.fits else "no" for step in steps])


def _share(steps: Steps, chip: Chip) -> list[Row]:
    """Of a GPU's memory JAX takes three quarters unless it is told how much, see docs/devices.md."""
    if not topologies.is_gpu(chip):
        return []
    shares = [step.peak / chip.memory_bytes for step in steps]
    cells = [f"{math.ceil(share * 100) / 100:.2f}" if share <= 1 else "-" for share in shares]
    return [_without_ratios("XLA_PYTHON_CLIENT_MEM_FRACTION at least", cells)]


def _traffic(steps: Steps, what: str, times: Sequence[int] = ()) -> list[Row]:
    """What the collectives send; it is not known of a step that a TPU's compiler found too large."""
    times = times or [1] * len(steps)
    known = [step.fits for step in steps]
    return [
        _sizes(
            f"{kind}, {what}",
            [step.traffic.get(kind, 0) * n for step, n in zip(steps, times, strict=True)],
            known,
        )
        for kind in sorted({kind for step in steps for kind in step.traffic})
    ]


def _least(steps: Steps, times: Sequence[int] = ()) -> list[Row]:
    times = times or [1] * len(steps)
    compute, links = (
        [seconds * n for seconds, n in zip(values, times, strict=True)]
        for values in ([s.compute_seconds for s in steps], [s.link_seconds for s in steps])
    )
    rows = [_seconds("at least, by products", compute)]
    known = [step.fits for step in steps]
    return [*rows, _seconds("at least, by links", links, known)] if any(links) else rows


def _compiled(steps: Steps) -> Row:
    return _without_ratios("compiled here in", [f"{p.compile_seconds:.0f} s" for p in steps])


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
