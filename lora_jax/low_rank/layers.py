"""Adapting layers: pre-trained layers with an update, and the registry that maps a class to its LoRA layer.

An adapted layer is the same object with the same pre-trained Variables at the same paths, plus a
child `lora`. Its class is a subclass of the original whose call lets the child change the output.
Without the child the class is the original again.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from lora_jax import surgery
from lora_jax.arguments import Kind, takes
from lora_jax.errors import InputError, InputTypeError
from lora_jax.low_rank.creation import new_update
from lora_jax.low_rank.lora_layer import LoRALayer
from lora_jax.low_rank.pairs import LowRankUpdate, pairs_of
from lora_jax.low_rank.parameters import AdaptedParameter, ReadsUpdated
from lora_jax.low_rank.settings import LoRASettings
from lora_jax.low_rank.update_settings import UpdateSettings
from lora_jax.low_rank.weights import LayerWithWeight, WeightView

_CLASS = Kind((type,), "the class of the layers")

_METHODS = sorted(name for name in vars(LayerWithWeight) if name[0] != "_" and name != "weight")
_LORA_LAYERS: dict[type, type[LoRALayer]] = {}


@takes(base=_CLASS)
def register(base: type[nnx.Module]) -> Callable[[type[LoRALayer]], type[LoRALayer]]:
    """Class decorator: makes the class the LoRA layer of layers whose class is exactly `base`.

    Subclasses of `base` are not taken over silently: their call may mean something else.

    Raises:
      TypeError: the class does not inherit from LoRALayer and, after it, `base`, or it takes the branch
        of the LoRA layer of a parent class although `base` has a call of its own.
    """

    def add(lora_layer: type[LoRALayer]) -> type[LoRALayer]:
        _check_bases(lora_layer, base)
        _refuse_taken_names(lora_layer)
        refuse_borrowed_branches(lora_layer, base, _LORA_LAYERS)
        surgery.replaces(base, lora_layer)
        _LORA_LAYERS[base] = lora_layer
        return lora_layer

    return add


def _check_bases(lora_layer: type[LoRALayer], base: type[nnx.Module]) -> None:
    """Behind `base`, LoRALayer's call or a mixin's low_rank_output would never run."""
    name = lora_layer.__name__
    if not (issubclass(lora_layer, LoRALayer) and issubclass(lora_layer, base)):
        raise InputTypeError(f"{name} must subclass LoRALayer and {base.__name__}, in this order")
    order = lora_layer.__mro__
    behind = [c for c in order[order.index(base) :] if issubclass(c, LoRALayer)]
    if behind:
        first = behind[0].__name__
        raise InputTypeError(
            f"{name} has its bases in the wrong order: {first} must come before {base.__name__}, or "
            f"its update would never run. Swap them: class {name}({first}, {base.__name__})"
        )
    if lora_layer._pytree__is_pytree != base._pytree__is_pytree:
        raise InputTypeError(
            f"{base.__name__} is no pytree, and {name} would be one: class {name}(..., pytree=False)"
        )
    try:
        object.__setattr__(object.__new__(base), "__class__", lora_layer)
    except TypeError as error:
        raise InputTypeError(
            f"a {base.__name__} cannot become a {name} ({error}). Name LoRALayer, or a subclass of it, "
            f"as the first base of {name}"
        ) from error


def _refuse_taken_names(lora_layer: type[LoRALayer]) -> None:
    """A method `view` of a user's own class would be called for LoRALayer's."""
    for name in _METHODS:
        owner = _owner(lora_layer, name)
        if owner is not None and not issubclass(owner, LayerWithWeight):
            raise InputTypeError(
                f"{owner.__name__} has a {name} of its own, and LoRALayer needs one: rename it, or write "
                f"in {lora_layer.__name__} a {name} as docs/layers.md says"
            )


def refuse_borrowed_branches(
    lora_layer: type[LoRALayer], base: type, forms: Mapping[Any, type[LoRALayer]]
) -> None:
    """Raises TypeError for a class that takes the branch of a parent class's LoRA layer in vain.

    What the call of a subclass does besides its parent's, the branch must do too.

    Args:
      lora_layer: to be registered.
      base: the class that it is for.
      forms: the registered LoRA layers by class.
    """
    for parent, form in forms.items():
        if not issubclass(lora_layer, form) or parent is base:
            continue
        for method, branch in (("__call__", "low_rank_output"), ("attend", "low_rank_logits")):
            if getattr(base, method, None) is getattr(parent, method, None):
                continue
            known = {*form.__mro__, None}
            if {_owner(lora_layer, method), _owner(lora_layer, branch)} <= known:
                raise InputTypeError(
                    f"{base.__name__} has a {method} of its own, and {lora_layer.__name__} takes the "
                    f"branch of {form.__name__}, which knows {parent.__name__}'s only. Write in "
                    f"{lora_layer.__name__} a method {branch} that does what {base.__name__}.{method} "
                    "does besides; if it scales the result: return "
                    f"super().{branch}({'query' if method == 'attend' else 'inputs'}, a, b) * scale"
                )


def _owner(kind: type, name: str) -> type | None:
    """The class that defines what instances of `kind` have under a name."""
    return next((c for c in kind.__mro__ if name in vars(c)), None)


def lora_layer_of(layer: nnx.Module) -> type[LoRALayer] | None:
    """The LoRA layer that a layer is or can become; None if its class is not supported."""
    return type(layer) if isinstance(layer, LoRALayer) else _LORA_LAYERS.get(type(layer))


def registered() -> Mapping[type, type[LoRALayer]]:
    """The LoRA layers by the class that they are for."""
    return types.MappingProxyType(_LORA_LAYERS)


def add_form(base: type[nnx.Module], lora_layer: type[LoRALayer]) -> None:
    """Registers the LoRA layer of a class that was made of a registered one, without its checks.

    Args:
      base: whose call is that of the other class, whatever it does to its weight.
      lora_layer: a subclass of both the other class's LoRA layer and `base`.
    """
    surgery.replaces(base, lora_layer)
    _LORA_LAYERS[base] = lora_layer


def supported() -> tuple[type, ...]:
    """The layer classes that can be adapted, without those made of them (`add_form`)."""
    return tuple(kind for kind in _LORA_LAYERS if not surgery.is_of_base(kind))


def adapt(layer: nnx.Module, settings: UpdateSettings, key: Key[Array, ""], path: str = "") -> None:
    """Turns `layer` into its LoRA layer, in place. The output is unchanged: one factor is zero.

    Args:
      layer: of a supported class, possibly with stack axes in front of its weight.
      settings: rank, alpha and the rest.
      key: random key; stacked layers each draw their own values.
      path: of the layer, for messages.

    Raises:
      TypeError: the layer's class is not supported.
      ValueError: bad rank, alpha, parts, or a layer that cannot be adapted as it was configured.
    """
    if isinstance(layer, LoRALayer):
        raise InputError(f"{path or type(layer).__name__} is adapted already; one rule per layer")
    lora_layer = _LORA_LAYERS.get(type(layer))
    if lora_layer is None:
        of_linen = hasattr(layer, "without_lora_layer")
        family = "flax.linen." if of_linen else "flax.nnx."  # and not what users registered
        known = (t for t in _LORA_LAYERS if t.__module__.startswith(family))
        names = ", ".join(f"{family}{t.__name__}" for t in known)
        raise InputTypeError(
            f"{path or 'the layer'} is a {type(layer).__module__}.{type(layer).__name__}, for which "
            f"there is no LoRA layer. Supported: {names}. {_remedy(layer)}"
        )
    refuse_names_of_attributes(layer, path)
    surgery.become(layer, lora_layer)
    assert isinstance(layer, LoRALayer)
    try:
        examine(layer, settings, path)
        layer.lora = new_update(WeightView(layer), settings, key, path)
    except BaseException:
        surgery.restore(layer)
        raise


def _remedy(layer: nnx.Module) -> str:
    """What to do about a class without a LoRA layer; classes that stand for others say it themselves."""
    name = type(layer).__name__
    own: str | None = getattr(layer, "without_lora_layer", None)
    mixin = "EinsumLoRALayer" if hasattr(layer, "einsum_str") else "LoRALayer"
    return own or (
        f"For a class of your own write a subclass of lora_jax.{mixin} and decorate it with "
        f"@lora_jax.register({name}), see docs/layers.md; or adapt its parameters themselves, with their "
        "paths as targets and `axes`, see docs/any_model.md"
    )


def refuse_names_of_attributes(layer: nnx.Module, path: str) -> None:
    """Raises ValueError if a pre-trained layer has an attribute where its LoRA layer has another thing."""
    if taken := [name for name in ("lora", *_METHODS) if hasattr(layer, name)]:
        raise InputError(
            f"{path or type(layer).__name__} has an attribute `{taken[0]}` of its own, where its LoRA "
            "layer has another thing; rename the attribute, or leave the layer out"
        )


def examine(layer: LoRALayer, settings: UpdateSettings, path: str) -> None:
    """Raises ValueError if a layer, as it was configured and stored, cannot have an update."""
    layer.check(settings)
    _refuse_options(layer, settings, path)
    _refuse_other_stacks(layer, path)
    _refuse_integers(layer, path)


def _refuse_options(layer: LoRALayer, settings: UpdateSettings, path: str) -> None:
    """A bias of B needs outputs in the order of the layer's bias, a table has none."""
    name, roles = path or type(layer).__name__, layer.roles()
    in_order = roles.batch + roles.inputs + roles.outputs == tuple(range(roles.ndim))
    if not isinstance(settings, LoRASettings):
        return
    if settings.b_bias and (layer.gathers or not in_order):
        raise InputError(
            f"{name} cannot have b_bias: that is for linear layers whose outputs are the last axes of the "
            "kernel; leave b_bias out for this layer"
        )
    if settings.lookup_only and not layer.gathers:
        raise InputError(f"lookup_only is for tables, such as nnx.Embed; {name} is none")


