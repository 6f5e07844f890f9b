"""All items, in the order of the paper's tables; those that are not the paper's come last."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

from experiments.reproduce import (
    glue_items,
    gpt3_items,
    measured_items,
    sweep_items,
    text_items,
)
from experiments.reproduce.items import Item
from lora_jax.errors import InputError
from lora_jax.patterns import some


@functools.cache
def catalogue() -> Mapping[str, Item]:
    """Every item by its id."""
    items = (
        *measured_items.latency(),
        *glue_items.minilm(),
        *glue_items.paper_rows(),
        text_items.pretrained(),
        *text_items.small(),
        *text_items.paper_rows(),
        *gpt3_items.table_4(),
        *measured_items.subspaces(),
        *gpt3_items.table_8(),
        *sweep_items.tables(),
        *sweep_items.comparisons(),
    )
    by_table = sorted(items, key=lambda item: _number(item.table))
    return {item.id: item for item in by_table}


def _number(table: str) -> tuple[bool, int]:
    """Sorts tables: those of the paper by their number, others last."""
    return (not table.isdigit(), int(table) if table.isdigit() else 0)


def chosen(table: str = "", model: str = "", only: str = "") -> list[Item]:
    """The items of a table and a model; everything that they need stands before them.

    Args:
      table: such as `2` or `variants`; "" for all.
      model: such as `minilm`; "" for all.
      only: a regular expression that is searched for in the id.

    Raises:
      InputError: there is none; the message names what there is.
    """
    every = catalogue()
    tables = dict.fromkeys(item.table for item in every.values())
    if table and table not in tables:
        raise InputError(f"--table={table}: known are {', '.join(tables)}")
    of_table = [item for item in every.values() if table in ("", item.table)]
    models = {item.model: None for item in of_table}
    if model and model not in models:
        of = f" of table {table}" if table else ""
        raise InputError(f"--model={model}: known models{of} are {', '.join(models)}")
    try:
        pattern = re.compile(only)
    except re.error as error:
        raise InputError(f"--only={only} is no regular expression: {error}") from error
    found = [i for i in of_table if model in ("", i.model) and pattern.search(i.id)]
    if not found:
        raise InputError(f"--only={only} is in no name of {some([i.id for i in of_table])}")
    ordered: dict[str, Item] = {}
    for item in found:
        _add(item, ordered)
    return list(ordered.values())


def _add(item: Item, ordered: dict[str, Item]) -> None:
    for needed, _ in item.needs.values():
        _add(catalogue()[needed], ordered)
    ordered.setdefault(item.id, item)
