"""LoRA forms of Flax NNX layers, and the registry that maps a layer's class to its form.

An adapted layer is the same object with the same pre-trained Variables at the same paths, plus a
child `lora`. Its class is a subclass of the original whose call adds the low-rank branch
x -> rank -> y; the d x d delta is never formed. Without the child the class is the original again.

Dropout on the branch is data, not hidden state: `seed_dropout(model, key)` writes one key per
adapted layer (and per stacked layer) into a model, usually the copy that a train step merges.
A layer without a key is deterministic. So the user's model need not pass keys to its Linear
layers, and scan, vmap and remat see ordinary arrays.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from lora_jax import factors
from lora_jax.low_rank import DropoutKey, DropoutRate, FusedLowRank, LowRank, Update
from lora_jax.sharding import axes


class Adapted(nnx.Module):  # a Module, so that an object's class can become a form and go back
    """Mixin of every LoRA form: the base layer's call plus the low-rank branch.

    A form names the weight, the roles of its axes, and how activations pass through a factor pair:

        @lora_jax.layers.register(MyLinear)
        class LoRAMyLinear(lora_jax.layers.Adapted, MyLinear):
            weight = "kernel"
            def roles(self): return Contraction(batch=(), inputs=(0,), outputs=(1,))
            def branch(self, inputs, a, b): return inputs @ a @ b
    """

    weight: ClassVar[str] = "kernel"
    # The gathered side of an embedding starts at zero, elsewhere the output side does.
    zero_a: ClassVar[bool] = False
    lora: LowRank | FusedLowRank

    def roles(self) -> factors.Contraction:
        """Roles of the axes of the weight's view, without stack axes."""
        raise NotImplementedError

    def view(self) -> tuple[int, ...]:
        """Shape in which the roles see the (unstacked) weight; a reshape of the weight."""
        return self.weight_shape()[self.stack_axes() :]

    def branch(
        self, inputs: Float[Array, ...], a: Float[Array, ...], b: Float[Array, ...]
    ) -> Float[Array, ...]:
        """x A B for activations as the base layer takes them; `a`, `b` in the output's type."""
        raise NotImplementedError

    def output_axis(self, ndim: int) -> int:
        """Axis of a result with `ndim` axes that holds the weight's first output axis."""
        return ndim - len(self.roles().outputs)

    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight as stored, stack axes included."""
        return getattr(self, self.weight).shape

    def stack_axes(self) -> int:
        """Number of leading axes that a scan or vmap over layers added to the weight."""
        return len(self.weight_shape()) - self.weight_ndim()

    def weight_ndim(self) -> int:
        """Number of axes of one unstacked weight."""
        return self.roles().ndim

    def check(self, update: Update) -> None:
        """Raises ValueError if this layer's settings cannot be adapted in this way."""

    def __call__(self, inputs: Array, *args: Any, **kwargs: Any) -> Array:
        """The base layer's result plus the low-rank branch."""
        outputs = super().__call__(inputs, *args, **kwargs)  # type: ignore[misc]
        return self.updated(inputs, outputs)

    def updated(self, inputs: Array, outputs: Array) -> Array:
        """Adds the low-rank branch to the base layer's outputs, in their type."""
        if isinstance(self.lora, LowRank):
            return outputs + self.through(self.lora, inputs, outputs.dtype)
        axis = self.output_axis(outputs.ndim)
        pieces = []
        for pair, start, size in self.lora.slots():
            piece = jax.lax.slice_in_dim(outputs, start, start + size, axis=axis)
            if pair is not None:
                piece = piece + self.through(pair, inputs, outputs.dtype)
            pieces.append(piece)
        return jnp.concatenate(pieces, axis=axis)

    def through(self, pair: LowRank, inputs: Array, dtype: Any) -> Array:
        """scale * x A B for one factor pair, computed in `dtype`."""
        a = (pair.a[...] * pair.scale).astype(dtype)
        if jnp.issubdtype(inputs.dtype, jnp.inexact):
            inputs = pair.drop(inputs).astype(dtype)
        return self.branch(inputs, a, pair.b[...].astype(dtype))


_FORMS: dict[type, type[Adapted]] = {}


