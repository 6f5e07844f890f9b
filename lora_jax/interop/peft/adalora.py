"""PEFT's AdaLoRA: `lora_A` (r, inputs), `lora_E` (r, 1) and `lora_B` (outputs, r) of every module.

At the end PEFT drops the singular values that were pruned: `rank_pattern` says which of `init_r` are left.
Here they stay, as zeros, so that all layers of a stack have the same rank and its scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from lora_jax.errors import InputError, brief
from lora_jax.interop.peft.config import PeftConfig, Types
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

_SCHEDULE = {
    "tinit": "warm_up", "tfinal": "final", "deltaT": "every", "beta1": "beta1", "beta2": "beta2",
    "orth_reg_weight": "orthogonal",
}  # fmt: skip
_OF_LORA = (  # what its settings have from those of LoRA, without effect
    "alpha_pattern", "corda_config", "ensure_weight_tying", "eva_config", "fan_in_fan_out",
    "init_lora_weights", "loftq_config", "lora_ga_config", "megatron_core", "qalora_group_size", "r",
    "runtime_config", "use_rslora", "velora_config",
)  # fmt: skip
_ABSENT = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "lora_bias",
    "megatron_config", "monteclora_config", "target_parameters", "trainable_token_indices",
    "use_bdlora", "use_dora", "use_qalora",
)  # fmt: skip


class AdaLoRA(Variant):
    """Updates in the form of a singular value decomposition, pruned in training."""

    peft_type = "ADALORA"
    method = "adalora"
    keys = (
        "bias", "init_r", "lora_alpha", "lora_dropout", "rank_pattern", "target_r", "total_step",
        *LAYERS, *_SCHEDULE, *_OF_LORA, *_ABSENT,
    )  # fmt: skip
    ends: ClassVar[Mapping[str, str]] = {"lora_A": "a", "lora_E": "e", "lora_B": "b"}
    types: ClassVar[Types] = {
        "bias": str, "init_r": int, "target_r": int, "lora_alpha": (int, float),
        "lora_dropout": (int, float), "rank_pattern": dict,
    }  # fmt: skip
    own_bias = "lora_only"

    def check(self, settings: PeftConfig) -> None:
        """Raises InputError for what plain LoRA has and this has not, and for settings that are broken."""
        for key in _ABSENT:
            if settings.values.get(key) not in (None, False, [], {}):
                raise InputError(
                    f"{key}={brief(settings.values[key])}: PEFT's AdaLoRA has no such thing; the settings "
                    "are broken"
                )
        if settings.get("lora_alpha", 8) <= 0:
            raise InputError(
                f"lora_alpha={settings.get('lora_alpha', 8)}: then PEFT's scale follows the pruned ranks, "
                "which we have nothing for. Set it to init_r in PEFT, and save the adapter again"
            )
        for name, kept in settings.get("rank_pattern", {}).items():
            if not isinstance(kept, list) or not all(isinstance(one, bool) for one in kept):
                raise InputError(
                    f"rank_pattern: {name} has {brief(kept)}, no list of true and false"
                )

    def arguments(
        self, module: str, factors: Arrays, weight: Leaf, settings: PeftConfig
    ) -> dict[str, Any]:
        """Ranks and alpha."""
        inputs, out = sizes(weight)
        first = settings.get("init_r", 12)
        mask = _mask(module, settings.get("rank_pattern", {}), first)
        rank = int(mask.sum())
        check_shapes(module, factors, {"a": (rank, inputs), "e": (rank, 1), "b": (out, rank)})
        target = min(settings.get("target_r", 8), first)
        return {"rank": first, "target_rank": target, "alpha": settings.get("lora_alpha", 8)}

    def leaves(
        self, module: str, factors: Arrays, shared: Arrays, weight: Leaf, settings: PeftConfig
    ) -> Arrays:
        """The factors of the rank at the start, with zeros for what was pruned."""
        mask = _mask(module, settings.get("rank_pattern", {}), settings.get("init_r", 12))
        inputs, out = sizes(weight)
        kind, rank = factors["a"].dtype, len(mask)
        a, e = np.zeros((rank, inputs), kind), np.zeros(rank, kind)
        b = np.zeros((rank, out), kind)
        a[mask], e[mask], b[mask] = factors["a"], factors["e"][:, 0], factors["b"].T
        return {"a": turned(a), "e": e, "b": b.reshape(rank, *outputs(weight))}

    def own_arguments(self, settings: PeftConfig) -> dict[str, Any]:
        """Dropout, biases and the schedule."""
        schedule = {
            ours: settings.values[key]
            for key, ours in _SCHEDULE.items()
            if settings.values.get(key) is not None
        }
        return {"dropout": settings.get("lora_dropout", 0.0), "bias": settings.bias, **schedule}

    def tensors(self, update: Update) -> Arrays:
        """The factors, pruned ones too."""
        leaves = update.leaves
        rank = len(leaves["e"])
        return {
            "lora_A": turned(leaves["a"]), "lora_E": leaves["e"].reshape(rank, 1),
            "lora_B": turned(leaves["b"].reshape(rank, -1)),
        }  # fmt: skip

    def config(
        self, updates: Mapping[str, Update], own: Mapping[str, Any], modules: set[str]
    ) -> dict[str, Any]:
        """Ranks, alpha and the schedule; PEFT demands a length of the run, which does nothing after it."""
        schedule = {key: own[ours] for key, ours in _SCHEDULE.items() if ours in own}
        return {
            "init_r": self.one("rank", updates),
            "target_r": self.one("target_rank", updates),
            "lora_alpha": whole_number(self.one("alpha", updates)),
            "lora_dropout": self.one("dropout", updates),
            "total_step": own.get("warm_up", 0) + own.get("final", 0) + 1,
            "rank_pattern": None,
            "init_lora_weights": True,
            **schedule,
        }

    def as_stored(self, tensors: Arrays, config: Mapping[str, Any]) -> Arrays:
        """The tensors without what was pruned."""
        patterns = config.get("rank_pattern") or {}
        result = {}
        for name, value in tensors.items():
            module, _, end = name.rpartition(".")
            if end in self.ends and patterns:
                mask = _mask(module, patterns, value.shape[end == "lora_B"])
                value = np.ascontiguousarray(value[:, mask] if end == "lora_B" else value[mask])
            result[name] = value
        return result


def _mask(module: str, patterns: Mapping[str, Any], rank: int) -> np.ndarray:
    """Which singular values of a module are left, (rank,)."""
    kept = patterns.get(f"{module}.lora_E")
    if kept is None:
        return np.ones(rank, bool)
    if len(kept) != rank:
        raise InputError(
            f"rank_pattern: {module}.lora_E has {len(kept)} values, init_r is {rank}; the settings are broken"
        )
    return np.array(kept, bool)
