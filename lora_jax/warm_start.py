"""Starting a run with the factors of another one, of the same rank or a smaller one."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from flax import nnx

from lora_jax.adapter_files import UNKNOWN_BASE, Adapter
from lora_jax.adapters import replaced
from lora_jax.errors import InputError
from lora_jax.factor_leaves import LORA, Place, factors
from lora_jax.method import Method
from lora_jax.methods.lora import LoRAInsertion
from lora_jax.methods.parameters import ParameterInsertion
from lora_jax.methods.stored_settings import are_factor_pairs, settings_of_layer
from lora_jax.partition import Params
from lora_jax.quantisation.described import PACKED, difference


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
    values = _leaves(adapter, trainable, labels, group, where)
    return {**trainable, **replaced(values, {path: trainable[path] for path in values}, where)}


def _leaves(
    adapter: Adapter,
    trainable: Mapping[str, Any],
    labels: Mapping[str, str],
    group: str,
    where: str,
) -> dict[str, np.ndarray]:
    """The adapter's leaves of a group, which must be those of the model."""
    values = {path: v for path, v in adapter.values.items() if adapter.groups.get(path) == group}
    expected = {path for path in trainable if labels[path] == group}
    if not values or values.keys() != expected:
        missing, absent = sorted(expected - values.keys()), sorted(values.keys() - expected)
        raise InputError(
            f"{where}: its group {group!r} does not fit the model: missing {missing[:5]}, not in "
            f"the model {absent[:5]}. Give the method the targets, parts and cuts of the adapter: "
            f"{adapter.method}"
        )
    return values


def check_base(
    adapter: Adapter, bases: Collection[str], where: str = "the adapter", packed: str = ""
) -> None:
    """Raises InputError if an adapter's factors are to start a run on another base than theirs.

    A base that is not known (of a converted adapter) is taken as it is.

    Args:
      adapter: from `load_adapter`.
      bases: fingerprints of the model's base, see `fingerprints.accepted`.
      where: name of the adapter, for messages.
      packed: what of the model is packed, see `quantisation.described`.
    """
    if adapter.base not in (*bases, UNKNOWN_BASE):
        model = adapter.notes.get("model", "unknown")
        raise InputError(
            f"{where} was trained on another base: its fingerprint is {adapter.base[:12]}, the model's is "
            f"{next(iter(bases))[:12]}. Its factors are an update of that base only: start from the model "
            f"that it names ({str(model)[:80]}), or with an adapter of this one. "
            f"{difference(adapter.notes.get(PACKED), packed)}"
        )


def started(
    adapter: Adapter,
    trainable: Mapping[str, Any],
    labels: Mapping[str, str],
    method: Method,
    adapted: nnx.Module,
    where: str = "the adapter",
) -> Params:
    """Warm start with LoRA's factors, of the ranks of the run or smaller; other groups stay fresh.

    Where the run's rank is larger, the further columns of A are the run's fresh ones and the further rows
    of B are zero: at step 0 the update is the adapter's, and all of the rank trains. B takes in what the
    scales differ by there. Where the ranks are equal the scales must be, too: the update is scale * A B
    (section 4.1), so with another alpha it is not the one that was trained.

    Args:
      adapter: from `load_adapter`.
      trainable: the fresh trainable leaves of the model.
      labels: the model's group of each of them.
      method: of the run.
      adapted: the model with that method.
      where: name of the adapter, for messages.

    Raises:
      ValueError: the factors are not of the model's layers, of larger ranks, or of another scale.
    """
    if not (are_factor_pairs(adapter.method) and are_factor_pairs(method)):
        if adapter.method.spec != method.spec:
            raise InputError(
                f"{where} was trained by {adapter.method.name}, the method here is {method.name}: such an "
                f"adapter starts a run of its own method only, {adapter.method}"
            )
        return transfer_group(adapter, trainable, labels, LORA, where)
    values = _leaves(adapter, trainable, labels, LORA, where)
    there, here = _scales(adapter.method, adapted), _scales(method, adapted)
    layers = {place.layer for place in factors(adapter)}
    same = []
    for place, sides in factors(adapter).items():
        _check_kind(adapter, method, trainable, place, layers, where)
        paths = {side: place.path(side) for side in sides}
        fresh = {s: np.asarray(trainable[path]) for s, path in paths.items() if path in trainable}
        name = place.layer if place.layer in here else place.name  # of a bare parameter
        if fresh.keys() != sides.keys() or not _fits(sides, fresh):
            same.append(name)  # `transfer_group` says what is wrong, if something is
            continue
        rank, wanted = sides["a"].shape[-1], fresh["a"].shape[-1]
        if rank > wanted:
            raise InputError(
                f"{where} has rank {rank} on {name}, the method here {wanted}: factors start a run of their "
                "rank or a larger one. The nearest adapter of a smaller rank: python -m "
                f"experiments.adapters reduce --adapters=ADAPTER --rank={wanted} --output=DIR"
            )
        ratio = there.get(name, 1.0) / here.get(name, 1.0)
        for side, value in sides.items():
            values[paths[side]] = _grown(side, value, fresh[side], rank, ratio)
    params = {**trainable, **replaced(values, {path: trainable[path] for path in values}, where)}
    _check_scales(
        adapter, {n: (there[n], here[n]) for n in same if n in there and n in here}, where
    )
    return params


