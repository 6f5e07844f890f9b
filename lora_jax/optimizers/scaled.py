"""Learning rates of single parameters, relative to that of the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from lora_jax import partition


def scaled_updates(
    rates: Mapping[str, float],
) -> Callable[[optax.GradientTransformation], optax.GradientTransformation]:
    """Makes the updates of some parameters larger or smaller, decay included: a learning rate of their own.

    LoRA+ (Hayou et al. 2024, 2402.12354) has one for B, some 16 times that of A.

    Args:
      rates: by path, as times the optimizer's learning rate; other parameters keep that.
    """

    def scale(updates: Any, state: Any, params: Any = None, **_: Any) -> tuple[Any, Any]:
        factors = partition.by_path(lambda path: rates.get(path, 1.0), updates)
        return jax.tree.map(lambda update, factor: update * factor, updates, factors), state

    scaling = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), scale)
    return lambda inside: optax.chain(inside, scaling)
