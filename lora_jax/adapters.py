"""Adapter folders: the trained groups of a run, and what is needed to put them back.

    FOLDER/adapter.safetensors   trained leaves by path, and statistics that moved (see `state`)
    FOLDER/adapter.json          method, group of each leaf, fingerprint of the base, free notes

Loading is strict both ways: the same leaves with the same shapes, onto the same base. Only
safetensors and JSON are read; nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from lora_jax import methods, partition, surgery
from lora_jax.errors import InputError, MissingFileError
from lora_jax.files import write_bytes
from lora_jax.fingerprints import accepted
from lora_jax.fingerprints import base_parameters as base_parameters  # public here, too
from lora_jax.fingerprints import fingerprint as fingerprint
from lora_jax.method import Method
from lora_jax.partition import Labels, Params
from lora_jax.sharding.hosts import barrier
from lora_jax.sharding.placement import gather

FORMAT = "lora_jax adapter 1"
WEIGHTS = "adapter.safetensors"
DESCRIPTION = "adapter.json"
Arrays = dict[str, np.ndarray]
UNKNOWN_BASE = ""  # instead of a fingerprint: a converted adapter whose base was not at hand


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A loaded adapter folder.

    Attributes:
      method: the method that trained it.
      groups: path to group, of the leaves in `values`.
      values: path to array (numpy, host memory).
      base: fingerprint of the base it was trained on, or UNKNOWN_BASE.
      notes: whatever the run stored beside (task, model name, scores).
      state: path to array of the statistics that are not the base's any more, see `state`.
    """

    method: Method
    groups: Labels
    values: Arrays
    base: str
    notes: dict[str, Any]
    state: Arrays = dataclasses.field(default_factory=dict)


