"""The slots of a pool: the leaves of its model that have an axis of them, and what an adapter puts there."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array

from lora_jax import partition, surgery
from lora_jax.adapter_files import Adapter
from lora_jax.errors import InputError
from lora_jax.files import to_json
from lora_jax.fingerprints import accepted
from lora_jax.low_rank.layers import adapted_layers
from lora_jax.method import Method
from lora_jax.partition import Params
from lora_jax.pool import places, values
from lora_jax.quantisation.described import PACKED, difference, packing
from lora_jax.sharding.axes import of_model
from lora_jax.sharding.mesh import AnyMesh
from lora_jax.sharding.placement import Placement


class Slots:
    """A base with slots for the adapters of some methods.

    Attributes:
      base: the pre-trained model; it is never changed.
      dtype: of the factors in the slots.
      head: the pattern of the head that the methods name; None without one.
      structure: of the model with slots.
      frozen: its leaves that no adapter changes, by path.
      leaves: its leaves with an axis of slots, by path; replaced by `write`.
      placement: of the leaves on a mesh; None without one.
    """

    def __init__(
        self,
        base: nnx.Module,
        methods: Sequence[Method],
        count: int,
        dtype: DTypeLike,
        mesh: AnyMesh | None,
    ):
        """Gives the layers of the methods their slots.

        Args:
          base: pre-trained, without inserted modules.
          methods: of the adapters to come.
          count: of slots.
          dtype: of the factors.
          mesh: over which the model is split; None for one device.

        Raises:
          InputError: the base is adapted already, or the methods name different heads or change something
            that has no form with slots.
        """
        if (path := surgery.changed_module(base)) is not None:
            raise InputError(
                f"the base of a pool must not be adapted ({path or 'the model'} is changed); give the model "
                "as it was before `insert`, or lora_jax.strip(model)"
            )
        self.base, self.dtype, self.head = base, dtype, _common_head(methods)
        self._inserted: dict[str, places.Inserted] = {}
        self._bases: list[str] = []
        layers = places.joined([self._of_method(method, "the pool") for method in methods])
        model = places.with_slots(base, layers, self.head, count, dtype)
        self.placement = None if mesh is None else Placement(mesh, of_model(model))
        self._divide(model)

    def _of_method(self, method: Method, where: str) -> places.Inserted:
        key = to_json(method.to_json(), indent=None)
        if key not in self._inserted:
            self._inserted[key] = places.inserted(self.base, method, where)
        return self._inserted[key]

    def _divide(self, model: nnx.Module) -> None:
        """Splits the model into what is in slots and what is not."""
        heads = [] if self.head is None else places.head_modules(self.base, self.head)
        params = partition.parameters(model)
        stacks = {path: len(layer.stack_shape()) for path, layer in adapted_layers(model).items()}
        self._place: dict[str, str] = {}  # path in the model by path in adapters
        self._axis: dict[str, int] = {}  # axis of the slots
        for path in params:
            module = next((m for m in heads if path.startswith(f"{m}/each/")), None)
            layer = next(
                (p for p in stacks if path.startswith(f"{p}/lora/" if p else "lora/")), None
            )
            if module is not None:
                own, axis = path.replace(f"{module}/each/", f"{module}/", 1), 0
            elif layer is not None:
                own, axis = path, stacks[layer]
            else:
                continue
            self._place[own], self._axis[path] = path, axis
        labels = {path: "slots" if path in self._axis else partition.FROZEN for path in params}
        self.structure, self.leaves, self.frozen = partition.split(model, labels)
        if self.placement is not None:
            self.leaves = self.placement.put(self.leaves)
            self.frozen = self.placement.put(self.frozen)
        self._room = {
            own: _without(self.leaves[path].shape, self._axis[path])
            for own, path in self._place.items()
        }
        jit = jax.jit if self.placement is None else self.placement.jit
        self._write = jit(functools.partial(_written, axes=self._axis), donate_argnums=0)

    def check(self, adapter: Adapter, where: str) -> None:
        """Raises InputError for an adapter of another base, or one that has no form with slots or no room."""
        if adapter.state:
            raise InputError(
                f"{where} has statistics of its own ({min(adapter.state)}), which have no form with slots"
            )
        if adapter.method.head != self.head:
            raise InputError(
                f"{where} has the head {adapter.method.head!r}, the pool {self.head!r}; a pool holds "
                "adapters whose methods name the same"
            )
        self._bases = self._bases or list(accepted(self.base, adapter.method))
        if adapter.base not in self._bases:
            of_packing = difference(adapter.notes.get(PACKED), packing(self.base))
            raise InputError(
                f"{where} was trained on another base: its fingerprint is {adapter.base[:12] or 'unknown'}, "
                f"the pool's is {self._bases[0][:12]}. {of_packing}"
            )
        self._fitted(adapter, where)

    def _fitted(self, adapter: Adapter, where: str) -> dict[str, np.ndarray]:
        of_method = self._of_method(adapter.method, where)
        found = values.slot_values(adapter, of_method, self._room, self.dtype, where)
        return {self._place[own]: value for own, value in found.items()}

    def values(self, adapter: Adapter, where: str) -> dict[str, np.ndarray]:
        """What an adapter puts into a slot, by path of the leaf."""
        ratios = values.ratios(self.base, adapter)
        return self._fitted(adapter, where) | {self._place[own]: v for own, v in ratios.items()}

    def write(self, number: int, own: Mapping[str, np.ndarray]) -> None:
        """Puts `values` into a slot; the leaves before are gone."""
        self.leaves = self._write(self.leaves, own, jnp.int32(number))


def _common_head(methods: Sequence[Method]) -> str | None:
    heads = {method.head for method in methods}
    if len(heads) > 1:
        raise InputError(
            f"the methods name different heads ({', '.join(map(str, sorted(heads, key=str)))}); a pool "
            "holds adapters whose methods name the same"
        )
    return heads.pop()


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def _written(
    slots: Params, own: Mapping[str, Array], slot: Array, *, axes: Mapping[str, int]
) -> Params:
    """The leaves with one slot's values replaced."""
    return {
        path: jax.lax.dynamic_update_index_in_dim(
            leaf, own[path].astype(leaf.dtype), slot, axes[path]
        )
        for path, leaf in slots.items()
    }
