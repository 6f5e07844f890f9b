"""Sweeps: every point of a grid over rank, alpha, learning rate, seed, ... as runs of few programs.

    python -m experiments.sweep --config=configs/sweep/rank_glue.py:mrpc --workdir=DIR \\
        --config.run.data.source=FOLDER_WITH_GLUE_TSV_FILES

Points that differ in LoRA's numbers, learning rate and seed are one program over one frozen base:
factors, optimizer state, hyperparameters and random keys have an axis of runs. As many run together
as fit (`config.runs_per_program`; 0 measures it), the rest after. Other differences (targets, other
methods, batch size) form groups of their own. Every point leaves in DIR/points/NAME what
experiments.glue or experiments.nlg would; DIR/report.md shows all. A sweep that was killed goes on
with the same command and repeats nothing finished; grids may grow.

Several devices or hosts: `--config.run.mesh.run=-1` splits the runs over them, together with data,
fsdp and model. Separate machines: `--engine=ray`, see experiments.sweep_ray.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from experiments import report, run_records
from experiments import workdir as workdirs
from experiments.classification import Preparation as Classification
from experiments.live_table import LiveTable, RunStatus, summary
from experiments.nlg_preparation import Preparation as DataToText
from experiments.sweep_folder import SweepFolder
from experiments.sweep_group import Group, method_of
from experiments.sweep_points import Point, Program, groups, points, programs
from experiments.sweep_program import train_program
from lora_jax import methods
from lora_jax.data import glue
from lora_jax.method import Method
from lora_jax.metrics import glue as metrics
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


def headline_of(config: ConfigDict) -> tuple[str, bool]:
    """The score that chooses a run's best epoch, and whether less of it is better."""
    if config.experiment == "nlg":
        return DataToText.headline, DataToText.smaller_is_better
    return metrics.headline(glue.task(config.run.task)), Classification.smaller_is_better


def write_report(workdir: Path) -> None:
    """DIR/report.md and DIR/report: tables and curves of all finished points."""
    if is_main():
        command = f"python -m experiments.report {workdir.name}/points"
        found = run_records.find([workdir / "points"])
        report.write(found, command, workdir / "report.md", only_ours=True)


def main(_: list[str]) -> None:
    """Command line."""
    logging.set_verbosity(logging.WARNING)  # Orbax and JAX tell a lot at INFO
    config = _CONFIG.value
    with workdirs.readable_errors():
        machines = _MACHINES()
        workdirs.join_hosts(_HOSTS.value)
        if not _WORKDIR.value:
            raise ValueError("--workdir=DIR is needed: the folder of the sweep")
        workdir = Path(_WORKDIR.value)
        found = points(config)
        method_of(config.experiment, found[0].config)  # refuses what is no experiment
        headline, smaller = headline_of(config)
        table = LiveTable(headline, len(found), smaller_is_better=smaller)
        if machines:
            folder = sweep_ray.run_sweep(config, workdir, machines, table)
        else:
            folder = run_sweep(config, workdir, table if is_main() else None)
        write_report(workdir)
        found = folder.named(found)  # on all hosts
        if is_main():
            print(summary(folder.statuses(found), smaller))
            print(f"runs: {workdir}/points   report: {workdir}/report.md")


if __name__ == "__main__":
    from experiments import ray_cluster, sweep_ray  # the latter imports this module

    _CONFIG = config_flags.DEFINE_config_file("config", None, "Sweep configuration.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the sweep.")
    _HOSTS = workdirs.hosts_flag()
    _MACHINES = ray_cluster.define_flags()
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=workdirs.parse_flags)