def register(base: type) -> Callable[[type[Adapted]], type[Adapted]]:
    """Class decorator: makes the class the LoRA form of layers whose class is exactly `base`.

    Subclasses of `base` are not taken over silently: their call may mean something else.
    """

    def add(form: type[Adapted]) -> type[Adapted]:
        if not (issubclass(form, Adapted) and issubclass(form, base)):
            raise TypeError(
                f"{form.__name__} must subclass Adapted and {base.__name__}, in this order"
            )
        _FORMS[base] = form
        return form

    return add


def supported() -> tuple[type, ...]:
    """The layer classes that can be adapted."""
    return tuple(_FORMS)


def is_adapted(module: object) -> bool:
    """Whether a module is a LoRA form."""
    return isinstance(module, Adapted)


def adapt(layer: nnx.Module, update: Update, key: Key[Array, ""], path: str = "") -> None:
    """Turns `layer` into its LoRA form, in place. The output is unchanged: one factor is zero.

    Args:
      layer: a supported layer, possibly with stack axes in front of its weight.
      update: rank, alpha and the rest.
      key: random key; stacked layers each draw their own values.
      path: for messages.

    Raises:
      TypeError: the layer's class is not supported.
      ValueError: bad rank, alpha, parts, or a setting of the layer that cannot be adapted.
    """
    if is_adapted(layer):
        raise ValueError(f"{path or type(layer).__name__} is adapted already; one rule per layer")
    form = _FORMS.get(type(layer))
    if form is None:
        names = ", ".join(f"{t.__module__.split('.')[0]}.{t.__name__}" for t in _FORMS)
        raise TypeError(
            f"{path or 'the layer'} is a {type(layer).__module__}.{type(layer).__name__}, which has "
            f"no LoRA form. Supported: {names}. For a class of your own write a subclass of "
            f"lora_jax.layers.Adapted and decorate it with "
            f"@lora_jax.layers.register({type(layer).__name__}); see the docstring of Adapted"
        )
    base = type(layer)
    object.__setattr__(layer, "__class__", form)  # not an attribute: NNX must not track it
    assert isinstance(layer, Adapted)
    try:
        layer.check(update)
        layer.lora = _new_child(layer, update, key, path)
    except BaseException:
        object.__setattr__(layer, "__class__", base)
        raise


def unadapt(layer: Adapted) -> None:
    """Takes the child `lora` away, in place: the layer is of its original class again."""
    base = next(base for base, form in _FORMS.items() if type(layer) is form)
    del layer.lora
    object.__setattr__(layer, "__class__", base)


def _new_child(layer: Any, update: Update, key: Array, path: str) -> LowRank | FusedLowRank:
    roles, view = layer.roles(), layer.view()
    if not update.fused:
        if update.parts:
            raise ValueError(f"parts {update.parts} of {path} need `fused`: the names of all parts")
        return _new_pair(layer, update, view, key, path)
    axis = roles.outputs[0]
    sizes = _part_sizes(update, view[axis], path)
    pairs = {}
    for name, size in zip(update.fused, sizes, strict=True):
        if name in update.parts:
            shape = (*view[:axis], size, *view[axis + 1 :])
            part_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
            pairs[name] = _new_pair(layer, update, shape, part_key, f"{path} part {name}")
    return FusedLowRank(pairs, update.fused, sizes)