AdaptedLayer = LoRALayer | AdaptedParameter


def delta(layer: AdaptedLayer) -> Float[Array, ...]:
    """What the update adds to an adapted layer's weight, float32, in the weight's shape as stored."""
    return layer.lora.delta(WeightView(layer)).reshape(layer.weight_shape())


def adapted_layers(model: nnx.Module) -> dict[str, AdaptedLayer]:
    """Every adapted layer, or parameter, of a model by path, in path order."""
    found: dict[str, AdaptedLayer] = {}
    for keys, module in nnx.iter_modules(model):
        path = "/".join(map(str, keys))
        if isinstance(module, LoRALayer):
            found[path] = module
        elif isinstance(module, ReadsUpdated):
            for parameter in module.lora.parameters(module):
                found[f"{path}/{parameter.name}".removeprefix("/")] = parameter
    return dict(sorted(found.items()))


def factor_path(path: str, layer: AdaptedLayer, part: str = "") -> str:
    """The path of the leaves of an update, without their names.

    Args:
      path: of the adapted layer or parameter.
      layer: at that path.
      part: of a fused projection; "" for a whole weight.
    """
    names = ("lora", part)
    if isinstance(layer, AdaptedParameter):  # its update is beside it
        path, names = path.rpartition("/")[0], ("lora", layer.name, part)  # type: ignore[assignment]
    return "/".join(filter(None, (path, *names)))


