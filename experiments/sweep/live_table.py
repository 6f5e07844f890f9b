"""The live table of a sweep: one row for each run in a terminal, plain lines anywhere else.

    with LiveTable("accuracy", total=8) as table:
        table.update(statuses, note="program 2 of 3")

Statuses come from the runs of this process and from status files of others (`to_json`,
`from_json`). Of several processes only the first one makes a table.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Self

from rich.console import Console, JustifyMethod
from rich.console import Group as Stacked
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lora_jax.errors import InputError
from lora_jax.reading import Record

# Style by state, in the order of the rows.
STATES = {"training": "cyan", "finished": "green", "diverged": "red", "waiting": "dim"}
_GAP = 2  # between columns
_BAR = 20  # width of a full bar; one of less than a quarter is left out
_NAME = 12  # a name is not cut below this width for the other columns' sake


@dataclasses.dataclass(frozen=True)
class RunStatus:
    """One run of a sweep, as the table shows it."""

    name: str  # of the point, such as "rank=8,seed=0"; every run has its own
    state: str  # "waiting", "training", "finished" or "diverged"
    step: int = 0  # done
    steps: int = 0  # of the whole run; 0: not known yet
    loss: float | None = None  # of the last logged step
    _: dataclasses.KW_ONLY
    score: float | None = None  # headline at the last finished epoch
    best: float | None = None  # headline at the best epoch
    best_epoch: int = 0
    program: str = ""  # that trains the run

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise InputError(f"{self.name}: state {self.state!r} is none of {', '.join(STATES)}")


def to_json(status: RunStatus) -> dict[str, Any]:
    """A status as JSON values; NaN and infinity become null as in all records."""
    numbers = {name: _finite(getattr(status, name)) for name in ("loss", "score", "best")}
    return dataclasses.asdict(status) | numbers


def from_json(values: Record) -> RunStatus:
    """A status from what `to_json` made; FileError for anything else."""
    fields = {field.name for field in dataclasses.fields(RunStatus)}
    if unknown := sorted(values.values.keys() - fields):
        raise values.error(unknown[0], "a key", "a run's status, which has no such key")
    numbers = {
        name: None if values.values.get(name, 0) is None else values.get(name, float)
        for name in ("loss", "score", "best")
    }
    if (state := values.get("state", str)) not in STATES:
        raise values.error("state", repr(state), f"one of {', '.join(STATES)}")
    return RunStatus(
        values.get("name", str), state, step=values.get("step", int),
        steps=values.get("steps", int), best_epoch=values.get("best_epoch", int),
        program=values.get("program", str), **numbers,
    )  # fmt: skip


def summary(statuses: Sequence[RunStatus], smaller_is_better: bool = False, total: int = 0) -> str:
    """One line: runs by state, of `total` if more than have a status, and the best one."""
    total = max(total, len(statuses))
    counts = Counter(status.state for status in statuses)
    text = (
        f"{counts['finished']} of {total} finished, {counts['training']} training, "
        f"{counts['diverged']} diverged, {counts['waiting'] + total - len(statuses)} waiting"
    )
    best = _best(statuses, smaller_is_better)
    return f"{text}; best {_number(best.best)} ({best.name})" if best else text


class LiveTable:
    """Context manager: the table of a sweep of `total` runs with the score `headline`.

    In a terminal it is drawn in place, as many rows as fit. Elsewhere (pipe, log file, CI) a run
    gets a plain line when its state changes and when an epoch ends.
    """

    def __init__(
        self, headline: str, total: int, console: Console | None = None,
        smaller_is_better: bool = False,
    ):  # fmt: skip
        # Said outright: rich takes FORCE_COLOR, which CI may set, for a terminal.
        self._console = console or Console(force_terminal=sys.stdout.isatty())
        self._headline, self._total, self._smaller = headline, total, smaller_is_better
        self._told: dict[str, tuple[Any, ...]] = {}
        self._live: Live | None = None
        if self._console.is_terminal and self._console.is_interactive:
            # No thread that redraws: it would take time from the training. What is printed
            # appears above the table, but what the user sends to a file still goes there.
            self._live = Live(
                console=self._console, auto_refresh=False,
                redirect_stdout=sys.stdout.isatty(), redirect_stderr=sys.stderr.isatty(),
            )  # fmt: skip

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """The table is away while something else draws; the next update shows it again."""
        if self._live is None or not self._live.is_started:
            yield
            return
        self._live.stop()
        try:
            yield
        finally:
            self._live.start()

    def update(self, statuses: Sequence[RunStatus], note: str = "") -> None:
        """Shows the runs as they are now; the note, below the table, in a terminal only."""
        if self._live:
            self._live.update(self._view(statuses, note), refresh=True)
            return
        for s in statuses:
            # Not the step and the loss: these change all the time.
            news = (s.state, _finite(s.score), _finite(s.best), s.best_epoch)
            if news != self._told.get(s.name, ("waiting", None, None, 0)):
                self._told[s.name] = news
                line = f"{s.name}: {s.state}, step {_steps(s)}, training loss {_number(s.loss)}, "
                line += f"{self._headline} {_number(s.score)}, best (epoch) {_best_cell(s)}"
                self._console.out(line, highlight=False)

    def _view(self, statuses: Sequence[RunStatus], note: str) -> Stacked:
        """The table, a line on the runs that have no room in it, the summary and the note."""
        width, best = self._console.width, _best(statuses, self._smaller)
        ends = [Text(t) for t in (summary(statuses, self._smaller, self._total), note) if t]
        # One line is for the header, and one for the cursor below it all.
        room = self._console.height - 2 - sum(len(end.wrap(self._console, width)) for end in ends)
        ranked: list[RunStatus] = []
        for state in STATES:  # else in the order given: rows that jump are hard to read
            runs = [s for s in statuses if s.state == state]
            if state == "finished":
                runs.sort(key=lambda s: _rank(s, self._smaller))
            ranked += runs
        shown = ranked if len(ranked) <= room else ranked[: max(room - 1, 1)]
        if hidden := ranked[len(shown) :]:
            text = f"and {len(hidden)} more: {summary(hidden, self._smaller)}"
            ends.insert(0, Text(text, style="dim", no_wrap=True, overflow="ellipsis"))
        return Stacked(_table(shown, best, self._headline, width), *ends)


def _table(runs: Sequence[RunStatus], best: RunStatus | None, headline: str, width: int) -> Table:
    """A row of one line for each run; where it is narrow bars are left out, then names cut."""
    headers = ("", "step", "train loss", _cut(headline, width // 8), "best (epoch)", "state")
    rows = [
        (f"{100 * s.step // s.steps}%" if s.steps else "", _steps(s), _number(s.loss),
         _number(s.score), _best_cell(s), s.state)
        for s in runs
    ]  # fmt: skip
    room = width - sum(max(map(len, column)) + _GAP for column in zip(headers, *rows, strict=True))
    bar = min(room - max((len(s.name) for s in runs), default=0) - _GAP, _BAR)
    lefts = ("run", "progress") if bar >= _BAR // 4 else ("run",)
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="dim")
    for header in (*lefts, *headers):
        side: JustifyMethod = "left" if header in (*lefts, "state") else "right"
        table.add_column(Text(header), no_wrap=True, justify=side)
    for s, row in zip(runs, rows, strict=True):
        done = ProgressBar(total=s.steps or 1, completed=s.step if s.steps else 0, width=bar)
        # Text, as rich would read the brackets in "targets=[q,v]" as markup.
        cells = (Text(_cut(s.name, max(room, _NAME))), done)[: len(lefts)]
        texts = *map(Text, row[:-1]), Text(row[-1], style=STATES[s.state])
        table.add_row(*cells, *texts, style="bold" if s is best else None)
    return table


def _cut(name: str, width: int) -> str:
    """Takes out the middle of a name: points of a grid often differ in the last value only."""
    head, tail = (width - 1) // 2, width // 2
    return name if len(name) <= width else f"{name[:head]}…{name[-tail:]}"


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _number(value: float | None) -> str:
    value = _finite(value)
    return "-" if value is None else f"{value:.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def _steps(status: RunStatus) -> str:
    return f"{status.step}/{status.steps or '?'}"


def _best_cell(status: RunStatus) -> str:
    return _number(status.best) + (f" ({status.best_epoch})" if status.best_epoch else "")


def _rank(status: RunStatus, smaller_is_better: bool) -> float:
    """Less is better; a run without a score comes last."""
    best = _finite(status.best)
    return math.inf if best is None else best if smaller_is_better else -best


def _best(statuses: Sequence[RunStatus], smaller_is_better: bool) -> RunStatus | None:
    runs = [s for s in statuses if s.state in ("finished", "training") and _number(s.best) != "-"]
    return min(runs, key=lambda s: _rank(s, smaller_is_better), default=None)
