"""Batches of a user's own arrays: deterministic from the seed, resumable at any step."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import PyTree

from lora_jax import digests
from lora_jax.checks import integer
from lora_jax.data.counts import Counts
from lora_jax.errors import InputError
from lora_jax.ranges import SEED, check


class ArrayBatches:
    """Batches of a tree of arrays whose first axis holds the examples.

        ArrayBatches({"image": images, "label": labels}, batch_size=32)

    Every batch is a tree of the same structure. Epoch e is a permutation of the examples given by
    (seed, e), cut into batches; batch b of epoch e is a function of these numbers alone.

    Attributes:
      per_epoch: batches of an epoch.
    """

    def __init__(self, arrays: PyTree, batch_size: int, *, seed: int = 0, drop_last: bool = False):
        """Keeps the arrays in this host's memory.

        Args:
          arrays: any tree of arrays (jax or numpy), all with the same number of examples.
          batch_size: examples of a batch, on all devices together.
          seed: of the order.
          drop_last: leaves out the last batch of an epoch where it is smaller than the others, which
            otherwise is trained on as it is (a second shape to compile). Several devices need
            batches that they can share in equal parts.

        Raises:
          ValueError: no arrays, arrays of different lengths, or a batch size that does not fit.
        """
        self._arrays = jax.tree.map(np.asarray, arrays)
        leaves = jax.tree_util.tree_leaves_with_path(self._arrays)
        counts = {jax.tree_util.keystr(path): leaf.shape[:1] for path, leaf in leaves}
        if len(set(counts.values())) != 1 or () in counts.values():
            lengths = ", ".join(
                f"{path or 'array'}: {n[0] if n else 'a number'}" for path, n in counts.items()
            )
            raise InputError(
                f"all arrays need the same number of examples along their first axis, got {lengths or 'none'}"
            )
        ((self._examples,),) = set(counts.values())
        self._batch_size = integer("batch_size", batch_size)
        self._seed = check("seed", seed, SEED)
        whole, rest = divmod(self._examples, self._batch_size)
        self.per_epoch = whole + (rest > 0 and not drop_last)
        if not self.per_epoch:
            raise InputError(
                f"{self._examples} examples make no batch of {batch_size}; lower batch_size"
            )

    @functools.cached_property
    def digest(self) -> str:
        """What tells these batches from those of other data, of another order or size."""
        settings = [self._batch_size, self._seed, self.per_epoch]
        return digests.of_texts([digests.of_arrays(self._arrays), *map(str, settings)])

    def epoch(self, epoch: int, start: int = 0) -> Iterator[PyTree]:
        """The batches of one epoch from number `start` on."""
        order = np.random.default_rng([self._seed, epoch]).permutation(self._examples)
        for number in range(start, self.per_epoch):
            chosen = order[number * self._batch_size : (number + 1) * self._batch_size]
            yield jax.tree.map(lambda leaf, chosen=chosen: leaf[chosen], self._arrays)

    def count(self, batch: PyTree) -> Counts:
        """Examples of a batch; arrays have no tokens."""
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        return Counts(examples=shapes[0][0], tokens=0, slots=0, shape=shapes)
