"""The report: the paper's tables with ours beside, as Markdown, CSV files and plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.report import plot, rank_plot, ranks
from experiments.report.records import Found, Record, model_label
from experiments.report.sweeps import (
    gpt2_rank_table,
    only_in_sweeps,
    rank_table,
    sweeps,
    weights_table,
)
from experiments.report.tables import Table, score_table
from lora_jax import files
from lora_jax.analysis.plots import save

_LEGEND = """\
Lines "paper" are quoted from the paper; lines "ours" were measured by the runs listed beneath each table.
A dash is a missing cell. Ours on GLUE is the median over seeds, each at its best epoch on the dev set, as
in the paper; on E2E, WebNLG and DART it is the mean over seeds, each at the epoch of the best validation
loss. ± is the standard deviation over seeds; without it there was one seed. "Trained" counts the values
that train, the task's head apart. A run is in a row of the paper only if it has the row's model, method
and size; its set-up may still differ, see the lists."""


def tables(records: Sequence[Record]) -> list[Table]:
    """All tables, each with the paper's rows and the runs that belong to it."""
    found = sweeps(records)
    elsewhere = only_in_sweeps(records, found)
    return [
        score_table(2, records, elsewhere),
        score_table(3, records, elsewhere),
        weights_table(found),
        rank_table(found),
        score_table(13, records, elsewhere),
        score_table(14, records, elsewhere),
        gpt2_rank_table(records),
    ]


def document(
    found: Found,
    made: Sequence[Table],
    command: str,
    plots: dict[int, str],
    rank_curves: str = "",
) -> str:
    """The Markdown.

    Args:
      found: the records.
      made: the tables of them.
      command: that made it.
      plots: paths of images by table number.
      rank_curves: path of the image of the rank sweeps, if there is one.
    """
    count = len(found.records)
    parts = [
        "# Results beside the paper's",
        f"Made by `{command}` from {count} run record{'s' * (count != 1)}.",
        _LEGEND,
    ]
    for table in made:
        parts.append(table.markdown())
        if table.notes:
            parts.append("\n".join(f"- {note}" for note in table.notes))
        if table.records:
            parts.append("Set-up of our runs:\n\n" + "\n".join(setups(table.records)))
        else:
            parts.append("No run of ours.")
        if table.number in plots:
            parts.append(f"![Score against trained values, {table.title}]({plots[table.number]})")
    rank_sweeps = ranks.sweeps(found.records)
    if rank_sweeps:
        parts.append(ranks.markdown(rank_sweeps, _common, rank_curves))
    shown = [*(table.records for table in made), *(sweep.records for sweep in rank_sweeps)]
    if left := _unplaced(found, {record.workdir for own in shown for record in own}):
        parts.append("## Records in no table\n\n" + "\n".join(left))
    if found.unfinished:
        unfinished = "\n".join(f"- `{workdir}`" for workdir in found.unfinished)
        parts.append(f"## Unfinished\n\nStarted, but no result.json yet:\n\n{unfinished}")
    return "\n\n".join(parts) + "\n"


def _unplaced(found: Found, placed: set[str]) -> list[str]:
    left = [
        (record.workdir, f"{record.task} is no task of these tables")
        for record in found.records
        if record.workdir not in placed
    ]
    return [f"- `{workdir}`: {why}" for workdir, why in (*left, *found.others)]


def setups(records: Sequence[Record]) -> list[str]:
    """A list of what the runs had in common and, beneath, of what each had for itself."""
    groups: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        own = groups.setdefault(_common(record), {}).setdefault(_own(record), [])
        if record not in own:
            own.append(record)
    lines = []
    for common, parts in groups.items():
        lines.append(f"- {common}")
        for text, runs in parts.items():
            lines.append(f"  - {_who(runs)}: {text}{_course(runs)}")
    return lines


