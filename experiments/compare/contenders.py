"""The methods of a comparison: one for each grid of its config, all with equal budgets."""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from experiments.runs import folder as workdirs
from experiments.sweep.folder import SweepFolder
from experiments.sweep.points import Point, points
from lora_jax.errors import InputError
from lora_jax.run_folder import flat

_VARIED = ("learning_rate", "seeds")  # in a grid; all else is the budget


@dataclasses.dataclass(frozen=True)
class Contender:
    """A method and its runs.

    Attributes:
      name: of its grid.
      points: one for each learning rate and seed.
    """

    name: str
    points: tuple[Point, ...]

    @property
    def seeds(self) -> list[int]:
        """Of its runs."""
        return sorted({point.seed for point in self.points})


def rate_of(point: Point) -> float:
    """The learning rate of a run."""
    return float(point.config.learning_rate)


def check(config: ConfigDict) -> None:
    """Checks that a sweep's config is a comparison.

    Raises:
      InputError: the runs of a grid differ in more than learning rate and seed, or those of two grids in
        more than the method, or they have other seeds; the message names grid and field.
    """
    _checked([Contender(name, tuple(points(_only(config, name)))) for name in config.grids])


def of(config: ConfigDict, folder: SweepFolder) -> list[Contender]:
    """The methods of a comparison, under the names that their runs have in its folder."""
    return [
        Contender(name, tuple(folder.named(points(_only(config, name))))) for name in config.grids
    ]


def _only(config: ConfigDict, name: str) -> ConfigDict:
    """The config with one of its grids."""
    grid = config.grids[name]
    plain = grid.to_dict() if isinstance(grid, ConfigDict) else grid
    return ConfigDict({**config.to_dict(), "grids": {name: plain}})


def _checked(contenders: list[Contender]) -> None:
    first = contenders[0]
    for contender in contenders:
        own, where = _fields(contender.points[0]), f"config.grids.{contender.name}"
        for point in contender.points:
            if other := _different(own, _fields(point)):
                raise InputError(
                    f"{where} varies {other}; a comparison's grid has one method and varies learning_rate "
                    "and seeds alone. Give every variant of a method a grid of its own"
                )
        other = _different(_budget(own), _budget(_fields(first.points[0])))
        if other:
            raise InputError(
                f"{where} sets {other} otherwise than config.grids.{first.name}; a comparison is at equal "
                "budgets: set it for all, in config.run"
            )
        if contender.seeds != first.seeds:
            raise InputError(
                f"{where}.seeds are {contender.seeds}, those of config.grids.{first.name} {first.seeds}; "
                "differences are paired by seed: give all grids the same ones"
            )


def _fields(point: Point) -> dict[str, Any]:
    """The run's config by path, without what a grid may vary."""
    fields = flat(workdirs.plain(point.config))
    return {path: value for path, value in fields.items() if path not in _VARIED}


def _budget(fields: dict[str, Any]) -> dict[str, Any]:
    return {path: value for path, value in fields.items() if path.partition(".")[0] != "method"}


def _different(one: dict[str, Any], other: dict[str, Any]) -> str:
    """The first field in which two configs differ; "" if there is none."""
    return next((p for p in sorted({*one, *other}) if one.get(p) != other.get(p)), "")
