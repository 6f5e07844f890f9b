"""Hugging Face's tensors: the way from their names and shapes to our leaves, and back."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.errors import InputError
from lora_jax.models.layouts import Layout

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where one of our leaves comes from.

    Attributes:
      names: of the tensors in the files: one, or one of every layer.
      transposed: whether they are stored (out, in), or (out, in, height, width).
      shape: of our leaf.
      stacked: whether the leaf has a first axis of layers.
    """

    names: tuple[str, ...]
    transposed: bool
    shape: Shape
    stacked: bool

    def leaf(self, values: Mapping[str, np.ndarray]) -> jax.Array:
        """Our leaf from the values of the tensors."""
        shape = self.shape[1:] if self.stacked else self.shape
        parts = [_ours(values[n]) if self.transposed else values[n] for n in self.names]
        parts = [part.reshape(shape) for part in parts]
        return jnp.asarray(np.stack(parts) if self.stacked else parts[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How the tensors of a folder make up a model.

    Attributes:
      sources: of every leaf, by path.
      tied: tensors that must be equal to another one.
      heads: tensors of heads that are not used, sorted.
    """

    sources: Mapping[str, Source]
    tied: Mapping[str, str]
    heads: tuple[str, ...]

    def names(self) -> list[str]:
        """All tensors whose values are needed."""
        used = [name for source in self.sources.values() for name in source.names]
        return [*used, *self.tied]


def plan(
    tensors: Mapping[str, Shape],
    layout: Layout,
    shapes: Mapping[str, Shape],
    depth: int,
    where: str,
) -> Plan:
    """Finds the tensors of our leaves by the shapes in the files alone: nothing is read or made.

    Args:
      tensors: shapes by published name.
      layout: of the architecture.
      shapes: of the leaves to make, by path.
      depth: number of layers.
      where: folder and architecture, for messages.

    Raises:
      ValueError: tensors are missing, extra, misshapen, or there twice; the message names them.
    """
    plain = _plain_names(tensors, layout, where)
    used: set[str] = set()
    problems: dict[str, list[str]] = {"missing": [], "extra": [], "misshapen": []}
    sources = {}
    for path, shape in sorted(shapes.items()):
        template, transposed = layout.source(path)
        stacked = "{}" in template
        names = [template.format(layer) for layer in (range(depth) if stacked else [0])]
        if missing := [name for name in names if name not in plain]:
            problems["missing"] += missing
            continue
        used.update(names)
        expected = layout.published_shape(path, shape[1:] if stacked else shape)
        expected = (
            tuple(expected[axis] for axis in _order(len(expected))) if transposed else expected
        )
        problems["misshapen"] += [
            f"{name} is {tensors[plain[name]]}, config.json asks for {expected}"
            for name in names
            if tensors[plain[name]] != expected
        ]
        sources[path] = Source(
            names=tuple(plain[name] for name in names), transposed=transposed, shape=shape,
            stacked=stacked,
        )  # fmt: skip
    unused = sorted(plain.keys() - used)
    known = rf"{layout.heads}|{layout.buffers}"
    problems["extra"] = [
        name for name in unused if name not in layout.tied and not re.fullmatch(known, name)
    ]
    if any(problems.values()):
        remedies = {
            remedy
            for start, remedy in layout.needed.items()
            if any(name.startswith(start) for name in problems["missing"])
        }
        raise InputError(
            f"the tensors of {where} do not fit its config.json: "
            + "; ".join(_listed(kind, names) for kind, names in problems.items() if names)
            + "".join(f". {remedy}" for remedy in remedies)
        )
    return Plan(
        sources=sources,
        tied={plain[a]: plain[b] for a, b in layout.tied.items() if a in plain and a not in used},
        heads=tuple(plain[name] for name in unused if re.fullmatch(layout.heads, name)),
    )


def _plain_names(tensors: Iterable[str], layout: Layout, where: str) -> dict[str, str]:
    """The names in the files by the layout's: files have them with and without the prefix."""
    plain: dict[str, str] = {}
    for name in sorted(tensors):
        key = _modern(name.removeprefix(layout.prefix))
        for old, new in layout.older.items():
            key = key.replace(old, new)
        if key in plain:
            raise InputError(
                f"the tensors of {where} are ambiguous: {plain[key]} and {name} are two names of one "
                "tensor"
            )
        plain[key] = name
    return plain


def _order(ndim: int) -> tuple[int, ...]:
    """The axes of a kernel of ours, inputs and outputs last, in the order that PyTorch has them in."""
    outputs, inputs, window = ndim - 1, ndim - 2, range(ndim - 2)
    return (outputs, inputs, *window)


def _ours(kernel: np.ndarray) -> np.ndarray:
    """A kernel of PyTorch in the order of our axes."""
    return kernel.transpose(np.argsort(_order(kernel.ndim)))


def _listed(kind: str, names: Sequence[str]) -> str:
    more = " ..." if len(names) > 5 else ""
    return f"{len(names)} {kind}: {', '.join(sorted(names)[:5])}{more}"


def to_published(
    params: Mapping[str, jax.Array | np.ndarray], layout: Layout
) -> dict[str, np.ndarray]:
    """Published tensors from our leaves by path: the inverse of `Source.leaf`."""
    return {name: make() for name, make in published_tensors(params, layout).items()}


def published_tensors(
    params: Mapping[str, jax.Array | np.ndarray], layout: Layout
) -> dict[str, Callable[[], np.ndarray]]:
    """The same, each one to be made when it is needed."""

    def make(leaf: np.ndarray, path: str, transpose: bool) -> np.ndarray:
        part = leaf.reshape(layout.published_shape(path, leaf.shape))
        return np.ascontiguousarray(part.transpose(_order(part.ndim)) if transpose else part)

    tensors: dict[str, Callable[[], np.ndarray]] = {}
    for path, value in params.items():
        template, transpose = layout.source(path)
        stacked = "{}" in template
        parts = np.asarray(value) if stacked else np.asarray(value)[None]
        for layer, leaf in enumerate(parts):
            name = published_name(path, layout, layer)
            tensors[name] = functools.partial(make, leaf, path, transpose)
    return tensors


def published_name(path: str, layout: Layout, layer: int = 0) -> str:
    """The whole published name of one of our leaves, or of one layer of it."""
    is_head = path.rpartition("/")[0] in layout.head
    return ("" if is_head else layout.prefix) + layout.source(path)[0].format(layer)


def _modern(name: str) -> str:
    """A tensor's name as files have it today; the original BERT files keep those of TensorFlow."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )
