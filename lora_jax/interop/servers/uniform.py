"""An adapter of PEFT with one rank and one scale for all modules, which computes the same."""

from __future__ import annotations

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
    others takes in the difference, in float32 where the adapter's type cannot hold that exactly.

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
        bias = (
            names["B"].removesuffix("weight") + "bias"
        )  # of B (lora_bias), which has the scale, too
        own = [names["A"], names["B"], *([bias] if bias in result else [])]
        a, b, *more = _scaled([result[name] for name in own], amounts[module] / amount, module)
        a, b = np.pad(a, ((0, rank - len(a)), (0, 0))), np.pad(b, ((0, 0), (0, rank - b.shape[1])))
        result |= dict(zip(own, [a, b, *more], strict=True))
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


def _scaled(tensors: list[np.ndarray], ratio: float, module: str) -> list[np.ndarray]:
    """A, and B (and its bias) times a number; all in float32 where their type cannot hold that exactly."""
    if ratio == 1:
        return tensors
    a, *others = tensors
    wide = [value.astype(np.float64) * ratio for value in others]
    with np.errstate(over="ignore", under="ignore"):
        exact = all((v.astype(a.dtype).astype(np.float64) == v).all() for v in wide)
        kind = a.dtype if exact else np.dtype(np.float32)
        result = [a.astype(kind), *(value.astype(kind) for value in wide)]
    if not all(np.isfinite(value).all() for value in result):
        raise InputError(
            f"{module}: its scale times B is too large for float32; merge the adapter instead"
        )
    return result
