"""LoRA layers: pre-trained layers with an update, and the registry that maps a class to its LoRA layer.

An adapted layer is the same object with the same pre-trained Variables at the same paths, plus a
child `lora`. Its class is a subclass of the original whose call lets the child change the output.
Without the child the class is the original again.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Inexact, Key, Num

from lora_jax import surgery
from lora_jax.low_rank.contraction import Contraction, Shape
from lora_jax.low_rank.dora import DoRAUpdate
from lora_jax.low_rank.fused_parts import part_sizes
from lora_jax.low_rank.settings import LoRASettings
from lora_jax.low_rank.updates import FusedUpdate, LowRankUpdate, WeightUpdate
from lora_jax.low_rank.weights import WeightView
from lora_jax.sharding import axes


class LoRALayer(nnx.Module):  # a Module, so that an object's class can become one and go back
    """Mixin of every LoRA layer: the base layer's call, changed by the child `lora`.

    A LoRA layer names the weight, the roles of its axes, and how activations pass through a factor
    pair. What the child does with that is its own affair, so every kind of update works:

        @lora_jax.register(MyLinear)
        class LoRAMyLinear(lora_jax.LoRALayer, MyLinear):
            weight = "kernel"
            def roles(self): return lora_jax.Contraction(batch=(), inputs=(0,), outputs=(1,))
            def low_rank_output(self, inputs, a, b): return inputs @ a @ b

    However the weight is stored, A comes as (*batch, *inputs, rank) and B as (*batch, rank, *outputs).
    The other methods have defaults for a weight whose output axes come last in the result.
    """

    weight: ClassVar[str] = "kernel"  # name of the weight's Variable
    # Inputs are row numbers of the weight. Then A starts at zero and not B, and has no dropout.
    gathers: bool = False
    # Whether "all-linear" means layers of this kind too. Tables (`gathers`) it never does.
    in_all_linear: ClassVar[bool] = True
    lora: WeightUpdate

    def roles(self) -> Contraction:
        """Roles of the axes of the weight's view, without the axes of a stack."""
        raise NotImplementedError

    def low_rank_output(
        self, inputs: Num[Array, ...], a: Inexact[Array, ...], b: Inexact[Array, ...]
    ) -> Inexact[Array, ...]:
        """x A B for activations as the base layer takes them.

        Args:
          inputs: of the layer, in the type of the result (row numbers, if the weight is gathered).
          a: (*batch, *inputs, rank), in that type too; float32, if the weight is gathered.
          b: (*batch, rank, *outputs), in the type of the result.
        """
        raise NotImplementedError

    def check(self, settings: LoRASettings) -> None:
        """Raises ValueError if this layer, as it was configured, cannot be adapted in this way."""

    def view(self) -> Shape:
        """Shape in which the roles see one layer's weight; a reshape of the weight."""
        return self.weight_shape()[len(self.stack_shape()) :]

    def weight_ndim(self) -> int:
        """Number of axes of one layer's weight as stored."""
        return self.roles().ndim

    def output_axis(self, ndim: int) -> int:
        """Axis of a result with `ndim` axes that holds the weight's first output axis."""
        return ndim - len(self.roles().outputs)

    def on_outputs(self, values: Inexact[Array, ...], ndim: int) -> Inexact[Array, ...]:
        """Values (*batch, *outputs) in a shape that broadcasts against a result with `ndim` axes."""
        count = len(self.roles().batch)
        between = (1,) * (ndim - values.ndim)
        return values.reshape(*values.shape[:count], *between, *values.shape[count:])

    def bias_values(self) -> Inexact[Array, ...] | None:
        """The bias of one layer as (*batch, *outputs); None without one."""
        bias = getattr(self, "bias", None)
        if bias is None:
            return None
        batch, _, outputs = self.roles().sizes(self.view())
        values: Array = bias[...]
        return values.reshape(batch + outputs)

    def weight_values(self) -> Inexact[Array, ...]:
        """The weight as stored, stack axes included; numbers, where it is stored in another form."""
        weight: nnx.Param[Array] = getattr(self, self.weight)
        return weight[...]

    def is_abstract(self) -> bool:
        """Whether the weight is a shape without values, as in a model from `nnx.eval_shape`."""
        weight: nnx.Param[Array] = getattr(self, self.weight)
        return isinstance(weight.get_raw_value(), jax.ShapeDtypeStruct)

    def weight_shape(self) -> Shape:
        """Shape of the weight as stored, stack axes included."""
        weight: nnx.Param[Array] = getattr(self, self.weight)
        return weight.shape

    def stack_shape(self) -> Shape:
        """Sizes of the leading axes that a scan or vmap over layers added to the weight."""
        shape = self.weight_shape()
        return shape[: len(shape) - self.weight_ndim()]

    def axis_names(self) -> axes.Axes:
        """Logical names of the stack's axes and the view's: factors are sharded as their weight is."""
        names = axes.names(getattr(self, self.weight))
        stacked = len(self.stack_shape())
        view = names[stacked:]
        if len(view) != self.roles().ndim:  # a convolution's view has an axis for its groups
            view = (None,) * self.roles().ndim
        return (*names[:stacked], *view)

    def __call__(self, inputs: Array, *args: Any, **kwargs: Any) -> Array:
        """The base layer's result, changed by the update."""
        base = super().__call__
        return self.lora.output(
            WeightView(self),
            inputs,
            lambda x: base(x, *args, **kwargs),  # type: ignore[misc]
        )