def _common(record: Record) -> str:
    config, data, device = record.config, record.config["data"], record.raw[0].get("device", {})
    epochs = config.get("epochs", 0)
    where = f"{device.get('count', 1)} x {device.get('kind', 'unknown device')}"
    if record.examples is None:
        return f"{record.model} on {record.task}: not trained; {where}"
    batch = config.get("batch_size", 0) * config.get("accumulate", 1)
    valid = data.get("max_eval_examples", 0) if record.split else 0
    scored = f"; validation loss on {valid:,} rows" * bool(valid)
    scored += f"; scored on {record.evaluated_on}" * bool(record.evaluated_on)
    return (
        f"{record.model} on {record.task}: {epochs} epoch{'s' * (epochs != 1)}, batch {batch}, "
        f"{record.examples:,} training examples{'' if record.trained_on_part else ' (all)'}, "
        f"length up to {data.get('max_length')}{scored}; {where}"
    )


def _own(record: Record) -> str:
    """What groups runs: learning rate, seeds, warm start, and remarks of the run itself."""
    config, raw = record.config, record.raw[0]
    parts = [f"seed{'s' * (len(record.seeds) > 1)} {', '.join(record.seeds)}"]
    if config.get("epochs"):
        parts.insert(0, f"learning rate {config.get('learning_rate'):g}")
    if start := config.get("init_adapter"):
        parts.append(f"starts from {model_label(start)}")
    parts += [f"{name} missing ({why})" for name, why in raw.get("missing", {}).items()]
    parts += [f"{name}: {note}" for name, note in raw.get("notes", {}).items() if note]
    return "; ".join(parts)


def _who(runs: Sequence[Record]) -> str:
    if len(runs) > 12:
        return f"{len(runs)} runs, `{runs[0].workdir}` to `{runs[-1].workdir}`"
    return ", ".join(f"{run.label} (`{run.workdir}`)" for run in runs)


def _course(runs: Sequence[Record]) -> str:
    """Best epochs of the seeds, and the time."""
    raws: list[Any] = [raw for run in runs for raw in run.raw]
    best = [s["best_epoch"] for raw in raws for s in raw["seeds"].values() if "best_epoch" in s]
    seconds = sorted(raw["seconds"] for raw in raws if raw.get("seconds"))
    text = ""
    if best:
        of = runs[0].config["epochs"]
        text += f"; best epoch {_range(min(best), max(best))} of {of}"
    if seconds:
        text += f"; {_range(round(seconds[0]), round(seconds[-1]))} s of training"
    return text


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def write(found: Found, command: str, path: Path, only_ours: bool = False) -> None:
    """Writes the Markdown, and beside it the folder of CSV files and plots.

    Args:
      found: the records.
      command: that makes the page.
      path: of the Markdown.
      only_ours: leaves out tables without a run of ours.
    """
    made, folder = tables(found.records), path.with_suffix("")
    made = [table for table in made if table.records or not only_ours]
    plots: dict[int, str] = {}
    for table in made:
        files.write_text(folder / f"table_{table.number}.csv", table.csv())
        image = folder / f"table_{table.number}.png"
        drawn = plot.figure(table) if table.number in (2, 3, 13, 14) else None
        if drawn is None:
            image.unlink(missing_ok=True)  # of an earlier report
            continue
        save(drawn, image)
        plots[table.number] = f"{folder.name}/{image.name}"
    curves = _write_ranks(found.records, folder)
    files.write_text(path, document(found, made, command, plots, curves))


def _write_ranks(records: Sequence[Record], folder: Path) -> str:
    """Writes the rank sweeps' CSV and figure; the figure's path in the Markdown, "" without one."""
    rank_sweeps = ranks.sweeps(records)
    values, image = folder / "rank_sweeps.csv", folder / "rank_curves.png"
    drawn = rank_plot.figure(rank_sweeps)
    if rank_sweeps:
        files.write_text(values, ranks.csv_text(rank_sweeps))
    else:
        values.unlink(missing_ok=True)  # of an earlier report
    if drawn is None:
        image.unlink(missing_ok=True)
        return ""
    save(drawn, image)
    return f"{folder.name}/{image.name}"


def command_text(folders: Sequence[str], output: str | None) -> str:
    """The command as it may be printed: of absolute paths, the last part only."""
    shown = [name if not Path(name).is_absolute() else f".../{Path(name).name}" for name in folders]
    if output:
        shown.append(f"--output={output if not Path(output).is_absolute() else Path(output).name}")
    return " ".join(["python -m experiments.report", *shown])
