"""A sweep in this process: what is left to do is planned, trained program by program, and shown."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ml_collections import ConfigDict

from experiments.sweep.folder import SweepFolder
from experiments.sweep.group import Group, method_of
from experiments.sweep.live_table import LiveTable, RunStatus
from experiments.sweep.points import Point, Program, groups, points, programs
from experiments.sweep.program import train_program
from lora_jax import methods
from lora_jax.method import Method
from lora_jax.sharding.hosts import from_main, is_main
from lora_jax.sharding.mesh import RUN
from lora_jax.sweeps.loop import Watch
from lora_jax.training.loop import Progress


class Board:
    """How all points get on: in status files, and in a table if there is one."""

    def __init__(self, folder: SweepFolder, found: Sequence[Point], table: LiveTable | None):
        self._folder, self._table = folder, table
        self._statuses = {own.name: own for own in folder.statuses(found)}

    def watch(self, group: Group, program: Program) -> Watch:
        """Told of a program's runs, it keeps files and table up to date."""
        epochs, headline = group.config.epochs, group.preparation.headline

        def told(runs: Sequence[Progress], losses: Sequence[float]) -> None:
            if not is_main():
                return
            own = [
                _status(name, run, loss, (epochs, group.per_epoch), headline, program.name)
                for name, run, loss in zip(program.points, runs, losses, strict=True)
            ]
            self._statuses |= {status.name: status for status in own}
            self._folder.write_status(program.name, own)
            self.show(f"program {program.name}: {program.runs} runs")

        return told

    def aside(self) -> AbstractContextManager[None]:
        """Takes the table away while something else draws."""
        return nullcontext() if self._table is None else self._table.aside()

    def show(self, note: str = "") -> None:
        """Draws the table."""
        if self._table is not None:
            self._table.update(list(self._statuses.values()), note)


def _status(
    name: str, run: Progress, loss: float, length: tuple[int, int], headline: str, program: str
) -> RunStatus:
    ended = len(run.history) == length[0]
    state = "diverged" if run.diverged else "finished" if ended else "training"
    scores = [epoch[headline] for epoch in run.history]
    return RunStatus(
        name, state, run.step, math.prod(length), loss, scores[-1] if scores else None,
        scores[run.best - 1] if scores else None, run.best, program,
    )  # fmt: skip


def planned(config: ConfigDict, folder: SweepFolder, found: Sequence[Point]) -> list[Program]:
    """Plans all points that no program has yet, without reading data; needs `runs_per_program`."""
    if not config.runs_per_program:
        raise ValueError(
            "config.runs_per_program is 0 (measured), which needs the device; give a number here"
        )
    for group in groups(found).values():
        if new := _new(folder, group):
            _plan(config, folder, new, config.runs_per_program, max(1, new[0].config.mesh.run))
    return folder.programs()


def _plan(
    config: ConfigDict, folder: SweepFolder, new: Sequence[Point], most: int, ways: int
) -> list[Program]:
    def method(point: Point) -> Method:
        return method_of(config.experiment, point.config)

    more = programs(new, method, most, ways, len(folder.programs()))
    folder.plan(more, new)
    return more


def _new(folder: SweepFolder, group: Sequence[Point]) -> list[Point]:
    done = {name for program in folder.programs() for name in program.points}
    done |= folder.finished()
    return [point for point in group if point.name not in done]


def _work(
    config: ConfigDict, folder: SweepFolder, group: Sequence[Point], only: Collection[str] | None
) -> Iterator[tuple[Group, list[Program]]]:
    """The programs of a group that are not finished: those planned before, then new ones."""
    by_name, done = {point.name: point for point in group}, folder.finished()
    old = [
        program
        for program in folder.programs()
        if set(program.points) & by_name.keys() and set(program.points) - done
        if only is None or program.name in only
    ]
    if old:  # as they were started, and with points that the grids no longer have
        names = [name for program in old for name in program.points]
        started = [folder.point(name, config.run.mesh) for name in names]
        yield Group(config.experiment, started), old
    if only is None and (new := _new(folder, group)):
        made = Group(config.experiment, new)
        most = config.runs_per_program or from_main(made.runs_that_fit)
        yield made, _plan(config, folder, new, most, made.placement.mesh.shape[RUN])


def run_sweep(
    config: ConfigDict, workdir: Path, table: LiveTable | None = None,
    only: Collection[str] | None = None,
) -> SweepFolder:  # fmt: skip
    """Trains all points that have no result yet.

    Args:
      config: of the sweep.
      workdir: its folder.
      table: shown while it runs.
      only: names of planned programs; no others are trained.

    Raises:
      ValueError: bad grids, or another sweep's folder.
    """
    folder, found = opened(config, workdir)
    board = Board(folder, found, table)
    with table or nullcontext():
        board.show()
        for group in groups(found).values():
            for made, own in _work(config, folder, group, only):
                for program in own:
                    told = board.watch(made, program)
                    own_room = made.with_method(methods.from_json(program.method))
                    train_program(own_room, program, workdir, told, board.aside)
                del made, own_room  # its base makes room for the next group's
    return folder


def opened(config: ConfigDict, workdir: Path) -> tuple[SweepFolder, list[Point]]:
    """The sweep's folder and its points; bad grids are refused before anything is written."""
    found = points(config)
    for point in found:
        method_of(config.experiment, point.config)
    folder = SweepFolder(workdir, config)
    return folder, folder.named(found)
