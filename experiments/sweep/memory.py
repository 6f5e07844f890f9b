"""How many runs of a program the devices' memory holds: measured by compiling two programs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.sweep.shared_base import SharedBase
from lora_jax.costs import compiled
from lora_jax.data.batch import Batch, Inputs
from lora_jax.sharding.mesh import RUN
from lora_jax.sweeps import capacity, runs, step


class Memory:
    """Memory of programs over a shared base, with room for every point's rank."""

    def __init__(self, base: SharedBase):
        self._base, self._steps = base, base.widest
        # Of all points; for the structure that a program's values have.
        self._values = runs.stack([base.start(point).values for point in base.points.values()])

    def runs_that_fit(self) -> int:
        """The most runs of a program that fit.

        Raises:
          ValueError: not even one run for each device of the axis `run` fits.
        """
        ways = self._steps.placement.mesh.shape[RUN]
        budget = capacity.free_bytes(jax.local_devices()[0]) + self.frozen_bytes()
        return capacity.fitting(self.needed_bytes, budget, ways, len(self._base.points))

    def frozen_bytes(self) -> int:
        """What the base takes on a device."""
        frozen = self._steps.model.frozen.values()
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in frozen)

    def needed_bytes(self, count: int) -> int:
        """What the train step of `count` runs and of the largest batch takes on each device."""
        steps, placement = self._steps, self._steps.placement
        of_runs, each = placement.of_runs(), placement.each_run
        shapes = steps.stacked(count)
        rates = jax.ShapeDtypeStruct((count,), jnp.float32)
        state = jax.eval_shape(step.initial_states(steps.optimizer), dict(shapes), rates)
        prng = self._base.settings.train.prng
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0, impl=prng), count))
        arguments = (
            jax.tree.map(_abstract, dict(shapes), of_runs.shardings(shapes)),
            jax.tree.map(_abstract, state, of_runs.state_shardings(state, shapes)),
            jax.tree.map(lambda leaf: _abstract(_of_each(leaf, count), each), self._values),
            steps.model.frozen,
            self._largest_batch(count),
            _abstract(keys, each),
            _abstract(jax.ShapeDtypeStruct((), jnp.uint32), placement.replicated),
        )
        return compiled.needs(steps.train_step(count), arguments, None).peak

    def _largest_batch(self, count: int) -> Batch:
        """Shapes of the largest usual batch; with an axis of runs if their orders differ."""
        members = list(self._base.points.values())
        ways = self._steps.placement.mesh.shape[RUN]
        data = self._base.batches(members + members[-1:] * (-len(members) % ways))
        rows, length = data.menu.shapes[-1]
        first = self._steps.placement.batch(next(data.epoch(0)))
        lead = (count,) * (first.inputs.tokens.ndim - 2)

        def shaped(leaf: jax.Array, *shape: int) -> Any:
            return jax.ShapeDtypeStruct((*lead, *shape), leaf.dtype, sharding=leaf.sharding)

        inputs = [shaped(field, rows, length) for field in first.inputs]
        slots = {k: shaped(v, data.slots) for k, v in first._asdict().items() if k != "inputs"}
        return first._replace(inputs=Inputs(*inputs), **slots)


def _abstract(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _of_each(values: np.ndarray, count: int) -> jax.ShapeDtypeStruct:
    """The shape of what has an axis of other runs, for `count` of them."""
    return jax.ShapeDtypeStruct((count, *values.shape[1:]), values.dtype)
