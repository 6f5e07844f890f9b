"""Updates of parameters that a module contracts in its own code, where no layer could be adapted.

Experts, and projections that a model holds as bare `nnx.Param`s, have no call whose result could be
changed. What their module reads is changed instead: `self.w[...]` gives W + scale * A B. So every use
sees the update, in whatever method, and of a tied table both. The price is LoRA's: each read forms the
product, of the size of the weight, in time and in memory.
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Inexact, Key

from lora_jax import surgery
from lora_jax.errors import InputError, InputTypeError
from lora_jax.low_rank.contraction import Contraction
from lora_jax.low_rank.creation import new_update
from lora_jax.low_rank.lora_layer import WeightInModule, store
from lora_jax.low_rank.settings import LoRASettings
from lora_jax.low_rank.updates import WeightUpdate
from lora_jax.low_rank.weights import WeightView


class UpdatedParameters(surgery.Inserted):
    """The updates of a module's parameters: a child for each, under the parameter's name.

    Attributes:
      axes_of: letters of the axes of each parameter, see `Contraction.from_letters`.
    """

    def __init__(self) -> None:
        self.axes_of: tuple[tuple[str, str], ...] = ()

    def add(self, name: str, axes: str, update: WeightUpdate) -> None:
        """Adds the update of a parameter."""
        setattr(self, name, update)
        self.axes_of = (*self.axes_of, (name, axes))

    def remove(self, name: str) -> None:
        """Takes the update of a parameter away."""
        delattr(self, name)
        self.axes_of = tuple(item for item in self.axes_of if item[0] != name)

    def parameters(self, module: ReadsUpdated) -> list[AdaptedParameter]:
        """The adapted parameters of the module that holds this child."""
        return [AdaptedParameter(module, name, axes) for name, axes in self.axes_of]


class AdaptedParameter(WeightInModule):
    """A parameter with an update.

    Attributes:
      module: that holds both.
      name: of the parameter.
      axes: letters of its axes.
    """

    def __init__(self, module: nnx.Module, name: str, axes: str):
        self.module = module
        self.name = name
        self.axes = axes

    @property
    def lora(self) -> WeightUpdate:
        """The update."""
        update: WeightUpdate = getattr(vars(self.module)["lora"], self.name)
        return update

    def roles(self) -> Contraction:
        """Roles of the parameter's axes."""
        return Contraction.from_letters(self.axes)

    def variable(self) -> nnx.Param[Array]:
        """The parameter as it was pre-trained."""
        variable: nnx.Param[Array] = vars(self.module)[self.name]
        return variable

    def bias_values(self) -> None:
        """A parameter has no bias."""

    def replace_weight(self, values: Inexact[Array, ...]) -> None:
        """Takes the update away and stores another parameter, in place."""
        store(self.variable(), values)
        self.release()

    def release(self) -> None:
        """Takes the update away, in place; with the last one the module is of its class again."""
        updates: UpdatedParameters = vars(self.module)["lora"]
        updates.remove(self.name)
        if not updates.axes_of:
            delattr(self.module, "lora")
            surgery.restore(self.module)
        else:
            changed = _reading(surgery.original_class(self.module), _names(updates))
            surgery.restore(self.module)
            surgery.become(self.module, changed)


class ReadsUpdated(nnx.Module):
    """Mixin of a module that reads parameters with their updates."""

    lora: UpdatedParameters

    def _graph_node_set_key(self, key: Any, value: Any) -> None:
        """Flax writes into what it reads under a name, which here is not what is stored."""
        stored = vars(self).get(key) if isinstance(key, str) else None
        if isinstance(stored, nnx.Variable) and isinstance(value, nnx.Variable):
            stored.update_from_state(value)
        else:
            super()._graph_node_set_key(key, value)


class _ReadOnly(nnx.Variable[Any]):
    """Mixin of what is read: with an update in it, it cannot be written back."""

    def set_value(self, *args: Any, **kwargs: Any) -> None:
        raise _no_write(self)

    def set_raw_value(self, *args: Any, **kwargs: Any) -> None:
        raise _no_write(self)

    def __setitem__(self, key: Any, value: Any) -> None:
        raise _no_write(self)

    def update_from_state(self, variable_state: Any) -> None:
        raise _no_write(self)


