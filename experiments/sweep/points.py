"""The points of a sweep: a grid of config values, their groups, and the programs that train them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments.runs import folder as workdirs
from experiments.runs.adaptation import order_seed
from lora_jax import methods
from lora_jax.files import to_json
from lora_jax.method import Method
from lora_jax.sweeps.common_method import NUMBERS, common_method, largest_rank, structure_of

# Differing in these, runs are still one program: arrays hold them. In anything else, they are not.
_VECTORISED = ("seeds", "learning_rate", "data.order_seed", *(f"method.{name}" for name in NUMBERS))


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
      name: its values, such as `rank=8,seed=0`; also the name of its folder.
      config: of the run, as its own experiment takes it, with one seed.
    """

    name: str
    config: ConfigDict

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.config.seeds[0]


@dataclasses.dataclass(frozen=True)
class Program:
    """Points that are trained together.

    Attributes:
      name: of its folder.
      points: names.
      runs: number of runs of the program; those beyond the points fill it up.
      method: the common one, as JSON values.
    """

    name: str
    points: tuple[str, ...]
    runs: int
    method: Any

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Program:
        """A program from the values of `dataclasses.asdict`."""
        return cls(values["name"], tuple(values["points"]), values["runs"], values["method"])


def points(config: ConfigDict) -> list[Point]:
    """All points of a sweep's config, each once: every grid's product of values.

    A grid is a part of the run's config whose leaves are tuples of values:
    `{"method": {"rank": (1, 8)}, "seeds": (0, 1)}` are four points. `config.labels` has pairs of a
    label and a value that is too long for a name, such as a target's pattern.

    Raises:
      ValueError: an unknown field, no values, or a value of the wrong type; the message names it.
    """
    if not config.run.epochs:
        raise ValueError("config.run.epochs is 0: a sweep trains")
    if config.run.prng != "threefry2x32":
        raise ValueError(
            f"config.run.prng is {config.run.prng!r}: with it dropout masks depend on the other runs of a "
            "program; a sweep takes threefry2x32"
        )
    if not config.grids:
        raise ValueError("config.grids is empty: a sweep needs at least one grid of values")
    grids = {
        name: workdirs.flat(grid.to_dict() if isinstance(grid, ConfigDict) else grid)
        for name, grid in config.grids.items()
    }
    varied = list(dict.fromkeys(path for grid in grids.values() for path in grid))
    labels = {_text(value): label for label, value in config.labels}
    found: dict[str, Point] = {}
    for name, grid in grids.items():
        for values in _product(name, grid):
            own = _with(config.run, values, f"grids.{name}")
            point = Point(_name(own, values, varied, labels), own)
            same = found.setdefault(point.name, point)
            if workdirs.plain(same.config) != workdirs.plain(own):
                raise ValueError(
                    f"config.grids: two points have the name {point.name!r}; give their values different "
                    "labels (config.labels)"
                )
    return _with_row_lengths(list(found.values()))


def _product(name: str, grid: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if not grid:
        raise ValueError(f"config.grids.{name} is empty; name at least one field and its values")
    for path, values in grid.items():
        if not isinstance(values, tuple | list) or not values:
            raise ValueError(
                f"config.grids.{name}.{path} must be a tuple of at least one value, got {values!r}"
            )
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _with(run: ConfigDict, values: Mapping[str, Any], where: str) -> ConfigDict:
    """The run's config with some fields set."""
    own = ConfigDict(run.to_dict(), convert_dict=True)
    for path, value in values.items():
        *parents, last = path.split(".")
        at = own
        for parent in parents:
            at = at[parent] if parent in at and isinstance(at[parent], ConfigDict) else None
            if at is None:
                break
        # A method's arguments have defaults that its config need not name.
        if at is None or (last not in at and parents != ["method"]):
            raise ValueError(f"config.{where}: the run's config has no field {path!r}")
        if path == "seeds" and type(value) is not int:
            raise ValueError(f"config.{where}.seeds: {value!r} does not fit, a seed is an integer")
        try:
            at[last] = (value,) if path == "seeds" else value
        except TypeError as error:
            raise ValueError(f"config.{where}.{path}: {value!r} does not fit ({error})") from None
    if len(own.seeds) != 1:
        raise ValueError(
            f"config.run.seeds has {len(own.seeds)} seeds; give several seeds in a grid "
            f"(config.{where}.seeds), or one in config.run.seeds"
        )
    return own


def _name(
    config: ConfigDict, values: Mapping[str, Any], varied: Sequence[str], labels: Mapping[str, str]
) -> str:
    """`rank=8,seed=0` of the fields that the grids name; labels stand for long values."""
    flat = {**workdirs.flat(workdirs.plain(config)), "seeds": config.seeds[0], **values}
    last = [path.rpartition(".")[2] for path in varied]
    parts = []
    for path, short in zip(varied, last, strict=True):
        label = "seed" if path == "seeds" else short if last.count(short) == 1 else path
        parts.append(f"{label}={_short(flat.get(path), labels)}")
    return ",".join(parts)


def _text(value: Any) -> str:
    if isinstance(value, Mapping | ConfigDict) and "name" in value:
        return str(value["name"])  # a whole method
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return str(value) if isinstance(value, float) and float(short) != value else short


def _short(value: Any, labels: Mapping[str, str]) -> str:
    """A value as part of a folder's name."""
    text = labels.get(_text(value), _text(value))
    return "".join(c if c.isalnum() or c in "+-._" else "~" for c in text)


def _with_row_lengths(found: list[Point]) -> list[Point]:
    """Points of a group whose examples come in different orders have rows of one length.

    Only then is a run in a program with others the one alone, dropout included, see `TrainingBatches`.
    """
    for group in groups(found).values():
        orders = {order_of(point.config) for point in group}
        for point in group:
            if len(orders) > 1 and point.config.data.row_length is None:
                point.config.data.row_length = 0
    return found


def order_of(config: ConfigDict) -> int:
    """Seed of the order of a point's examples."""
    return order_seed(config, config.seeds[0])


def groups(found: Sequence[Point]) -> dict[str, list[Point]]:
    """Points that can be one program, by what they have in common."""
    result: dict[str, list[Point]] = {}
    for point in found:
        flat = workdirs.flat(workdirs.plain(point.config))
        common = {
            path: value
            for path, value in flat.items()
            if path not in _VECTORISED and not path.startswith("method.")
        }
        method = structure_of(methods.create(**point.config.method.to_dict()))
        result.setdefault(to_json([common, method], indent=None), []).append(point)
    return result


def programs(
    group: Sequence[Point], method: Callable[[Point], Method], most: int, ways: int, first: int
) -> list[Program]:
    """Shares a group's points out over as few programs as can be, all with as many runs.

    Small ranks come first and together: a program's padding reaches to its own largest rank only.

    Args:
      group: points.
      method: a point's own.
      most: runs that fit one program.
      ways: size of the mesh axis `run`, which must divide the runs.
      first: number of the first program, for the names.
    """
    if most < ways:
        raise ValueError(
            f"runs_per_program is {most}, but mesh.run={ways} devices need a run each; raise it, or "
            "lower config.run.mesh.run"
        )
    ordered = sorted(group, key=lambda point: largest_rank(method(point)))
    count = -(-len(ordered) // (most // ways * ways))
    runs = -(-len(ordered) // (count * ways)) * ways
    parts = [ordered[start : start + runs] for start in range(0, len(ordered), runs)]
    return [
        Program(
            f"{first + i:03d}", tuple(point.name for point in part), runs,
            common_method([method(point) for point in part]).to_json(),
        )
        for i, part in enumerate(parts)
    ]  # fmt: skip
