"""An adapter of PEFT as one of ours."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lora_jax import methods
from lora_jax.errors import InputError
from lora_jax.interop.peft import initial, targets
from lora_jax.interop.peft.config import PeftConfig, read
from lora_jax.interop.peft.layers import Runs, Spec, lora_of, runs_of
from lora_jax.interop.peft.names import HEAD, Names, outputs
from lora_jax.interop.peft.saved import BaseLeaf, Whole, check_tied, split_whole
from lora_jax.interop.peft.tensors import Arrays, Sorted, plain, sort_out
from lora_jax.low_rank.contraction import scale
from lora_jax.method import Method
from lora_jax.partition import Labels
from lora_jax.patterns import some

NOTE = "peft"  # key of an adapter's notes
_HEAD = r"head/.*"


@dataclasses.dataclass(frozen=True)
class Converted:
    """What `adapters.save_adapter` takes.

    Attributes:
      method: whose insertion into the base makes exactly the leaves in `values`.
      values: path to array, in the types of the file.
      groups: path to group.
      note: what only PEFT needs, for `writing`; JSON.
    """

    method: Method
    values: Arrays
    groups: Labels
    note: dict[str, Any]


def from_tensors(
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    names: Names,
    base: BaseLeaf,
    ignore: Sequence[str] = (),
) -> Converted:
    """Converts an adapter of PEFT.

    Args:
      config: the content of adapter_config.json.
      tensors: of adapter_model.safetensors, by name.
      names: of the base, see `names.names`.
      base: gives the base's values.
      ignore: regular expressions for keys and for names of tensors that may be left out.

    Raises:
      InputError: something of it has no counterpart here, or does not fit; the message names it.
    """
    settings = read(config, ignore)
    found = sort_out(plain(tensors), names, ignore)
    check_tied(found, settings, names)
    _check_targets(found, settings, names)
    specs = {m: _spec(m, found, settings, names) for m in names.weights if m in found.factors}
    saved = split_whole(found, settings, names, base)
    marks = _marks(specs, saved.leaves, names)
    runs = runs_of(marks)
    values: dict[str, list[np.ndarray]] = {}
    by_path: dict[str, Spec] = {}
    for run in runs.layers():
        for module, spec in specs.items():
            weight = names.weights[module]
            if weight.layer is not None and weight.layer not in run:
                continue
            if weight.layer is None and run.start:
                continue
            path = runs.path(f"{weight.module}/", run).rstrip("/")
            by_path[path] = spec
            for side, value in _factors(module, spec, found, settings, names, base).items():
                values.setdefault(f"{path}/lora/{side}", []).append(value)
    for name in (*saved.head, *saved.biases, *saved.leaves):
        leaf = names.leaves[name]
        run = next((run for run in runs.layers() if leaf.layer in run), range(0))
        values.setdefault(runs.path(leaf.path, run), []).append(leaf.ours(found.whole[name]))
    method = lora_of(
        by_path, runs, dropout=settings.get("lora_dropout", 0.0), bias=settings.bias,
        head=_HEAD if saved.head else None,
    )  # fmt: skip
    method = _with_leaves(method, saved.leaves, names, runs)
    method = _with_rows(method, values, found, settings, names)
    stacked = {
        path: np.stack(parts) if _is_stacked(path) else parts[0] for path, parts in values.items()
    }
    return Converted(
        method, stacked, _groups(stacked, saved, names, runs), _note(config, found, saved, names)
    )


def _is_stacked(path: str) -> bool:
    return "/block/" in path


def _spec(module: str, found: Sorted, settings: PeftConfig, names: Names) -> Spec:
    """The settings of a module, which must be those of its factors."""
    factors, weight = found.factors[module], names.weights[module]
    rank, alpha, twice = len(factors["a"]), settings.alpha(module), 1
    if (expected := settings.rank(module)) != rank:
        raise InputError(
            f"{module}: its factors are of rank {rank}, r and rank_pattern say {expected}; the two "
            "files do not belong together, or rank_pattern was lost"
        )
    if settings.initial and not weight.is_table:
        twice = 2
    if twice == 2:  # the scale in front stays
        alpha = alpha * (2 if settings.scaling == "alpha/r" else 2**0.5)
    magnitude, b_bias = settings.get("use_dora", False), settings.get("lora_bias", False)
    for side, wanted in (("magnitude", magnitude), ("b_bias", b_bias)):
        if (side in factors) != (wanted and not (side == "b_bias" and weight.is_table)):
            raise InputError(
                f"{module}: use_dora={magnitude} and lora_bias={b_bias}, but its tensors are "
                f"{sorted(factors)}; the two files do not belong together"
            )
    tied = module in names.tied.values() and not settings.get("ensure_weight_tying", False)
    return Spec(
        rank=twice * rank, alpha=alpha, scaling=settings.scaling, magnitude=magnitude,
        b_bias=b_bias and not weight.is_table, lookup_only=weight.is_table and tied,
        dtype=str(factors["a"].dtype),
    )  # fmt: skip


def _factors(
    module: str, spec: Spec, found: Sorted, settings: PeftConfig, names: Names, base: BaseLeaf
) -> Arrays:
    """The factors of a module in our shapes, one layer."""
    factors, weight = dict(found.factors[module]), names.weights[module]
    if settings.initial and not weight.is_table:
        rank = spec.rank // 2
        matrix = base(weight).reshape(weight.shape[0], -1).T
        first = initial.first_factors(
            settings.initial, matrix, rank,
            scale(rank, settings.alpha(module), settings.scaling),  # type: ignore[arg-type]
        )  # fmt: skip
        factors["a"], factors["b"] = initial.with_first(factors["a"], factors["b"], first)
    out = outputs(weight)
    shapes = {"b": (spec.rank, *out), "b_bias": out, "magnitude": out}
    ours = {"a": np.ascontiguousarray(factors.pop("a").T)}
    for side, value in factors.items():
        ours[side] = np.ascontiguousarray(value.T).reshape(shapes[side])
    return ours


def _check_targets(found: Sorted, settings: PeftConfig, names: Names) -> None:
    """The factors must be those of the modules that the settings name, no more and no fewer."""
    if not found.factors:
        raise InputError(
            "no tensor is a factor of LoRA (lora_A, lora_B, lora_embedding_A, lora_embedding_B) of a layer; "
            "an adapter without factors cannot be read"
        )
    wanted = targets.chosen(settings, names.weights)
    if wanted is None:
        return
    if extra := [module for module in found.factors if module not in wanted]:
        raise InputError(
            f"the file has factors of {some(extra)}, which target_modules does not name: PEFT leaves them "
            "out when it loads. Correct target_modules in adapter_config.json, or leave the tensors out"
        )
    if missing := [
        module for module in names.weights if module in wanted and module not in found.factors
    ]:
        raise InputError(
            f"target_modules names {len(missing)} modules without factors in the file: {some(missing)}; it "
            "is incomplete, or the adapter is of another model"
        )


def _marks(specs: Mapping[str, Spec], leaves: Sequence[str], names: Names) -> list[object]:
    """For every layer what is in it, to be compared."""
    marks: list[set[object]] = [set() for _ in range(names.depth)]
    for module, spec in specs.items():
        weight = names.weights[module]
        if weight.layer is not None:
            marks[weight.layer].add((weight.path, spec))
    for name in leaves:
        leaf = names.leaves[name]
        if leaf.layer is not None:
            marks[leaf.layer].add(leaf.path)
    return list(marks)


def _with_leaves(method: Method, leaves: Sequence[str], names: Names, runs: Runs) -> Method:
    paths = dict.fromkeys(
        runs.path(leaf.path, next((r for r in runs.layers() if leaf.layer in r), range(0)))
        for leaf in (names.leaves[name] for name in leaves)
    )
    if not paths:
        return method
    return method + methods.leaves("|".join(re.escape(path) for path in paths))


def _with_rows(
    method: Method,
    values: dict[str, list[np.ndarray]],
    found: Sorted,
    settings: PeftConfig,
    names: Names,
) -> Method:
    chosen = {}
    for module, value in found.rows.items():
        weight, rows = names.weights[module], settings.tokens(module)
        if rows is None or value.shape != (len(rows), weight.published[-1]):
            raise InputError(
                f"{module}: {value.shape} trained rows, but trainable_token_indices is {rows}"
            )
        chosen[weight.module] = rows
        values[f"{weight.module}/rows/values"] = [value]
    if settings.values.get("trainable_token_indices") is not None and not chosen:
        raise InputError(
            "trainable_token_indices is given, but the file has no trained rows of a table here"
        )
    return method + methods.token_rows(chosen) if chosen else method


def _groups(values: Arrays, saved: Whole, names: Names, runs: Runs) -> Labels:
    biases = {names.leaves[name].path for name in saved.biases}
    groups = {}
    for path in values:
        if "/lora/" in path:
            groups[path] = "lora"
        elif path.endswith("/rows/values"):
            groups[path] = "rows"
        elif path.startswith(HEAD):
            groups[path] = methods.HEAD
        else:
            whole = re.sub(r"layers/(first|last_\d+)/block/", "layers/block/", path)
            groups[path] = "bias" if whole in biases else "leaves"
    return groups


def _note(config: Mapping[str, Any], found: Sorted, saved: Whole, names: Names) -> dict[str, Any]:
    """What is needed to write the same files again."""
    note: dict[str, Any] = {"config": dict(config), "prefix": names.prefix}
    if saved.base:
        note["base"] = {
            found.stored_as.get(name, name): str(found.whole[name].dtype) for name in saved.base
        }
    if found.copies:
        note["copies"] = found.copies
    if found.inert:
        note["inert"] = {
            name: {"type": str(value.dtype), "values": value.astype(np.float64).tolist()}
            for name, value in found.inert.items()
        }
    return note
