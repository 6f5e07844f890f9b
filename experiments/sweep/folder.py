"""The folder of a sweep: its config, the programs that were planned, and what is finished.

DIR/sweep.json            the config
DIR/plan.json             which points are trained together
DIR/points/NAME/          one run, as experiments.glue or experiments.nlg would leave it
DIR/programs/NUMBER/      checkpoints of a program, and status.json: the progress of its runs
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.runs import folder as workdirs
from experiments.sweep import live_table
from experiments.sweep.experiment import experiment
from experiments.sweep.live_table import RunStatus
from experiments.sweep.points import Point
from experiments.sweep.programs import Program
from lora_jax.errors import InputError
from lora_jax.files import to_json, write_json
from lora_jax.run_folder import changes, flat
from lora_jax.sharding import hosts

_MAY_CHANGE = ("grids", "runs_per_program")  # more points, more memory: the sweep goes on


class SweepFolder:
    """Reads and writes a sweep's folder; of several hosts the first one does."""

    def __init__(self, path: Path, config: ConfigDict):
        """Makes the folder this sweep's.

        Raises:
          ValueError: it holds another sweep; the message names the fields.
        """
        self.path = path
        self._method = experiment(config.experiment).method
        here = workdirs.plain(config)
        first = hosts.from_main(lambda: self._claim(here))
        if not hosts.everywhere(first == here):
            raise InputError("the hosts were started with different configs")
        if not hosts.everywhere((path / "sweep.json").exists()):
            raise InputError(
                f"the folder {path} is not the same on all hosts; --workdir must be on a file system "
                "that they share"
            )

    def _claim(self, config: dict[str, Any]) -> dict[str, Any]:
        file = self.path / "sweep.json"
        if file.exists():
            other = json.loads(file.read_text())
            if differences := changes(_lasting(other), _lasting(config), "there", "now"):
                raise InputError(
                    f"{self.path} holds a sweep with another config ({differences}). Use another "
                    "--workdir; only grids, runs_per_program and the mesh may change"
                )
            if other == config:  # workers of one sweep all come here
                return config
        write_json(file, config)
        return config

    def named(self, points: Sequence[Point]) -> list[Point]:
        """The points under the names that points of the same config have here already.

        Raises:
          ValueError: a point's name belongs to another config.
        """
        known = hosts.from_main(self._known)
        result = []
        for point in points:
            identity = _identity(workdirs.plain(point.config))
            same = next((name for name, other in known.items() if other == identity), None)
            if same is None and point.name in known:
                raise InputError(
                    f"{self.path / 'points' / point.name} holds a run with another config; use "
                    "another --workdir"
                )
            result.append(dataclasses.replace(point, name=same or point.name))
        return result

    def _known(self) -> dict[str, str]:
        return {
            path.parent.name: _identity(json.loads(path.read_text()))
            for path in sorted((self.path / "points").glob("*/config.json"))
        }

    def finished(self) -> set[str]:
        """Names of the points that have a result."""
        results = (self.path / "points").glob("*/result.json")
        return set(hosts.from_main(lambda: [path.parent.name for path in results]))

    def point(self, name: str, mesh: ConfigDict) -> Point:
        """A planned point as it was then, but for the mesh."""
        file = self.path / "points" / name / "config.json"
        values = hosts.from_main(lambda: json.loads(file.read_text()))
        config = ConfigDict({**values, "mesh": mesh.to_dict()})
        return Point(name, config, self._method(config))

    def programs(self) -> list[Program]:
        """What was planned, in order."""
        return [Program.from_json(values) for values in hosts.from_main(self._planned)]

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
        return json.loads(file.read_text()) if file.exists() else []

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
            for values in json.loads(file.read_text()):
                status = live_table.from_json(values)
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
        result = json.loads((self.path / "points" / name / "result.json").read_text())
        (run,) = result["seeds"].values()
        headline = result["headline"]
        return RunStatus(
            name,
            "diverged" if run["diverged"] else "finished",
            step=run["step"],
            steps=run["step"],
            score=(run["last"] or {}).get(headline),
            best=(run["best"] or {}).get(headline),
            best_epoch=run["best_epoch"],
        )


def _lasting(config: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in config.items() if name not in _MAY_CHANGE}
    return {**kept, "run": {**kept["run"], **dict.fromkeys(workdirs.MAY_CHANGE)}}


def _identity(config: dict[str, Any]) -> str:
    """What makes a run the same: not where it runs, nor that its rows have the default length."""
    data = {**config["data"], "row_length": config["data"]["row_length"] or None}
    fields = flat({**config, "data": data, **dict.fromkeys(workdirs.MAY_CHANGE)})
    kept = {key: fields[key] for key in sorted(fields) if fields[key] is not None}
    return to_json(kept, indent=None)
