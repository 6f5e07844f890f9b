"""Writes the results of a measurement: latency.json, latency.md and the figures."""

from __future__ import annotations

from pathlib import Path

from experiments.latency import figure, tables
from experiments.latency.contenders import BASE
from experiments.latency.results import Record, of_config, of_figure_5
from experiments.paper.latency import DEVICE
from lora_jax import files
from lora_jax.analysis import plots

RECORD, PAGE = "latency.json", "latency.md"
SLOW_DOWN, FIGURE_5 = "slow_down.png", "figure_5.png"

_NOTE = """\
Milliseconds of a forward pass: mean of {trials} trials with its 95% interval (Student's t), in brackets the
slow-down over the base with that of a ratio of paired means. In every round each contender ran once, in
random order; one call before was not timed. `values` are those that a row's pass has beside the base's. In
the pool every row of a batch has another adapter. The merged program is the base's (see below), so what it
differs by is the noise of this machine; the intervals know only what varied from round to round."""

_MEDIANS = "Medians, which single trials that another program held up do not move:"
_FIGURE_5_NOTE = """\
Adapters with a bottleneck of r. At r = 0, where there is no adapter, stands the merged model: the base's
program timed as the others are, so that its slow-down is noise. Timed in the same rounds as the contenders
below."""


def set_up(record: Record) -> str:
    """What differs from the paper's set-up, in one sentence."""
    config, device = record["config"], record["environment"]["device"]
    model = config["model"]
    name = model["name"] or (
        f"a GPT-2 of {model['n_layer']} layers, {model['n_embd']} wide, {model['vocab_size']:,} tokens, "
        "with random weights"
    )
    logits = "all tokens" if config["outputs"] == "all" else "the last token of every row"
    cores = f" ({device['cpu_cores']} cores)" if device["backend"] == "cpu" else ""
    version = record["environment"]["versions"]["jax"]
    return (
        f"The paper times GPT-2 medium on an {DEVICE}, and says neither the precision nor what its ± is; "
        f"here it is {name} ({record['base_values']:,} values) in JAX {version}, "
        f"{config['base_dtype']}, on {device['kind']}{cores}, one compiled program for each contender and "
        f"shape, with the logits of {logits}: only slow-downs can be compared, and those as far as devices "
        "and programs are alike."
    )


def same_program(record: Record) -> str:
    """What the comparison of the programs found."""
    count = len(record["points"])
    texts = {
        "lowered": "as JAX lowers it (StableHLO)",
        "compiled": "as the compiler leaves it (HLO)",
    }
    parts = []
    for kind, what in texts.items():
        equal = sum(point["programs"][f"{kind}_equal"] for point in record["points"])
        parts.append(f"{what}: **equal at {equal} of {count} points**")
    return f"The text of the merged model's program beside that of the base's, {'; '.join(parts)}."


def of_bottlenecks(record: Record, workdir: Path) -> list[str]:
    """Draws Figure 5; the parts of the page about it, none if no bottleneck was timed."""
    names = [name for by_size in of_figure_5(record).values() for name in by_size.values()]
    if not names:
        return []
    plots.save(figure.figure_5(record), workdir / "figures" / FIGURE_5)
    return [
        "## Figure 5",
        f"![slow-down by batch size and bottleneck, one panel for each length](figures/{FIGURE_5})",
        _FIGURE_5_NOTE,
        tables.all_points(record, [BASE, *names]),
        _MEDIANS,
        tables.medians(record, names),
    ]


def write(workdir: Path, record: Record) -> None:
    """Writes the record, the page and the figures.

    Args:
      workdir: the folder to write to.
      record: from `results.record`.
    """
    plots.save(figure.slow_downs(record), workdir / "figures" / SLOW_DOWN)
    names = of_config(record)
    parts = [
        "# Forward latency (Table 1 and Figure 5)",
        set_up(record),
        _NOTE.format(trials=record["config"]["trials"]),
        "## Table 1",
        "Rows x tokens of a batch. The paper's adapters have the values in brackets; its number stands\n"
        "beside our adapter of that kind whose share of the model is nearest.",
        tables.table_1(record),
        *of_bottlenecks(record, workdir),
        "## All points",
        tables.all_points(record, names),
        _MEDIANS,
        tables.medians(record, [name for name in names if name != BASE]),
        f"![slow-down by batch size and length, one panel for each contender](figures/{SLOW_DOWN})",
        "## The merged program is the base's",
        same_program(record),
    ]
    files.write_text(workdir / PAGE, "\n\n".join(parts) + "\n")
    files.write_json(workdir / RECORD, record)
