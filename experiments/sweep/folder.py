"""The folder of a sweep: its config, the programs that were planned, and what is finished.

DIR/sweep.json            the config
DIR/plan.json             which points are trained together
DIR/points/NAME/          one run, as experiments.glue or experiments.nlg would leave it
DIR/programs/NUMBER/      checkpoints of a program, and status.json: the progress of its runs

Several programs of this machine or others may work on a sweep: the plan, each program of it and each point
are locked by who writes them, see `lora_jax.locking`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.runs import folder as workdirs
from experiments.runs.record import MADE_ANEW
from experiments.sweep import live_table
from experiments.sweep.experiment import experiment
from experiments.sweep.identity import identity, lasting, made_from
from experiments.sweep.live_table import RunStatus
from experiments.sweep.points import Point
from experiments.sweep.programs import Program
from lora_jax import locking
from lora_jax.errors import FolderInUseError, InputError
from lora_jax.files import write_json
from lora_jax.inputs import FILE as INPUTS
from lora_jax.reading import Record, read_json, read_object
from lora_jax.run_folder import RESULT, changes
from lora_jax.sharding import hosts

_PLAN_LOCK = "plan.lock"
_PATIENCE = 60.0  # seconds to wait for another program that writes the plan
_BACK = "Put the file back from a copy, or use another --workdir"
_STATUS = "Delete the file: the program writes it anew"


class SweepFolder:
    """Reads and writes a sweep's folder; of several hosts the first one does."""

    def __init__(self, path: Path, config: ConfigDict):
        """Looks whether the folder can be this sweep's; it is so from `claim` on.

        Raises:
          ValueError: it holds another sweep; the message names the fields.
        """
        self.path = path
        self._method = experiment(config.experiment).method
        here = self._config = workdirs.plain(config)
        workdirs.check_place(path, of_sweep=True)
        first = hosts.from_main(lambda: self._compared(here)[0])
        if not hosts.everywhere(first == here):
            raise InputError("the hosts were started with different configs")

    def claim(self) -> None:
        """Makes the folder this sweep's, once all its input has proved good; raises as `__init__`."""
        with self.planning():
            hosts.from_main(self._claim)
        if not hosts.everywhere((self.path / "sweep.json").exists()):
            raise InputError(
                f"the folder {self.path} is not the same on all hosts; --workdir must be on a file system "
                "that they share"
            )

    def _claim(self) -> None:
        config, differs = self._compared(self._config)
        if differs:  # workers of one sweep all come here
            write_json(self.path / "sweep.json", config)

    def _compared(self, config: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """The config, and whether it must be written; raises InputError for that of another sweep."""
        file = self.path / "sweep.json"
        if not file.exists():
            return config, True
        other = read_object(file, _BACK).values
        if not isinstance(other.get("run"), dict):
            raise Record(file, other, remedy=_BACK).error("run", "none", "an object")
        if differences := changes(lasting(other), lasting(config), "there", "now"):
            raise InputError(
                f"{self.path} holds a sweep with another config ({differences}). Use another "
                "--workdir; only grids, runs_per_program and the mesh may change"
            )
        return config, other != config

    @contextlib.contextmanager
    def planning(self) -> Iterator[None]:
        """Locks the sweep's config and plan, for a moment."""
        with locking.exclusive(self.path, _PLAN_LOCK, _PATIENCE):
            yield

    @contextlib.contextmanager
    def training(self, program: Program) -> Iterator[str]:
        """Locks a program and its points, for as long as it is trained.

        Yields:
          "", or on all hosts in words what other program trains it, or one of its points: then nothing may
          be trained.
        """
        folders = [self.path / "points" / name for name in program.points]
        with contextlib.ExitStack() as stack:

            def take() -> str:
                try:
                    stack.enter_context(locking.taken(self.path / "programs" / program.name))
                    for folder in folders:
                        stack.enter_context(locking.taken(folder, quiet=True))
                except FolderInUseError as error:
                    return str(error)
                return ""

            yield hosts.from_main(take)

    def own(self, points: Iterable[Point]) -> set[str]:
        """Names of the sweep's points: these, and all that were ever planned, with wider grids too."""
        return {*hosts.from_main(lambda: planned_names(self.path)), *(p.name for p in points)}

    def check(self, points: Iterable[Point]) -> None:
        """Checks what the sweep's finished points have left: these, and those of wider grids.

        Raises:
          ValueError: a record is not that of its point, or what `run_files.check` raises.
        """
        for name in sorted(self.own(points) & self.finished()):
            folder = self.path / "points" / name
            workdirs.finished(folder, self._point_config(name))

    def alike(self, points: Sequence[Point]) -> list[Path]:
        """Folders of the sweep's points that say what they were made from, which is that of these points.

        Args:
          points: with the same data, model and start.
        """
        wanted = made_from(workdirs.plain(points[0].config))
        folders = [self.path / "points" / name for name in sorted(self.own(points))]
        started = [p for p in folders if any((p / name).exists() for name in (INPUTS, RESULT))]
        return [
            path
            for path in started
            if (path / "config.json").exists() and made_from(self._config_of(path).values) == wanted
        ]

    def _point_config(self, name: str) -> ConfigDict:
        folder = self.path / "points" / name
        return ConfigDict(hosts.from_main(lambda: self._config_of(folder).values))

    def _config_of(self, folder: Path) -> Record:
        config = read_object(folder / "config.json", _BACK)
        config.record("data")
        return config

    def named(self, points: Sequence[Point]) -> list[Point]:
        """The points under the names that points of the same config have here already.

        Raises:
          ValueError: a point's name belongs to another config.
        """
        known = hosts.from_main(self._known)
        result = []
        for point in points:
            same_as = identity(workdirs.plain(point.config))
            same = next((name for name, other in known.items() if other == same_as), None)
            if same is None and point.name in known:
                raise InputError(
                    f"{self.path / 'points' / point.name} holds a run with another config; use "
                    "another --workdir"
                )
            result.append(dataclasses.replace(point, name=same or point.name))
        return result

    def _known(self) -> dict[str, str]:
        return {
            path.parent.name: identity(self._config_of(path.parent).values)
            for path in sorted((self.path / "points").glob("*/config.json"))
        }

    def finished(self) -> set[str]:
        """Names of the points that have a result."""
        results = (self.path / "points").glob("*/result.json")
        return set(hosts.from_main(lambda: [path.parent.name for path in results]))

    def point(self, name: str, mesh: ConfigDict) -> Point:
        """A planned point as it was then, but for the mesh."""
        config = ConfigDict({**self._point_config(name).to_dict(), "mesh": mesh.to_dict()})
        return Point(name, config, self._method(config))

    def programs(self) -> list[Program]:
        """What was planned, in order."""
        file = self.path / "plan.json"
        return [
            Program.from_json(Record(file, values, f"[{number}].", _BACK))
            for number, values in enumerate(hosts.from_main(self._planned))
        ]

    def unfinished(self, points: Iterable[Point]) -> list[Program]:
        """The planned programs that train one of these points and have points without a result."""
        names, done = {point.name for point in points}, self.finished()
        return [
            program
            for program in self.programs()
            if names & set(program.points) and set(program.points) - done
        ]

    def _planned(self) -> list[dict[str, Any]]:
        file = self.path / "plan.json"
        return _objects(file, _BACK) if file.exists() else []

    def plan(self, more: Iterable[Program], points: Iterable[Point]) -> None:
        """Adds programs to the plan, and makes the folders of their points."""
        for point in points:
            workdirs.claim(self.path / "points" / point.name, point.config)
        planned = [*self.programs(), *more]
        write_json(self.path / "plan.json", [program.to_json() for program in planned])
        hosts.barrier("plan written")

    def write_status(self, program: str, statuses: Sequence[RunStatus]) -> None:
        """Writes the progress of a program's runs, for whoever looks."""
        values = [live_table.to_json(status) for status in statuses]
        write_json(self.path / "programs" / program / "status.json", values)

    def statuses(self, points: Sequence[Point]) -> list[RunStatus]:
        """The progress of all points, by the files here."""
        known: dict[str, RunStatus] = {}
        for file in sorted((self.path / "programs").glob("*/status.json")):
            for number, values in enumerate(_objects(file, _STATUS)):
                status = live_table.from_json(Record(file, values, f"[{number}].", _STATUS))
                known[status.name] = status
        done = {path.parent.name for path in (self.path / "points").glob("*/result.json")}
        return [
            self._finished_status(point.name, known)
            if point.name in done
            else known.get(point.name, RunStatus(point.name, "waiting"))
            for point in points
        ]

    def _finished_status(self, name: str, known: dict[str, RunStatus]) -> RunStatus:
        status = known.get(name)
        if status is not None and status.state in ("finished", "diverged"):
            return status
        result = read_object(self.path / "points" / name / "result.json", MADE_ANEW)
        headline, seeds = result.get("headline", str), result.record("seeds")
        if len(seeds.values) != 1:
            raise result.error("seeds", f"{len(seeds.values)} seeds", "one")
        (run,) = (seeds.record(seed) for seed in seeds.values)
        return RunStatus(
            name,
            "diverged" if run.get("diverged", int) else "finished",
            step=run.get("step", int),
            steps=run.get("step", int),
            score=_score(run, "last", headline),
            best=_score(run, "best", headline),
            best_epoch=run.get("best_epoch", int),
        )


def _score(run: Record, which: str, name: str) -> float | None:
    """A metric; NaN and infinity are null in files, and so is an epoch that a diverged run has not."""
    if run.values.get(which, 0) is None:
        return None
    metrics = run.record(which)
    return None if metrics.values.get(name, 0) is None else metrics.get(name, float)


def _objects(path: Path, remedy: str) -> list[dict[str, Any]]:
    """The content of a file that holds a list of JSON objects."""
    values = read_json(path, remedy=remedy)
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise Record(path, {}, remedy=remedy).error("", repr(values)[:60], "a list of objects")
    return values


def planned_names(path: Path) -> list[str]:
    """Names of all points that the plan of a sweep's folder has; none without a plan."""
    file = path / "plan.json"
    programs = _objects(file, _BACK) if file.exists() else []
    return [
        name
        for number, values in enumerate(programs)
        for name in Record(file, values, f"[{number}].", _BACK).strings("points")
    ]