def factor_pairs(model: nnx.Module) -> dict[str, LowRankUpdate]:
    """Every factor pair of an adapted model by its `factor_path`."""
    return {
        factor_path(path, layer, part): pair
        for path, layer in adapted_layers(model).items()
        for part, pair in pairs_of(layer.lora).items()
    }


def _refuse_other_stacks(layer: LoRALayer, path: str) -> None:
    """The axes that a stack added must be in front: the roles of the others are counted from behind."""
    for name, declared in layer.declared_shapes().items():
        variable = getattr(layer, name)
        if variable is None:
            continue
        expected = layer.stack_shape() + declared
        if variable.shape != expected:
            raise InputError(
                f"{path or type(layer).__name__}/{name} has shape {variable.shape}, but one layer's is "
                f"{declared}, so {expected} was expected. Stack layers on axis 0 (nnx.vmap(out_axes=0), "
                "linen.scan(variable_axes={'params': 0})), or leave the layer out"
            )


def _refuse_integers(layer: LoRALayer, path: str) -> None:
    """Merging would round the update away. A layer whose `weight_values` makes numbers of them may."""
    stored = layer.weight_dtype()
    if jnp.issubdtype(stored, jnp.floating):
        return
    plain = type(layer).weight_values is LoRALayer.weight_values
    if not plain and layer.is_abstract():
        return  # its numbers are not there to be seen
    if plain or not jnp.issubdtype(layer.weight_values().dtype, jnp.floating):
        raise InputError(
            f"the weight of {path or type(layer).__name__} has type {stored}, which cannot hold the "
            "merged values (factors are real numbers); convert it to a floating-point type first, or "
            "leave the layer out"
        )
