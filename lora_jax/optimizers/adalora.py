"""AdaLoRA's part in training (Zhang et al. 2023, arXiv 2303.10512): orthogonality, importance and budget.

An update W + scale * A diag(e) B has three leaves `a`, `e` and `b`. At every update of the optimizer

* the gradient of the regulariser that keeps A and B orthonormal is added (section 3.1),
* the importance of every singular value is measured: that of e, and the mean of those of its column of A
  and its row of B, each the product of a smoothed sensitivity |parameter * gradient| and its smoothed
  uncertainty (section 3.2),
* and where the schedule says so, the least important ones of all layers together are set to zero, so that
  their number falls from that at the start to the target by a cubic curve (section 3.3).

A singular value that was set to zero still has gradients, and may come back until the ranks are final.
Order of the steps, counting from 1, and the treatment of ties are those of PEFT.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from lora_jax.errors import InputError
from lora_jax.optimizers.leaves import Leaves, leaves_of, with_leaves
from lora_jax.optimizers.singular_values import SIDES, best, gradients_of_orthogonality, smoothed


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When how many singular values are left.

    Attributes:
      start: singular values of all layers together.
      target: what shall be left of them.
      updates: of the whole run.
      warm_up: updates at the start without pruning.
      final: updates at the end during which the choice stays as it is.
      every: updates from one choice to the next.
    """

    start: int
    target: int
    updates: int
    warm_up: int = 0
    final: int = 0
    every: int = 1

    def __post_init__(self) -> None:
        if self.warm_up >= self.updates - self.final:
            raise InputError(
                f"a run of {self.updates} updates is too short for adalora's warm_up={self.warm_up} and "
                f"final={self.final}: nothing is left to prune in. Lower these two, or train for more than "
                f"{self.warm_up + self.final} updates"
            )

    @property
    def end(self) -> int:
        """The update at which the choice becomes final."""
        return self.updates - self.final

    def left(self, step: int) -> int:
        """How many singular values are left at an update, by the cubic curve of section 3.3."""
        if step <= self.warm_up:
            return self.start
        if step >= self.end:
            return self.target
        to_go = 1 - (step - self.warm_up) / (self.end - self.warm_up)
        return int((self.start - self.target) * to_go**3 + self.target)


class Allocation(NamedTuple):
    """State of `allocated_ranks`, each by path of a leaf.

    Attributes:
      step: updates so far.
      sensitivity: smoothed, in the shapes of the leaves.
      uncertainty: the same.
      kept: of every `e`, what the newest choice leaves.
      inside: state of the transformation inside.
    """

    step: Array
    sensitivity: Leaves
    uncertainty: Leaves
    kept: Leaves
    inside: Any


def allocated_ranks(
    places: Sequence[str],
    schedule: Schedule,
    *,
    beta1: float = 0.85,
    beta2: float = 0.85,
    orthogonal: float = 0.5,
) -> Callable[[optax.GradientTransformation], optax.GradientTransformation]:
    """Makes of an optimizer one that prunes ranks, see the head of this file.

    Args:
      places: paths of the updates, whose leaves are at PLACE/a, PLACE/e and PLACE/b.
      schedule: of the budget.
      beta1: smoothing of the sensitivity.
      beta2: smoothing of the uncertainty.
      orthogonal: weight of the regulariser.
    """
    paths = [f"{place}/{side}" for place in places for side in SIDES]
    of_e = [f"{place}/e" for place in places]
    # In Python's own numbers, as in PEFT: float32 would round to another number of ranks now and then.
    table = [schedule.start - schedule.left(step) for step in range(schedule.end + 1)]

    def measured(state: Allocation, params: Leaves, slopes: Leaves, step: Array) -> Allocation:
        """The state with new sensitivities and uncertainties, which stay once the ranks are final."""
        sizes = {path: jnp.abs(params[path] * slopes[path]) for path in paths}
        old = state.sensitivity, state.uncertainty
        new = smoothed(*old, sizes, beta1, beta2)
        sensitivity, uncertainty = jax.tree.map(
            lambda now, before: jnp.where(step < schedule.end, now, before), new, old
        )
        return state._replace(step=step, sensitivity=sensitivity, uncertainty=uncertainty)

    def chosen(state: Allocation) -> tuple[Allocation, Array]:
        """The state with the newest choice, and whether what it does not keep becomes zero now."""
        step = state.step
        # in the warm-up nothing is dropped, so that a choice there is none
        chooses = (step < schedule.end) & (step % schedule.every == 0) | (step == schedule.end)
        dropped = jnp.asarray(table, jnp.int32)[jnp.minimum(step, schedule.end)]
        now = best(state.sensitivity, state.uncertainty, places, dropped)
        kept = {path: jnp.where(chooses, now[path], state.kept[path]) for path in of_e}
        return state._replace(kept=kept), chooses | (step > schedule.end)

    def wrap(inside: optax.GradientTransformation) -> optax.GradientTransformation:
        inside = optax.with_extra_args_support(inside)

        def init(params: Any) -> Allocation:
            leaves = leaves_of(params, paths)
            zeros, again = (
                {path: jnp.zeros_like(leaf, jnp.float32) for path, leaf in leaves.items()}
                for _ in range(2)  # a step that overwrites its state needs arrays of their own
            )
            kept = {path: jnp.ones_like(leaves[path], bool) for path in of_e}
            return Allocation(jnp.int32(0), zeros, again, kept, inside.init(params))

        def update(
            gradients: Any, state: Allocation, params: Any = None, **more: Any
        ) -> tuple[Any, Allocation]:
            if params is None:
                raise InputError("adalora needs parameters: tx.update(gradients, state, params)")
            before, slopes = leaves_of(params, paths), leaves_of(gradients, paths)
            for path, added in gradients_of_orthogonality(before, places, orthogonal).items():
                slopes[path] += added.astype(slopes[path].dtype)
            gradients = with_leaves(gradients, slopes)
            updates, inner = inside.update(gradients, state.inside, params, **more)
            changes = leaves_of(updates, paths)
            after = {path: before[path] + changes[path] for path in paths}
            step = optax.safe_increment(state.step)
            state, zeroes = chosen(measured(state._replace(inside=inner), after, slopes, step))
            pruned = {
                path: jnp.where(zeroes & ~state.kept[path], -before[path], changes[path])
                for path in of_e
            }
            return with_leaves(updates, pruned), state

        return optax.GradientTransformationExtraArgs(init, update)

    return wrap
