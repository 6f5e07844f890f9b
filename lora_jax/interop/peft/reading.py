"""An adapter of PEFT as one of ours."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lora_jax import methods
from lora_jax.errors import InputError
from lora_jax.interop.peft import norms
from lora_jax.interop.peft.adapted import check_targets, factors_of, spec_of
from lora_jax.interop.peft.any_config import read, variant_of
from lora_jax.interop.peft.config import PeftConfig
from lora_jax.interop.peft.layers import Runs, Spec, lora_of, runs_of
from lora_jax.interop.peft.names import HEAD, Names
from lora_jax.interop.peft.saved import BaseLeaf, Whole, check_tied, split_whole
from lora_jax.interop.peft.tensors import Arrays, Sorted, plain, sort_out
from lora_jax.interop.peft.variants import Variant
from lora_jax.method import Method
from lora_jax.partition import Labels
from lora_jax.patterns import some

NOTE = "peft"  # key of an adapter's notes
_HEAD = r"head/.*"
FIXED = ("a_start", "b_start", "shared_a", "shared_b")  # leaves that never train


@dataclasses.dataclass(frozen=True)
class Converted:
    """What `adapters.save_adapter` takes.

    Attributes:
      method: whose insertion into the base makes exactly the leaves in `values`.
      values: path to array, in the types of the file.
      groups: path to group.
      note: what only PEFT needs, for `writing`; JSON.
      state: path to array of what the method inserts and never trains.
    """

    method: Method
    values: Arrays
    groups: Labels
    note: dict[str, Any]
    state: Arrays = dataclasses.field(default_factory=dict)


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
    settings, variant = read(config, ignore), variant_of(config)
    shared, others = variant.shared(tensors) if variant else ({}, tensors)
    own, trained = plain(others), list[str]()
    if isinstance(variant, norms.Norms):
        own, trained = norms.renamed(own)
    found = sort_out(
        _of_task(own, settings, names, ignore), names, ignore, variant.ends if variant else None
    )
    modules = _modules(found, settings, names, base, ignore, variant, shared)
    if trained:
        norms.check_modules(trained, settings, names)
    kept = {name: found.whole.pop(name) for name in trained}
    saved = split_whole(found, settings, names, base)
    found.whole |= kept
    leaves = (*trained, *saved.leaves)
    runs = runs_of(_marks({name: spec for name, (spec, _) in modules.items()}, leaves, names))
    values: dict[str, list[np.ndarray]] = {}
    by_path: dict[str, Spec] = {}
    for run in runs.layers():
        for module, (spec, ours) in modules.items():
            weight = names.weights[module]
            if weight.layer is not None and weight.layer not in run:
                continue
            if weight.layer is None and run.start:
                continue
            path = runs.path(f"{weight.module}/", run).rstrip("/")
            by_path[path] = spec
            for side, value in ours.items():
                values.setdefault(f"{path}/lora/{side}", []).append(value)
    for name in (*saved.head, *saved.biases, *leaves):
        leaf = names.leaves[name]
        run = next((run for run in runs.layers() if leaf.layer in run), range(0))
        values.setdefault(runs.path(leaf.path, run), []).append(leaf.ours(found.whole[name]))
    head = _HEAD if saved.head else None
    if variant is None:
        method = lora_of(
            by_path, runs, dropout=settings.get("lora_dropout", 0.0), bias=settings.bias, head=head
        )
    elif trained:
        method = norms.method_of(trained, names, runs, head)
    else:
        method = variant.build(by_path, runs, settings, head)
    method = _with_leaves(method, saved.leaves, names, runs)
    method = _with_rows(method, values, found, settings, names)
    stacked = {
        path: np.stack(parts) if _is_stacked(path) else parts[0] for path, parts in values.items()
    }
    state = {path: stacked.pop(path) for path in list(stacked) if _is_fixed(path)}
    groups = _groups(stacked, saved, trained, names)
    return Converted(method, stacked, groups, _note(config, found, saved, names), state)


def _modules(
    found: Sorted,
    settings: PeftConfig,
    names: Names,
    base: BaseLeaf,
    ignore: Sequence[str],
    variant: Variant | None,
    shared: Arrays,
) -> dict[str, tuple[Spec, Arrays]]:
    """How every module is adapted, and our leaves of it."""
    result = {}
    if variant is None:
        check_tied(found, settings, names)
        check_targets(found, settings, names)
        approximate = any(re.fullmatch(pattern, "init_lora_weights") for pattern in ignore)
        for module in (m for m in names.weights if m in found.factors):
            spec = spec_of(module, found, settings, names)
            result[module] = (
                spec,
                factors_of(module, found, settings, names, base, approximate=approximate),
            )
        return result
    if variant.ends:
        check_targets(found, settings, names, list(variant.ends))
    for module in (m for m in names.weights if m in found.factors):
        factors, weight = found.factors[module], names.weights[module]
        arguments = variant.arguments(module, factors, weight, settings)
        kind = str(next(iter(factors.values())).dtype)
        ours = variant.leaves(module, factors, shared, weight, settings)
        result[module] = Spec.of(arguments, kind), ours
    return result


def _is_fixed(path: str) -> bool:
    return path.endswith(tuple(f"/lora/{side}" for side in FIXED))


def _of_task(tensors: Arrays, settings: PeftConfig, names: Names, ignore: Sequence[str]) -> Arrays:
    """The tensors without a head for tokens, which has the names of one for whole texts."""
    if settings.values.get("task_type") != "TOKEN_CLS":
        return tensors
    heads = [name for name in tensors if names.of_head(name)]
    if left := [name for name in heads if not any(re.fullmatch(p, name) for p in ignore)]:
        raise InputError(
            f"task_type is TOKEN_CLS: the head ({some(left)}) is for every token, and heads here are for "
            f"whole texts. To read the rest without it: --ignore={left[0].partition('.')[0]}.*"
        )
    return {name: value for name, value in tensors.items() if name not in heads}


def _is_stacked(path: str) -> bool:
    return "/block/" in path


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


def _groups(values: Arrays, saved: Whole, norms: Sequence[str], names: Names) -> Labels:
    biases, of_norms = (
        {names.leaves[name].path for name in some} for some in (saved.biases, norms)
    )
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
            kinds = {"bias": biases, "norms": of_norms}
            groups[path] = next((kind for kind, own in kinds.items() if whole in own), "leaves")
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
