"""Makes the numbers of the documents again: one command for a table and a model.

    python -m experiments.reproduce --table=2 --model=minilm --glue=FOLDER --workdir=runs/reproduce
    python -m experiments.reproduce --table=3 --model=gpt2_medium --only=lora --nlg=FOLDER \\
        --workdir=runs/reproduce
    python -m experiments.reproduce --list

Runs the commands of all items that belong to it (one that is finished is read back, and checked against its
settings and data), and prints each score beside the paper's and the expected band (docs/reproduce.md says
what a band is). Writes

    WORKDIR/table_2/...        the folder of every command
    WORKDIR/reproduced.md      the table that it prints
    WORKDIR/reproduced.json    all run records, to send on; experiments.report reads it

For those who keep the documents: --keep takes the scores into docs/reproduce.json, --costs=a100-40:1
compiles what the items take on that device (docs/devices.md), and --page writes docs/reproduce.md.
"""

from __future__ import annotations

import os
from pathlib import Path

for _name, _value in {
    "TPU_SKIP_MDS_QUERY": "1",  # for libtpu where there is no TPU
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",  # for JAX's plugin for CUDA where there is no driver
    "TF_CPP_MIN_LOG_LEVEL": "3",
}.items():
    os.environ.setdefault(_name, _value)

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from absl import flags
from tqdm import tqdm

from experiments.report import sent
from experiments.reproduce import cost, manifest, page, running
from experiments.reproduce.catalogue import catalogue, chosen
from experiments.reproduce.items import SOURCES, Item, shown
from experiments.reproduce.outcome import Outcome
from experiments.runs import command_line, folder
from lora_jax import files
from lora_jax.errors import InputError

_PAGE = manifest.PATH.with_suffix(".md")


def _make(items: list[Item], root: Path, sources: dict[str, str], *, keep: bool) -> None:
    folder.check_place(root)
    files.make_folder(root)
    known, last = manifest.read(), ""

    def done(outcomes: Mapping[str, Outcome]) -> None:
        nonlocal last
        last = page.results(outcomes, known)
        files.write_text(root / "reproduced.md", last)
        sent.write(root / sent.NAME, {name: _parcel(one) for name, one in outcomes.items()})
        if keep:
            kept = known
            for name, one in outcomes.items():
                kept = manifest.with_outcome(kept, catalogue()[name], one)
            manifest.write(kept)

    running.run(items, root, sources, command_line.say, done)
    command_line.say(last + f"\nwritten to {root}: reproduced.md, {sent.NAME}")


def _parcel(outcome: Outcome) -> dict[str, Any]:
    """What is sent on: the records, and when and on what they were made."""
    return {"made": outcome.made, "on": outcome.on, "records": dict(outcome.records)}


def _plan(items: list[Item], topology: str) -> None:
    # Nothing runs here, see experiments.plan.
    jax.config.update("jax_platforms", "cpu")
    known = manifest.read()
    for item in tqdm([item for item in items if cost.can_be_planned(item)], disable=None):
        costs = {**known.costs, item.id: cost.planned(item, topology)}
        known = dataclasses.replace(known, costs=costs)
        manifest.write(known)


def main(arguments: list[str]) -> None:
    """Runs the command."""
    with command_line.readable_errors():
        command_line.refuse_rest(arguments)
        if _WRITE_PAGE.value:
            files.write_text(_PAGE, page.page(manifest.read()))
            return
        if not (_LIST.value or _TABLE.value or _ONLY.value):
            raise InputError("name what to make: --table=TABLE and --model=MODEL; --list shows all")
        if sum(map(bool, (_LIST.value, _COSTS.value, _WORKDIR.value))) > 1:
            raise InputError("give one of --list, --costs and --workdir")
        items = chosen(_TABLE.value, _MODEL.value, _ONLY.value)
        if _LIST.value:
            for item in items:
                command_line.say(f"{item.id}\n    {shown(item)}")
        elif _COSTS.value:
            _plan(items, _COSTS.value)
        elif not _WORKDIR.value:
            raise InputError("name the folder of all runs: --workdir=DIR")
        else:
            sources = {name: flag.value for name, flag in _SOURCES.items() if flag.value}
            _make(items, Path(_WORKDIR.value), sources, keep=_KEEP.value)


if __name__ == "__main__":
    _TABLE = flags.DEFINE_string("table", "", "Of the paper, such as 2, or `variants`.")
    _MODEL = flags.DEFINE_string("model", "", "Such as minilm; all models without it.")
    _ONLY = flags.DEFINE_string("only", "", "A regular expression for names of items.")
    _WORKDIR = flags.DEFINE_string("workdir", "", "Folder of all runs.")
    _SOURCES = {name: flags.DEFINE_string(name, "", text) for name, text in SOURCES.items()}
    _LIST = flags.DEFINE_bool("list", False, "Print the items and their commands.")
    _KEEP = flags.DEFINE_bool("keep", False, "Take the scores into docs/reproduce.json.")
    _COSTS = flags.DEFINE_string("costs", "", "A device for which to compile, such as a100-40:1.")
    _WRITE_PAGE = flags.DEFINE_bool("page", False, "Write docs/reproduce.md.")
    command_line.run(main)
