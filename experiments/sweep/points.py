"""The points of a sweep: a grid of config values, one run for each combination."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments.runs import folder as workdirs
from experiments.runs.fields import SWEEP, check_config, check_values
from experiments.runs.options import check_together
from experiments.runs.settings import RunSettings, run_settings
from experiments.sweep.experiment import experiment
from lora_jax.errors import InputError, did_you_mean
from lora_jax.files import to_json
from lora_jax.method import Method
from lora_jax.run_folder import flat
from lora_jax.sweeps.common_method import NUMBERS, structure_of

_LONGEST = 255  # bytes of a folder's name
# Differing in these, runs are still one program: arrays hold them. In anything else, they are not.
_VECTORISED = ("seeds", "learning_rate", "data.order_seed", *(f"method.{name}" for name in NUMBERS))


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
      name: its values, such as `rank=8,seed=0`; also the name of its folder.
      config: of the run, as `experiments.glue`, `.nlg` or `.tune` takes it, with one seed.
      method: of the run.
    """

    name: str
    config: ConfigDict
    method: Method

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.settings.seeds[0]

    @property
    def settings(self) -> RunSettings:
        """The run's settings."""
        return run_settings(self.config)

    @property
    def order(self) -> int:
        """Seed of the order of the run's examples."""
        return self.settings.order(self.seed)


def points(config: ConfigDict) -> list[Point]:
    """All points of a sweep's config, each once: every grid's product of values.

    A grid is a part of the run's config whose leaves are tuples of values:
    `{"method": {"rank": (1, 8)}, "seeds": (0, 1)}` are four points. `config.labels` has pairs of a
    label and a value that is too long for a name, such as a target's pattern or a whole method.

    Raises:
      ValueError: an unknown field, no values, or a value of the wrong type; the message names it.
    """
    check_config(config, SWEEP, ("run", "grids", "labels"))
    if not config.grids:
        raise InputError("config.grids is empty: a sweep needs at least one grid of values")
    method = experiment(config.experiment).method
    grids = {
        name: flat(grid.to_dict() if isinstance(grid, ConfigDict) else grid)
        for name, grid in config.grids.items()
    }
    varied = list(dict.fromkeys(path for grid in grids.values() for path in grid))
    labels = {_whole(value) or _text(value): label for label, value in config.labels}
    by_name: dict[str, Point] = {}
    for grid_name, grid in grids.items():
        for values in _product(grid_name, grid):
            run = _with(config.run, values, f"grids.{grid_name}")
            check_values(run)
            _check_trains(run, {path: f"grids.{grid_name}.{path}" for path in values})
            check_together(run)
            name = _name(run, values, varied, labels)
            if len(name.encode()) > _LONGEST:
                raise InputError(
                    f"config.grids: the name {name[:60]}... is too long for a folder; give long values short "
                    "labels (config.labels)"
                )
            same = by_name.setdefault(name, Point(name, run, method(run)))
            if same.config is not run and workdirs.plain(same.config) != workdirs.plain(run):
                raise InputError(
                    f"config.grids: two points have the name {name!r}; give their values different "
                    "labels (config.labels)"
                )
    return _with_row_lengths(list(by_name.values()))


def _check_trains(run: ConfigDict, where: Mapping[str, str]) -> None:
    """Raises InputError for a run that a sweep cannot train.

    Args:
      run: its config.
      where: of the fields that a grid sets, their places in the sweep's config.
    """

    def error(field: str, why: str) -> InputError:
        value = flat(run.to_dict()).get(field)
        return InputError(f"config.{where.get(field, f'run.{field}')} is {value!r}: {why}")

    for path in where:
        if path.partition(".")[0] in workdirs.MAY_CHANGE:
            raise error(path, f"it makes no other run; set it for all, in config.run.{path}")
    if not run.epochs:
        raise error("epochs", "a sweep trains")
    if run.eval_only:
        raise error("eval_only", "a sweep trains; evaluate adapters with the command of the runs")
    if run.prng != "threefry2x32":
        why = "with it dropout masks depend on the other runs of a program; a sweep takes threefry2x32"
        raise error("prng", why)


