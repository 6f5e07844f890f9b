"""An adapter of PEFT with one rank and one scale for all modules, which computes the same."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

import numpy as np

from lora_jax.errors import InputError
from lora_jax.interop.peft.config import PeftConfig
from lora_jax.interop.peft.tensors import PREFIX, Arrays
from lora_jax.interop.servers.findings import Config, Tensors
from lora_jax.low_rank.contraction import scale

_FACTOR = re.compile(
    r"(?P<module>.+)\.(lora_(?P<side>[AB])\.weight|lora_embedding_(?P<of_table>[AB]))"
)


def factors(tensors: Tensors) -> dict[str, dict[str, str]]:
    """The names of the tensors A and B of every module, by the module's name without PEFT's prefix."""
    result: dict[str, dict[str, str]] = {}
    for name in tensors:
        if match := _FACTOR.fullmatch(name.removeprefix(PREFIX)):
            side = match["side"] or match["of_table"]
            result.setdefault(match["module"], {})[side] = name
    return result


def scales(config: Config, tensors: Tensors) -> dict[str, float]:
    """What stands in front of B A in every module."""
    settings, result = PeftConfig(config), {}
    for module, names in factors(tensors).items():
        rank = len(tensors[names["A"]])
        result[module] = scale(rank, settings.alpha(module), settings.scaling)  # type: ignore[arg-type]
    return result


def is_uniform(config: Config, tensors: Tensors) -> bool:
    """Whether all modules have the rank `r` and the scale `lora_alpha` / `r`."""
    ranks = {len(tensors[names["A"]]) for names in factors(tensors).values()}
    return ranks == {config.get("r")} and not config.get("use_rslora") and not any(
        config.get(key) for key in ("rank_pattern", "alpha_pattern")
    )  # fmt: skip


def uniform(
    config: Config, tensors: Tensors, rank: int | None = None
) -> tuple[dict[str, Any], Arrays]:
    """The adapter with one rank and one scale.

    Factors get rows and columns of zeros up to the rank. The scale is that of most modules; B of the
    others takes in the difference, in float32 unless that is a power of two.

    Args:
      config: of a plain LoRA.
      tensors: of the adapter.
      rank: of all modules; None for the largest of them.

    Raises:
      InputError: a module has a larger rank.
    """
    modules, amounts = factors(tensors), scales(config, tensors)
    ranks = {module: len(tensors[names["A"]]) for module, names in modules.items()}
    most = max(ranks.values())
    rank = most if rank is None else rank
    if rank < most:
        worst = max(ranks, key=ranks.__getitem__)
        raise InputError(
            f"{worst} has rank {most}, more than {rank}; the nearest adapter of a smaller rank: python -m "
            f"experiments.adapters reduce --rank={rank}"
        )
    amount = Counter(amounts.values()).most_common(1)[0][0]
    result = {name: np.asarray(value) for name, value in tensors.items()}
    for module, names in modules.items():
        a, b = (result[names[side]] for side in "AB")
        a, b = _scaled(a, b, amounts[module] / amount)
        result[names["A"]] = np.pad(a, ((0, rank - len(a)), (0, 0)))
        result[names["B"]] = np.pad(b, ((0, 0), (0, rank - b.shape[1])))
    alpha = amount * rank
    whole = int(alpha) if float(alpha).is_integer() else alpha
    settings: dict[str, Any] = {
        "r": rank,
        "lora_alpha": whole,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
    }
    return {**config, **settings}, result


def _scaled(a: np.ndarray, b: np.ndarray, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """The factors with a number in B; in float32 where it is no power of two."""
    if ratio == 1:
        return a, b
    exact = math.frexp(ratio)[0] == 0.5
    kind = b.dtype if exact else np.dtype(np.float32)
    return a.astype(kind), (b.astype(np.float64) * ratio).astype(kind)
