"""AdamW as the paper's experiments use it: linear warm-up and decay, clipping, accumulation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from lora_jax import partition, patterns
from lora_jax.checks import one_of
from lora_jax.errors import InputError
from lora_jax.expressions import Expression
from lora_jax.method import Around

# Biases and LayerNorm are exempt from weight decay, as in the transformers trainer that the
# paper's GLUE scripts use.
NO_DECAY = r"(.*/)?(bias|scale)"

Epsilon = Literal["after", "before"]


def linear_schedule(
    learning_rate: float | jax.Array, steps: int, warmup_ratio: float = 0.0, warmup_steps: int = 0
) -> optax.Schedule:
    """Linear from 0 to the peak during the warm-up, then linear to 0 at the last step.

    The warm-up is a share of the steps or, where that is 0, a number of them. The first update has
    learning rate 0 if there is a warm-up, as in `transformers`; unlike there, a run of one update has no
    share of warm-up, which would be all of it.

    Raises:
      ValueError: the warm-up does not end before the run, or no update has a rate above 0.
    """
    share = math.ceil(warmup_ratio * steps)
    warmup = 0 if share == steps == 1 else share or warmup_steps
    if warmup > steps or warmup == steps == 1:
        raise InputError(
            f"the warm-up of {warmup} updates is longer than the run of {steps}; lower warmup_steps or "
            "warmup_ratio, or raise epochs"
        )
    up = optax.linear_schedule(0.0, learning_rate, max(warmup, 1))
    down = optax.linear_schedule(learning_rate, 0.0, max(steps - warmup, 1))
    return optax.join_schedules([up, down], [warmup]) if warmup else down


def adamw(
    labels: Mapping[str, str],
    schedule: optax.Schedule | float,
    *,
    weight_decay: float = 0.0,
    no_decay: str = NO_DECAY,
    max_grad_norm: float = 0.0,
    accumulate: int = 1,
    per_epoch: int | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    epsilon: Epsilon = "after",
    of_method: Around | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW for the trainable groups of `labels`; everything is inside the trainable part.

    Args:
      labels: path to group, of the tree to be optimised (all parameters, or the trainable ones).
      schedule: learning rate by update.
      weight_decay: decoupled decay.
      no_decay: regular expression of the paths that are exempt from it; "" exempts none. The GLUE
        scripts exempt biases and norms, the public GPT-2 code nothing.
      max_grad_norm: clip by the global norm of all trainable gradients; 0 is off.
      accumulate: micro-batches per update, see `accumulated`.
      per_epoch: micro-batches of an epoch, of which the last update takes what is left; None: there are no
        epochs.
      b1, b2, eps: Adam's constants; the defaults are the GLUE scripts'.
      epsilon: whether `eps` is added to the root of the second moment after its bias correction
        (Kingma and Ba 2015) or before it (the public GPT-2 code).
      of_method: what the method does to its optimizer, see `Method.around`; clipping and accumulation come
        before it.
    """
    one_of("epsilon", epsilon, get_args(Epsilon))
    patterns.check(no_decay, "no_decay")

    def decayed(params: Any) -> Any:
        exempt = Expression(no_decay, "no_decay")
        return partition.by_path(lambda path: not exempt.matches(path), params)

    adam = optax.scale_by_adam if epsilon == "after" else _scale_by_adam_early_epsilon
    each = optax.chain(
        adam(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, decayed),
        optax.scale_by_learning_rate(schedule),
    )

    def around(inside: optax.GradientTransformation) -> optax.GradientTransformation:
        if of_method is not None:
            inside = of_method(inside)
        if max_grad_norm:
            inside = optax.chain(optax.clip_by_global_norm(max_grad_norm), inside)
        if accumulate > 1:
            inside = accumulated(inside, accumulate, per_epoch)
        return inside

    return partition.optimizer(labels, each, around)


class Accumulated(NamedTuple):
    """State of `accumulated`.

    Attributes:
      number: micro-batches so far.
      weight: of those that wait for the next update.
      gradients: their weighted sum.
      inside: state of the transformation that gets their mean.
    """

    number: jax.Array
    weight: jax.Array
    gradients: Any
    inside: Any


def accumulated(
    inside: optax.GradientTransformation, every: int, per_epoch: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """One update for several micro-batches, with the gradient of the batch that they make together.

    That is the mean of their gradients by weight: a mean over tokens or examples has as many of them
    behind it as the micro-batch has, so give the number as `update(..., weight=number)`. Without weights
    micro-batches count the same, whatever they hold.

    Args:
      inside: gets the mean at every update.
      every: micro-batches per update.
      per_epoch: micro-batches of an epoch. An update takes those of one epoch only, so that the last
        one of an epoch may have fewer, as the last batch of an epoch may have fewer examples.
    """
    inside = optax.with_extra_args_support(inside)

    def init(params: Any) -> Accumulated:
        zeros = optax.tree.zeros_like(params)
        return Accumulated(jnp.int32(0), jnp.float32(0), zeros, inside.init(params))

    def update(
        gradients: Any, state: Accumulated, params: Any = None, *, weight: Any = 1.0, **more: Any
    ) -> tuple[Any, Accumulated]:
        weight = jnp.asarray(weight, jnp.float32)
        total = state.weight + weight
        summed = jax.tree.map(lambda so_far, g: so_far + weight * g, state.gradients, gradients)
        number = optax.safe_increment(state.number)
        of_epoch = number if per_epoch is None else (number - 1) % per_epoch + 1
        ready = of_epoch % every == 0
        if per_epoch is not None:
            ready |= of_epoch == per_epoch

        def apply() -> tuple[Any, Accumulated]:
            mean = jax.tree.map(lambda leaf: leaf / total, summed)
            updates, after = inside.update(mean, state.inside, params, **more)
            zeros = optax.tree.zeros_like(summed)
            return updates, Accumulated(number, jnp.zeros_like(total), zeros, after)

        def wait() -> tuple[Any, Accumulated]:
            return optax.tree.zeros_like(summed), Accumulated(number, total, summed, state.inside)

        result: tuple[Any, Accumulated] = jax.lax.cond(ready, apply, wait)
        return result

    return optax.GradientTransformationExtraArgs(init, update)


def _scale_by_adam_early_epsilon(
    b1: float, b2: float, eps: float
) -> optax.GradientTransformationExtraArgs:
    """Adam whose epsilon joins the root of the second moment before bias correction."""
    moments = optax.scale_by_adam(b1, b2, eps)

    def update(gradients: Any, state: Any, params: Any = None, **_: Any) -> tuple[Any, Any]:
        _, state = moments.update(gradients, state, params)
        count = state.count.astype(jnp.float32)
        correction = jnp.sqrt(1 - b2**count) / (1 - b1**count)
        scaled = jax.tree.map(lambda m, v: correction * m / (jnp.sqrt(v) + eps), state.mu, state.nu)
        return scaled, state

    return optax.GradientTransformationExtraArgs(moments.init, update)
