"""All items, in the order of the paper's tables."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

from experiments.reproduce import glue_items, sweep_items, text_items
from experiments.reproduce.items import Item
from lora_jax.errors import InputError
from lora_jax.patterns import some


@functools.cache
def catalogue() -> Mapping[str, Item]:
    """Every item by its id."""
    items = (
        *glue_items.minilm(),
        *glue_items.paper_rows(),
        text_items.pretrained(),
        *text_items.small(),
        *text_items.prompted(),
        *text_items.paper_rows(),
        *sweep_items.tables(),
        *sweep_items.comparisons(),
    )
    return {item.id: item for item in items}


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
    tables = sorted({item.table for item in every.values()}, key=lambda name: (len(name), name))
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
