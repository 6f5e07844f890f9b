"""Our whole parameters and trained rows as PEFT has them."""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np

from lora_jax.adapter_files import Adapter
from lora_jax.errors import InputError
from lora_jax.interop.peft.layers import uncut
from lora_jax.interop.peft.modules import REMEDY, is_factor
from lora_jax.interop.peft.names import Names
from lora_jax.interop.peft.tensors import Arrays, rows_name
from lora_jax.methods.token_rows import RowsInsertion
from lora_jax.patterns import paths_of, some

_ROWS = re.compile(r"(?P<layer>.+)/rows/values")


def whole_parameters(adapter: Adapter, names: Names) -> Arrays:
    """The whole parameters by plain name.

    Raises:
      InputError: leaves that an adapter of PEFT has no place for.
    """
    left = [path for path in adapter.state if not is_factor(path)]
    by_path, result = names.by_path(), {}
    for path, value in adapter.values.items():
        if is_factor(path) or _ROWS.fullmatch(path):
            continue
        whole, first = uncut(path, names.depth)
        stacked = "/block/" in whole
        for layer, part in enumerate(value if stacked else [value]):
            name = by_path.get((whole, first + layer if stacked else None))
            if name is None:
                left.append(path)
                break
            result[name] = names.leaves[name].theirs(np.asarray(part))
    if left:
        raise InputError(
            f"{len(left)} leaves of the adapter ({adapter.method}) have no place in an adapter of PEFT's "
            f"LORA: {some(left)}. {REMEDY}"
        )
    return result


def wrapped(name: str, modules: Collection[str]) -> str:
    """The name of a whole parameter in the file: that of an adapted module is one of its base layer."""
    module, _, leaf = name.rpartition(".")
    return f"{module}.base_layer.{leaf}" if module in modules else name


def rows(adapter: Adapter, names: Names) -> tuple[dict[str, list[int]], Arrays]:
    """Trained rows: their numbers by module, and the tensors by name."""
    chosen = [
        c for i in adapter.method.insertions if isinstance(i, RowsInsertion) for c in i.chosen
    ]
    numbers: dict[str, list[int]] = {}
    tensors: Arrays = {}
    for path, value in adapter.values.items():
        if not (match := _ROWS.fullmatch(path)):
            continue
        layer = match["layer"]
        module = next(name for name, leaf in names.weights.items() if leaf.module == layer)
        numbers[module] = next(list(n) for t, n in chosen if paths_of(t, [layer], "token_rows"))
        tensors[rows_name(module)] = np.asarray(value)
    return numbers, tensors
