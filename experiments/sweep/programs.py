"""The programs of a sweep: which points are trained together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from experiments.sweep.points import Point
from lora_jax import methods
from lora_jax.errors import InputError, SettingError
from lora_jax.method import Method
from lora_jax.reading import Record
from lora_jax.sweeps.common_method import common_method, largest_rank


@dataclasses.dataclass(frozen=True)
class Program:
    """Points that are trained together.

    Attributes:
      name: of its folder.
      points: names.
      runs: number of runs of the program; those beyond the points fill it up.
      method: with the largest of the points' ranks.
    """

    name: str
    points: tuple[str, ...]
    runs: int
    method: Method

    def to_json(self) -> dict[str, Any]:
        """The program as JSON values, which `from_json` takes."""
        return {**vars(self), "method": self.method.to_json()}

    @classmethod
    def from_json(cls, values: Record) -> Program:
        """The inverse of `to_json`; FileError for anything else."""
        method = values.get("method", list)
        try:
            made = methods.from_json(method)
        except (ValueError, TypeError, KeyError) as error:
            raise SettingError(values.path, f"{values.where}method", error) from error
        points = tuple(values.strings("points"))
        return cls(values.get("name", str), points, values.integer("runs"), made)


def programs(members: Sequence[Point], *, most: int, ways: int, first: int) -> list[Program]:
    """Shares compatible points out over as few programs as can be, all with as many runs.

    Small ranks come first and together: a program's padding reaches to its own largest rank only.

    Args:
      members: points that can be one program.
      most: runs that fit one program.
      ways: size of the mesh axis `run`, which must divide the runs.
      first: number of the first program, for the names.
    """
    if most < ways:
        raise InputError(
            f"runs_per_program is {most}, but mesh.run={ways} devices need a run each; raise it, or "
            "lower config.run.mesh.run"
        )
    ordered = sorted(members, key=lambda point: largest_rank(point.method))
    count = -(-len(ordered) // (most // ways * ways))
    runs = -(-len(ordered) // (count * ways)) * ways
    parts = [ordered[start : start + runs] for start in range(0, len(ordered), runs)]
    return [
        Program(
            f"{first + i:03d}", tuple(point.name for point in part), runs,
            common_method([point.method for point in part]),
        )
        for i, part in enumerate(parts)
    ]  # fmt: skip
