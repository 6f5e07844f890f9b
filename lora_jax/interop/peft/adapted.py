"""The modules that an adapter of PEFT adapts: whether all are there, how each is adapted, and its factors."""

from __future__ import annotations

import numpy as np

from lora_jax.errors import InputError
from lora_jax.interop.peft import initial, targets
from lora_jax.interop.peft.config import PeftConfig
from lora_jax.interop.peft.layers import Spec
from lora_jax.interop.peft.names import Names, outputs
from lora_jax.interop.peft.saved import BaseLeaf
from lora_jax.interop.peft.tensors import Arrays, Sorted
from lora_jax.low_rank.contraction import scale
from lora_jax.patterns import some


def check_targets(found: Sorted, settings: PeftConfig, names: Names) -> None:
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


def spec_of(module: str, found: Sorted, settings: PeftConfig, names: Names) -> Spec:
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


def factors_of(
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
