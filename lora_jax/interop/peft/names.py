"""The names that transformers gives the parameters of our models, for every layer of a stack."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Shaped

from lora_jax.models.decoder_classifier import ROOT
from lora_jax.models.layouts import LAYOUTS, Layout, from_torch, to_torch, torch_shape
from lora_jax.models.tensors import published_name

HEAD = "head/"
_WEIGHTS = ("kernel", "embedding")

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One of our parameters, or one layer of a stacked one.

    Attributes:
      path: ours; the layers of a stack share it.
      layer: its number; None for what is not stacked.
      shape: of one layer, as ours.
      published: the same as transformers has it.
      transposed: whether transformers stores it (out, in).
    """

    path: str
    layer: int | None
    shape: Shape
    published: Shape
    transposed: bool

    @property
    def module(self) -> str:
        """Path of our module that holds it."""
        return self.path.rpartition("/")[0]

    @property
    def is_table(self) -> bool:
        """Whether it is a table of embeddings."""
        return self.path.endswith("/embedding")

    def ours(self, value: Shaped[np.ndarray, ...]) -> Shaped[np.ndarray, ...]:
        """A tensor of transformers in our shape."""
        turned = from_torch(value) if self.transposed else value
        return np.ascontiguousarray(turned).reshape(self.shape)

    def theirs(self, value: Shaped[np.ndarray, ...]) -> Shaped[np.ndarray, ...]:
        """One layer of our leaf as transformers has it."""
        if not self.transposed:
            return np.ascontiguousarray(value.reshape(self.published))
        outputs, inputs, *window = self.published
        return np.ascontiguousarray(to_torch(value.reshape(*window, inputs, outputs)))


@dataclasses.dataclass(frozen=True)
class Names:
    """All parameters of a model by their names in transformers.

    Attributes:
      architecture: of the model, its model_type.
      depth: number of layers.
      prefix: of the names of all but heads; "" for a bare model, such as BertModel.
      leaves: by name of the tensor.
      weights: the matrices and tables by the name of their module.
      tied: names of modules that are the same as another one.
    """

    architecture: str
    depth: int
    prefix: str
    leaves: Mapping[str, Leaf]
    weights: Mapping[str, Leaf]
    tied: Mapping[str, str]

    def of_head(self, name: str) -> bool:
        """Whether a tensor is of the task head."""
        return name in self.leaves and self.leaves[name].path.startswith(HEAD)

    def by_path(self) -> dict[tuple[str, int | None], str]:
        """The names of the tensors by our path and the number of the layer."""
        return {(leaf.path, leaf.layer): name for name, leaf in self.leaves.items()}


def is_bare(architecture: str, tensors: list[str]) -> bool:
    """Whether an adapter is of a model without a head around it, such as BertModel.

    Args:
      architecture: of the base.
      tensors: names in the adapter without PEFT's own prefix.
    """
    layout = LAYOUTS[architecture]
    inner = tuple({f"{name.partition('.')[0]}." for name in layout.names.values()})
    return any(name.startswith(inner) for name in tensors) and not any(
        name.startswith(layout.prefix) for name in tensors
    )


def names(architecture: str, depth: int, shapes: Mapping[str, Shape], *, bare: bool) -> Names:
    """The names of a model's parameters.

    Args:
      architecture: its model_type, a key of `LAYOUTS`.
      depth: number of layers.
      shapes: of all leaves by path.
      bare: whether names are those of a model without a head around it.
    """
    layout = LAYOUTS[architecture]
    in_classifier = any(path.startswith(ROOT) for path in shapes)
    prefix = "" if bare else layout.prefix
    leaves: dict[str, Leaf] = {}
    for path, shape in shapes.items():
        inner = path.removeprefix(ROOT)
        if in_classifier and inner.startswith("lm_head/"):
            continue  # transformers' classifiers have none
        stacked = "{}" in layout.source(inner)[0]
        for layer in range(depth) if stacked else [None]:
            name = published_name(inner, layout, layer or 0)
            if inner.rpartition("/")[0] not in layout.head:
                name = prefix + name.removeprefix(layout.prefix)
            leaves[name] = _leaf(path, layer, shape[1:] if stacked else shape, layout)
    weights = {
        name.removesuffix(".weight"): leaf
        for name, leaf in leaves.items()
        if leaf.path.rpartition("/")[2] in _WEIGHTS
    }
    tied = {}
    if not in_classifier and not bare:
        tied = {
            theirs.removesuffix(".weight"): prefix + same.removesuffix(".weight")
            for theirs, same in layout.tied.items()
            if theirs not in leaves
        }
    return Names(architecture, depth, prefix, leaves, weights, tied)


def _leaf(path: str, layer: int | None, shape: Shape, layout: Layout) -> Leaf:
    inner = path.removeprefix(ROOT)
    transposed = layout.source(inner)[1]
    published = layout.published_shape(inner, shape)
    return Leaf(path, layer, shape, torch_shape(published) if transposed else published, transposed)


def outputs(weight: Leaf) -> Shape:
    """Sizes of the outputs of a matrix, or of the features of a table."""
    return weight.shape[1:]


def width(weight: Leaf) -> int:
    """Number of outputs of a matrix, as transformers counts them."""
    return math.prod(outputs(weight))
