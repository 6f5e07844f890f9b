"""One of our adapters as an adapter of PEFT: the inverse of `reading`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lora_jax.adapter_files import Adapter
from lora_jax.errors import InputError
from lora_jax.interop.peft.modules import factor_tensors, modules_of
from lora_jax.interop.peft.names import Names
from lora_jax.interop.peft.new_config import new_config
from lora_jax.interop.peft.reading import NOTE, BaseLeaf, from_tensors
from lora_jax.interop.peft.tensors import PREFIX, Arrays, wrapped_parameter
from lora_jax.interop.peft.whole import rows, whole_parameters, wrapped


def to_tensors(
    adapter: Adapter, names: Names, base: BaseLeaf, model: str = ""
) -> tuple[dict[str, Any], Arrays]:
    """Converts an adapter; one that came from PEFT and is as it was gets the settings that PEFT stored.

    Args:
      adapter: from `load_adapter`.
      names: of its base, with the prefix that the tensors shall have.
      base: gives the base's values.
      model: name of the base, for new settings.

    Returns:
      The content of adapter_config.json, and the tensors by name.

    Raises:
      InputError: PEFT has no place for some of it; the message names it.
    """
    note = adapter.notes.get(NOTE)
    if isinstance(note, Mapping) and (stored := _as_stored(adapter, names, base, note)):
        return stored
    modules, whole = modules_of(adapter, names, base), whole_parameters(adapter, names)
    numbers, tensors = rows(adapter, names)
    config = new_config(adapter, names, modules, whole, numbers, model)
    tied = config.get("ensure_weight_tying", False)
    tensors |= factor_tensors(modules, names, tied=tied)
    tensors |= {wrapped(name, modules): value for name, value in whole.items()}
    _complete(tensors, config, names, base, tied)
    return config, _named(tensors)


def _named(tensors: Arrays) -> Arrays:
    return {PREFIX + name: value for name, value in sorted(tensors.items())}


def _complete(
    tensors: Arrays, config: Mapping[str, Any], names: Names, base: BaseLeaf, tied: bool
) -> None:
    """Adds what PEFT saves with a whole module: its other parameters, and a second name of the same."""
    for module in config["modules_to_save"] or ():
        for name, leaf in names.leaves.items():
            if name.rpartition(".")[0] == module and name not in tensors:
                tensors[name] = leaf.theirs(base(leaf))
    for theirs, table in names.tied.items() if tied else ():
        if f"{table}.weight" in tensors:
            tensors[f"{theirs}.weight"] = tensors[f"{table}.weight"]


def _as_stored(
    adapter: Adapter, names: Names, base: BaseLeaf, note: Mapping[str, Any]
) -> tuple[dict[str, Any], Arrays] | None:
    """The stored settings and their tensors, if reading these gives this adapter; else None."""
    try:
        config = dict(note["config"])
        tensors = _with_stored_names(adapter, names, base, note, config)
        again = from_tensors(config, tensors, names, base, ignore=[".*"])
    except (InputError, AttributeError, KeyError, TypeError, ValueError):  # anybody may edit notes
        return None
    same = again.method == adapter.method and again.values.keys() == adapter.values.keys()
    for path, value in again.values.items() if same else ():
        other = adapter.values[path]
        same = same and value.dtype == other.dtype and np.array_equal(value, other)
    return (config, tensors) if same else None


def _with_stored_names(
    adapter: Adapter,
    names: Names,
    base: BaseLeaf,
    note: Mapping[str, Any],
    config: Mapping[str, Any],
) -> Arrays:
    """All tensors as PEFT saved them, also those that say nothing new."""
    halved = str(config.get("init_lora_weights")).lower() in ("pissa", "olora")
    modules, whole = (
        modules_of(adapter, names, base, halved=halved),
        whole_parameters(adapter, names),
    )
    tensors = rows(adapter, names)[1]
    tensors |= factor_tensors(modules, names, tied=bool(config.get("ensure_weight_tying")))
    tensors |= {wrapped(name, modules): value for name, value in whole.items()}
    for name, kind in note.get("base", {}).items():  # copies of the base's
        bare = name.replace(".base_layer.", ".").removesuffix(".weight")
        same = f"{names.tied.get(bare, bare)}.weight" if bare in names.tied else name.replace(
            ".base_layer.", "."
        )  # fmt: skip
        leaf = names.leaves[same]
        tensors[name] = whole[same] if same in whole else leaf.theirs(base(leaf)).astype(kind)
    for name in note.get("copies", ()):
        tensors[name] = whole[str(wrapped_parameter(name, names))]
    for name, kept in note.get("inert", {}).items():
        tensors[name] = np.asarray(kept["values"], kept["type"])
    return _named(tensors)
