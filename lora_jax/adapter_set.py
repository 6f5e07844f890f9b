"""Several adapters of one base by name: added, chosen, weighted, switched, saved and removed.

The base is held once. A model with the chosen adapters shares its arrays, so choosing copies factors only.
Adapters of equal methods make equal programs: switching between them compiles nothing anew.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Generic

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Key

from lora_jax import partition, surgery
from lora_jax.adapter_files import unmeasured
from lora_jax.adapters import Adapter, apply_adapter, attach, load_adapter
from lora_jax.arguments import KEY, MODEL, TEXT, Kind, Model, check, takes
from lora_jax.combination import combine
from lora_jax.errors import InputError
from lora_jax.files import to_json
from lora_jax.fingerprints import base_parameters, fingerprint
from lora_jax.method import METHOD, Method
from lora_jax.partition import Params, Structure
from lora_jax.patterns import some
from lora_jax.state import fixed, without_sown
from lora_jax.state import values as values_of_state

Chosen = str | Mapping[str, float]
_CHOSEN = Kind((str, Mapping), "the name of an adapter, weights by name, or None for the base")


class AdapterSet(Generic[Model]):
    """Adapters of one base by name.

        adapters = lora_jax.AdapterSet(base)
        adapters.load("e2e", "runs/e2e/adapter")
        adapters.load("dart", "runs/dart/adapter")
        model = adapters.model("e2e")
        model = adapters.model({"e2e": 1.0, "dart": 0.5})   # the exact weighted sum
        adapters.switch(model, "dart")                      # in place, for adapters of equal methods

    Attributes:
      base: the pre-trained model; it is never changed.
    """

    @takes(base=MODEL)
    def __init__(self, base: Model):
        """Takes a base.

        Args:
          base: without inserted modules.

        Raises:
          InputError: the model is adapted already.
        """
        if (path := surgery.changed_module(base)) is not None:
            raise InputError(
                f"the base of a set of adapters must not be adapted ({path or 'the model'} is changed); give "
                "the model as it was before `insert`, or lora_jax.strip(model)"
            )
        self.base = base
        self._adapters: dict[str, Adapter] = {}
        # By method: a split model.
        self._made: dict[str, tuple[Structure[Model], Params, Params]] = {}

    def __repr__(self) -> str:
        """With the names."""
        return f"AdapterSet({type(self.base).__name__}: {some(self.names) or 'no adapter'})"

    @property
    def names(self) -> list[str]:
        """The names of the adapters, in the order in which they came."""
        return list(self._adapters)

    def __getitem__(self, name: str) -> Adapter:
        """The adapter of a name.

        Raises:
          InputError: there is none.
        """
        if name not in self._adapters:
            raise InputError(
                f"there is no adapter {name!r}; there are {some(self.names) or 'none'}"
            )
        return self._adapters[name]

    def add(self, name: str, adapter: Adapter) -> None:
        """Adds an adapter of this base.

        Raises:
          InputError: the name is taken, or the adapter is of another base or does not fit.
        """
        self._check_new(name)
        attach(self.base, adapter, where=f"adapter {name!r}")
        self._adapters[name] = adapter

    def load(self, name: str, folder: str | os.PathLike[str]) -> None:
        """Adds the adapter of a folder; see `add` and `load_adapter`."""
        self._check_new(name)
        self.add(name, load_adapter(folder))

    @takes(name=TEXT, method=METHOD, key=KEY)
    def create(self, name: str, method: Method, key: Key[Array, ""]) -> None:
        """Adds a new adapter, as the method's `insert` starts it.

        Raises:
          InputError: the name is taken, or the method does not fit the base.
        """
        self._check_new(name)
        model = method.insert(self.base, key)
        base = fingerprint(base_parameters(self.base, method.head))
        self._adapters[name] = _taken(model, Adapter(method, {}, {}, base, {}))

    @takes(name=TEXT, model=MODEL)
    def take(self, name: str, model: nnx.Module) -> None:
        """Takes the values of an adapter from a model in which it was trained; the others stay.

        Args:
          name: of an adapter of this set.
          model: from `model(name)`, trained.

        Raises:
          InputError: the model has another method.
        """
        self._check_same(name, model)
        old = self[name]  # whose scores are not those of the new values
        self._adapters[name] = _taken(model, dataclasses.replace(old, notes=unmeasured(old.notes)))

    def _check_new(self, name: str) -> None:
        if name in self._adapters:
            raise InputError(
                f"there is an adapter {name!r} already; remove it first, or take another name"
            )

    def remove(self, name: str) -> None:
        """Takes an adapter out; models that have it stay as they are."""
        _ = self[name]
        del self._adapters[name]

    def save(self, name: str, folder: str | os.PathLike[str]) -> Path:
        """Writes one adapter as a folder of its own; see `save_adapter`."""
        return self[name].save(folder)

    def model(self, chosen: Chosen | None = None) -> Model:
        """A model with one adapter, with the weighted sum of several, or the base (None).

        It shares the base's arrays. Of several the sum is exact and has all their ranks (`combine`).

        Args:
          chosen: a name, or weights by name.

        Raises:
          InputError: a name is unknown, or the updates do not add up.
        """
        if chosen is None:
            return self.base
        return self._with(self._chosen(chosen))

    def _chosen(self, chosen: Chosen) -> Adapter:
        check("model", "chosen", chosen, _CHOSEN)
        if isinstance(chosen, str):
            return self[chosen]
        adapters = {name: self[name] for name in chosen}
        if len(chosen) == 1 and all(type(v) in (int, float) and v == 1 for v in chosen.values()):
            return next(iter(adapters.values()))
        return combine(adapters, dict(chosen))

    def _with(self, adapter: Adapter) -> Model:
        """A model with an adapter of this base, which `add` has checked."""
        structure, trainable, frozen = self._split(adapter.method)
        values = apply_adapter(adapter, trainable, adapter.base, frozen=frozen)
        return partition.join(structure, values, frozen)

    def _split(self, method: Method) -> tuple[Structure[Model], Params, Params]:
        key = to_json(method.to_json(), indent=None)
        if key not in self._made:
            model = method.insert(self.base, jax.random.key(0))
            self._made[key] = partition.split(model, method.labels(model))
        return self._made[key]

    @takes(model=MODEL, name=TEXT)
    def switch(self, model: nnx.Module, name: str) -> None:
        """Gives a model of this set the values of another adapter, in place; the base's are not touched.

        A compiled function that takes the model goes on without compiling, as its structure stays.

        Args:
          model: from `model`, with an adapter of an equal method.
          name: of the other adapter.

        Raises:
          InputError: the model has another method, or another scale.
        """
        self._check_same(name, model)
        adapter = self[name]
        # What the model has besides may be another adapter's.
        _, _, frozen = self._split(adapter.method)
        kept = {path: frozen[path] for path in values_of_state(model, "statistic", "fixed")}
        values = {**kept, **adapter.values, **adapter.state}
        for path, variable in nnx.to_flat_state(nnx.state(model)):
            if (value := values.get("/".join(map(str, path)))) is not None:
                variable.set_value(jnp.asarray(value, variable.get_value().dtype))

    def _check_same(self, name: str, model: nnx.Module) -> None:
        structure, _, _ = self._split(self[name].method)
        if nnx.split(without_sown(model))[0] != structure.graphdef:
            raise InputError(
                f"the model has another method than adapter {name!r} ({self[name].method}): other layers, "
                f"ranks or scales. Make a model with it: model({name!r})"
            )


def _taken(model: nnx.Module, adapter: Adapter) -> Adapter:
    """The adapter with the values that a model has."""
    labels = adapter.method.labels(model)
    _, trainable, frozen = partition.split(model, labels)
    values = {path: np.asarray(value) for path, value in trainable.items()}
    state = {path: np.asarray(frozen[path]) for path in (*adapter.state, *fixed(model))}
    return dataclasses.replace(
        adapter, groups={path: labels[path] for path in values}, values=values, state=state
    )
