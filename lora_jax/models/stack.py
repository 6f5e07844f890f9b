"""A stack of equal blocks: one block whose parameters have a leading layer axis, run by a scan.

Compilation time does not grow with depth, and one factor pair with a layer axis adapts all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from lora_jax.dropout import DropoutKey
from lora_jax.errors import InputError
from lora_jax.models.cache import Cache, KeysValues, LayerCache
from lora_jax.models.sublayer import Context
from lora_jax.sharding.axes import constrain_parameters
from lora_jax.state import KEPT, moved, values, without_sown, write
from lora_jax.surgery import Divided

Remat = Literal["none", "full", "dots"]
Keys = Key[Array, " depth"] | None
Activations = Float[Array, "*shape"]
_Layers = TypeVar("_Layers")
_Output = TypeVar("_Output")


class Stack(nnx.Module):
    """`depth` equal blocks, run one after the other.

    Attributes:
      block: a block whose parameters have a leading axis of size `depth`.
      depth: number of blocks.
      unroll: blocks per scan iteration; `depth` gives straight-line code, which compiles longer and
        runs a little faster. A part of a cut stack keeps the number of the whole one.
      remat: what the backward pass recomputes: nothing ("none"), the whole block ("full"), or all
        but matrix products ("dots").
      kinds: the kind of every block, where a `Context` differs by kind; () where all are alike.

    Raises:
      ValueError: `unroll` is not from 1 to `depth`, or `remat` is unknown.
    """

    block: Any  # of any class; `prefill` and `decode_step` need a `Block`

    def __init__(
        self,
        make: Callable[[nnx.Rngs], nnx.Module],
        depth: int,
        *,
        unroll: int = 1,
        remat: Remat = "none",
        kinds: tuple[int, ...] = (),
        rngs: nnx.Rngs,
    ):
        if not 1 <= unroll <= depth:
            raise InputError(f"unroll must be from 1 to the depth {depth}, got {unroll}")
        if remat not in ("none", "full", "dots"):
            raise InputError(f"remat must be 'none', 'full' or 'dots', got {remat!r}")
        self.block = nnx.split_rngs(splits=depth)(nnx.vmap(make))(rngs)
        self.depth = depth
        self.unroll = unroll
        self.remat = remat
        self.kinds = kinds

    def __call__(self, x: Activations, *args: PyTree, key: DropoutKey = None) -> Activations:
        """Runs the blocks in order.

        Args:
          x: input of the first block.
          args: further arguments of every block, such as the `Context`.
          key: split among the blocks for their dropout; without it there is none.
        """
        return self.with_keys(x, *args, keys=_split(key, self.depth))

    def with_keys(self, x: Activations, *args: PyTree, keys: Keys) -> Activations:
        """Runs the blocks in order as a call does, with one dropout key for each of them."""

        def run(
            block: Any, x: Array, layer: tuple[Array | None, Array | None]
        ) -> tuple[Array, None]:
            key, kind = layer
            return block(x, *(_of_kind(arg, kind) for arg in args), key=key), None

        return self._scan(run, x, (keys, self._kinds()))[0]

    def prefill(
        self, x: Float[Array, "n prompt width"], context: Context
    ) -> tuple[Float[Array, "n prompt width"], KeysValues]:
        """Runs the blocks on prompts: the output, and all layers' keys and values."""
        run = lambda block, x, kind: block.prefill(x, _of_kind(context, kind))  # noqa: E731
        return self._scan(run, x, self._kinds())

    def decode_step(
        self, x: Float[Array, "n beams width"], cache: Cache, first: int = 0
    ) -> tuple[Float[Array, "n beams width"], KeysValues]:
        """Runs the blocks on one token per beam: the output, and all layers' keys and values.

        Args:
          x: embeddings of the beams' newest tokens.
          cache: of all layers of the model.
          first: the model's layer that is the first of this stack.
        """
        last = first + self.depth
        prompt = KeysValues(*(part[first:last] for part in cache.prompt))
        layers = LayerCache(jnp.arange(first, last), prompt, self._kinds())
        step = lambda block, x, layer: block.decode_step(x, layer, cache)  # noqa: E731
        return self._scan(step, x, layers)

    def _kinds(self) -> Int[Array, " depth"] | None:
        return jnp.array(self.kinds, jnp.int32) if self.kinds else None

    def _scan(
        self,
        run: Callable[[Any, Array, Any], tuple[Array, _Output]],
        x: Array,
        layers: _Layers,
    ) -> tuple[Array, _Output]:
        """Scans `run(block, x, layer) -> (x, output)` over the blocks; outputs get a layer axis.

        `layers` is a tree with a leading layer axis, of which every block gets its slice. What the
        blocks write of their state is written back.
        """
        graphdef, state = nnx.split(without_sown(self.block))

        def body(
            carry: Array, slices: tuple[PyTree, _Layers]
        ) -> tuple[Array, tuple[_Output, dict[str, Array]]]:
            block_state, layer = slices
            block = nnx.merge(graphdef, constrain_parameters(block_state))
            before = values(block, *KEPT)
            carry, output = run(block, carry, layer)
            return carry, (output, moved(before, block))

        if self.remat == "full":
            body = jax.checkpoint(body)
        elif self.remat == "dots":
            body = jax.checkpoint(
                body, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            )
        x, (output, written) = jax.lax.scan(
            body, x, (state, layers), unroll=min(self.unroll, self.depth)
        )
        if written:
            write(self.block, written)
        return x, output

    def cut(self, last: int) -> SplitStack:
        """The same blocks as two stacks, `first` and the `last` ones; see `SplitStack.cut`."""
        return SplitStack({_FIRST: self}).cut(last)

    def part(self, start: int, stop: int) -> Stack:
        """The blocks from `start` to `stop` as a stack of their own."""
        graphdef, state = nnx.split(self.block)
        part = nnx.clone(self)
        part.block = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[start:stop], state))
        part.depth = stop - start
        part.kinds = self.kinds[start:stop]
        return part