@functools.cache
def _read_only(kind: Any) -> type:
    changed: type = type(kind)(f"Updated{kind.__name__}", (_ReadOnly, kind), {})
    return changed


def _no_write(value: _ReadOnly) -> InputTypeError:
    return InputTypeError(
        f"a parameter of shape {value.shape} with an update cannot be written: what is read is W + "
        "scale A B, and not W. Change the model before a method is inserted (lora_jax.strip), or write W "
        "with nnx.update"
    )


class _Updated:
    """What a module reads under the name of an adapted parameter."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        try:
            stored: nnx.Param[Array] = vars(instance)[self.name]
        except KeyError as error:
            raise AttributeError(self.name) from error
        updates: UpdatedParameters | None = vars(instance).get("lora")
        axes = dict(updates.axes_of).get(self.name) if updates is not None else None
        if axes is None:
            return stored
        parameter = AdaptedParameter(instance, self.name, axes)
        if not parameter.lora.enabled or parameter.is_abstract():
            return stored
        merged = parameter.lora.merged(WeightView(parameter))
        read = stored.replace(merged.reshape(stored.shape).astype(stored.dtype))
        object.__setattr__(read, "__class__", _read_only(type(stored)))
        return read

    def __set__(self, instance: Any, value: Any) -> None:
        if isinstance(value, _ReadOnly):
            raise _no_write(value)
        vars(instance)[self.name] = value

    def __delete__(self, instance: Any) -> None:
        del vars(instance)[self.name]


@functools.cache  # one class for each set of names: equal models have equal graph definitions
def _reading(original: Any, names: tuple[str, ...]) -> type[nnx.Module]:
    """The class `original`, whose parameters of these names are read with their updates."""
    metaclass: Any = type(original)
    members = {name: _Updated(name) for name in names}
    changed: type[nnx.Module] = metaclass(
        f"LoRA{original.__name__}", (ReadsUpdated, original), members,
        pytree=original._pytree__is_pytree,
    )  # fmt: skip
    surgery.replaces(original, changed)
    return changed


def _names(updates: UpdatedParameters) -> tuple[str, ...]:
    return tuple(sorted(name for name, _ in updates.axes_of))


def adapt_parameter(
    module: nnx.Module, name: str, settings: LoRASettings, key: Key[Array, ""], path: str
) -> None:
    """Gives a parameter of a module an update, in place. What the module computes is unchanged.

    Args:
      module: that holds the parameter.
      name: of the parameter in it.
      settings: with the letters of its axes.
      key: random key.
      path: of the parameter, for messages.

    Raises:
      ValueError: the module's class cannot be changed, the parameter cannot hold merged values, its axes
        do not fit, or the rank is too large.
    """
    reads = isinstance(module, ReadsUpdated)
    if not reads and (surgery.is_changed(module) or hasattr(module, "lora")):
        raise InputError(
            f"{path}: its module is adapted already, or has an attribute `lora` of its own; adapt either "
            "the layer or its parameter"
        )
    if not name.isidentifier() or isinstance(module, nnx.List | nnx.Dict):
        raise InputError(
            f"{path} is an item of a {type(module).__name__}; only a parameter that is an attribute of a "
            "module of its own class can be adapted"
        )
    parameter = AdaptedParameter(module, name, settings.axes)
    if not jnp.issubdtype(parameter.variable().dtype, jnp.floating):
        raise InputError(
            f"{path} has type {parameter.variable().dtype}, which cannot hold the merged values"
        )
    shape, roles = parameter.weight_shape(), parameter.roles()
    if len(shape) < roles.ndim:
        raise InputError(
            f"{path} has shape {shape}, which has not the {roles.ndim} axes of axes={settings.axes!r}"
        )
    updates = module.lora if isinstance(module, ReadsUpdated) else UpdatedParameters()
    if name in dict(updates.axes_of):
        raise InputError(f"{path} is adapted already")
    if hasattr(updates, name):
        raise InputError(
            f"{path}: a parameter called {name!r} cannot be adapted, since modules have a method of that "
            "name; rename it"
        )
    update = new_update(WeightView(parameter), settings, key, path)
    updates.add(name, settings.axes, update)
    if reads:
        surgery.restore(module)
    original = type(module)
    surgery.become(module, _reading(original, _names(updates)))
    setattr(module, "lora", updates)  # noqa: B010 - its class has it from now on