def _product(name: str, grid: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if not grid:
        raise InputError(f"config.grids.{name} is empty; name at least one field and its values")
    for path, values in grid.items():
        if not isinstance(values, tuple | list) or not values:
            raise InputError(
                f"config.grids.{name}.{path} must be a tuple of at least one value, got {values!r}"
            )
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _with(run: ConfigDict, values: Mapping[str, Any], where: str) -> ConfigDict:
    """The run's config with some fields set."""
    result = ConfigDict(run.to_dict(), convert_dict=True)
    for path, value in values.items():
        *parents, last = path.split(".")
        at = result
        for parent in parents:
            at = at[parent] if parent in at and isinstance(at[parent], ConfigDict) else None
            if at is None:
                break
        # A method's arguments have defaults that its config need not name.
        if at is None or (last not in at and parents != ["method"]):
            guess = did_you_mean(path, flat(result.to_dict()))
            raise InputError(f"config.{where}: the run's config has no field {path!r}{guess}")
        if path == "seeds" and type(value) is not int:
            raise InputError(f"config.{where}.seeds: {value!r} does not fit, a seed is an integer")
        try:
            at[last] = (value,) if path == "seeds" else value
        except TypeError as error:
            raise InputError(f"config.{where}.{path}: {value!r} does not fit ({error})") from None
    if len(result.seeds) != 1:
        raise InputError(
            f"config.run.seeds has {len(result.seeds)} seeds; give several seeds in a grid "
            f"(config.{where}.seeds), or one in config.run.seeds"
        )
    return result


def _name(
    config: ConfigDict, values: Mapping[str, Any], varied: Sequence[str], labels: Mapping[str, str]
) -> str:
    """`rank=8,seed=0` of the fields that the grids name; labels stand for long values."""
    fields = {**flat(workdirs.plain(config)), "seeds": config.seeds[0], **values}
    last = [path.rpartition(".")[2] for path in varied]
    parts = []
    for path, short in zip(varied, last, strict=True):
        label = "seed" if path == "seeds" else short if last.count(short) == 1 else path
        parts.append(f"{label}={_short(fields.get(path), labels)}")
    return ",".join(parts)


def _text(value: Any) -> str:
    if isinstance(value, Mapping | ConfigDict) and "name" in value:
        return str(value["name"])  # a whole method
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return str(value) if isinstance(value, float) and float(short) != value else short


def _whole(value: Any) -> str:
    """A whole method as text, all arguments in one order; "" for anything else."""
    if not isinstance(value, Mapping | ConfigDict):
        return ""
    fields = flat(value.to_dict() if isinstance(value, ConfigDict) else value)
    return to_json({path: fields[path] for path in sorted(fields)}, indent=None)


def _short(value: Any, labels: Mapping[str, str]) -> str:
    """A value as part of a folder's name: its label, or itself; of a whole method the name."""
    text = labels.get(_whole(value)) or labels.get(_text(value), _text(value))
    return "".join(c if c.isalnum() or c in "+-._" else "~" for c in text)


def _with_row_lengths(all_points: list[Point]) -> list[Point]:
    """Points of one program whose examples come in different orders get rows of one length.

    Only then is a run in a program with others the one alone, dropout included, see `TrainingBatches`.
    """
    for members in compatible(all_points):
        orders = {point.order for point in members}
        for point in members:
            if len(orders) > 1 and point.config.data.row_length is None:
                point.config.data.row_length = 0
    return all_points


def compatible(all_points: Sequence[Point]) -> list[list[Point]]:
    """The points shared out into those that can be one program: they differ in numbers only."""
    result: dict[str, list[Point]] = {}
    for point in all_points:
        common = {
            path: value
            for path, value in flat(workdirs.plain(point.config)).items()
            if path not in _VECTORISED and not path.startswith("method.")
        }
        key = to_json([common, structure_of(point.method)], indent=None)
        result.setdefault(key, []).append(point)
    return list(result.values())
