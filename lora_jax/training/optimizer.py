"""AdamW as the paper's experiments use it: linear warm-up and decay, clipping, accumulation."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import optax

from lora_jax import partition

# Biases and LayerNorm are exempt from weight decay, as in the transformers trainer that the
# paper's GLUE scripts use.
_NO_DECAY = r"(.*/)?(bias|scale)"


def linear_schedule(learning_rate: float, steps: int, warmup_ratio: float) -> optax.Schedule:
    """Linear from 0 to the peak over the first share of the steps, then linear to 0 at the last.

    The first update has learning rate 0 if there is a warm-up, as in `transformers`.
    """
    warmup = math.ceil(warmup_ratio * steps)
    up = optax.linear_schedule(0.0, learning_rate, max(warmup, 1))
    down = optax.linear_schedule(learning_rate, 0.0, max(steps - warmup, 1))
    return optax.join_schedules([up, down], [warmup]) if warmup else down


def adamw(
    labels: Mapping[str, str],
    schedule: optax.Schedule | float,
    *,
    weight_decay: float = 0.0,
    max_grad_norm: float = 0.0,
    accumulate: int = 1,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """AdamW for the trainable groups of `labels`; everything is inside the trainable part.

    Args:
      labels: path to group, of the tree to be optimised (all parameters, or the trainable ones).
      schedule: learning rate by update.
      weight_decay: decoupled decay of matrices and factors; biases and norms are exempt.
      max_grad_norm: clip by the global norm of all trainable gradients; 0 is off.
      accumulate: micro-batches per update; their gradients are averaged.
      b1, b2, eps: Adam's constants; the defaults are the GLUE scripts'.
    """

    def decayed(params: Any) -> dict[str, bool]:
        return {path: not re.fullmatch(_NO_DECAY, path) for path in params}

    each = optax.adamw(schedule, b1, b2, eps, weight_decay=weight_decay, mask=decayed)

    def around(inside: optax.GradientTransformation) -> optax.GradientTransformation:
        if max_grad_norm:
            inside = optax.chain(optax.clip_by_global_norm(max_grad_norm), inside)
        if accumulate > 1:
            inside = optax.MultiSteps(inside, accumulate).gradient_transformation()
        return inside

    return partition.optimizer(labels, each, around)