def save_adapter(
    folder: str | os.PathLike[str],
    trainable: Mapping[str, Any],
    labels: Mapping[str, str],
    method: Method,
    base: str,
    notes: Mapping[str, Any] | None = None,
    *,
    state: Mapping[str, Any] | None = None,
) -> Path:
    """Writes an adapter folder; each file is written beside and renamed, never half there.

    Of several processes all must call it: they give their parts, and the first one writes.

    Args:
      folder: created if needed.
      trainable: the trained leaves by path.
      labels: group of every leaf; those of `trainable` are stored.
      method: stored as its constructor and arguments.
      base: `fingerprint` of the base parameters before training, or UNKNOWN_BASE.
      notes: further JSON values to keep.
      state: statistics by path that training moved; loading puts them back.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = dict(state or {})
    whole = gather({**trainable, **state})
    tensors = {path: np.asarray(value, order="C") for path, value in sorted(whole.items())}
    description = {
        "format": FORMAT,
        "method": method.to_json(),
        "groups": {path: labels[path] for path in tensors if path not in state},
        "base": base,
        "notes": dict(notes or {}),
    }
    if state:
        description["state"] = sorted(state)
    contents = {
        WEIGHTS: to_safetensors(tensors),
        DESCRIPTION: (json.dumps(description, indent=2) + "\n").encode(),
    }
    for name, content in contents.items():
        write_bytes(folder / name, content)
    barrier("adapter written")
    return folder


def load_adapter(folder: str | os.PathLike[str]) -> Adapter:
    """Reads an adapter folder.

    Raises:
      FileNotFoundError: the folder or one of its files is missing.
      ValueError: a file is broken, of another format, or the two files disagree.
    """
    folder = Path(folder)
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file():
            raise MissingFileError(
                f"{folder / name} is missing; an adapter folder holds {DESCRIPTION} and {WEIGHTS} "
                "(the folder `adapter` of a run)"
            )
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
    except ValueError as error:
        raise InputError(f"{folder / DESCRIPTION} is not valid JSON: {error}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        found = description.get("format") if isinstance(description, dict) else None
        raise InputError(f"{folder / DESCRIPTION} has format {found!r}, expected {FORMAT!r}")
    if lost := {"method", "groups", "base", "notes"} - description.keys():
        raise InputError(f"{folder / DESCRIPTION} lacks {sorted(lost)}")
    try:
        with safe_open(folder / WEIGHTS, framework="np") as file:
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(
            f"{folder / WEIGHTS} cannot be read ({error}); the file is truncated or not "
            "safetensors: copy it again"
        ) from error
    state = description.get("state", [])
    named = {*description["groups"], *state}
    if set(values) != named:
        odd = sorted(set(values) ^ named)
        raise InputError(f"{folder}: {WEIGHTS} and {DESCRIPTION} disagree about {odd[:5]}")
    return Adapter(
        methods.from_json(description["method"]),
        description["groups"],
        {path: value for path, value in values.items() if path in description["groups"]},
        description["base"],
        description["notes"],
        {path: values[path] for path in state},
    )


def apply_adapter(
    adapter: Adapter,
    trainable: Mapping[str, Any],
    base: str,
    where: str = "the adapter",
    frozen: Mapping[str, Any] | None = None,
) -> Params:
    """Returns `trainable` with every leaf replaced by the adapter's, strictly.

    The adapter's statistics, if it has any, are in the result too: `partition.join` puts them before
    the frozen ones.

    Args:
      adapter: from `load_adapter`.
      trainable: the trainable leaves of a model into which the same method was inserted.
      base: fingerprint of that model's base.
      where: name of the adapter, for messages.
      frozen: the frozen leaves of the model, to which the adapter's statistics must fit.

    Raises:
      ValueError: another or an unknown base, or leaves missing, extra or of another shape.
    """
    if adapter.base == UNKNOWN_BASE:
        raise InputError(
            f"{where} was converted without its base, so it cannot be checked that this model is the "
            "right one. Convert again with --model (see experiments.convert), or vouch for it in "
            "code: dataclasses.replace(adapter, base=fingerprint)"
        )
    if adapter.base != base:
        raise InputError(
            f"{where} was trained on another base: its fingerprint is {adapter.base[:12]}, the "
            f"model's is {base[:12]}. Load the base it names ({adapter.notes.get('model', 'unknown')}), "
            "as it was before training; its parameters and statistics make a base, and the leaves of "
            "a task head (`head` of the method) are not of it"
        )
    there = {**adapter.values, **adapter.state}
    state = {path: leaf for path, leaf in (frozen or {}).items() if path in adapter.state}
    here = {**trainable, **state}
    missing, extra = sorted(here.keys() - there.keys()), sorted(there.keys() - here.keys())
    if missing or extra:
        raise InputError(
            f"{where} does not fit: missing {missing[:5]}, not in the model {extra[:5]}"
        )
    replaced = _replaced(adapter.values, trainable, where)
    return {**replaced, **_replaced(adapter.state, state, where, cast=False)}


def attach(
    model: nnx.Module, adapter: Adapter, head: str | None = None, where: str = "the adapter"
) -> nnx.Module:
    """Returns the adapted model: the adapter's method inserted into its base, with its values.

    `model` is left as it is; frozen arrays are shared.

    Args:
      model: the pre-trained model, with a head of the adapter's shape if it has one.
      adapter: from `load_adapter`.
      head: regular expression for the paths of the task head's leaves, which are not of the base; if
        not given, the method's.
      where: name of the adapter, for messages.

    Raises:
      ValueError: another or an unknown base, an adapted model in place of the base, or leaves missing,
        extra or of another shape.
    """
    bases = list(accepted(model, adapter.method, head))
    if adapter.base not in bases and (path := surgery.changed_module(model)) is not None:
        raise InputError(
            f"{where} goes onto its base, but this model is adapted already ({path or 'the model'} is "
            "changed); give the model as it was before `insert`"
        )
    base = adapter.base if adapter.base in bases else bases[0]
    inserted = adapter.method.insert(model, jax.random.key(0))
    structure, trainable, frozen = partition.split(inserted, adapter.method.labels(inserted))
    values = apply_adapter(adapter, trainable, base, where, frozen)
    return partition.join(structure, values, frozen)


def transfer_group(
    adapter: Adapter,
    trainable: Mapping[str, Any],
    labels: Mapping[str, str],
    group: str,
    where: str = "the adapter",
) -> Params:
    """Warm start: replaces the leaves of one group only; the others (a new head) stay fresh.

    Args:
      adapter: from `load_adapter`.
      trainable: the trainable leaves of the model.
      labels: the model's group of each of them.
      group: the group to take over, for example `lora`.
      where: name of the adapter, for messages.

    Raises:
      ValueError: the adapter's leaves of that group are not those of the model.
    """
    values = {path: v for path, v in adapter.values.items() if adapter.groups[path] == group}
    expected = {path for path in trainable if labels[path] == group}
    if not values or values.keys() != expected:
        missing, absent = sorted(expected - values.keys()), sorted(values.keys() - expected)
        raise InputError(
            f"{where}: its group {group!r} does not fit the model: missing {missing[:5]}, not in "
            f"the model {absent[:5]}"
        )
    replaced = _replaced(values, {path: trainable[path] for path in values}, where)
    return {**trainable, **replaced}


def _replaced(
    values: Mapping[str, np.ndarray], trainable: Mapping[str, Any], where: str, cast: bool = True
) -> Params:
    """The values in the places of others: of their shape, layout and, if `cast`, type."""
    result = {}
    for path, old in trainable.items():
        new = values[path]
        if new.shape != old.shape:
            raise InputError(f"{where}: {path} has shape {new.shape}, the model needs {old.shape}")
        result[path] = _placed(jnp.asarray(new, old.dtype if cast else None), old)
    return result


def _placed(value: jax.Array, old: Any) -> jax.Array:
    """A value laid out over a mesh as the one that it replaces."""
    sharding = old.sharding if isinstance(old, jax.Array) else None
    return jax.device_put(value, sharding) if isinstance(sharding, NamedSharding) else value


def adapter_folder(path: Path) -> Path:
    """The adapter of a run's folder, or the folder itself."""
    return path / "adapter" if (path / "adapter").is_dir() else path
