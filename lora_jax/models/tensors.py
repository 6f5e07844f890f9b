"""Hugging Face's tensors: reading their files, and the way to our leaves and back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from lora_jax.errors import InputError, MissingFileError
from lora_jax.files import read_json
from lora_jax.models.layouts import Layout


def read_tensors(folder: Path) -> dict[str, jax.Array]:
    """All tensors of a folder's model.safetensors, or of the shards that its index names.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is truncated or not safetensors.
    """
    index = folder / "model.safetensors.index.json"
    shards = read_json(index)["weight_map"].values() if index.is_file() else ["model.safetensors"]
    tensors: dict[str, jax.Array] = {}
    for name in sorted(set(shards)):
        path = folder / name
        if not path.is_file():
            present = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
            raise MissingFileError(
                f"{path} is missing (the folder holds {present}). Weights are read from safetensors "
                "only; convert others with transformers: model.save_pretrained(folder)"
            )
        try:
            with safe_open(path, framework="flax") as file:
                tensors.update({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise InputError(
                f"{path} cannot be read ({error}); it is truncated or not safetensors: fetch it again"
            ) from error
    return tensors


def from_published(
    tensors: Mapping[str, jax.Array],
    layout: Layout,
    shapes: Mapping[str, tuple[int, ...]],
    depth: int,
    where: str,
) -> dict[str, jax.Array]:
    """Our leaves from published tensors: stacked over layers, kernels (in, out).

    Args:
      tensors: by published name.
      layout: of the architecture.
      shapes: of the leaves to make, by path.
      depth: number of layers.
      where: folder and architecture, for messages.

    Raises:
      ValueError: tensors are missing, extra or misshapen; the message names them.
    """
    plain = {_modern(name.removeprefix(layout.prefix)): value for name, value in tensors.items()}
    used: set[str] = set()
    problems: dict[str, list[str]] = {"missing": [], "extra": [], "misshapen": []}
    leaves = {}
    for path, shape in sorted(shapes.items()):
        template, transpose = layout.source(path)
        stacked = "{}" in template
        names = [template.format(layer) for layer in (range(depth) if stacked else [0])]
        if missing := [name for name in names if name not in plain]:
            problems["missing"] += missing
            continue
        used.update(names)
        parts = [plain[name].T if transpose else plain[name] for name in names]
        layer_shape = shape[1:] if stacked else shape
        expected = layout.published_shape(path, layer_shape)
        if misshapen := _misshapen(names, parts, expected):
            problems["misshapen"] += misshapen
            continue
        parts = [part.reshape(layer_shape) for part in parts]
        leaves[path] = jnp.stack(parts) if stacked else parts[0]
    unknown = plain.keys() - used
    problems["extra"] = [name for name in unknown if not re.fullmatch(layout.unused, name)]
    if any(problems.values()):
        raise InputError(
            f"the tensors of {where} do not fit its config.json: "
            + "; ".join(_listed(kind, names) for kind, names in problems.items() if names)
        )
    return leaves


def _misshapen(
    names: Sequence[str], parts: Sequence[jax.Array], expected: tuple[int, ...]
) -> list[str]:
    return [
        f"{name} is {part.shape}, config.json asks for {expected}"
        for name, part in zip(names, parts, strict=True)
        if part.shape != expected
    ]


def _listed(kind: str, names: Sequence[str]) -> str:
    more = " ..." if len(names) > 5 else ""
    return f"{len(names)} {kind}: {', '.join(sorted(names)[:5])}{more}"


def to_published(
    params: Mapping[str, jax.Array | np.ndarray], layout: Layout
) -> dict[str, np.ndarray]:
    """Published tensors from our leaves by path: the inverse of `from_published`."""
    tensors = {}
    for path, value in params.items():
        template, transpose = layout.source(path)
        stacked = "{}" in template
        parts = np.asarray(value) if stacked else np.asarray(value)[None]
        for layer, leaf in enumerate(parts):
            name = layout.prefix + template.format(layer)
            part = leaf.reshape(layout.published_shape(path, leaf.shape))
            tensors[name] = np.ascontiguousarray(part.T if transpose else part)
    return tensors


def _modern(name: str) -> str:
    """A tensor's name as files have it today; the original BERT files keep those of TensorFlow."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )
