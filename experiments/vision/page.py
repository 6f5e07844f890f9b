"""The page of the experiment: its table, how to read it, and the plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.report.panel_grid import FONT, style_axes
from experiments.runs import looks
from experiments.runs.text_tables import pipe_table
from lora_jax import files
from lora_jax.analysis.plots import save
from lora_jax.summary import readable_bytes

PAGE, PLOT = "vision.md", "accuracy.png"
_LORA, _REFERENCE = "lora_", "full"
_HEADER = (
    "method", "accuracy, %", "trained values", "FLOPs of a step, M", "of full", "adapter", "learning rate",
    "statistics",
)  # fmt: skip
_MEANING = """\
A {net} of {parameters:,} values, pre-trained on {pretrain:,} upright digits ({upright} on held-out ones;
{base} on those of the task, not adapted), adapted with {train} {task} ones; the head trains with every
method. `accuracy`: on {test} other digits, mean ± 95% interval over {seeds} seeds, which draw the examples.
`learning rate`: of {rates} the best on a third set of digits, by the first {chosen_by}. `FLOPs of a
step`: as XLA counts those of a train step with {batch} pictures. `statistics`: whether those of BatchNorm
move in training."""


def write(workdir: Path, record: Mapping[str, Any]) -> None:
    """Writes the page and the plot of a record."""
    parts = [
        f"# {record['config']['task'].capitalize()} digits",
        table(record),
        _meaning(record),
        f"![Accuracy against trained values]({PLOT})",
    ]
    save(figure(record), workdir / PLOT)
    files.write_text(workdir / PAGE, "\n\n".join(parts) + "\n")


def table(record: Mapping[str, Any]) -> str:
    """The Markdown table of a record."""
    return pipe_table(_HEADER, [_cells(row, record["config"]) for row in record["rows"]])


def _cells(row: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    rates = sorted(config["learning_rates"])
    ends = {rates[-1]: " (highest tried)", rates[0]: " (lowest tried)"} if len(rates) > 1 else {}
    rate = row["rate"]
    diverged = f"; {row['diverged']} runs diverged" if row["diverged"] else ""
    return [
        row["method"], _accuracy(row["accuracy"]), f"{row['trained']:,}", f"{row['step_flops'] / 1e6:,.1f}",
        f"{100 * row['relative_flops']:.0f}%", readable_bytes(row["adapter_bytes"]),
        ("-" if rate is None else f"{rate:g}{ends.get(rate, '')}") + diverged,
        row["statistics"] if config["model"]["kind"] == "resnet" else "-",
    ]  # fmt: skip


def _accuracy(interval: Mapping[str, Any] | None) -> str:
    if interval is None:
        return "-"
    half = interval["half"]  # None of one seed
    return f"{100 * interval['value']:.1f}" + ("" if half is None else f" ± {100 * half:.1f}")


def _meaning(record: Mapping[str, Any]) -> str:
    config, base = record["config"], record["base"]
    data = config["data"]
    return _MEANING.format(
        net={"resnet": "ResNet", "vit": "ViT"}[config["model"]["kind"]],
        parameters=base["parameters"], pretrain=data["pretrain_examples"], task=config["task"],
        upright=f"{100 * base['upright']:.1f}%", base=f"{100 * base['test']:.1f}%",
        train=data["train_examples"], test=data["test_examples"], seeds=len(config["seeds"]),
        rates=", ".join(f"{rate:g}" for rate in config["learning_rates"]),
        chosen_by="seed" if config["rate_seeds"] == 1 else f"{config['rate_seeds']} seeds",
        batch=config["batch_size"],
    )  # fmt: skip


def figure(record: Mapping[str, Any]) -> Figure:
    """Accuracy against the number of trained values, the ranks of LoRA joined by a line."""
    drawn = Figure(figsize=(5.6, 3.4), dpi=150, layout="constrained")
    FigureCanvasAgg(drawn)
    axes: Axes = drawn.subplots()
    style_axes(axes)
    shown = [row for row in record["rows"] if row["accuracy"] is not None]
    series: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(shown, key=lambda row: row["trained"]):
        name = "LoRA, rank beside" if row["method"].startswith(_LORA) else row["method"]
        series.setdefault(name, []).append(row)
    style_of = looks.styles(list(series), first=_REFERENCE)
    for name, rows in series.items():
        look = style_of[name]
        halves = [100 * (row["accuracy"]["half"] or 0.0) for row in rows]
        x, y = [row["trained"] for row in rows], [100 * row["accuracy"]["value"] for row in rows]
        axes.errorbar(
            x, y, halves, color=look.colour, marker=look.marker, markersize=look.size(6), capsize=2.5,
            elinewidth=0.9, linewidth=1.0, label=name,
        )  # fmt: skip
        for row, at, height in zip(rows, x, y, strict=True):
            if row["method"].startswith(_LORA):
                axes.annotate(
                    row["method"].removeprefix(_LORA), (at, height), (4, -10), fontsize=FONT,
                    textcoords="offset points",
                )  # fmt: skip
    base = 100 * record["base"]["test"]
    axes.axhline(base, color="0.5", linestyle=":", linewidth=1.0, label=f"not adapted: {base:.1f}")
    axes.set_xscale("log")
    axes.set_xlabel("number of trained values, the head's among them", fontsize=FONT)
    axes.set_ylabel("accuracy, %", fontsize=FONT)
    drawn.legend(loc="outside right upper", fontsize=FONT, frameon=False)
    return drawn