class SplitStack(Divided):
    """A stack cut into several that run one after the other.

    Labels name whole leaves, and a stack's leaves hold all its layers: cutting gives some layers
    leaves of their own. The parts are children: `first`, and `last_N` for the part that begins N
    blocks before the end. The result, with or without dropout, is that of the uncut stack.
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
        """A stack that is also cut `last` blocks before the end.

        Raises:
          ValueError: `last` is not from 1 to the depth less one.
        """
        if not 0 < last < self.depth:
            raise InputError(
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

    def whole(self) -> Stack | None:
        """The uncut stack; None if the blocks of the parts differ, as when one has something inserted."""
        parts = list(self.parts().values())
        graphdefs, states = zip(*(nnx.split(part.block) for part in parts), strict=True)
        if any(graphdef != graphdefs[0] for graphdef in graphdefs):
            return None
        whole = nnx.clone(parts[0])
        whole.block = nnx.merge(
            graphdefs[0], jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *states)
        )
        whole.depth = self.depth
        whole.kinds = tuple(kind for part in parts for kind in part.kinds)
        return whole

    def __call__(self, x: Activations, *args: PyTree, key: DropoutKey = None) -> Activations:
        """Runs all blocks in order; see `Stack.__call__`."""
        keys, start = _split(key, self.depth), 0
        for part in self.parts().values():
            part_keys = None if keys is None else keys[start : start + part.depth]
            x = part.with_keys(x, *args, keys=part_keys)
            start += part.depth
        return x

    def prefill(
        self, x: Float[Array, "n prompt width"], context: Context
    ) -> tuple[Float[Array, "n prompt width"], KeysValues]:
        """Runs all blocks on prompts; see `Stack.prefill`."""
        outputs = []
        for part in self.parts().values():
            x, new = part.prefill(x, context)
            outputs.append(new)
        return x, _concatenated(outputs)

    def decode_step(
        self, x: Float[Array, "n beams width"], cache: Cache
    ) -> tuple[Float[Array, "n beams width"], KeysValues]:
        """Runs all blocks on one token per beam; see `Stack.decode_step`."""
        outputs, start = [], 0
        for part in self.parts().values():
            x, new = part.decode_step(x, cache, start)
            outputs.append(new)
            start += part.depth
        return x, _concatenated(outputs)


_FIRST = "first"


def _of_kind(argument: PyTree, kind: Int[Array, ""] | None) -> PyTree:
    """A further argument of a block, for its kind."""
    return argument if kind is None else argument.of_kind(kind)


def _concatenated(parts: Sequence[KeysValues]) -> KeysValues:
    return KeysValues(*(jnp.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _split(key: DropoutKey, depth: int) -> Keys:
    return None if key is None else jax.random.split(key, depth)
