"""A stack of equal blocks: one block whose parameters have a leading layer axis, run by a scan.

Compilation time does not grow with depth, and one factor pair with a layer axis adapts all layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
from flax import nnx
from jaxtyping import Array, Float, Key

Remat = Literal["none", "full", "dots"]


class Stack(nnx.Module):
    """`depth` blocks in a row.

    Attributes:
      block: a block whose parameters have a leading axis of size `depth`.
      depth: number of blocks.
      unroll: blocks per scan iteration; `depth` gives straight-line code, which compiles longer and
        runs a little faster.
      remat: what the backward pass recomputes: nothing, the whole block, or all but matrix products.
    """

    def __init__(
        self,
        make: Callable[[nnx.Rngs], nnx.Module],
        depth: int,
        *,
        unroll: int = 1,
        remat: Remat = "none",
        rngs: nnx.Rngs,
    ):
        if not 1 <= unroll <= depth:
            raise ValueError(f"unroll must be from 1 to the depth {depth}, got {unroll}")
        if remat not in ("none", "full", "dots"):
            raise ValueError(f"remat must be 'none', 'full' or 'dots', got {remat!r}")
        self.block = nnx.split_rngs(splits=depth)(nnx.vmap(make))(rngs)
        self.depth = depth
        self.unroll = unroll
        self.remat = remat

    def __call__(
        self, x: Float[Array, ...], *args: Any, key: Key[Array, ""] | None = None
    ) -> Float[Array, ...]:
        """Runs the blocks in order; `args` go to each, `key` is split among them for dropout."""
        keys = None if key is None else jax.random.split(key, self.depth)
        run = lambda block, x, own_key: (block(x, *args, key=own_key), None)  # noqa: E731
        return self._scan(run, x, keys)[0]

    def cached(self, x: Float[Array, ...], cache: Any, *args: Any) -> tuple[Float[Array, ...], Any]:
        """Runs `block.cached(x, own, *args) -> (x, kept)` in order.

        Args:
          x: input of the first block.
          cache: a tree with a leading layer axis; each block gets its slice as `own`.
          args: go to each block.

        Returns:
          The last block's output and what each kept, with a leading layer axis.
        """
        return self._scan(lambda block, x, own: block.cached(x, own, *args), x, cache)

    def _scan(self, run: Callable[..., tuple[Array, Any]], x: Array, each: Any) -> Any:
        graphdef, state = nnx.split(self.block)

        def body(carry: Array, layer: tuple[Any, Any]) -> tuple[Array, Any]:
            own_state, own = layer
            return run(nnx.merge(graphdef, own_state), carry, own)

        if self.remat == "full":
            body = jax.checkpoint(body)
        elif self.remat == "dots":
            body = jax.checkpoint(
                body, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            )
        return jax.lax.scan(body, x, (state, each), unroll=self.unroll)
