"""Converts our adapters to loralib state dicts: the inverse of `loralib.from_state_dict`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

import numpy as np
from jaxtyping import Shaped

from lora_jax.errors import InputError
from lora_jax.interop.loralib_factors import Arrays, transposed
from lora_jax.interop.loralib_names import ARCHITECTURES, FUSED, Architecture, guess
from lora_jax.method import Method
from lora_jax.methods.stored_settings import settings_of_layer


def to_state_dict(
    values: Mapping[str, np.ndarray], architecture: str | None = None, prefix: str = ""
) -> Arrays:
    """Converts an adapter, bit for bit; PyTorch loads the result with `strict=False`.

    Args:
      values: the adapter's leaves by path, factors and head.
      architecture: `roberta`, `bert`, `deberta-v2` or `gpt2`; needed for an encoder without a head.
      prefix: text to put before every key. The authors' GPT-2 code needs `module.`: it silently
        ignores keys that begin with `transformer.`.

    Raises:
      ValueError: the architecture is unknown, or loralib has no place for some leaves, such as DoRA's
        magnitudes; the message names them.
    """
    names = _architecture(values, architecture)
    result: Arrays = {}
    pair_by_module: dict[str, _Pair] = {}
    left = dict(values)
    for theirs, ours in names.modules.items():
        path = f"{names.block}/{ours}/lora"
        fused = theirs in names.fused
        pairs: list[_Pair] = []
        for part in FUSED if fused else ("",):
            path_a, path_b = (f"{path}/{part}/{side}".replace("//", "/") for side in "ab")
            if path_a in left and path_b in left:
                a, b = np.asarray(left.pop(path_a)), np.asarray(left.pop(path_b))
                pairs.append((a, _without_parts_axis(b, path_b) if fused else b))
        if pairs:
            pair_by_module[theirs] = _joined(pairs, path)
    for key, path in names.head.items():
        if path in left:
            leaf = np.asarray(left.pop(path))
            result[prefix + key] = transposed(leaf) if leaf.ndim == 2 else leaf
    if left:
        raise _no_place_error(left, names)
    layers = [
        (f"{prefix}{names.root}.{layer}.{theirs}.lora_{side}", transposed(factor[layer]))
        for theirs, pair in pair_by_module.items()
        for side, factor in zip("AB", pair, strict=True)
        for layer in range(len(factor))
    ]
    return dict(layers) | result


_Pair = tuple[np.ndarray, np.ndarray]  # a (layers, inputs, r) and b (layers, r, outputs)
_FIRST_FACTOR = re.compile(r"(?P<layer>.*)/lora/([^/]+/)?a")
_MAGNITUDE = re.compile(r"(.*/)?lora/([^/]+/)?magnitude")


def _no_place_error(paths: Iterable[str], names: Architecture) -> InputError:
    """For leaves that a loralib state dict cannot hold."""
    paths = sorted(paths)
    if magnitudes := [path for path in paths if _MAGNITUDE.fullmatch(path)]:
        return InputError(
            f"{len(magnitudes)} leaves have no place in a loralib file, for example {magnitudes[0]}: "
            "a magnitude belongs to DoRA, and loralib's layers know LoRA only, so the factors alone "
            "would be another model. Merge the adapter into its base (lora_jax.merge) and export the "
            "merged weights instead"
        )
    return InputError(
        f"{len(paths)} leaves have no place in a loralib file of {names.name}, for example "
        f"{paths[0]}; it holds both factors of {', '.join(names.modules.values())} under "
        f"{names.block}, and the head"
    )


def _without_parts_axis(
    b: Shaped[np.ndarray, ...], path: str
) -> Shaped[np.ndarray, "layers r width"]:
    """Removes the parts axis of our (layers, r, 1, width): the outputs of one part are (1, width)."""
    if b.ndim != 4 or b.shape[2] != 1:
        raise InputError(f"{path} has shape {b.shape}, expected (layers, rank, 1, width)")
    return b[:, :, 0]


def _joined(pairs: Sequence[_Pair], path: str) -> _Pair:
    """One pair (in our layout) for all parts of a fused module, as MergedLinear has it."""
    a, b = zip(*pairs, strict=True)
    shapes = {(part_a.shape, part_b.shape) for part_a, part_b in pairs}
    if len(shapes) > 1:
        raise InputError(
            f"{path}: loralib has one rank and width for all parts, these have {shapes}"
        )
    return np.concatenate(a, axis=-1), np.concatenate(b, axis=-1)


class LayerSettings(TypedDict, total=False):
    """The arguments of a loralib layer; only a MergedLinear has `enable_lora`."""

    r: int
    lora_alpha: float
    lora_dropout: float
    enable_lora: list[bool]


def layer_settings(
    method: Method, values: Mapping[str, np.ndarray], architecture: str | None = None
) -> dict[str, LayerSettings]:
    """The arguments with which loralib's layers must be built to take `to_state_dict`'s factors.

    Args:
      method: the method of the adapter.
      values: its leaves by path.
      architecture: as in `to_state_dict`.

    Returns:
      Arguments by the module's name in loralib.
    """
    names = _architecture(values, architecture)
    ranks = {
        match["layer"]: value.shape[-1]
        for path, value in values.items()
        if (match := _FIRST_FACTOR.fullmatch(path))
    }
    arguments: dict[str, LayerSettings] = {}
    for theirs, ours in names.modules.items():
        layer = f"{names.block}/{ours}"
        if layer not in ranks:
            continue
        settings = settings_of_layer(method, layer, ranks[layer], ranks)
        arguments[theirs] = {
            "r": settings.rank,
            "lora_alpha": settings.plain_alpha,
            "lora_dropout": settings.dropout,
        }
        if settings.parts:
            arguments[theirs]["enable_lora"] = [part in settings.parts for part in FUSED]
    return arguments


def _architecture(paths: Iterable[str], name: str | None) -> Architecture:
    if name is None:
        return guess(paths)
    if name not in ARCHITECTURES:
        raise InputError(f"architecture must be one of {sorted(ARCHITECTURES)}, got {name!r}")
    return ARCHITECTURES[name]