def _part_sizes(update: Update, total: int, path: str) -> tuple[int, ...]:
    unknown = [part for part in update.parts if part not in update.fused]
    if unknown or not update.parts:
        raise ValueError(f"{path}: choose parts among {update.fused}, got {update.parts}")
    taken = [p for p in update.parts if p in ("names", "sizes") or hasattr(FusedLowRank, p)]
    if taken:
        raise ValueError(f"{path}: a part cannot be called {taken[0]!r}; choose another name")
    count = len(update.fused)
    sizes = update.fused_sizes or (total // count,) * count
    if len(sizes) != count or sum(sizes) != total:
        raise ValueError(
            f"{path}: the parts {update.fused} must divide the first output axis of size {total}; "
            f"got sizes {sizes}. Give `fused_sizes` if the parts are not equal"
        )
    return sizes


def _new_pair(layer: Any, update: Update, view: tuple[int, ...], key: Array, path: str) -> LowRank:
    roles = layer.roles()
    _, inputs, outputs = roles.sizes(view)
    fan_in, fan_out = math.prod(inputs), math.prod(outputs)
    rank = factors.check_rank(update.rank, min(fan_in, fan_out), path)
    alpha = factors.check_alpha(update.alpha)
    if isinstance(update.dropout, bool) or not 0 <= update.dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {update.dropout!r}")
    stack = layer.weight_shape()[: layer.stack_axes()]
    shape_a, shape_b = factors.factor_shapes(roles.stacked(len(stack)), stack + view, rank)
    if layer.zero_a:
        a = jnp.zeros(shape_a, jnp.float32)
        b = factors.initial_values(key, shape_b, rank, "gaussian", std=1.0)  # loralib Embedding
    else:
        a = factors.initial_values(key, shape_a, fan_in, update.init, update.std)
        b = jnp.zeros(shape_b, jnp.float32)
    scale = factors.scale(rank, alpha, update.scaling)
    pair = LowRank(a, b, alpha=alpha, scale=scale, dropout=float(update.dropout))
    _name_axes(layer, pair, len(stack))
    return pair


def _name_axes(layer: Any, pair: LowRank, stacked: int) -> None:
    """Factors have the logical axes of their weight, so they are sharded as it is."""
    roles = layer.roles()
    names = axes.names(getattr(layer, layer.weight))
    stack, view = names[:stacked], names[stacked:]
    if len(view) != roles.ndim:  # a convolution's groups: the view has an axis of its own for them
        view = (None,) * roles.ndim
    batch, inputs, outputs = (
        tuple(view[axis] for axis in role) for role in (roles.batch, roles.inputs, roles.outputs)
    )
    axes.name(pair.a, (*stack, *batch, *inputs, "rank"))
    axes.name(pair.b, (*stack, *batch, "rank", *outputs))


def delta(layer: Adapted) -> Float[Array, ...]:
    """The update of an adapted layer's weight, in the weight's shape (stack included), float32."""
    stack = layer.weight_shape()[: layer.stack_axes()]
    roles = layer.roles().stacked(len(stack))
    if isinstance(layer.lora, LowRank):
        own = layer.lora
        return factors.delta(roles, own.a[...], own.b[...], own.scale).reshape(layer.weight_shape())
    axis = roles.outputs[0]
    view = stack + layer.view()
    pieces = []
    for pair, _, size in layer.lora.slots():
        if pair is None:
            pieces.append(jnp.zeros((*view[:axis], size, *view[axis + 1 :]), jnp.float32))
        else:
            pieces.append(factors.delta(roles, pair.a[...], pair.b[...], pair.scale))
    return jnp.concatenate(pieces, axis=axis).reshape(layer.weight_shape())


def adapted_layers(model: nnx.Module) -> dict[str, Adapted]:
    """Every adapted layer of a model by path, in path order."""
    found = {
        "/".join(map(str, path)): module
        for path, module in nnx.iter_modules(model)
        if isinstance(module, Adapted)
    }
    return dict(sorted(found.items()))


def factor_pairs(model: nnx.Module) -> dict[str, LowRank]:
    """Every factor pair of an adapted model by the path of its leaves, without `/a` and `/b`."""
    return {
        "/".join(filter(None, (path, "lora", part))): pair
        for path, layer in adapted_layers(model).items()
        for part, pair in layer.lora.pairs().items()
    }


def seed_dropout(
    model: nnx.Module, key: Key[Array, ""], rates: Mapping[str, Float[Array, ""]] | None = None
) -> None:
    """Switches dropout on the LoRA branches on, in place, for the calls that follow.

    Every adapted layer gets its own key, derived from its path; a stack gets one per layer. Use it
    on the copy of the model that a train step builds, with a new key each step. `rates`, by path as
    in `factor_pairs` and possibly traced, replace the rates of the model.
    """
    for path, layer in adapted_layers(model).items():
        stack = layer.weight_shape()[: layer.stack_axes()]
        for part, pair in layer.lora.pairs().items():
            rate = (rates or {}).get("/".join(filter(None, (path, "lora", part))))
            if pair.dropout or rate is not None:
                own = jax.random.fold_in(key, zlib.crc32(f"{path}/{part}".encode()))
                pair.dropout_key = DropoutKey(jax.random.split(own, stack) if stack else own)
            if rate is not None:
                pair.dropout_rate = DropoutRate(jnp.broadcast_to(rate, stack))
