"""The values of a run of a sweep besides its parameters: learning rate, scales, dropout rates.

    values = stack([run_values(adapted, learning_rate) for each run])

In a run alone these are Python numbers of the model and the optimizer. Here they are arrays with a
leading axis of runs, so that runs which differ in nothing else are one program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lora_jax.low_rank import layers
from lora_jax.partition import Params


class RunValues(NamedTuple):
    """Numbers of one run; stacked, of several.

    Attributes:
      learning_rate: peak of its schedule.
      scales: alpha/r (or alpha/sqrt(r)) of every factor pair whose scale is but a number, by path as in
        `layers.factor_pairs`.
      rates: dropout rate of every factor pair; empty where no run has LoRA dropout.
      fixed: what the run's method inserted and does not train, where it is not that of all runs, by path.
    """

    learning_rate: Float[Array, ""]
    scales: Mapping[str, Float[Array, ""]]
    rates: Mapping[str, Float[Array, ""]]
    fixed: Mapping[str, Float[Array, ...]] = {}


def run_values(
    adapted: nnx.Module, learning_rate: float, fixed: Mapping[str, Any] | None = None
) -> RunValues:
    """The values of a run.

    Args:
      adapted: a model into which the run's method was inserted; an abstract one is enough.
      learning_rate: peak of its schedule.
      fixed: of its own, by path.
    """
    pairs = layers.factor_pairs(adapted)
    return RunValues(
        np.float32(learning_rate),  # type: ignore[arg-type]
        {p: np.float32(pair.scale) for p, pair in pairs.items() if pair.is_plain},  # type: ignore[misc]
        {path: np.float32(pair.dropout) for path, pair in pairs.items()},  # type: ignore[misc]
        dict(fixed or {}),
    )


def stack(runs: Sequence[RunValues]) -> RunValues:
    """Values with a leading axis of runs; no dropout rates if all are zero."""
    values: RunValues = jax.tree.map(lambda *leaves: np.stack(leaves), *runs)
    without = all(not np.any(rate) for rate in values.rates.values())
    return values._replace(rates={}) if without else values


def of_run(trainable: Mapping[str, Any], values: RunValues) -> Params:
    """One run's leaves for the common method, whose scale is 1: A times the run's scale, and what is fixed.

    The scale is a number in front of A B; a run alone multiplies A by it, too, in the layer.
    """
    leaves = {**trainable, **values.fixed}
    for path, scale in values.scales.items():
        leaves[f"{path}/a"] = leaves[f"{path}/a"] * jnp.asarray(scale, jnp.float32)
    return leaves
