"""The factors of trained updates as matrices, from an adapter folder or from an adapted model.

The paper writes Delta W = B A with A (r, d_in) and B (d_out, r). Ours are transposed and stacked:
`a` (layers, inputs, rank) and `b` (layers, rank, outputs), Delta W^T = scale * a b. So the paper's
right-singular vectors of A, which lie in the input space, are the left-singular vectors of `a`.

Only the leaves `a` and `b` are read. Adapters of other methods may hold further leaves beside them,
such as DoRA's `magnitude`. The factors and their subspaces are well defined there too, but scale * a b
is not the whole update: DoRA rescales W + scale * a b to trained norms, so its merged weight minus W is
another matrix.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lora_jax.adapters import Adapter
from lora_jax.analysis.similarity import Matrix
from lora_jax.errors import InputError
from lora_jax.factor_leaves import factors
from lora_jax.low_rank import layers
from lora_jax.low_rank.pairs import LowRankUpdate, pairs_with_weights
from lora_jax.low_rank.weights import WeightView
from lora_jax.methods.stored_settings import refuse_other_updates, settings_of_layer

_SCANNED = re.compile(r"(.*/)?layers/((first|last_\d+)/)?block/.*")  # the stacks of lora_jax.models


@dataclasses.dataclass(frozen=True)
class FactorPair:
    """The factors of one kind of weight in all layers.

    Attributes:
      a: float32.
      b: float32.
      scale: alpha/r or alpha/sqrt(r); LoRA's effective update is scale * a b.
    """

    a: Float[Matrix, "layers inputs rank"]
    b: Float[Matrix, "layers rank outputs"]
    scale: float

    @property
    def rank(self) -> int:
        """Number of directions of the factors."""
        return int(self.a.shape[-1])

    @property
    def layers(self) -> int:
        """Number of layers (times that of independent maps in a layer, such as experts)."""
        return int(self.a.shape[0])


def from_adapter(adapter: Adapter) -> dict[str, FactorPair]:
    """The factor pairs of an adapter folder by path of their layer; no base weights are needed.

    A part of a fused projection has its name appended to the path: `.../attention/qkv/q`. Further leaves
    of a layer, such as DoRA's `magnitude`, are left out: the update of DoRA is not scale * a b alone.

    Raises:
      ValueError: the adapter has no LoRA factors or only one of a pair, no target of its method
        matches them, or their shapes do not show which axes are layers.
    """
    found = {
        place: leaves for place, leaves in factors(adapter).items() if leaves.keys() & {"a", "b"}
    }
    if not found:
        raise InputError(
            f"the adapter has no LoRA factors (its method is {adapter.method}); the analysis is "
            "about low-rank updates"
        )
    refuse_other_updates(adapter.method, "the analysis")
    pairs = {}
    paths = {place.layer for place in found}
    for place, leaves in found.items():
        if missing := {"a", "b"} - leaves.keys():
            raise InputError(
                f"the adapter holds only one factor of {place.name}; factor {min(missing)} is missing"
            )
        a, b = leaves["a"], leaves["b"]
        settings = settings_of_layer(adapter.method, place.layer, a.shape[-1], paths, place.part)
        pairs[place.name] = _pair(a, b, settings.scale, stack_axes(a, b, place.name))
    return pairs


def from_model(model: nnx.Module) -> dict[str, FactorPair]:
    """The factor pairs of an adapted model by path of their layer (and part), as `from_adapter`.

    As there, the update of DoRA is not scale * a b alone.

    Raises:
      ValueError: the model has no adapted layer.
    """
    return {
        name: _pair(pair.a[...], pair.b[...], pair.scale, len(weight.roles.batch))
        for name, pair, weight in _adapted_weights(model)
    }


def base_matrices(model: nnx.Module) -> dict[str, Float[np.ndarray, "_layers _inputs _outputs"]]:
    """The pre-trained weights of an adapted model's layers, with the keys of `from_model`.

    The inputs come first: the paper's W transposed. Float32.

    Raises:
      ValueError: the model has no adapted layer.
    """
    return {
        name: np.asarray(weight.roles.to_matrices(weight.values()))
        for name, _, weight in _adapted_weights(model)
    }


def _adapted_weights(model: nnx.Module) -> Iterator[tuple[str, LowRankUpdate, WeightView]]:
    """Yields the path of every adapted layer (with the part's name appended), its factors and weight."""
    adapted = layers.adapted_layers(model)
    if not adapted:
        raise InputError("the model has no adapted layer; insert a method such as lora(...) first")
    for path, layer in adapted.items():
        for part, (pair, weight) in pairs_with_weights(layer.lora, WeightView(layer)).items():
            yield "/".join(filter(None, (path, part))), pair, weight


def _pair(
    a: Float[Array | np.ndarray, ...],
    b: Float[Array | np.ndarray, ...],
    scale: float,
    stack_axes: int,
) -> FactorPair:
    """Factors with any number of axes as matrices; the first `stack_axes` axes are layers."""
    maps, rank = math.prod(a.shape[:stack_axes]), a.shape[-1]
    return FactorPair(
        np.asarray(a, np.float32).reshape(maps, -1, rank),
        np.asarray(b, np.float32).reshape(maps, rank, -1),
        scale,
    )


def stack_axes(a: np.ndarray, b: np.ndarray, name: str) -> int:
    """How many leading axes hold layers: b's rank axis follows them, and a has the same ones."""
    rank = a.shape[-1]
    possible = [
        n
        for n in range(min(a.ndim, b.ndim) - 1)
        if a.shape[:n] == b.shape[:n] and b.shape[n] == rank
    ]
    if len(possible) == 1:
        return possible[0]
    # Of a convolution the first axis is that of its groups; of a projection of many heads that of a stack.
    wide = a.ndim > 3 and b.ndim == 3
    if 1 in possible and (wide or (a.ndim == 3 and _SCANNED.fullmatch(name))):
        return 1
    raise InputError(
        f"the shapes of {name}, a {a.shape} and b {b.shape}, leave open which axes are layers; put "
        "the adapter onto its model and use from_model"
    )


def shared(
    first: Mapping[str, FactorPair], second: Mapping[str, FactorPair], where: str = "the adapters"
) -> list[str]:
    """The names of the weights that two adapters both adapt, in the order of the first.

    Their ranks and numbers of outputs may differ.

    Args:
      first: factor pairs by name, from `from_adapter` or `from_model`.
      second: those of the other adapter.
      where: what is compared, for messages.

    Raises:
      ValueError: they have no name in common, or the numbers of layers or of inputs differ.
    """
    names = [name for name in first if name in second]
    if not names:
        raise InputError(
            f"{where} adapt no layer in common: {sorted(first)[:3]} and {sorted(second)[:3]}"
        )
    for name in names:
        sizes, other_sizes = first[name].a.shape[:2], second[name].a.shape[:2]
        if sizes != other_sizes:
            raise InputError(
                f"{where}: {name} has (layers, inputs) {sizes} in the first and {other_sizes} in the "
                "second"
            )
    return names
