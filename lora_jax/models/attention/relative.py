"""Scores of queries and keys with the relative positions between them (He et al. 2021, section 3.1).

The distance of two tokens is that of their columns: the examples that share a row lie side by side, and
tokens of different ones do not attend to each other. So which position belongs to which score is known
when a program is traced, and no score is looked up by an index of its own: each block of queries is
multiplied by the embeddings of all distances that it has, in their order, and the rows of the product are
moved along by one column each, which is a change of shape.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# Queries of a block have length + _BLOCK distances. Fewer rows would fill a device less.
_BLOCK = 128


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Relative:
    """Projected embeddings of every distance in rows of some length, by head; None: there is none of them.

    Attributes:
      keys: for products with queries (content to position): row i is of a key `length - 1 - i` columns
        before its query, so that the keys of a query are in order. The last row is not used.
      queries: for products with keys (position to content): row i is of a query `i - length + 1` columns
        behind its key.
    """

    keys: Float[Array, "distances heads size"] | None
    queries: Float[Array, "distances heads size"] | None

    @property
    def arrays(self) -> int:
        """Arrays as large as the scores that there are for the products: of each at most three."""
        return sum(3 for table in (self.keys, self.queries) if table is not None)

    def products(
        self,
        q: Float[Array, "rows heads length size"],
        k: Float[Array, "rows heads length size"],
    ) -> Float[Array, "rows heads length length"] | float:
        """The sum of both products for every query and key, in float32 and without a scale.

        Args:
          q: queries.
          k: keys.
        """
        total: Array | float = 0.0
        if self.keys is not None:
            total += _by_distance(q, self.keys)
        if self.queries is not None:
            total += jnp.swapaxes(_by_distance(k, self.queries), -1, -2)
        return total


def _by_distance(
    x: Float[Array, "rows heads length size"], table: Float[Array, "distances heads size"]
) -> Float[Array, "rows heads length length"]:
    """Products of token i with row `length - 1 - i + j` of the table, for every j."""
    length = x.shape[2]
    blocks = []
    for start in range(0, length, _BLOCK):
        own = x[:, :, start : start + _BLOCK]
        count = own.shape[2]
        # One row more than the block has distances.
        seen = table[length - start - count : 2 * length - start]
        products = jnp.einsum("bhqd,ehd->bhqe", own, seen, preferred_element_type=jnp.float32)
        width = seen.shape[0] - 1
        flat = products.reshape(*x.shape[:2], -1)[..., count - 1 : count - 1 + count * width]
        blocks.append(flat.reshape(*x.shape[:2], count, width)[..., :length])
    return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=2)


def buckets(
    distances: Int[np.ndarray, "*shape"], count: int, longest: int
) -> Int[np.ndarray, "*shape"]:
    """The numbers of distances of which far ones share one, on a logarithmic scale.

    Those up to `count // 2` have their own, so has none from `longest` on. They are computed in float32, as
    by the model's authors: a rounding decides where a bucket ends.

    Args:
      distances: of queries from keys.
      count: of buckets on each side; from 2 on.
      longest: distance from which on all have the last bucket; above `count // 2 + 1`.
    """
    near = count // 2
    far = np.maximum(np.abs(distances), near).astype(np.float32)
    whole = np.log(np.float32((longest - 1) / near))
    steps = np.ceil(np.log(far / np.float32(near)) / whole * np.float32(near - 1))
    result = np.where(np.abs(distances) <= near, distances, np.sign(distances) * (steps + near))
    return result.astype(np.int32)
