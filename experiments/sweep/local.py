"""A sweep in this process: what is left to do is planned, trained program by program, and shown."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ml_collections import ConfigDict

from experiments.runs import command_line
from experiments.runs import folder as workdirs
from experiments.runs.task import Task, check_method, check_rows
from experiments.sweep.experiment import experiment
from experiments.sweep.folder import SweepFolder
from experiments.sweep.live_table import LiveTable, RunStatus
from experiments.sweep.memory import Memory
from experiments.sweep.points import Point, compatible, points
from experiments.sweep.program import train_program
from experiments.sweep.programs import Program, programs
from experiments.sweep.shared_base import SharedBase
from lora_jax.adapters import load_adapter
from lora_jax.errors import FolderInUseError, InputError
from lora_jax.sharding import hosts
from lora_jax.sharding.hosts import from_main, is_main
from lora_jax.sharding.mesh import RUN
from lora_jax.sweeps.common_method import common_method
from lora_jax.sweeps.members import Watch
from lora_jax.training import Progress


class Board:
    """The progress of all points: in status files, and in a table if there is one."""

    def __init__(self, folder: SweepFolder, members: Sequence[Point], table: LiveTable | None):
        self._folder, self._table = folder, table
        self._statuses = {status.name: status for status in folder.statuses(members)}

    def watch(self, base: SharedBase, program: Program) -> Watch:
        """A function that takes a program's progress and keeps files and table up to date."""
        epochs, headline = base.settings.train.epochs, base.task.headline

        def update(runs: Sequence[Progress], losses: Sequence[float]) -> None:
            if not is_main():
                return
            statuses = [
                _status(
                    name, run, loss, epochs=epochs, per_epoch=base.per_epoch, headline=headline,
                    program=program.name,
                )
                for name, run, loss in zip(program.points, runs, losses, strict=True)
            ]  # fmt: skip
            self._statuses |= {status.name: status for status in statuses}
            self._folder.write_status(program.name, statuses)
            self.show(f"program {program.name}: {program.runs} runs")

        return update

    def aside(self) -> AbstractContextManager[None]:
        """Takes the table away while something else draws."""
        return nullcontext() if self._table is None else self._table.aside()

    def show(self, note: str = "") -> None:
        """Draws the table."""
        if self._table is not None:
            self._table.update(list(self._statuses.values()), note)


def _status(
    name: str, run: Progress, loss: float, *, epochs: int, per_epoch: int, headline: str,
    program: str,
) -> RunStatus:  # fmt: skip
    ended = len(run.history) == epochs
    scores = [metrics[headline] for metrics in run.history]
    return RunStatus(
        name,
        "diverged" if run.diverged else "finished" if ended else "training",
        step=run.step,
        steps=epochs * per_epoch,
        loss=loss,
        score=scores[-1] if scores else None,
        best=scores[run.best - 1] if run.best else None,
        best_epoch=run.best,
        program=program,
    )


def planned(config: ConfigDict, folder: SweepFolder, members: Sequence[Point]) -> list[Program]:
    """Plans all points that no program has yet, without reading data; needs `runs_per_program`."""
    if not config.runs_per_program:
        raise InputError(
            "config.runs_per_program is 0 (measured), which needs the device; give a number here"
        )
    for together in compatible(members):
        if new := _new(folder, together):
            _plan(folder, together, config.runs_per_program, max(1, new[0].config.mesh.run))
    return folder.programs()


def _plan(folder: SweepFolder, members: Sequence[Point], most: int, ways: int) -> None:
    """Plans those of the points that no other program on this sweep has planned meanwhile."""
    folder.claim()
    with folder.planning():
        if new := _new(folder, members):
            more = programs(new, most=most, ways=ways, first=len(folder.programs()))
            folder.plan(more, new)


def _new(folder: SweepFolder, members: Sequence[Point]) -> list[Point]:
    known = {name for program in folder.programs() for name in program.points}
    known |= folder.finished()
    return [point for point in members if point.name not in known]


def _work(
    config: ConfigDict,
    folder: SweepFolder,
    members: Sequence[Point],
    only: Collection[str] | None,
    task: Task | None,
) -> Iterator[tuple[SharedBase, list[Program]]]:
    """The unfinished programs of compatible points: those planned before, then new ones."""
    old = [
        program for program in folder.unfinished(members) if only is None or program.name in only
    ]
    if old:  # as they were started, and with points that the grids no longer have
        started = [
            folder.point(name, config.run.mesh) for program in old for name in program.points
        ]
        yield _base(config, folder, members, started, task), old
        task = None
    if only is not None:
        return
    if new := _new(folder, members):
        base = _base(config, folder, members, new, task)
        most = config.runs_per_program or from_main(lambda: Memory(base).runs_that_fit())
        _plan(folder, new, most, base.widest.placement.mesh.shape[RUN])
        names = {point.name for point in new}
        yield base, [program for program in folder.unfinished(new) if names >= set(program.points)]


