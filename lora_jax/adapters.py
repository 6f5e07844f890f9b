"""Adapters on models: a loaded adapter folder put onto its base. The folder is `adapter_files`'s.

Loading is strict both ways: the same leaves with the same shapes, onto the same base.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from lora_jax import partition, surgery
from lora_jax.adapter_description import FORMAT as FORMAT
from lora_jax.adapter_files import DESCRIPTION as DESCRIPTION  # public here, too
from lora_jax.adapter_files import UNKNOWN_BASE as UNKNOWN_BASE
from lora_jax.adapter_files import WEIGHTS as WEIGHTS
from lora_jax.adapter_files import Adapter as Adapter
from lora_jax.adapter_files import adapter_folder as adapter_folder
from lora_jax.adapter_files import check_values
from lora_jax.adapter_files import load_adapter as load_adapter
from lora_jax.adapter_files import save_adapter as save_adapter
from lora_jax.arguments import MODEL, Kind, Model, takes
from lora_jax.errors import InputError, InputTypeError
from lora_jax.expressions import Expression
from lora_jax.fingerprints import accepted
from lora_jax.fingerprints import base_parameters as base_parameters
from lora_jax.fingerprints import fingerprint as fingerprint
from lora_jax.partition import Params
from lora_jax.quantisation.described import PACKED, difference, packing
from lora_jax.sharding.placement import gather
from lora_jax.state import fixed

_ADAPTER = Kind((Adapter,), "an Adapter, from lora_jax.load_adapter(folder)")


def apply_adapter(
    adapter: Adapter,
    trainable: Mapping[str, Any],
    base: str,
    where: str = "the adapter",
    frozen: Mapping[str, Any] | None = None,
    *,
    packed: str = "",
    fixed: Collection[str] = (),
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
      packed: what of the model is packed, see `quantisation.described`, for messages.
      fixed: paths of the values that the adapter must have besides, see `state.fixed`.

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
        of_packing = difference(adapter.notes.get(PACKED), packed)
        model = adapter.notes.get("model", "unknown")
        raise InputError(
            f"{where} was trained on another base: its fingerprint is {adapter.base[:12]}, the "
            f"model's is {base[:12]}. Load the base it names ({str(model)[:80]}), "
            "as it was before training; its parameters and statistics make a base, and the leaves of "
            f"a task head (`head` of the method) are not of it. {of_packing}"
        )
    there = {**adapter.values, **adapter.state}
    state = {path: leaf for path, leaf in (frozen or {}).items() if path in adapter.state}
    here = {**trainable, **state}
    missing = sorted({*here, *fixed} - there.keys())
    extra = sorted(there.keys() - here.keys())
    if missing or extra:
        raise InputError(
            f"{where} does not fit: missing {missing[:5]}, not in the model {extra[:5]}"
        )
    values = replaced(adapter.values, trainable, where)
    return {**values, **replaced(adapter.state, state, where, is_state=True)}


@takes(model=MODEL, adapter=_ADAPTER)
def attach(
    model: Model, adapter: Adapter, head: str | None = None, where: str = "the adapter"
) -> Model:
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
    _check_head(model, adapter, head, where)
    with _naming(where):
        bases = list(accepted(model, adapter.method, head))
    if adapter.base not in bases and (path := surgery.changed_module(model)) is not None:
        raise InputError(
            f"{where} goes onto its base, but this model is adapted already ({path or 'the model'} is "
            "changed); give the model as it was before `insert`"
        )
    base = adapter.base if adapter.base in bases else bases[0]
    with _naming(where):
        inserted = adapter.method.insert(model, jax.random.key(0))
        labels = adapter.method.labels(inserted)
    structure, trainable, frozen = partition.split(inserted, labels)
    packed = packing(model)
    values = apply_adapter(
        adapter, trainable, base, where, frozen, packed=packed, fixed=fixed(inserted)
    )
    return partition.join(structure, values, frozen)


def _check_head(model: nnx.Module, adapter: Adapter, head: str | None, where: str) -> None:
    """Raises InputError if an adapter has a head and the model none, or the reverse is asked for."""
    if head is not None or adapter.method.head is None:
        return
    of_head = Expression(adapter.method.head, "'head'")
    if not any(map(of_head.matches, partition.parameters(model))):
        noted = str(adapter.notes.get("model", "unknown"))[:80]
        raise InputError(
            f"{where} has a head (paths {adapter.method.head!r}), and this {type(model).__name__} has none: "
            f"it is an adapter of another model. Load the base that it names ({noted}), with a head of its "
            "shape"
        )


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
    """Puts the name of an adapter in front of the errors about its method."""
    try:
        yield
    except InputTypeError as error:
        raise InputTypeError(f"{where}: {error}") from error
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def replaced(
    values: Mapping[str, np.ndarray],
    others: Mapping[str, Any],
    where: str,
    *,
    is_state: bool = False,
) -> Params:
    """The values in the places of others: of their shape, layout and, but for statistics, type.

    Args:
      values: from an adapter, by path.
      others: leaves of a model, whose paths are among these.
      where: name of the adapter, for messages.
      is_state: whether they are statistics.

    Raises:
      InputError: another shape, values that are not finite, or that the model's type cannot hold.
    """
    result = {}
    for path, old in others.items():
        new = np.asarray(values[path])
        if new.shape != old.shape:
            raise InputError(f"{where}: {path} has shape {new.shape}, the model needs {old.shape}")
        check_values(path, new, is_state=is_state, where=where)
        if is_state:
            _check_state(path, new, old, where)
        if not is_state and new.dtype != old.dtype:
            new = _cast(path, new, old.dtype, where)
        result[path] = _placed(jnp.asarray(new), old)
    return result


def _check_state(path: str, new: np.ndarray, old: Any, where: str) -> None:
    """Raises InputError for a statistic of another kind of numbers, or infinite where the base's is not."""
    floating = jnp.issubdtype(new.dtype, jnp.floating)
    if new.dtype != old.dtype and not (floating and jnp.issubdtype(old.dtype, jnp.floating)):
        raise InputError(f"{where}: {path} has type {new.dtype}, the model needs {old.dtype}")
    if not floating or np.isfinite(new).all():
        return
    if np.any(np.isinf(new) & (new != gather({path: old})[path])):
        raise InputError(f"{where}: {path} has infinite values where the base has others")


def _cast(path: str, value: np.ndarray, dtype: Any, where: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        result = value.astype(dtype)
    if not np.all(np.isfinite(result)):
        raise InputError(
            f"{where}: {path} has values up to {np.max(np.abs(value)):g}, which {dtype} of the model cannot "
            "hold; load the model in float32"
        )
    return result


def _placed(value: jax.Array, old: Any) -> jax.Array:
    """A value laid out over a mesh as the one that it replaces."""
    sharding = old.sharding if isinstance(old, jax.Array) else None
    return jax.device_put(value, sharding) if isinstance(sharding, NamedSharding) else value
