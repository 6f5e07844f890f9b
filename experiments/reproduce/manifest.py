"""docs/reproduce.json: which items were made, when and on what, and what the others would take."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.reproduce import bands
from experiments.reproduce.bands import Band
from experiments.reproduce.cost import Cost
from experiments.reproduce.items import Item
from experiments.reproduce.outcome import Outcome
from lora_jax.files import write_json
from lora_jax.reading import Record, read_object

PATH = Path(__file__).resolve().parents[2] / "docs" / "reproduce.json"
_REMEDY = "Put it back from the repository"
_PACKAGES = ("python", "jax", "flax")


@dataclasses.dataclass(frozen=True)
class Score:
    """A score that was made.

    Attributes:
      values: of each seed.
      band: where the mean over seeds is expected; None if a seed diverged.
    """

    values: tuple[float, ...]
    band: Band | None


@dataclasses.dataclass(frozen=True)
class Made:
    """An item that was made.

    Attributes:
      scores: by name, see `outcome.Outcome`.
      seconds: of training; None if not known.
      made: the day.
      on: the machine.
      versions: of the packages that decide.
      inputs: digests of data and model by name.
    """

    scores: Mapping[str, Score]
    seconds: float | None
    made: str
    on: str
    versions: Mapping[str, str]
    inputs: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What is known of all items.

    Attributes:
      made: by item.
      costs: by item, of those that need an accelerator.
    """

    made: Mapping[str, Made]
    costs: Mapping[str, Cost]


def read(path: Path = PATH) -> Manifest:
    """The manifest.

    Raises:
      FileError, MissingFileError: it is missing or damaged.
    """
    record = read_object(path, _REMEDY)
    made, costs = record.record("made"), record.record("costs")
    return Manifest(
        {name: _made(made.record(name)) for name in made.values},
        {name: Cost(**costs.record(name).values) for name in costs.values},
    )


def write(manifest: Manifest, path: Path = PATH) -> None:
    """Writes the manifest, items in the order of their names."""
    write_json(
        path,
        {
            "made": {name: dataclasses.asdict(one) for name, one in sorted(manifest.made.items())},
            "costs": {
                name: dataclasses.asdict(one) for name, one in sorted(manifest.costs.items())
            },
        },
    )


def with_outcome(manifest: Manifest, item: Item, outcome: Outcome) -> Manifest:
    """The manifest with an item as it was made now; its bands are those of these seeds."""
    scores = {
        name: Score(values, bands.band(values, item.tolerance(name), item.median))
        for name, values in outcome.scores.items()
    }
    known = {name: str(outcome.versions.get(name)) for name in _PACKAGES}
    made = Made(scores, outcome.seconds, outcome.made, outcome.on, known, dict(outcome.inputs))
    return dataclasses.replace(manifest, made={**manifest.made, item.id: made})


def _made(record: Record) -> Made:
    scores = record.record("scores")
    return Made(
        scores={name: _score(scores.record(name)) for name in scores.values},
        seconds=None if record.values.get("seconds") is None else record.get("seconds", float),
        made=record.get("made", str),
        on=record.get("on", str),
        versions=record.text_by_name("versions"),
        inputs=record.text_by_name("inputs"),
    )


def _score(record: Record) -> Score:
    values = tuple(
        math.nan if value is None else float(value) for value in record.get("values", list)
    )
    band: Any = record.values.get("band")
    return Score(values, None if band is None else (float(band[0]), float(band[1])))
