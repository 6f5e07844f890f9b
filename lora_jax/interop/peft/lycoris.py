"""PEFT's LoHa and LoKr, both after LyCORIS; their matrices are ours turned round.

LoHa: (hada_w1_a hada_w1_b) * (hada_w2_a hada_w2_b) as (outputs, inputs). LoKr: kron(lokr_w1, lokr_w2), each
whole or a product of its `_a` and `_b`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

from lora_jax.errors import InputError
from lora_jax.interop.peft.config import PeftConfig, Types, of_pattern
from lora_jax.interop.peft.names import Leaf, outputs
from lora_jax.interop.peft.tensors import Arrays
from lora_jax.interop.peft.variants import (
    LAYERS,
    Update,
    Variant,
    check_shapes,
    sizes,
    turned,
    whole_number,
)

_KEYS = (
    "alpha", "alpha_pattern", "init_weights", "module_dropout", "r", "rank_dropout", "rank_pattern",
    "use_effective_conv2d", *LAYERS,
)  # fmt: skip
_TYPES: Types = {
    "r": int, "alpha": (int, float), "rank_pattern": dict, "alpha_pattern": dict,
}  # fmt: skip


class _Lycoris(Variant):
    """Base of both: the scale is alpha / r, and modules may have a rank and an alpha of their own."""

    keys: ClassVar[tuple[str, ...]] = _KEYS
    types: ClassVar[Types] = _TYPES
    of_conv1d = False

    def arguments(
        self, module: str, factors: Arrays, weight: Leaf, settings: PeftConfig
    ) -> dict[str, Any]:
        """Rank and alpha."""
        alpha = of_pattern(
            settings.get("alpha_pattern", {}), module, settings.get("alpha", 8), "alpha_pattern"
        )
        return {"rank": settings.rank(module), "alpha": alpha}

    def config(
        self, updates: Mapping[str, Update], own: Mapping[str, Any], modules: set[str]
    ) -> dict[str, Any]:
        """The most frequent rank and alpha, and patterns for the others."""
        ranks = {name: update.settings.rank for name, update in updates.items()}
        alphas = {name: whole_number(u.settings.plain_alpha) for name, u in updates.items()}
        rank, alpha = (Counter(v.values()).most_common(1)[0][0] for v in (ranks, alphas))
        return {
            "r": rank,
            "alpha": alpha,
            "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
            "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
            "init_weights": True,
            "rank_dropout": 0.0,
            "module_dropout": 0.0,
        }


class LoHa(_Lycoris):
    """Elementwise products of two low-rank products."""

    peft_type = "LOHA"
    method = "loha"
    ends: ClassVar[Mapping[str, str]] = {
        "hada_w1_a": "b1", "hada_w1_b": "a1", "hada_w2_a": "b2", "hada_w2_b": "a2",
    }  # fmt: skip

    def arguments(
        self, module: str, factors: Arrays, weight: Leaf, settings: PeftConfig
    ) -> dict[str, Any]:
        """Rank and alpha."""
        inputs, out = sizes(weight)
        own = super().arguments(module, factors, weight, settings)
        of_a, of_b = (own["rank"], inputs), (out, own["rank"])
        check_shapes(module, factors, {"b1": of_b, "a1": of_a, "b2": of_b, "a2": of_a})
        return own

    def leaves(
        self, module: str, factors: Arrays, shared: Arrays, weight: Leaf, settings: PeftConfig
    ) -> Arrays:
        """Both pairs."""
        shapes = {"b": (factors["a1"].shape[0], *outputs(weight)), "a": None}
        return {name: turned(value, shapes[name[0]]) for name, value in factors.items()}

    def tensors(self, update: Update) -> Arrays:
        """Both pairs."""
        leaves = update.leaves
        rank = leaves["a1"].shape[-1]
        return {
            end: turned(leaves[name].reshape(rank, -1) if name[0] == "b" else leaves[name])
            for end, name in self.ends.items()
        }


class LoKr(_Lycoris):
    """Kronecker products."""

    peft_type = "LOKR"
    method = "lokr"
    keys: ClassVar[tuple[str, ...]] = (
        *_KEYS,
        "decompose_both",
        "decompose_factor",
        "rank_dropout_scale",
    )
    types: ClassVar[Types] = {
        **_TYPES,
        "decompose_both": bool,
        "decompose_factor": int,
    }
    ends: ClassVar[Mapping[str, str]] = {
        "lokr_w1": "w1", "lokr_w1_a": "w1_b", "lokr_w1_b": "w1_a",
        "lokr_w2": "w2", "lokr_w2_a": "w2_b", "lokr_w2_b": "w2_a",
    }  # fmt: skip

    def arguments(
        self, module: str, factors: Arrays, weight: Leaf, settings: PeftConfig
    ) -> dict[str, Any]:
        """Rank, alpha, and how the sides divide."""
        own = super().arguments(module, factors, weight, settings)
        sides = {number: _sides(factors, number) for number in "12"}
        found = None
        if all(sides.values()):
            (l, m), (k, n) = (sides[number] for number in "12")  # type: ignore[misc]  # noqa: E741
            found = (m * n, l * k)
        if found != sizes(weight):
            shapes = ", ".join(f"{name} {value.shape}" for name, value in factors.items())
            raise InputError(
                f"{module}: its tensors ({shapes}) give a matrix of {found} inputs and outputs, the base has "
                f"{sizes(weight)}; the file is incomplete, or the adapter is of another model"
            )
        return {
            **own,
            "factor": settings.get("decompose_factor", -1),
            "decompose_both": settings.get("decompose_both", False),
        }

    def leaves(
        self, module: str, factors: Arrays, shared: Arrays, weight: Leaf, settings: PeftConfig
    ) -> Arrays:
        """The matrices."""
        return {name: turned(value) for name, value in factors.items()}

    def tensors(self, update: Update) -> Arrays:
        """The matrices."""
        leaves = update.leaves
        return {end: turned(leaves[name]) for end, name in self.ends.items() if name in leaves}

    def config(
        self, updates: Mapping[str, Update], own: Mapping[str, Any], modules: set[str]
    ) -> dict[str, Any]:
        """Besides, how the sides divide."""
        return {
            **super().config(updates, own, modules),
            "decompose_factor": self.one("factor", updates),
            "decompose_both": self.one("decompose_both", updates),
        }


def _sides(factors: Arrays, number: str) -> tuple[int, int] | None:
    """Rows and columns of PEFT's first or second matrix; None where it is not whole."""
    whole, left, right = (factors.get(f"w{number}{end}") for end in ("", "_b", "_a"))
    if whole is not None and whole.ndim == 2 and left is None and right is None:
        return whole.shape[0], whole.shape[1]
    if whole is not None or left is None or right is None or left.ndim != 2 or right.ndim != 2:
        return None
    return (left.shape[0], right.shape[1]) if left.shape[1] == right.shape[0] else None
