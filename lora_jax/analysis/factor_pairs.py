"""The factors of trained updates as matrices, from an adapter folder or from an adapted model.

The paper writes Delta W = B A with A (r, d_in) and B (d_out, r). Ours are transposed and stacked:
`a` (layers, inputs, rank) and `b` (layers, rank, outputs), Delta W^T = scale * a b. So the paper's
right-singular vectors of A, which live in the input space, are the left-singular vectors of `a`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lora_jax.low_rank import contraction, layers
from lora_jax.adapters import Adapter
from lora_jax.methods.lora import LoRAInsertion
from lora_jax.low_rank.updates import LowRankUpdate

_LEAF = re.compile(r"(?:(?P<layer>.*)/)?lora/(?:(?P<part>[^/]+)/)?(?P<side>[ab])")
_SCANNED = re.compile(r"(.*/)?layers/((first|last_\d+)/)?block/.*")  # the stacks of lora_jax.models


@dataclasses.dataclass(frozen=True)
class FactorPair:
    """The updates of one kind of weight in all layers: scale * a b for every layer.

    Attributes:
      a: (layers, inputs, rank), float32.
      b: (layers, rank, outputs), float32.
      scale: alpha/r or alpha/sqrt(r); the effective update includes it.
    """

    a: Float[np.ndarray, "layers inputs rank"]
    b: Float[np.ndarray, "layers rank outputs"]
    scale: float

    @property
    def rank(self) -> int:
        """Number of directions of the factors."""
        return self.a.shape[-1]

    @property
    def layers(self) -> int:
        """Number of layers (and of independent maps in a layer, such as experts)."""
        return self.a.shape[0]


def from_adapter(adapter: Adapter) -> dict[str, FactorPair]:
    """The factor pairs of an adapter folder by path of their layer; no base weights are needed.

    A part of a fused projection has its name behind the path: `.../attention/qkv/q`.

    Raises:
      ValueError: the adapter has no LoRA contraction, or their shapes leave open which axes are layers.
    """
    sides: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for path, value in sorted(adapter.values.items()):
        if match := _LEAF.fullmatch(path):
            key = match["layer"] or "", match["part"] or ""
            sides.setdefault(key, {})[match["side"]] = value
    if not sides:
        raise ValueError(
            f"the adapter has no LoRA factors (its method is {adapter.method}); the analysis is "
            "about low-rank updates"
        )
    result = {}
    for (layer, part), pair in sides.items():
        name = "/".join(filter(None, (layer, part)))
        a, b = pair["a"], pair["b"]
        result[name] = _pair(a, b, _scale(adapter, layer), _stack_axes(a, b, name))
    return result


def from_model(model: nnx.Module) -> dict[str, FactorPair]:
    """The factor pairs of an adapted model by path of their layer (and part).

    Raises:
      ValueError: the model has no adapted layer.
    """
    return {
        name: _pair(
            pair.a[...], pair.b[...], pair.scale, layer.stack_axes() + len(layer.roles().batch)
        )
        for name, layer, pair, _ in _adapted(model)
    }


def base_matrices(model: nnx.Module) -> dict[str, Float[np.ndarray, "layers inputs outputs"]]:
    """The pre-trained weights of an adapted model's layers, with the keys of `from_model`.

    The inputs come first: the paper's W transposed. Float32.

    Raises:
      ValueError: the model has no adapted layer.
    """
    result = {}
    for name, layer, _, (start, size) in _adapted(model):
        stacked = layer.stack_axes()
        roles = layer.roles().stacked(stacked)
        stack = layer.weight_shape()[:stacked]
        whole = np.asarray(getattr(layer, layer.weight)[...], np.float32)
        view = whole.reshape(*stack, *layer.view())
        part = np.take(view, np.arange(start, start + size), axis=roles.outputs[0])
        batch, inputs, outputs = roles.sizes(part.shape)
        ordered = np.transpose(part, roles.batch + roles.inputs + roles.outputs)
        result[name] = ordered.reshape(math.prod(batch), math.prod(inputs), math.prod(outputs))
    return result


def _adapted(
    model: nnx.Module,
) -> Iterator[tuple[str, layers.LoRALayer, LowRankUpdate, tuple[int, int]]]:
    """Yields name, layer, pair, and the pair's (start, size) along the first output axis."""
    adapted = layers.adapted_layers(model)
    if not adapted:
        raise ValueError("the model has no adapted layer; insert a method such as lora(...) first")
    for path, layer in adapted.items():
        if isinstance(layer.lora, LowRankUpdate):
            size = layer.view()[layer.roles().outputs[0]]
            yield path, layer, layer.lora, (0, size)
            continue
        for part, (pair, start, size) in zip(layer.lora.names, layer.lora.slots(), strict=True):
            if pair is not None:
                yield "/".join(filter(None, (path, part))), layer, pair, (start, size)


def _pair(a: Array | np.ndarray, b: Array | np.ndarray, scale: float, stacked: int) -> FactorPair:
    maps, rank = math.prod(a.shape[:stacked]), a.shape[-1]
    return FactorPair(
        np.asarray(a, np.float32).reshape(maps, -1, rank),
        np.asarray(b, np.float32).reshape(maps, rank, -1),
        scale,
    )


def _scale(adapter: Adapter, layer: str) -> float:
    """The scale that the adapter's method gives to a layer; the first matching target counts."""
    for insertion in adapter.method.insertions:
        if isinstance(insertion, LoRAInsertion):
            for pattern, own in insertion.targets:
                if re.fullmatch(pattern, layer):
                    return contraction.scale(own.rank, own.alpha, own.scaling)
    raise ValueError(f"no target of the adapter's method matches its factors at {layer}")


def _stack_axes(a: np.ndarray, b: np.ndarray, name: str) -> int:
    """How many leading axes hold layers: b's rank axis follows them, and a has the same ones."""
    rank = a.shape[-1]
    possible = [
        n
        for n in range(min(a.ndim, b.ndim) - 1)
        if a.shape[:n] == b.shape[:n] and b.shape[n] == rank
    ]
    if len(possible) == 1:
        return possible[0]
    if 1 in possible and a.ndim == 3 and _SCANNED.fullmatch(name):
        return 1
    raise ValueError(
        f"the shapes of {name}, a {a.shape} and b {b.shape}, leave open which axes are layers; put "
        "the adapter onto its model and use from_model"
    )


def shared(
    first: Mapping[str, FactorPair], second: Mapping[str, FactorPair], where: str = "the adapters"
) -> list[str]:
    """The layers that two adapters both adapt, with as many maps and inputs.

    Raises:
      ValueError: they have none in common, or a layer has another shape in each.
    """
    names = [name for name in first if name in second]
    if not names:
        raise ValueError(
            f"{where} adapt no layer in common: {sorted(first)[:3]} and {sorted(second)[:3]}"
        )
    for name in names:
        one, other = first[name].a.shape[:2], second[name].a.shape[:2]
        if one != other:
            raise ValueError(
                f"{where}: {name} has (layers, inputs) {one} in one and {other} in the other"
            )
    return names
