"""Whole parameters in an adapter of PEFT: heads, biases, modules_to_save, and copies of the base's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from lora_jax.errors import InputError
from lora_jax.interop.peft.config import PeftConfig
from lora_jax.interop.peft.names import Leaf, Names
from lora_jax.interop.peft.tensors import Sorted
from lora_jax.patterns import some

BaseLeaf = Callable[[Leaf], np.ndarray]  # one layer of a leaf of the base, float32, in our shape


@dataclasses.dataclass
class Whole:
    """Names of whole parameters in the file: of the head, biases, others, and copies of the base's."""

    head: list[str] = dataclasses.field(default_factory=list)
    biases: list[str] = dataclasses.field(default_factory=list)
    leaves: list[str] = dataclasses.field(default_factory=list)
    base: list[str] = dataclasses.field(default_factory=list)


def split_whole(found: Sorted, settings: PeftConfig, names: Names, base: BaseLeaf) -> Whole:
    """What the whole parameters are; all that train must be there."""
    trained = _trained_biases(found, settings, names)
    saved = [name for name in names.leaves if _is_saved(name, settings)]
    result = Whole()
    in_order = [name for name in names.leaves if name in found.whole]
    for name in (*in_order, *(found.whole.keys() - names.leaves.keys())):
        value = found.whole[name]
        if name.removesuffix(".weight") in names.tied:
            _check_copy(name, value, found, names, base)
            result.base.append(name)
        elif names.of_head(name):
            result.head.append(name)
        elif name in trained:
            result.biases.append(name)
        elif name not in saved and _is_of_base(value, names.leaves[name], base):
            result.base.append(name)
        else:
            result.leaves.append(name)
    heads = [name for name in names.leaves if names.of_head(name)]
    wanted = [
        *trained,
        *(n for n in saved if not names.of_head(n)),
        *(heads if result.head else []),
    ]
    if missing := [name for name in wanted if name not in found.whole]:
        of_peft = (
            "PEFT before 0.21 does not save the biases of bias='lora_only' (peft issue 3306): they are lost. "
            "If the base's own shall stand in, as after loading in PEFT, set bias to none in "
            "adapter_config.json"
        )
        of_head = (
            "transformers makes a head at random where the base has none, and PEFT trains and saves only "
            "what modules_to_save names: name all of the head there (of DeBERTa pooler and classifier)"
        )
        lost = settings.bias == "lora_only" and set(missing) <= set(trained)
        remedy = "It is incomplete; save the adapter again in PEFT"
        remedy = of_peft if lost else of_head if set(missing) <= set(heads) else remedy
        raise InputError(
            f"{len(missing)} parameters that train are not in the file: {some(missing)}. {remedy}"
        )
    _check_tables(result.leaves, settings, names)
    return result


def _is_saved(name: str, settings: PeftConfig) -> bool:
    """Whether modules_to_save names a module that holds the parameter; PEFT compares ends of text."""
    parts = name.split(".")[:-1]
    holders = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return any(h.endswith(m) for m in settings.get("modules_to_save", []) for h in holders)


def _trained_biases(found: Sorted, settings: PeftConfig, names: Names) -> list[str]:
    biases = [
        n
        for n, leaf in names.leaves.items()
        if leaf.path.endswith("/bias") and not names.of_head(n)
    ]
    if settings.bias == "lora_only":
        return [name for name in biases if name.removesuffix(".bias") in found.factors]
    return biases if settings.bias == "all" else []


def _is_of_base(value: np.ndarray, leaf: Leaf, base: BaseLeaf) -> bool:
    return np.array_equal(leaf.theirs(base(leaf)).astype(value.dtype), value)


def _check_copy(name: str, value: np.ndarray, found: Sorted, names: Names, base: BaseLeaf) -> None:
    """A whole output embedding in a model whose output embedding is its table must be that table."""
    table = f"{names.tied[name.removesuffix('.weight')]}.weight"
    same = np.array_equal(found.whole[table], value) if table in found.whole else _is_of_base(
        value, names.leaves[table], base
    )  # fmt: skip
    if not same:
        raise InputError(
            f"{name} is not {table}, but in this base the output embedding is the table of tokens, and here "
            "they cannot be taken apart. Save the base with tie_word_embeddings false and both tensors, and "
            "name that as the model"
        )


def _check_tables(leaves: Sequence[str], settings: PeftConfig, names: Names) -> None:
    for name in leaves:
        tied = name.removesuffix(".weight") in names.tied.values()
        if tied and not settings.get("ensure_weight_tying", False):
            raise InputError(
                f"{name} was trained without the output embedding, which in this base is the same table "
                "(ensure_weight_tying is false); here they cannot be taken apart. Save the base with "
                "tie_word_embeddings false and name that as the model"
            )


def check_tied(found: Sorted, settings: PeftConfig, names: Names) -> None:
    """Factors of a tied output embedding must be those of the table, turned round."""
    for module, factors in found.tied.items():
        table = found.factors.get(names.tied[module])
        same = table is not None and settings.get("ensure_weight_tying", False) and (
            np.array_equal(factors["a"], table["b"].T) and np.array_equal(factors["b"], table["a"].T)
        )  # fmt: skip
        if not same:
            raise InputError(
                f"{module} has an update of its own, but in this base it is {names.tied[module]}; "
                "a table has one update, for lookups and for logits. Train with "
                "ensure_weight_tying=True and both as targets, or save the base with "
                "tie_word_embeddings false"
            )
