"""Our updates as PEFT has them: the factors of every module of every layer, and their settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from lora_jax import factor_leaves
from lora_jax.adapter_files import Adapter
from lora_jax.conversion import nearest
from lora_jax.errors import InputError
from lora_jax.interop.peft.inserted import Inserted
from lora_jax.interop.peft.layers import uncut
from lora_jax.interop.peft.names import Leaf, Names, width
from lora_jax.interop.peft.saved import BaseLeaf
from lora_jax.interop.peft.tensors import Arrays, factor_names
from lora_jax.interop.peft.variants import Update, Variant
from lora_jax.low_rank.contraction import scale
from lora_jax.low_rank.settings import STARTS, LoRASettings
from lora_jax.methods.stored_settings import settings_of_layer

_SIDES = ("a", "b", "b_bias", "magnitude")
_STARTS = ("a_start", "b_start")
_OF_OTHERS = (
    "vector", "lambda_d", "lambda_b", "shared_a", "shared_b", "a1", "b1", "a2", "b2", "w1", "w1_a", "w1_b",
    "w2", "w2_a", "w2_b", "e",
)  # fmt: skip
_KNOWN = (*_SIDES, *_STARTS, *_OF_OTHERS)
REMEDY = (
    "Merge the adapter into its base and export that (python -m experiments.convert to_hugging_face), which "
    "any program loads"
)


def is_factor(path: str) -> bool:
    """Whether a leaf is one of those that `modules_of` reads."""
    found = factor_leaves.place_of(path)
    return found is not None and found[1] in _KNOWN


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
    adapter: Adapter,
    names: Names,
    base: BaseLeaf,
    *,
    inserted: Inserted | None = None,
    started: bool = False,
) -> dict[str, Module]:
    """LoRA's updates by the names of modules in transformers.

    Args:
      adapter: ours.
      names: of the base.
      base: gives the base's values.
      inserted: what the adapted model shows; needed where factors have a start, or come from a seed.
      started: leave the start of factors out, which PEFT takes off by itself; else it becomes part of
        factors of twice the rank.

    Raises:
      InputError: PEFT has no place for one of them.
    """
    placed = _placed(adapter, names, inserted)
    if not placed:
        raise InputError(
            f"the adapter ({adapter.method}) has no low-rank update, which PEFT's LORA is. {REMEDY}"
        )
    adapted = {path: None for path, _ in placed.values()}
    result: dict[str, Module] = {}
    for name, (path, parts) in placed.items():
        settings = {}
        for part, sides in parts.items():
            if inserted is not None and path in inserted.settings:
                own = inserted.settings[path]
            else:
                own = settings_of_layer(adapter.method, path, sides["a"].shape[-1], adapted, part)
            assert isinstance(own, LoRASettings)
            settings[part] = own
        pairs = {part: _pair(sides, settings[part], started) for part, sides in parts.items()}
        plain = {part: own for part, (own, _) in pairs.items()}
        leaves = {part: sides for part, (_, sides) in pairs.items()}
        result[name] = _module(path, leaves, plain, names.weights[name], base)
    return result


def updates_of(
    adapter: Adapter, names: Names, inserted: Inserted, variant: Variant
) -> dict[str, Update]:
    """The updates of another method by the names of modules in transformers.

    Raises:
      InputError: PEFT has no place for one of them.
    """
    result = {}
    for name, (path, parts) in _placed(adapter, names, inserted).items():
        result[name] = Update(path, inserted.settings[path], parts, names.weights[name])
        variant.check_layer(name, result[name])
    return result


def _placed(
    adapter: Adapter, names: Names, inserted: Inserted | None
) -> dict[str, tuple[str, dict[str, Arrays]]]:
    """For every adapted module of transformers our path, and the leaves of one layer by part."""
    fixed = inserted.fixed if inserted else adapter.state
    whole = dataclasses.replace(adapter, values={**adapter.values, **fixed})
    grouped: dict[str, dict[str, Arrays]] = {}
    for place, leaves in factor_leaves.factors(whole).items():
        known = {side: leaves[side] for side in _KNOWN if side in leaves}
        grouped.setdefault(place.layer, {})[place.part] = known
    by_module = {(leaf.module, leaf.layer): name for name, leaf in names.weights.items()}
    result: dict[str, tuple[str, dict[str, Arrays]]] = {}
    for path, parts in grouped.items():
        outer, first = uncut(path, names.depth)
        stacked = "/block/" in outer
        if (outer, 0 if stacked else None) not in by_module:
            raise InputError(
                f"{path} has no counterpart in transformers' {names.architecture}. {REMEDY}"
            )
        count = len(next(iter(next(iter(parts.values())).values())))
        for layer in range(count) if stacked else [None]:
            name = by_module[outer, None if layer is None else first + layer]
            result[name] = (
                path,
                {
                    part: {side: v if layer is None else v[layer] for side, v in sides.items()}
                    for part, sides in parts.items()
                },
            )
    return {name: result[name] for name in names.weights if name in result}


def _pair(leaves: Arrays, own: LoRASettings, started: bool) -> tuple[LoRASettings, Arrays]:
    """The settings and leaves of a plain LoRA: with a start that is taken off, of twice the rank.

    A B - A_0 B_0 is the product of (A - A_0, A_0) and (B, B - B_0), as in `lora_jax.to_lora`.
    """
    sides = {side: leaves[side] for side in _SIDES if side in leaves}
    if started or own.init not in STARTS:
        return own, sides
    a, b, a_start, b_start = (leaves[side] for side in ("a", "b", *_STARTS))
    wide, tall = np.concatenate([a - a_start, a_start], axis=-1), np.concatenate([b, b - b_start])
    rank, outputs = 2 * own.rank, tall.shape[1:]
    if rank > (most := min(wide.shape[0], tall[0].size)):  # which no matrix has
        exact = nearest(
            wide[None].astype(np.float64), tall.reshape(1, rank, -1).astype(np.float64), most
        )
        wide, tall, rank = exact[0][0], exact[1][0].reshape(most, *outputs), most
    sides |= {"a": wide, "b": tall}
    sides = {side: value.astype(a.dtype) for side, value in sides.items()}
    # The same scale, alpha / r or alpha / sqrt(r).
    alpha = own.alpha * scale(own.rank, 1.0, own.scaling) / scale(rank, 1.0, own.scaling)
    plain = dataclasses.replace(own, rank=rank, alpha=alpha, init="kaiming", svd_iterations=0)
    return plain, sides


def _module(
    path: str,
    pairs: Mapping[str, Arrays],
    settings: Mapping[str, LoRASettings],
    leaf: Leaf,
    base: BaseLeaf,
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
