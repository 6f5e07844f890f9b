"""What a tuned model changed: every weight matrix before, and what was added to it, whatever the method.

An adapted layer's update is that of its child `lora`. Where a method trains the weights of the base
themselves (full fine-tuning, FT-Top2, rows of tokens), or where an update has been merged, it is the
difference to the base. Matrices have the inputs first: the paper's W transposed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from lora_jax import surgery
from lora_jax.errors import InputError
from lora_jax.expressions import Expression
from lora_jax.low_rank.contraction import as_matrices
from lora_jax.low_rank.dora import DoRAUpdate
from lora_jax.low_rank.layers import AdaptedLayer, adapted_layers, lora_layer_of
from lora_jax.low_rank.limits import as_lora_layer
from lora_jax.low_rank.merge import strip
from lora_jax.low_rank.updates import FactorsUpdate, PartUpdate
from lora_jax.low_rank.weights import WeightView

Maps = Float[np.ndarray, "maps inputs outputs"]
Factors = tuple[Float[np.ndarray, "maps inputs rank"], Float[np.ndarray, "maps rank outputs"]]
_ROUNDINGS = (
    2.0  # of a merged value: those of the sum and of the product in it, half a unit each, and more
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """One kind of weight in all its maps: stacked layers, experts, groups of a convolution.

    Attributes:
      path: of the layer or parameter, with the name of the part of a fused projection behind it.
      before: the weights of the base, float64.
      update: what was added to them, float64.
      factors: the two matrices whose product the update is, scale included; None where it is none.
      noise: the largest singular value of the update that rounding alone may have made, for every map;
        0 for the product of factors.
    """

    path: str
    before: Maps
    update: Maps
    factors: Factors | None
    noise: Float[np.ndarray, " maps"]


def changes(model: nnx.Module, base: nnx.Module, head: str | None = None) -> Iterator[Change]:
    """Yields every weight matrix that a model changed, in the order of adapted layers, then of the others.

    Vectors (biases, norms) are no matrices, and parameters without a registered layer have no known
    inputs and outputs, unless they were adapted: they are left out. So is what a method inserts that is
    no update of a weight (bottleneck adapters, special tokens).

    Args:
      model: adapted, merged, or tuned as a whole.
      base: the model before; a stack that the model has in parts is whole here.
      head: regular expression for the paths of leaves that are not of the base, such as a task head's.

    Raises:
      ValueError: a weight has another shape in the base.
    """
    of_base = _layers(base)
    adapted = adapted_layers(model)
    for path, layer in adapted.items():
        yield from _of_adapted(path, layer, of_base.get(path))
    of_head = Expression(head, "'head'") if head is not None else None
    for path, plain in _layers(_without_updates(model)).items():
        other = of_base.get(path)
        if other is None or path in adapted:
            continue
        if of_head is not None and of_head.matches(f"{path}/{_weight_name(plain)}"):
            continue
        found = _difference(path, plain, other)
        if found is not None:
            yield found


def _layers(model: nnx.Module) -> dict[str, nnx.Module]:
    """The layers of the model itself that have, or can become, a LoRA layer, by path."""
    modules = surgery.pretrained_modules(model).items()
    return {path: module for path, module in modules if lora_layer_of(module) is not None}


def _weight_name(layer: nnx.Module) -> str:
    kind = lora_layer_of(layer)
    assert kind is not None
    return kind.weight


def _without_updates(model: nnx.Module) -> nnx.Module:
    """The model's own weights as they are now: trained ones, rows of tokens in their places, stacks whole."""
    copy = nnx.clone(model)
    surgery.absorb(copy)
    if surgery.changed_module(copy) is not None:
        return strip(copy)
    surgery.undivide(copy)
    return copy


def _of_adapted(path: str, layer: AdaptedLayer, other: nnx.Module | None) -> Iterator[Change]:
    """The updates of an adapted layer's parts, and what else changed in them since the base."""
    for part, (member, weight) in layer.lora.members_with_weights(WeightView(layer)).items():
        name = "/".join(filter(None, (path, part)))
        now = _matrices(weight)
        before = now
        if other is not None:
            with as_lora_layer(other, path) as of_base:
                before = _matrices(dataclasses.replace(weight, layer=of_base))
            _check_shapes(name, now, before)
        factors = _factors(member, weight)
        if factors is not None:
            update, noise = factors[0] @ factors[1], np.zeros(len(now))
        else:
            update = np.asarray(weight.roles.to_matrices(member.delta(weight)), np.float64)
            noise = _noise(now + update, np.float32)
        if not np.array_equal(now, before):  # the weight itself was trained, or packed
            update, factors = update + (now - before), None
            noise = noise + _noise(now, np.float32)
        yield Change(path=name, before=before, update=update, factors=factors, noise=noise)


def _factors(member: PartUpdate, weight: WeightView) -> Factors | None:
    if not isinstance(member, FactorsUpdate) or isinstance(member, DoRAUpdate):
        return None
    a, b = (np.asarray(factor, np.float64) for factor in member.factors(weight))
    a, b = (np.asarray(factor) for factor in as_matrices(weight.roles, a, b))
    return a * float(member.scale), b


def _difference(path: str, layer: nnx.Module, other: nnx.Module) -> Change | None:
    """What differs between two layers that have no update; None where nothing does."""
    with as_lora_layer(layer, path) as now, as_lora_layer(other, path) as then:
        if now.is_abstract() or then.is_abstract():
            raise InputError(
                f"{path or 'the layer'} has a shape and no values; load the weights first"
            )
        after, before = _matrices(WeightView(now)), _matrices(WeightView(then))
        types = now.weight_values().dtype, then.weight_values().dtype
    _check_shapes(path, after, before)
    if np.array_equal(after, before):
        return None
    noise = np.maximum(_noise(after, types[0]), _noise(before, types[1]))
    return Change(path=path, before=before, update=after - before, factors=None, noise=noise)


def _matrices(weight: WeightView) -> Maps:
    return np.asarray(weight.roles.to_matrices(weight.values()), np.float64)


def _noise(values: Maps, dtype: object) -> Float[np.ndarray, " maps"]:
    """A bound of the spectral norm of what rounding to a type does to matrices: that of Frobenius's."""
    norms: np.ndarray = np.linalg.norm(values, axis=(-2, -1))
    return _ROUNDINGS * float(jnp.finfo(dtype).eps) * norms


def _check_shapes(path: str, now: np.ndarray, before: np.ndarray) -> None:
    """Raises InputError for weights of different layers."""
    if now.shape != before.shape:
        raise InputError(
            f"{path or 'the layer'} has (maps, inputs, outputs) {now.shape} in the model and {before.shape} "
            "in the base: they are not of one base; give the model that it was made from"
        )
