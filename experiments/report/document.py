"""The report: the paper's tables with our runs beside, as Markdown, CSV files and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.report import (
    few_shot,
    figure_2,
    gpt2_ranks,
    low_data,
    low_data_plot,
    method_orders,
    rank_plot,
    rank_sweeps,
    rank_tables,
    score_plot,
    weight_sweeps,
)
from experiments.report.few_shot import Prompted
from experiments.report.record import Record
from experiments.report.records import RunRecords
from experiments.report.score_tables import score_table
from experiments.report.set_ups import common, set_up_lines
from experiments.report.tables import Table
from lora_jax import files
from lora_jax.analysis.plots import save
from lora_jax.training.records import spread

_LEGEND = """\
Lines "paper" are quoted from the paper; lines "ours" were measured by the runs listed beneath each table.
A dash is a missing cell. Ours on GLUE is the median over seeds, each at its best epoch on the dev set, as
in the paper; in Tables 3, 4, 13, 14, 15 and 18 it is the mean over seeds, each at the epoch of the best
validation loss, and Tables 8 and 16 say what it is there. ± is the standard deviation over seeds; without it
there was one seed. "Trained" counts the values that train, the task's head apart. A run is in a row of the
paper only if it has the row's model, method and size; its set-up may still differ, see the lists. Runs on as
many examples of each class are in Tables 8 and 16 alone."""
_PLOTTED = (2, 3, 4, 13, 14, 15)


def tables(every: Sequence[Record], prompted: Sequence[Prompted] = ()) -> list[Table]:
    """All tables, each with the paper's rows and the runs that belong to it.

    Args:
      every: records of runs that trained, or only decoded.
      prompted: of runs of experiments.prompting.
    """
    records = _usual(every)
    sweeps = weight_sweeps.find_sweeps(records)
    elsewhere = weight_sweeps.only_in_sweeps(records, sweeps)
    return [
        score_table(2, records, elsewhere),
        score_table(3, records, elsewhere),
        score_table(4, records, elsewhere),
        weight_sweeps.weights_table(sweeps),
        weight_sweeps.rank_table(sweeps),
        few_shot.table(prompted, every),
        score_table(13, records, elsewhere),
        score_table(14, records, elsewhere),
        score_table(15, records, ()),
        low_data.table(every),
        gpt2_ranks.gpt2_rank_table(records),
    ]


def _usual(every: Sequence[Record]) -> list[Record]:
    """All but the runs on little data, which have a table of their own."""
    return [record for record in every if not low_data.is_low_data(record)]


def document(
    runs: RunRecords,
    shown: Sequence[Table],
    command: str,
    plots: Mapping[int, str],
    rank_curves: str = "",
    methods: str = "",
) -> str:
    """The Markdown page.

    Args:
      runs: the records.
      shown: the tables made of them.
      command: that makes the page.
      plots: paths of images by table number.
      rank_curves: path of the image of the rank sweeps; "" without one.
      methods: the same of Figure 2.
    """
    count = len(runs.records) + len(runs.prompted)
    parts = [
        "# Results beside the paper's",
        f"Made by `{command}` from {count} run record{'s' * (count != 1)}.",
        _LEGEND,
    ]
    for table in shown:
        parts.append(table.markdown())
        if table.notes:
            parts.append("\n".join(f"- {note}" for note in table.notes))
        if table.findings:
            parts.append(table.findings)
        if table.records:
            parts.append("Set-up of our runs:\n\n" + "\n".join(set_up_lines(table.records)))
        elif not table.findings:
            parts.append("No run of ours.")
        if table.number in plots:
            against = "training examples" if table.number == 16 else "trained values"
            parts.append(f"![Score against {against}, {table.title}]({plots[table.number]})")
    if compared := method_orders.comparisons(_usual(runs.records)):
        parts.append(figure_2.markdown(compared, methods))
    sweeps = rank_sweeps.find_sweeps(_usual(runs.records))
    if sweeps:
        parts.append(rank_tables.markdown(sweeps, common, rank_curves))
    placed = [*(table.records for table in shown), *(sweep.records for sweep in sweeps)]
    if left := _unplaced(runs, {record.workdir for records in placed for record in records}):
        parts.append("## Records in no table\n\n" + "\n".join(left))
    if runs.unfinished:
        unfinished = "\n".join(f"- `{workdir}`" for workdir in runs.unfinished)
        parts.append(f"## Unfinished\n\nStarted, but no result.json yet:\n\n{unfinished}")
    return "\n\n".join(parts) + "\n"


def _unplaced(runs: RunRecords, placed: set[str]) -> list[str]:
    left = [
        (record.workdir, f"{record.task} is no task of these tables{_headline(record)}")
        for record in runs.records
        if record.workdir not in placed
    ]
    return [f"- `{workdir}`: {why}" for workdir, why in (*left, *runs.others)]


def _headline(record: Record) -> str:
    """The headline of a run that no table shows: ` (accuracy 0.912 with lora)`."""
    name = record.raw[0].get("headline", "")
    if name not in record.scores:
        return ""
    return f" ({name} {spread(record.scores[name])['median']:.4g} with {record.label})"


def write(runs: RunRecords, command: str, path: Path, only_ours: bool = False) -> None:
    """Writes the Markdown page, and beside it the folder of CSV files and plots.

    Args:
      runs: the records.
      command: that makes the page.
      path: of the Markdown.
      only_ours: leaves out tables without a run of ours.
    """
    folder = path.with_suffix("")
    every = tables(runs.records, runs.prompted)
    shown = [table for table in every if table.records or table.findings or not only_ours]
    plots: dict[int, str] = {}
    for table in shown:
        files.write_text(folder / f"table_{table.number}.csv", table.csv())
        image = folder / f"table_{table.number}.png"
        figure = _plot(table)
        if figure is None:
            image.unlink(missing_ok=True)  # of an earlier report
            continue
        save(figure, image)
        plots[table.number] = f"{folder.name}/{image.name}"
    sweeps = rank_sweeps.find_sweeps(_usual(runs.records))
    ranks = rank_tables.csv_text(sweeps) if sweeps else ""
    curves = _write_plot(
        folder, "rank_sweeps.csv", ranks, "rank_curves.png", rank_plot.figure(sweeps)
    )
    compared = method_orders.comparisons(_usual(runs.records))
    pairs = figure_2.csv_text(compared) if any(map(method_orders.orders, compared)) else ""
    of_methods = figure_2.figure(compared)
    methods = _write_plot(folder, "figure_2.csv", pairs, "figure_2.png", of_methods)
    files.write_text(path, document(runs, shown, command, plots, curves, methods))


def _plot(table: Table) -> Figure | None:
    """The plot of a table; None for a table that has none, and where there is nothing to compare."""
    if table.number == 16:
        return low_data_plot.figure(table.records)
    return score_plot.figure(table) if table.number in _PLOTTED else None


def _write_plot(
    folder: Path, table_name: str, text: str, image_name: str, figure: Figure | None
) -> str:
    """Writes a CSV, if there is text, and a figure; the figure's path in the Markdown, "" without one."""
    table, image = folder / table_name, folder / image_name
    if text:
        files.write_text(table, text)
    else:
        table.unlink(missing_ok=True)  # of an earlier report
    if figure is None:
        image.unlink(missing_ok=True)
        return ""
    save(figure, image)
    return f"{folder.name}/{image.name}"


def command_text(folders: Sequence[str], output: str | None) -> str:
    """The command as the page may show it: of an absolute path only the last part."""
    shown = [name if not Path(name).is_absolute() else f".../{Path(name).name}" for name in folders]
    if output:
        shown.append(f"--output={output if not Path(output).is_absolute() else Path(output).name}")
    return " ".join(["python -m experiments.report", *shown])
