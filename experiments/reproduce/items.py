"""A piece of the documents that one command makes again, and the command."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from lora_jax.errors import InputError

SOURCES = {
    "glue": "GLUE's original TSV files (without it they are downloaded)",
    "nlg": "the folders of E2E, WebNLG, DART, WikiSQL and the others (docs/data_to_text.md)",
}
_WITHOUT = {"glue": "tfds"}  # what a command reads where no folder is named: it downloads
Kind = Literal["run", "sweep", "comparison", "latency", "subspace"]
RECORDS: Mapping[Kind, str] = {
    "run": "result.json",
    "sweep": "sweep.json",
    "comparison": "comparison.json",
    "latency": "latency.json",
    "subspace": "analysis.json",
}
_OF_RUNS = ("sweep", "comparison")  # kinds whose configs hold that of a run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """A command and the scores that it gives.

    Attributes:
      table: of the paper, `2`; `variants` for the page of that name.
      model: in one word, as the flag has it.
      name: what else tells it from others, such as `sst2/lora`.
      module: the command, `experiments.glue`.
      config: the value of --config.
      settings: further flags.
      source: whose folder the command reads, see `SOURCES`; "" for none.
      kind: what the command writes, see `RECORDS`.
      metrics: of a run's or a sweep's record; of a comparison the score is its headline. Of a latency
        measurement the slow-downs that are scores, and of an analysis of subspaces the columns of its tables,
        see `outcome.Outcome`.
      paper: what the paper prints, by metric, such as 95.1±.2; {} for what is no row of the paper.
      needs: by field, the other item whose folder it takes and what in that folder, such as `model`.
      percent: metrics that are shown times 100, as the paper prints them; `*` for all.
      tolerances: by metric, by how much one seed may differ on another machine or by chance, in the record's
        units; "" is for all others. Without one a score of the paper, or of a single seed, has no band.
      median: whether scores over seeds are their median, as in Table 2, and not their mean.
      accelerator: whether it is for a GPU or a TPU.
      examples: of the training set, for the length of training; 0 if that is not planned.
      differs: from the paper's set-up, in words.
    """

    table: str
    model: str
    name: str
    module: str
    config: str
    settings: tuple[str, ...] = ()
    source: str = ""
    kind: Kind = "run"
    metrics: tuple[str, ...] = ()
    paper: Mapping[str, str] = dataclasses.field(default_factory=dict)
    needs: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    percent: tuple[str, ...] = ()
    tolerances: Mapping[str, float] = dataclasses.field(default_factory=dict)
    median: bool = False
    accelerator: bool = False
    examples: int = 0
    differs: str = ""

    @property
    def id(self) -> str:
        """Its name among all, which is its folder's, too: `table_2/minilm/sst2/lora`."""
        group = f"table_{self.table}" if self.table.isdigit() else self.table
        return f"{group}/{self.model}/{self.name}"

    def unit(self, score: str) -> float:
        """What a score of a record is multiplied by to be shown; its name may have a point in front."""
        metric = score.rpartition(": ")[2]
        return 100.0 if metric in self.percent or "*" in self.percent else 1.0

    def tolerance(self, score: str) -> float:
        """By how much one seed of a score may differ."""
        metric = score.rpartition(": ")[2]
        return self.tolerances.get(metric, self.tolerances.get("", 0.0))

    @property
    def of_run(self) -> str:
        """What the fields of a run begin with on the command line."""
        return "--config.run" if self.kind in _OF_RUNS else "--config"


def folder(root: Path, name: str) -> Path:
    """Where an item's command works."""
    return root / name


def command(item: Item, root: Path, sources: Mapping[str, str]) -> list[str]:
    """The arguments of Python for an item.

    Args:
      item: the item.
      root: folder of all items.
      sources: folders of data by name, see `SOURCES`.

    Raises:
      InputError: a folder of data is not named.
    """
    arguments = ["-m", item.module, f"--config={item.config}"]
    arguments.append(f"--workdir={folder(root, item.id)}")
    if found := sources.get(item.source, _WITHOUT.get(item.source)):
        arguments.append(f"{item.of_run}.data.source={found}")
    elif item.source:
        raise InputError(
            f"{item.id} needs a folder of data: --{item.source}=FOLDER, {SOURCES[item.source]}"
        )
    for field, (needed, inside) in item.needs.items():
        arguments.append(f"{item.of_run}.{field}={folder(root, needed) / inside}")
    return [*arguments, *item.settings]


def shown(item: Item) -> str:
    """The command for a page, with words for the folders."""
    known = {name: f"{name.upper()}_FOLDER" for name in SOURCES}
    return "python " + shlex.join(command(item, Path("runs/reproduce"), known))
