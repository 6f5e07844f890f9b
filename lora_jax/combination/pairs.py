"""The low-rank updates of an adapter as matrices, and an adapter that has given ones."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from lora_jax import factor_leaves, methods
from lora_jax.adapter_files import Adapter
from lora_jax.analysis.factor_pairs import stack_axes
from lora_jax.errors import InputError
from lora_jax.factor_leaves import LORA, Place
from lora_jax.low_rank.settings import LoRASettings
from lora_jax.method import Method
from lora_jax.methods.cuts import CutInsertion
from lora_jax.methods.lora import LoRAInsertion
from lora_jax.methods.stored_settings import refuse_other_updates, settings_of_layer
from lora_jax.patterns import some

_BIASES = ("none", "lora_only", "all")
A = Float[np.ndarray, "layers inputs rank"]
B = Float[np.ndarray, "layers rank outputs"]


@dataclasses.dataclass(frozen=True)
class Pair:
    """One update, scale * a b, of all layers of a stack.

    Attributes:
      a: float32.
      b: float32.
      settings: that it was trained with.
      inputs: shape of the factor `a` as it is stored, without its last axis, the rank.
      stack: how many of these axes are those of a stack, which the factor `b` has in front too.
      outputs: shape of the outputs.
    """

    a: A
    b: B
    settings: LoRASettings
    inputs: tuple[int, ...]
    stack: int
    outputs: tuple[int, ...]

    @property
    def scale(self) -> float:
        """In front of a b."""
        return self.settings.scale

    def stored(self, a: A, b: B) -> tuple[np.ndarray, np.ndarray]:
        """Factors of any rank in the shapes of an adapter's leaves."""
        rank = a.shape[-1]
        shape = (*self.inputs[: self.stack], rank, *self.outputs)
        return a.reshape(*self.inputs, rank), b.reshape(shape)


def pairs_of(adapter: Adapter, where: str) -> dict[Place, Pair]:
    """The updates of an adapter by layer and part.

    Args:
      adapter: of LoRA.
      where: its name, for messages.

    Raises:
      InputError: it has no low-rank updates, or such as are not scale * a b alone.
    """
    refuse_other_updates(adapter.method, f"{where}: combining")
    found = factor_leaves.factors(adapter)
    if not found:
        raise InputError(f"{where} has no low-rank updates (its method is {adapter.method})")
    _check_method(adapter.method, where)
    paths = {place.layer for place in found}
    result = {}
    for place, leaves in found.items():
        if odd := sorted(leaves.keys() ^ {"a", "b"}):
            raise InputError(
                f"{where}: the update of {place.name} is more than a product of two factors (leaves "
                f"{', '.join(odd)}), and such updates do not add up. Merge each into a model of its own"
            )
        a, b = leaves["a"], leaves["b"]
        settings = settings_of_layer(adapter.method, place.layer, a.shape[-1], paths, place.part)
        result[place] = _pair(a, b, settings, stack_axes(a, b, place.name))
    return result


def _pair(a: np.ndarray, b: np.ndarray, settings: LoRASettings, stack: int) -> Pair:
    rank, layers = a.shape[-1], int(np.prod(a.shape[:stack], dtype=int))
    return Pair(
        a.astype(np.float32).reshape(layers, -1, rank), b.astype(np.float32).reshape(layers, rank, -1),
        settings, a.shape[:-1], stack, b.shape[stack + 1 :],
    )  # fmt: skip


def _check_method(method: Method, where: str) -> None:
    odd = [i for i in method.insertions if not isinstance(i, LoRAInsertion | CutInsertion)]
    if odd:
        raise InputError(
            f"{where} inserts more than LoRA's factors into layers ({method}); only these can be combined"
        )


def cuts_of(adapter: Adapter) -> tuple[int, ...]:
    """Where the adapter's method cuts stacks of layers."""
    return tuple(i.last for i in adapter.method.insertions if isinstance(i, CutInsertion))


def with_pairs(
    adapter: Adapter,
    pairs: Mapping[Place, Pair],
    factors: Mapping[Place, tuple[A, B]],
    notes: dict[str, Any],
    *,
    keep: bool,
) -> Adapter:
    """An adapter with other updates, all of scale 1.

    Args:
      adapter: gives the base.
      pairs: what the new factors replace, for their shapes and settings.
      factors: the new ones; parts of one layer get the largest rank among them, filled with zeros.
      notes: of the new adapter.
      keep: whether it has what `adapter` trains besides factors: heads, biases, statistics.
    """
    by_layer: dict[str, list[Place]] = {}
    for key in factors:
        by_layer.setdefault(key[0], []).append(key)
    targets, values = {}, {}
    for layer, keys in by_layer.items():
        rank = max(factors[key][0].shape[-1] for key in keys)
        settings = pairs[keys[0]].settings
        parts = tuple(part for part in settings.fused if (layer, part) in factors)
        new = dataclasses.replace(
            settings, rank=rank, alpha=float(rank), scaling="alpha/r", dropout=0.0, parts=parts,
            too_large="error",
        )  # fmt: skip
        targets[re.escape(layer)] = new.to_arguments()
        for key in keys:
            a, b = (np.ascontiguousarray(side) for side in _padded(*factors[key], rank))
            values[key.path("a")], values[key.path("b")] = pairs[key].stored(a, b)
    rest = rest_of(adapter) if keep else {}
    groups = {path: adapter.groups[path] for path in rest}
    return Adapter(
        _method(adapter, targets, keep), {**groups, **dict.fromkeys(values, LORA)}, {**rest, **values},
        adapter.base, notes, adapter.state if keep else {},
    )  # fmt: skip


def rest_of(adapter: Adapter) -> dict[str, np.ndarray]:
    """What an adapter trains besides factors: heads, biases, whole parameters."""
    return {path: v for path, v in adapter.values.items() if adapter.groups[path] != LORA}


def _method(adapter: Adapter, targets: dict[str, Any], keep: bool) -> Method:
    """LoRA on exactly these layers, and the other parts of a method as they are."""
    described = adapter.method.to_json()
    of_lora = [part["arguments"] for part in described if part["name"] == "lora"]
    others = [part for part in described if part["name"] != "lora"] if keep else []
    biases = {arguments.get("bias", "none") for arguments in of_lora} if keep else set()
    layers = {re.escape(place.layer) for place in factor_leaves.factors(adapter)}
    if "lora_only" in biases and layers != targets.keys():
        raise InputError(
            "the adapter that the rest is taken of trains the biases of the layers that it adapts "
            f"(bias='lora_only'), and the result adapts others too: {some(sorted(layers ^ targets.keys()))}. "
            "Reduce the others to its layers, or take another one"
        )
    heads = {arguments.get("head") for arguments in of_lora} - {None} if keep else set()
    lora = methods.lora(
        targets, bias=max(biases, key=_BIASES.index, default="none"), head=max(heads, default=None),
        cut=cuts_of(adapter),
    )  # fmt: skip
    return lora + methods.from_json(others) if others else lora


def _padded(a: A, b: B, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The factors with zeros for further ranks."""
    more = rank - a.shape[-1]
    return np.pad(a, ((0, 0), (0, 0), (0, more))), np.pad(b, ((0, 0), (0, more), (0, 0)))