def check_all(
    config: ConfigDict, folder: SweepFolder, members: Sequence[Point], *, here: bool = True
) -> dict[str, Task]:
    """Checks data, models and starts of all points, before the folder is claimed.

    Args:
      config: of the sweep.
      folder: of it.
      members: all points.
      here: whether this process trains them; else their mesh is that of others.

    Raises:
      ValueError, OSError: what the points' own command would refuse; or points of the folder were made from
        other data, tokenizer, weights or start.

    Returns:
      The task of the first of them that are to be trained together, by the name of their first point.
    """
    done, kept = folder.finished(), dict[str, Task]()
    for together in compatible(members):
        finished = {point.name for point in together} <= done
        if finished and not folder.alike(together):  # of an earlier version
            continue
        run = together[0].config
        if not here:
            run = ConfigDict({**run.to_dict(), "mesh": dict.fromkeys(run.mesh, 1)})
        with hosts.together():
            task = experiment(config.experiment).task(run)
            if not finished:
                check_rows(task)
                check_method(task, common_method([point.method for point in together]))
        _check_inputs(folder, together, task)
        if not finished and not kept:
            kept[together[0].name] = task
    for start in sorted({point.config.init_adapter for point in members} - {""}):
        with hosts.together():
            load_adapter(start)
    return kept


def run_sweep(
    config: ConfigDict,
    workdir: Path,
    table: LiveTable | None = None,
    only: Collection[str] | None = None,
) -> SweepFolder:
    """Trains all points that have no result yet.

    Args:
      config: of the sweep.
      workdir: its folder.
      table: shown while it runs.
      only: names of planned programs; no others are trained.

    Raises:
      ValueError: bad grids, or another sweep's folder.
    """
    folder, members = opened(config, workdir)
    if table is not None:
        command_line.say(f"{len(members)} runs: data and model are read")
    tasks = check_all(config, folder, members) if only is None else {}
    board = Board(folder, members, table)
    with table or nullcontext():
        board.show()
        if only is None:
            _say_others(folder, members)
        for together in compatible(members):
            task = tasks.pop(together[0].name, None)
            for base, unfinished in _work(config, folder, together, only, task):
                for program in unfinished:
                    _train(folder, base, program, board, shared=only is None)
                del base  # it makes room for that of the next points
    return folder


def _say_others(folder: SweepFolder, members: Sequence[Point]) -> None:
    """Says that runs were planned which the grids no longer have: programs are trained whole."""
    planned_runs = {name for program in folder.unfinished(members) for name in program.points}
    if (others := planned_runs - {point.name for point in members}) and is_main():
        command_line.say(
            f"{len(others)} runs that the grids no longer have, such as {min(others)}, are trained, too: "
            "their programs were planned with them. For the grids alone use another --workdir"
        )


def _base(
    config: ConfigDict,
    folder: SweepFolder,
    members: Sequence[Point],
    chosen: Sequence[Point],
    task: Task | None,
) -> SharedBase:
    """What the chosen points share; all points of the folder must have been made from the same."""
    base = SharedBase(config.experiment, chosen, task)
    _check_inputs(folder, members, base.task)
    folder.claim()
    return base


def _check_inputs(folder: SweepFolder, members: Sequence[Point], task: Task) -> None:
    """Raises InputError if points that are started or finished were made from other data or weights."""
    for path in folder.alike(members):
        workdirs.check_inputs(path, task.inputs)


def _train(
    folder: SweepFolder, base: SharedBase, program: Program, board: Board, shared: bool
) -> None:
    """Trains a program. Another program that trains it is an error, or, if `shared`, left to it."""
    with folder.training(program) as held:
        if held and not shared:
            raise FolderInUseError(held, folder.path)
        if held:
            command_line.say(f"program {program.name} is left to another: {held}")
        elif set(program.points) - folder.finished():  # not finished by another just now
            if is_main():
                first = program.points[0]
                command_line.say(
                    f"program {program.name}: {program.runs} runs, {first} first; its step is compiled"
                )
            watch = board.watch(base, program)
            train_program(base, program, folder.path, watch, board.aside)


def opened(config: ConfigDict, workdir: Path) -> tuple[SweepFolder, list[Point]]:
    """The sweep's folder and its points; nothing is written, see `SweepFolder.claim`."""
    members = points(config)
    folder = SweepFolder(workdir, config)
    members = folder.named(members)
    folder.check(members)
    return folder, members
