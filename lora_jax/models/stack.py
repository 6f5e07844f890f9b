"""A stack of equal blocks: one block whose parameters have a leading layer axis, run by a scan.

Compilation time does not grow with depth, and one factor pair with a layer axis adapts all layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from lora_jax.sharding.axes import kept

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
        return self.with_keys(x, *args, keys=_split(key, self.depth))

    def with_keys(
        self, x: Float[Array, ...], *args: Any, keys: Key[Array, " depth"] | None
    ) -> Float[Array, ...]:
        """Runs the blocks in order, each with its own dropout key."""
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
            return run(nnx.merge(graphdef, kept(own_state)), carry, own)

        if self.remat == "full":
            body = jax.checkpoint(body)
        elif self.remat == "dots":
            body = jax.checkpoint(
                body, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            )
        return jax.lax.scan(body, x, (state, each), unroll=self.unroll)

    def cut(self, last: int) -> SplitStack:
        """The same blocks as two stacks, `first` and the `last` ones."""
        return SplitStack({_FIRST: self}).cut(last)

    def part(self, start: int, stop: int) -> Stack:
        """The blocks from `start` to `stop` as a stack of their own."""
        graphdef, state = nnx.split(self.block)
        part = nnx.clone(self)
        part.block = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[start:stop], state))
        part.depth = stop - start
        part.unroll = min(self.unroll, part.depth)
        return part


class SplitStack(nnx.Module):
    """A stack cut into several that run in a row, so that labels of single layers are whole leaves.

    The parts are children: `first`, and `last_N` for the one that begins N blocks below the end. The
    result, with or without dropout, is that of the uncut stack.
    """

    def __init__(self, parts: dict[str, Stack]):
        self.names = tuple(parts)
        for name, part in parts.items():
            setattr(self, name, part)

    def parts(self) -> dict[str, Stack]:
        """The stacks by name, in order."""
        return {name: getattr(self, name) for name in self.names}

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(part.depth for part in self.parts().values())

    def cut(self, last: int) -> SplitStack:
        """A stack that is also cut `last` blocks below the end.

        Raises:
          ValueError: `last` is not from 1 to the depth less one.
        """
        if not 0 < last < self.depth:
            raise ValueError(
                f"cannot take the last {last} of {self.depth} layers apart: take 1 to "
                f"{self.depth - 1}, or a method for all layers"
            )
        parts, below = {}, self.depth
        for name, part in self.parts().items():
            start = below - last
            if 0 < start < part.depth:
                parts[name] = part.part(0, start)
                parts[f"last_{last}"] = part.part(start, part.depth)
            else:
                parts[name] = part
            below -= part.depth
        return SplitStack(parts)

    def __call__(
        self, x: Float[Array, ...], *args: Any, key: Key[Array, ""] | None = None
    ) -> Float[Array, ...]:
        """As `Stack.__call__`."""
        keys, start = _split(key, self.depth), 0
        for part in self.parts().values():
            own = None if keys is None else keys[start : start + part.depth]
            x = part.with_keys(x, *args, keys=own)
            start += part.depth
        return x

    def cached(self, x: Float[Array, ...], cache: Any, *args: Any) -> tuple[Float[Array, ...], Any]:
        """As `Stack.cached`."""
        kept, start = [], 0
        for part in self.parts().values():
            span = slice(start, start + part.depth)
            own = jax.tree.map(lambda leaf, span=span: leaf[span], cache)
            x, new = part.cached(x, own, *args)
            kept.append(new)
            start += part.depth
        return x, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *kept)


_FIRST = "first"


def _split(key: Key[Array, ""] | None, depth: int) -> Key[Array, " depth"] | None:
    return None if key is None else jax.random.split(key, depth)
