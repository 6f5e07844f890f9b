"""Our updates as PEFT has them: the factors of every module of every layer, and their settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from lora_jax import factor_leaves
from lora_jax.adapter_files import Adapter
from lora_jax.errors import InputError
from lora_jax.interop.peft.layers import uncut
from lora_jax.interop.peft.names import Leaf, Names, width
from lora_jax.interop.peft.saved import BaseLeaf
from lora_jax.interop.peft.tensors import Arrays, factor_names
from lora_jax.low_rank.settings import LoRASettings
from lora_jax.methods.stored_settings import settings_of_layer

_SIDES = ("a", "b", "b_bias", "magnitude")
REMEDY = (
    "Merge the adapter into its base and export that (python -m experiments.convert to_hugging_face), which "
    "any program loads"
)


def is_factor(path: str) -> bool:
    """Whether a leaf is one of those that `modules_of` reads."""
    found = factor_leaves.place_of(path)
    return found is not None and found[1] in _SIDES


@dataclasses.dataclass
class Module:
    """The update of one module of one layer.

    Attributes:
      settings: of the whole module; of several parts of a fused one, joined.
      factors: in PEFT's shapes, by our names.
    """

    settings: LoRASettings
    factors: Arrays


def modules_of(
    adapter: Adapter, names: Names, base: BaseLeaf, *, halved: bool = False
) -> dict[str, Module]:
    """The updates by the names of modules in transformers.

    Args:
      adapter: ours.
      names: of the base.
      base: gives the base's values.
      halved: leave out the second half of the factors of matrices, see `initial`.

    Raises:
      InputError: PEFT has no place for one of them.
    """
    grouped: dict[str, dict[str, Arrays]] = {}
    for place, leaves in factor_leaves.factors(adapter).items():
        known = {side: leaves[side] for side in _SIDES if side in leaves}
        grouped.setdefault(place.layer, {})[place.part] = known
    if not grouped:
        raise InputError(
            f"the adapter ({adapter.method}) has no low-rank update, which PEFT's LORA is. {REMEDY}"
        )
    by_module = {(leaf.module, leaf.layer): name for name, leaf in names.weights.items()}
    result: dict[str, Module] = {}
    for path, parts in grouped.items():
        whole, first = uncut(path, names.depth)
        stacked = "/block/" in whole
        if (whole, 0 if stacked else None) not in by_module:
            raise InputError(
                f"{path} has no counterpart in transformers' {names.architecture}. {REMEDY}"
            )
        settings = {
            part: settings_of_layer(adapter.method, path, sides["a"].shape[-1], grouped, part)
            for part, sides in parts.items()
        }
        count = len(next(iter(parts.values()))["a"])
        for layer in range(count) if stacked else [None]:
            name = by_module[whole, None if layer is None else first + layer]
            pairs = {
                part: {side: v if layer is None else v[layer] for side, v in sides.items()}
                for part, sides in parts.items()
            }
            result[name] = _module(path, pairs, settings, names.weights[name], base, halved)
    return {name: result[name] for name in names.weights if name in result}


def _module(
    path: str,
    pairs: Mapping[str, Arrays],
    settings: Mapping[str, LoRASettings],
    leaf: Leaf,
    base: BaseLeaf,
    halved: bool,
) -> Module:
    own = next(iter(settings.values()))
    if own.axes:
        raise InputError(
            f"{path} is a parameter that is adapted without its layer (axes), which is of no use in PEFT's "
            f"models. Adapt the layer instead. {REMEDY}"
        )
    if own.fused:
        return _blocks(path, pairs, settings, leaf, base)
    factors = {side: value.reshape(-1) for side, value in pairs[""].items() if side not in "ab"}
    a, b = pairs[""]["a"].T, pairs[""]["b"].reshape(own.rank, -1).T
    if halved and not leaf.is_table:
        a, b = a[: own.rank // 2], b[:, : own.rank // 2]
    return Module(own, {"a": np.ascontiguousarray(a), "b": np.ascontiguousarray(b), **factors})


def _blocks(
    path: str,
    pairs: Mapping[str, Arrays],
    settings: Mapping[str, LoRASettings],
    leaf: Leaf,
    base: BaseLeaf,
) -> Module:
    """Parts of a fused projection as one update of it: A of all parts, and B with a block for each.

    Its rank is the sum of theirs. DoRA's magnitudes of the other parts are the norms of their weights.
    """
    first = next(iter(settings.values()))
    if len({s.scale for s in settings.values()}) > 1:
        raise InputError(
            f"{path}: its parts have several scales, PEFT has one for the whole module. {REMEDY}"
        )
    parts, inputs, outputs = len(first.fused), leaf.shape[0], width(leaf)
    sizes = first.fused_sizes or (leaf.shape[1] // parts,) * parts
    ends = np.cumsum((0, *sizes)) * (outputs // leaf.shape[1])
    rank, kind = sum(s.rank for s in settings.values()), next(iter(pairs.values()))["a"].dtype
    factors: Arrays = {"a": np.zeros((rank, inputs), kind), "b": np.zeros((outputs, rank), kind)}
    if first.magnitude:
        norms = np.linalg.norm(base(leaf).reshape(inputs, -1), axis=0)
        factors["magnitude"] = norms.astype(kind)
    if first.b_bias:
        factors["b_bias"] = np.zeros(outputs, kind)
    done, others = 0, factors.keys() - {"a", "b"}
    for number, part in enumerate(first.fused):
        if part not in pairs:
            continue
        own, sides = settings[part], pairs[part]
        columns, rows = slice(done, done + own.rank), slice(ends[number], ends[number + 1])
        factors["a"][columns] = sides["a"].T
        factors["b"][rows, columns] = sides["b"].reshape(own.rank, -1).T
        for side in others:
            factors[side][rows] = sides[side].reshape(-1)
        done += own.rank
    growth = rank / first.rank
    alpha = first.alpha * (growth if first.scaling == "alpha/r" else growth**0.5)  # the same scale
    joined = dataclasses.replace(
        first, rank=rank, alpha=alpha, parts=(), fused=(), fused_sizes=()
    )  # fmt: skip
    return Module(joined, factors)


def factor_tensors(modules: Mapping[str, Module], names: Names, *, tied: bool) -> Arrays:
    """The factors by name.

    Args:
      modules: with updates.
      names: of the base.
      tied: write those of a table once more, turned round, for the output embedding that is the same.
    """
    result: Arrays = {}
    for name, module in modules.items():
        ends = factor_names(names.weights[name])
        result |= {f"{name}.{ends[side]}": value for side, value in module.factors.items()}
    for theirs, table in names.tied.items() if tied else ():
        if table in modules:
            factors, ends = modules[table].factors, factor_names(names.weights[table], tied=True)
            result[f"{theirs}.{ends['a']}"] = np.ascontiguousarray(factors["b"].T)
            result[f"{theirs}.{ends['b']}"] = np.ascontiguousarray(factors["a"].T)
    return result
