"""One of our adapters as an adapter of PEFT: the inverse of `reading`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lora_jax.adapter_files import Adapter
from lora_jax.errors import InputError
from lora_jax.interop.peft import norms
from lora_jax.interop.peft.any_config import LORA, VARIANTS, variant_of
from lora_jax.interop.peft.inserted import Inserted
from lora_jax.interop.peft.modules import factor_tensors, modules_of, updates_of
from lora_jax.interop.peft.names import Names
from lora_jax.interop.peft.new_config import new_config, variant_config
from lora_jax.interop.peft.reading import NOTE, BaseLeaf, from_tensors
from lora_jax.interop.peft.tensors import PREFIX, Arrays, wrapped_parameter
from lora_jax.interop.peft.variants import TO_LORA, Update, Variant
from lora_jax.interop.peft.whole import rows, whole_parameters, wrapped
from lora_jax.methods.updates import UpdateInsertion


def to_tensors(
    adapter: Adapter,
    names: Names,
    base: BaseLeaf,
    model: str = "",
    *,
    inserted: Inserted | None = None,
    only_lora: bool = False,
) -> tuple[dict[str, Any], Arrays]:
    """Converts an adapter; one that came from PEFT and is as it was gets the settings that PEFT stored.

    Args:
      adapter: from `load_adapter`.
      names: of its base, with the prefix that the tensors shall have.
      base: gives the base's values.
      model: name of the base, for new settings.
      inserted: what the adapted model shows, from `inserted_of`; needed for all but plain LoRA.
      only_lora: refuse what is not PEFT's LORA.

    Returns:
      The content of adapter_config.json, and the tensors by name.

    Raises:
      InputError: PEFT has no place for some of it; the message names it.
    """
    note = adapter.notes.get(NOTE)
    variant = _variant(adapter, inserted)
    if only_lora and variant is not None:
        raise InputError(
            f"the adapter ({adapter.method}) is {variant.peft_type} in PEFT, and here only {LORA} will do. "
            + TO_LORA
        )
    if isinstance(note, Mapping) and (stored := _as_stored(adapter, names, base, note, inserted)):
        return stored
    if variant is not None:
        assert inserted is not None
        return _of_variant(variant, adapter, names, base, inserted, model)
    modules = modules_of(adapter, names, base, inserted=inserted)
    whole = whole_parameters(adapter, names)
    numbers, tensors = rows(adapter, names)
    config = new_config(adapter, names, modules, whole, numbers, model)
    tied = config.get("ensure_weight_tying", False)
    tensors |= factor_tensors(modules, names, tied=tied)
    tensors |= {wrapped(name, modules): value for name, value in whole.items()}
    _complete(tensors, config, names, base, tied)
    return config, _named(tensors)


def _variant(adapter: Adapter, inserted: Inserted | None) -> Variant | None:
    """PEFT's method that the adapter is of; None for LoRA.

    Raises:
      InputError: it is of several, or what is needed of the model is not there.
    """
    by_name = {variant.method: variant for variant in VARIANTS.values()}
    updating = any(isinstance(i, UpdateInsertion) for i in adapter.method.insertions)
    names = [name for name, _ in adapter.method.spec]
    if updating:  # norms beside updates are modules_to_save
        names = [name for name in names if name != norms.Norms.method]
    found = {by_name[name] for name in names if name in by_name}
    if not found:
        return None
    if len(found) > 1 or "lora" in names:
        raise InputError(
            f"the adapter ({adapter.method}) is of several methods, and an adapter of PEFT is of one. "
            + TO_LORA
        )
    variant = found.pop()
    if inserted is None:
        raise InputError(
            f"the adapter ({adapter.method}) does not tell its settings without its model: "
            "inserted=inserted_of(lora_jax.attach(model, adapter), adapter.method)"
        )
    return variant


def _of_variant(
    variant: Variant,
    adapter: Adapter,
    names: Names,
    base: BaseLeaf,
    inserted: Inserted,
    model: str,
) -> tuple[dict[str, Any], Arrays]:
    """An adapter of another method, with new settings."""
    whole, updates = whole_parameters(adapter, names), updates_of(adapter, names, inserted, variant)
    if rows(adapter, names)[0]:
        raise InputError(
            f"PEFT's {variant.peft_type} trains no single rows of a table beside. {TO_LORA}"
        )
    tensors = _tensors(variant, updates)
    modules = list(updates)
    if isinstance(variant, norms.Norms):
        own = _of_norms(adapter, names, whole)
        tensors |= {norms.stored(name): whole.pop(name) for name in own}
        modules = list(dict.fromkeys(name.rpartition(".")[0] for name in own))
    config = variant_config(variant, adapter, names, updates, modules, whole=whole, model=model)
    tensors |= {wrapped(name, updates): value for name, value in whole.items()}
    _complete(tensors, config, names, base, tied=False)
    return config, {**_named(tensors), **variant.of_all(updates)}


def _tensors(variant: Variant, updates: Mapping[str, Update]) -> Arrays:
    return {
        f"{name}.{end}": value
        for name, update in updates.items()
        for end, value in variant.tensors(update).items()
    }


def _of_norms(adapter: Adapter, names: Names, whole: Arrays) -> list[str]:
    """Names of the parameters that the norms' own group trains."""
    paths = {path for path, group in adapter.groups.items() if group == "norms"}
    return [name for name in whole if names.leaves[name].path in paths]


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
    adapter: Adapter,
    names: Names,
    base: BaseLeaf,
    note: Mapping[str, Any],
    inserted: Inserted | None,
) -> tuple[dict[str, Any], Arrays] | None:
    """The stored settings and their tensors, if reading these gives this adapter; else None."""
    try:
        config = dict(note["config"])
        tensors = _with_stored_names(adapter, names, base, note, config, inserted)
        again = from_tensors(config, tensors, names, base, ignore=[".*"])
    except (InputError, AttributeError, KeyError, TypeError, ValueError):  # anybody may edit notes
        return None
    same = again.method == adapter.method and again.values.keys() == adapter.values.keys()
    same = same and again.state.keys() == adapter.state.keys()
    own = {**adapter.values, **adapter.state}
    for path, value in {**again.values, **again.state}.items() if same else ():
        same = same and value.dtype == own[path].dtype and np.array_equal(value, own[path])
    return (config, tensors) if same else None


def _with_stored_names(
    adapter: Adapter,
    names: Names,
    base: BaseLeaf,
    note: Mapping[str, Any],
    config: Mapping[str, Any],
    inserted: Inserted | None,
) -> Arrays:
    """All tensors as PEFT saved them, also those that say nothing new."""
    whole, tensors = whole_parameters(adapter, names), rows(adapter, names)[1]
    modules: Mapping[str, Any] = {}
    variant, of_all, own = variant_of(config), {}, []
    if variant is None:
        modules = modules_of(adapter, names, base, inserted=inserted, started=True)
        tensors |= factor_tensors(modules, names, tied=bool(config.get("ensure_weight_tying")))
    elif isinstance(variant, norms.Norms):
        own = _of_norms(adapter, names, whole)
        tensors |= {norms.stored(name): whole[name] for name in own}
    elif inserted is not None:
        modules = updates_of(adapter, names, inserted, variant)
        tensors |= variant.as_stored(_tensors(variant, modules), config)
        of_all = variant.of_all(modules)
    tensors |= {wrapped(name, modules): v for name, v in whole.items() if name not in own}
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
    return {**_named(tensors), **of_all}