_LORA_LAYERS: dict[type, type[LoRALayer]] = {}


def register(base: type[nnx.Module]) -> Callable[[type[LoRALayer]], type[LoRALayer]]:
    """Class decorator: makes the class the LoRA layer of layers whose class is exactly `base`.

    Subclasses of `base` are not taken over silently: their call may mean something else.

    Raises:
      TypeError: the class does not inherit from LoRALayer and, after it, `base`.
    """

    def add(lora_layer: type[LoRALayer]) -> type[LoRALayer]:
        if not (issubclass(lora_layer, LoRALayer) and issubclass(lora_layer, base)):
            raise TypeError(
                f"{lora_layer.__name__} must subclass LoRALayer and {base.__name__}, in this order"
            )
        surgery.replaces(base, lora_layer)
        _LORA_LAYERS[base] = lora_layer
        return lora_layer

    return add


def lora_layer_of(layer: nnx.Module) -> type[LoRALayer] | None:
    """The LoRA layer that a layer is or can become; None if its class is not supported."""
    return type(layer) if isinstance(layer, LoRALayer) else _LORA_LAYERS.get(type(layer))


def supported() -> tuple[type, ...]:
    """The layer classes that can be adapted."""
    return tuple(_LORA_LAYERS)


def adapt(layer: nnx.Module, settings: LoRASettings, key: Key[Array, ""], path: str = "") -> None:
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
        raise ValueError(f"{path or type(layer).__name__} is adapted already; one rule per layer")
    lora_layer = _LORA_LAYERS.get(type(layer))
    if lora_layer is None:
        names = ", ".join(f"{t.__module__.split('.')[0]}.{t.__name__}" for t in _LORA_LAYERS)
        raise TypeError(
            f"{path or 'the layer'} is a {type(layer).__module__}.{type(layer).__name__}, for which "
            f"there is no LoRA layer. Supported: {names}. For a class of your own write a subclass "
            "of lora_jax.LoRALayer and decorate it with "
            f"@lora_jax.register({type(layer).__name__}); see the docstring of LoRALayer"
        )
    if hasattr(layer, "lora"):
        raise ValueError(
            f"{path or type(layer).__name__} has an attribute `lora` of its own, where its update would "
            "go; give that another name"
        )
    surgery.become(layer, lora_layer)
    assert isinstance(layer, LoRALayer)
    try:
        examine(layer, settings, path)
        layer.lora = _new_update(WeightView(layer), settings, key, path)
    except BaseException:
        surgery.restore(layer)
        raise


def examine(layer: LoRALayer, settings: LoRASettings, path: str) -> None:
    """Raises ValueError if a layer, as it was configured and stored, cannot have an update."""
    _refuse_integers(layer, path)
    layer.check(settings)


def unadapt(layer: nnx.Module) -> None:
    """Takes the child of an adapted layer away, in place: it is of its original class again."""
    assert isinstance(layer, LoRALayer)
    del layer.lora
    surgery.restore(layer)


def delta(layer: LoRALayer) -> Float[Array, ...]:
    """What the update adds to an adapted layer's weight, float32, in the weight's shape as stored."""
    return layer.lora.delta(WeightView(layer)).reshape(layer.weight_shape())


def adapted_layers(model: nnx.Module) -> dict[str, LoRALayer]:
    """Every adapted layer of a model by path, in path order."""
    found = {
        "/".join(map(str, path)): module
        for path, module in nnx.iter_modules(model)
        if isinstance(module, LoRALayer)
    }
    return dict(sorted(found.items()))


def factor_path(path: str, part: str) -> str:
    """The path of a pair's leaves, without `/a` and `/b`; `part` is "" for a whole weight's pair."""
    return "/".join(filter(None, (path, "lora", part)))


def factor_pairs(model: nnx.Module) -> dict[str, LowRankUpdate]:
    """Every factor pair of an adapted model by its `factor_path`."""
    return {
        factor_path(path, part): pair
        for path, layer in adapted_layers(model).items()
        for part, pair in layer.lora.pairs().items()
    }


def _refuse_integers(layer: LoRALayer, path: str) -> None:
    """Merging would round the update away. A layer whose `weight_values` makes numbers of them may."""
    stored = getattr(layer, layer.weight).dtype
    if jnp.issubdtype(stored, jnp.inexact):
        return
    plain = type(layer).weight_values is LoRALayer.weight_values
    if not plain and layer.is_abstract():
        return  # its numbers are not there to be seen
    if plain or not jnp.issubdtype(layer.weight_values().dtype, jnp.inexact):
        raise ValueError(
            f"the weight of {path or type(layer).__name__} has type {stored}, which cannot hold the "
            "merged values; convert it to a floating-point type first, or leave the layer out"
        )


def _new_update(
    weight: WeightView, settings: LoRASettings, key: Key[Array, ""], path: str
) -> WeightUpdate:
    kind = DoRAUpdate if settings.magnitude else LowRankUpdate
    if not settings.fused:
        if settings.parts:
            raise ValueError(
                f"parts {settings.parts} of {path} need `fused`: the names of all parts"
            )
        return kind.create(weight, settings, key, path)
    sizes = part_sizes(settings, weight.shape[weight.roles.outputs[0]], path)
    updates = {}
    for name, part in zip(settings.fused, weight.parts(sizes), strict=True):
        if name in settings.parts:
            part_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
            updates[name] = kind.create(part, settings, part_key, f"{path} part {name}")
    return FusedUpdate(updates, settings.fused, sizes)