def _check_kind(
    adapter: Adapter,
    method: Method,
    trainable: Mapping[str, Any],
    place: Place,
    layers: set[str],
    where: str,
) -> None:
    """Raises InputError if the same factors would be another update of a layer in a run.

    That is so where a table is adapted for lookups only in one of both, and where parts have other places.
    Both adapt the same layers.
    """
    settings = [
        settings_of_layer(how, place.layer, leaves[place.path("a")].shape[-1], layers, place.part)
        for how, leaves in ((adapter.method, adapter.values), (method, trainable))
    ]
    there, here = settings
    for name in ("lookup_only", "fused", "fused_sizes"):
        old, new = getattr(there, name), getattr(here, name)
        if old != new:
            raise InputError(
                f"{where} adapts {place.name} with {name}={old}, the method here with {name}={new}: the same "
                f"factors would be another update. Give the method those of the adapter: {adapter.method}"
            )


def _fits(sides: Mapping[str, np.ndarray], fresh: Mapping[str, np.ndarray]) -> bool:
    """Whether factors are of another rank, and of the same shape but for that."""
    if not sides.keys() >= {"a", "b"}:
        return False
    rank, wanted = (leaves["a"].shape[-1:] for leaves in (sides, fresh))
    if rank == wanted or sides["a"].shape[:-1] != fresh["a"].shape[:-1]:
        return False
    old, new = sides["b"].shape, fresh["b"].shape
    odd = [sizes for sizes in zip(old, new, strict=False) if sizes[0] != sizes[1]]
    return len(old) == len(new) and odd == [(*rank, *wanted)]


def _grown(side: str, old: np.ndarray, fresh: np.ndarray, rank: int, ratio: float) -> np.ndarray:
    """A leaf at the rank of a run.

    Args:
      side: a, b, b_bias or magnitude.
      old: the adapter's.
      fresh: the run's, which gives the further columns of A.
      rank: of the adapter.
      ratio: of the adapter's scale to the run's.
    """
    if side == "a":
        return np.concatenate([old.astype(fresh.dtype), fresh[..., rank:]], axis=-1)
    if side not in ("b", "b_bias"):
        return old
    more = [(0, new - size) for size, new in zip(old.shape, fresh.shape, strict=True)]
    return np.pad((old.astype(np.float64) * ratio).astype(fresh.dtype), more)


def _check_scales(adapter: Adapter, scales: Mapping[str, tuple[float, float]], where: str) -> None:
    """Raises InputError if factors would have another scale in a run than in their own."""
    for path, (there, here) in scales.items():
        if not math.isclose(there, here, rel_tol=1e-6):
            raise InputError(
                f"{where} was trained with the scale {there:g} in front of A B, the method here has "
                f"{here:g} ({path}): its update would be {here / there:g} times what was trained. Give the "
                f"method the alpha and the scaling of the adapter: {adapter.method}"
            )


def _scales(method: Method, adapted: nnx.Module) -> dict[str, float]:
    """The scale that a method of low-rank updates gives every layer of a model, which has such updates."""
    of_lora = [i for i in method.insertions if isinstance(i, LoRAInsertion | ParameterInsertion)]
    rows = [row for insertion in of_lora for row in insertion.matches(adapted)]
    return {row.path: row.scale for row in rows if row.scale is not None}
