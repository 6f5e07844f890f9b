"""The page of a comparison: its table with how to read it, and the files that are written with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from matplotlib.figure import Figure

from experiments.compare import figures, peft, record
from experiments.compare.contenders import Contender
from experiments.compare.optimum import as_rate, of_row
from experiments.compare.record import Comparison
from experiments.compare.runs import read
from experiments.compare.statistics import REFERENCE, Row, contains_zero, rows
from experiments.paper.columns import HEADLINES
from experiments.report.record import model_label
from experiments.runs.intervals import Interval
from experiments.runs.record import MADE_ANEW
from experiments.runs.text_tables import pipe_table
from experiments.sweep.command import Trained
from lora_jax import files
from lora_jax.analysis.plots import save
from lora_jax.reading import read_object
from lora_jax.run_folder import RESULT
from lora_jax.summary import readable_bytes

_HEADER = (
    "method", "trained", "learning rate", "optimum", "score", f"difference to {REFERENCE}", "contains 0",
    "time of a step", "adapter", "diverged",
)  # fmt: skip
_EDGES = {
    "lowest": " (lowest tried)", "highest": " (highest tried)", "only": " (the only one)", "": "",
}  # fmt: skip
_PLOTS: Mapping[str, tuple[str, Callable[[Sequence[Row], str, float], Figure | None]]] = {
    "trained_values": ("Score against trained values", figures.by_size),
    "learning_rates": ("Score against the learning rate", figures.by_rate),
}


class Unit:
    """How scores are printed: those that the paper prints times 100 in percent, losses as they are."""

    def __init__(self, headline: str, smaller_is_better: bool):
        percent = any(c.percent for c in HEADLINES.values() if c.metric == headline)
        self.factor = 100.0 if percent else 1.0
        self.smaller_is_better = smaller_is_better
        better = "less is better" if smaller_is_better else "more is better"
        self.label = f"{headline}{' x 100' if percent else ''}, {better}"
        self.digits = 1 if percent else 3

    def text(self, value: Interval | None, *, signed: bool = False) -> str:
        """`91.2 ± 0.8`; without the interval where it is unknown, a dash for None."""
        if value is None:
            return "-"
        mean = f"{self.factor * value.value:{'+' if signed else ''}.{self.digits}f}"
        half = self.factor * value.half
        return mean if math.isnan(half) else f"{mean} ± {half:.{self.digits}f}"


def write(trained: Trained, contenders: Sequence[Contender]) -> None:
    """Writes comparison.md, comparison.json, comparison/*.png and peft/*.json.

    Args:
      trained: the sweep, whose runs all have ended.
      contenders: its methods.
    """
    workdir, config = trained.workdir, trained.config
    headline, smaller = trained.varied.headline(config.run), trained.varied.smaller_is_better
    runs = {contender.name: read(contender, workdir, headline) for contender in contenders}
    table = rows(runs, smaller_is_better=smaller)
    unit = Unit(headline, smaller)
    sizes = {
        row.name: peft.folder_bytes(peft.chosen_run(row, runs[row.name]).folder / "adapter")
        for row in table
    }
    for path in (workdir / "peft").glob("*.json"):
        if path.stem not in sizes:  # of an earlier start with other methods
            path.unlink()
    for row in table:
        files.write_json(workdir / "peft" / f"{row.name}.json", peft.result(row, runs[row.name]))
    first = read_object(runs[contenders[0].name][0].folder / RESULT, MADE_ANEW)
    comparison = Comparison(
        experiment=config.experiment,
        task=first.get("task", str),
        model=first.get("model", str),
        budget=record.budget_of(
            first.get("config", dict), max(run.examples for own in runs.values() for run in own)
        ),
        headline=headline,
        smaller_is_better=smaller,
        rows=tuple(table),
    )
    files.write_json(workdir / record.NAME, record.to_json(comparison, sizes))
    folder = workdir / "comparison"
    plots = {}
    for name, (title, draw) in _PLOTS.items():
        image, figure = folder / f"{name}.png", draw(table, unit.label, unit.factor)
        if figure is None:
            image.unlink(missing_ok=True)  # of an earlier start with other methods
        else:
            plots[title] = f"{folder.name}/{save(figure, image).name}"
    seeds = len(contenders[0].seeds)
    files.write_text(
        workdir / "comparison.md", markdown(comparison, sizes, unit, seeds=seeds, plots=plots)
    )


def markdown(
    comparison: Comparison,
    sizes: Mapping[str, int | None],
    unit: Unit,
    *,
    seeds: int,
    plots: Mapping[str, str],
) -> str:
    """The Markdown page.

    Args:
      comparison: its task, budget and methods.
      sizes: bytes of the methods' adapters.
      unit: of the scores.
      seeds: of each method at each rate.
      plots: paths of the images by title.
    """
    table = comparison.rows
    parts = [
        f"# Methods on {comparison.task} with {model_label(comparison.model)}",
        f"Equal budgets: {record.budget_text(comparison.budget)}. Scores: {unit.label}.",
        pipe_table(_HEADER, [_cells(row, sizes[row.name], unit) for row in table]),
        _reading(table, seeds),
        *(f"![{title}]({path})" for title, path in plots.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _cells(row: Row, size: int | None, unit: Unit) -> list[str]:
    zero = None if row.difference is None else contains_zero(row.difference)
    return [
        row.name,
        f"{row.trained:,}",
        "-" if row.best is None else f"{row.best.rate:g}{_EDGES[row.edge]}",
        as_rate(of_row(row, smaller_is_better=unit.smaller_is_better)),
        unit.text(row.score),
        unit.text(row.difference, signed=True),
        {None: "-", True: "yes", False: "no"}[zero],
        f"{row.step_seconds:.3g} s" if math.isnan(row.times) else f"{row.times:.2f}x",
        "-" if size is None else readable_bytes(size),
        str(row.diverged),
    ]


def _reading(table: Sequence[Row], seeds: int) -> str:
    """How the numbers were made, and what they mean."""
    edges = [row.name for row in table if row.edge]
    none = [row.name for row in table if row.best is None]
    lines = [
        f"Learning rate: of those that were tried ({_tried(table)}) the one with the best mean over {seeds} "
        f"seed{'s' * (seeds != 1)} of the headline, each run at its best epoch, on the evaluation data; "
        "rates at which a run diverged or has no score do not count. The score is that mean, on the same "
        "data, as the paper does it. So it is the best of several and a little too good for every method, "
        "more so where the rates differ little or the scores vary much; no data are left that "
        "nothing was chosen by.",
        "Optimum: the top of the parabola through the best rate and its neighbours, over the logarithm of "
        "the rate, mean over seeds with its interval; it is at most half a step of the grid from the best "
        "rate that was tried, and the interval says how much seeds differ, not how well a parabola fits. A "
        "dash where a seed's best rate is an end of the grid, where training fails right beside it, or where "
        "a seed has no score.",
        "±: 95% intervals of Student's t over the seeds, which are few: they say how much seeds differ, not "
        "how much the choice of the learning rate or other data would change. With one seed there is none.",
        f"Difference: to {REFERENCE}, each at its own best rate, paired by seed (same order of the examples, "
        "same head). Where its interval contains 0, these runs do not tell the two apart. With many methods "
        "about one of twenty intervals misses the truth by chance.",
        "Trained: without the task's head. Time of a step: one run's share of its program's time without "
        f"compilation, median over the method's runs, as times {REFERENCE}'s where that is there; methods "
        "of one program have one time. Adapter: the folder of the first seed at the best rate, with the "
        "head. Diverged: runs, at all rates.",
    ]
    if edges:
        lines.append(
            f"At an end of the rates: {', '.join(edges)}. Their true best rate may lie beyond, and their "
            "score be better than shown: add rates (--config.grids.METHOD.learning_rate) and start again."
        )
    if none:
        lines.append(f"No learning rate at which all seeds ended with a score: {', '.join(none)}.")
    return "\n".join(f"- {line}" for line in lines)


def _tried(table: Sequence[Row]) -> str:
    """`5`, or `2 to 5`: the number of rates of a method."""
    counts = sorted({len(row.rates) for row in table})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
