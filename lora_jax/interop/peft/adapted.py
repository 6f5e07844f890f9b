"""The modules that an adapter of PEFT adapts: whether all are there, how each is adapted, and its factors."""

from __future__ import annotations

from collections.abc import Collection

from lora_jax.errors import InputError
from lora_jax.interop.peft import initial, targets
from lora_jax.interop.peft.config import PeftConfig
from lora_jax.interop.peft.layers import Spec
from lora_jax.interop.peft.names import Names, outputs
from lora_jax.interop.peft.saved import BaseLeaf
from lora_jax.interop.peft.tensors import Arrays, Sorted
from lora_jax.interop.peft.variants import turned
from lora_jax.low_rank.contraction import scale
from lora_jax.patterns import some

OF_LORA = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")


def check_targets(
    found: Sorted, settings: PeftConfig, names: Names, ends: Collection[str] = OF_LORA
) -> None:
    """The factors must be those of the modules that the settings name, no more and no fewer.

    Args:
      found: in the file.
      settings: of the adapter.
      names: of the base.
      ends: of the names of factors, for messages.
    """
    if not found.factors:
        kind = settings.get("peft_type", "LORA")
        factors = ", ".join(ends)
        raise InputError(
            f"no tensor is a factor of {kind} ({factors}) of a layer; an adapter without factors cannot be "
            "read"
        )
    wanted = targets.chosen(settings, names.weights)
    if wanted is None:
        return
    if extra := [module for module in found.factors if module not in wanted]:
        raise InputError(
            f"the file has factors of {some(extra)}, which target_modules does not name: PEFT leaves them "
            "out when it loads. Correct target_modules in adapter_config.json, or leave the tensors out"
        )
    bare = not names.prefix  # there is no head around it whose layers could be named
    if missing := [
        module
        for module in names.weights
        if module in wanted
        and module not in found.factors
        and not (bare and names.of_head(f"{module}.weight"))
    ]:
        raise InputError(
            f"target_modules names {len(missing)} modules without factors in the file: {some(missing)}; it "
            "is incomplete, or the adapter is of another model"
        )


def spec_of(module: str, found: Sorted, settings: PeftConfig, names: Names) -> Spec:
    """The settings of a module, which must be those of its factors."""
    factors, weight = found.factors[module], names.weights[module]
    rank = len(factors["a"])
    if (expected := settings.rank(module)) != rank:
        raise InputError(
            f"{module}: its factors are of rank {rank}, r and rank_pattern say {expected}; the two "
            "files do not belong together, or rank_pattern was lost"
        )
    start = {}
    if settings.initial and not weight.is_table:
        start = {"init": settings.initial, "svd_iterations": settings.iterations or False}
    magnitude, b_bias = settings.get("use_dora", False), settings.get("lora_bias", False)
    for side, wanted in (("magnitude", magnitude), ("b_bias", b_bias)):
        if (side in factors) != (wanted and not (side == "b_bias" and weight.is_table)):
            raise InputError(
                f"{module}: use_dora={magnitude} and lora_bias={b_bias}, but its tensors are "
                f"{sorted(factors)}; the two files do not belong together"
            )
    tied = module in names.tied.values() and not settings.get("ensure_weight_tying", False)
    arguments = {
        "rank": rank, "alpha": settings.alpha(module), "scaling": settings.scaling, **start,
        "magnitude": magnitude, "b_bias": b_bias and not weight.is_table,
        "lookup_only": weight.is_table and tied,
    }  # fmt: skip
    return Spec.of(arguments, str(factors["a"].dtype))


def factors_of(
    module: str,
    found: Sorted,
    settings: PeftConfig,
    names: Names,
    base: BaseLeaf,
    *,
    approximate: bool,
) -> Arrays:
    """The factors of a module in our shapes, one layer, and their start where it is taken off again.

    Args:
      module: its name.
      found: in the file.
      settings: of the adapter.
      names: of the base.
      base: gives the base's values.
      approximate: whether a start that follows from the base only nearly will do.
    """
    factors, weight = dict(found.factors[module]), names.weights[module]
    rank = len(factors["a"])
    if settings.initial and not weight.is_table:
        matrix = base(weight).reshape(weight.shape[0], -1).T
        own = scale(rank, settings.alpha(module), settings.scaling)  # type: ignore[arg-type]
        if settings.iterations and not approximate:
            initial.check_iterations(module, matrix, rank, settings.iterations)
        first = initial.first_factors(settings.initial, matrix, rank, own)
        factors["a_start"], factors["b_start"] = first
    out = outputs(weight)
    shapes = {"b": (rank, *out), "b_start": (rank, *out), "b_bias": out, "magnitude": out}
    return {
        side: turned(value, None if side in ("a", "a_start") else shapes[side])
        for side, value in factors.items()
    }
