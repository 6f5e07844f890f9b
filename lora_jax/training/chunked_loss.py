"""Cross-entropy of a decoder's tokens, in chunks: the logits of all tokens are never held at once.

With a vocabulary of 128,000 the logits are the largest array of a train step. Here a scan goes over chunks
of tokens, and the gradient of a chunk is computed while its logits are there, as in Liger Kernel (Hsu et
al. 2024, section 3.2). What is kept for the backward pass is the gradient of the hidden states, and of
those parameters only that train and that the output embedding reads: a frozen table has no gradient,
a trained one has one, summed over the chunks. No product is computed twice.

What the output embedding does (a tied table, a cap, LoRA) is the model's affair: `Decoder.logits`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.custom_derivatives import SymbolicZero
from jax.extend import core
from jax.interpreters import partial_eval
from jaxtyping import Array, Float, Int

from lora_jax.checks import integer
from lora_jax.data.batch import Batch
from lora_jax.models.decoder import Decoder
from lora_jax.sharding.axes import Axes, constrain, gathered, names, split_over, ways
from lora_jax.state import is_key

_VALUES = 2**25  # of the logits of a chunk on each device: 128 MiB in float32
_TILE = 8  # rows of a tile of an accelerator's vectors


def losses(
    model: nnx.Module, batch: Batch, key: jax.Array | None, smoothing: float, chunk: int | None
) -> Float[Array, " slots"]:
    """Weighted cross-entropy of every slot; the backward pass computes the logits again.

    Args:
      model: a decoder; another model with its arguments computes all logits at once.
      batch: packed.
      key: switches dropout on.
      smoothing: label smoothing.
      chunk: most slots whose logits are held at once; None: see `chunk_shape`.
    """
    parts = _parts(model, batch, key, smoothing, chunk)
    if parts is None:
        logits = model(batch.inputs, batch.rows, batch.columns, key=key)  # type: ignore[operator]
        return cross_entropies(logits, jnp.asarray(batch.labels), smoothing) * batch.weights
    every = parts.head.of_all(parts.slots, parts.values)
    return every.reshape(-1)[: batch.labels.shape[0]]


def total(
    model: nnx.Module, batch: Batch, key: jax.Array | None, smoothing: float, chunk: int | None
) -> Float[Array, ""]:
    """The sum of the same, whose gradient is computed in the forward pass.

    Where the loss is infinite the gradients are NaN, even where those of the plain loss were finite: a run
    has diverged in both cases.
    """
    parts = _parts(model, batch, key, smoothing, chunk)
    if parts is None:
        return jnp.sum(losses(model, batch, key, smoothing, chunk))
    return parts.head.total(*parts.slots, *parts.values)


def chunk_shape(slots: int, vocabulary: int, tokens: int | None = None) -> tuple[int, int]:
    """Number and size of the chunks of a batch, in equal parts.

    Args:
      slots: of the batch.
      vocabulary: number of logits of a slot.
      tokens: most slots of a chunk, which has at least one on each device; None: the largest power of two
        whose logits are at most 2^25 values on each device, and at least 8 on each device.

    Raises:
      ValueError: `tokens` is no positive integer.
    """
    shares = ways("batch")
    if tokens is None:
        fitting = max(_VALUES * ways("logits") // vocabulary, _TILE)
        tokens = shares << fitting.bit_length() - 1
    tokens = integer("chunk", tokens)
    if slots <= tokens:
        return 1, slots
    tile = max(min(_TILE, tokens // shares), 1) * shares
    count = -(-slots // (max(tokens // tile, 1) * tile))
    size = -(-slots // (count * tile)) * tile
    return -(-slots // size), size


def cross_entropies(
    logits: Float[Array, "n vocabulary"], labels: Int[Array, " n"], smoothing: float
) -> Float[Array, " n"]:
    """(1 - e) * (-log p[label]) + e * mean over the vocabulary of -log p, for smoothing e."""
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    target = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    losses = log_sum - (1 - smoothing) * target
    if smoothing:
        losses = losses - smoothing * jnp.mean(logits, axis=-1)
    return losses


class _Slots(NamedTuple):
    """What a scan goes over; the slots that are added to those of a batch have weight 0.

    Each share is one device's part of a chunk, where a mesh splits batches.
    """

    hidden: Float[Array, "chunks shares size width"]
    weights: Float[Array, "chunks shares size"]
    labels: Int[Array, "chunks shares size"]


_SLOTS = len(_Slots._fields)


class _Parts(NamedTuple):
    head: _Head
    slots: _Slots
    values: list[Array]


def _parts(
    model: nnx.Module, batch: Batch, key: jax.Array | None, smoothing: float, chunk: int | None
) -> _Parts | None:
    """The loss of a decoder in chunks; None where there is one only."""
    if not isinstance(model, Decoder):
        return None
    slots, shares = batch.labels.shape[0], ways("batch")
    count, size = chunk_shape(slots, model.config.vocab_size, chunk)
    if count == 1:
        return None

    def split(part: Any) -> Array:
        padded = jnp.pad(jnp.asarray(part), (0, count * size - slots))
        return padded.reshape(count, shares, size // shares)

    hidden = model.hidden(batch.inputs, split(batch.rows), split(batch.columns), key=key)
    hidden = constrain(hidden, None, "batch", None, "width")
    head, values = _head_of(model, hidden, smoothing)
    return _Parts(head, _Slots(hidden, split(batch.weights), split(batch.labels)), values)


def _head_of(
    model: Decoder, hidden: Float[Array, "chunks shares size width"], smoothing: float
) -> tuple[_Head, list[Array]]:
    """A model's head for parts of this shape, and the values of the model that it reads."""
    structure, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)
    places = [axes for leaf in jax.tree.leaves(state, is_leaf=_is_variable) for axes in _axes(leaf)]

    def logits(leaves: list[Array], hidden: Array) -> Array:
        return nnx.merge(structure, jax.tree.unflatten(tree, leaves)).logits(hidden)

    part = jax.ShapeDtypeStruct(hidden.shape[2:], hidden.dtype)
    traced = jax.make_jaxpr(logits)(leaves, part)
    keep = [False] * len(leaves) + [True]
    live, used = partial_eval.dce_jaxpr(traced.jaxpr, [True], keep)
    function = core.jaxpr_as_fun(core.ClosedJaxpr(live, traced.consts))
    read = [i for i in range(len(leaves)) if used[i]]
    head = _Head(function, tuple(places[i] for i in read), smoothing)
    return head, [jnp.asarray(leaves[i]) for i in read]


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)


def _axes(leaf: Any) -> list[Axes]:
    """How the arrays of a leaf are split while a batch is computed."""
    arrays = jax.tree.leaves(leaf)
    one = _is_variable(leaf) and len(arrays) == 1 and not is_key(arrays[0])
    return [gathered(names(leaf)) if one else ()] * len(arrays)


@dataclasses.dataclass(frozen=True)
class _Head:
    """What makes logits of hidden states, as a function of the values that it reads.

    Attributes:
      logits: of the values and the hidden states of a part.
      places: logical axes of the values, as they are split in the scan: gathered once, before it.
      smoothing: label smoothing of the loss.
    """

    logits: Callable[..., Sequence[Array]]
    places: tuple[Axes, ...]
    smoothing: float

    def gathered(self, values: Sequence[Array]) -> list[Array]:
        """The values, on every device what it reads for its part of a chunk."""
        return [
            constrain(value, *place) if place else value
            for value, place in zip(values, self.places, strict=True)
        ]

    def of_part(self, number: Array, slots: _Slots, values: Sequence[Array]) -> Array:
        """Weighted losses. Random keys are folded with the part's number: each drops its own values."""
        own = [jax.random.fold_in(v, number) if is_key(v) else v for v in values]
        logits = constrain(self.logits(*own, slots.hidden)[0], None, "logits")
        return cross_entropies(logits, slots.labels, self.smoothing) * slots.weights

    def of_all(self, slots: _Slots, values: Sequence[Array]) -> Array:
        """Weighted losses (chunks, shares, size)."""
        values = self.gathered(values)
        of_chunk = _by_shares(lambda number, slots: self.of_part(number, slots, values), (0, 0))
        of_chunk = jax.checkpoint(of_chunk)
        every: Array = jax.lax.map(lambda chunk: of_chunk(*chunk), (_numbers(slots), slots))
        return every

    def total(self, *inputs: Array) -> Array:
        """The sum of the losses, of hidden states, weights, labels, and the values that are read."""

        @jax.custom_jvp
        def total(*inputs: Array) -> Array:
            return jnp.sum(self.of_all(_Slots(*inputs[:_SLOTS]), inputs[_SLOTS:]))

        @functools.partial(total.defjvp, symbolic_zeros=True)
        def derivative(inputs: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
            varying = [i for i, t in enumerate(tangents) if not isinstance(t, SymbolicZero)]
            value, gradients = self.with_gradients(inputs, varying)
            changes = (
                jnp.sum(gradients[i].astype(jnp.float32) * tangents[i].astype(jnp.float32))
                for i in varying
            )
            return value, sum(changes, jnp.zeros_like(value))

        result: Array = total(*inputs)
        return result

    def with_gradients(
        self, inputs: tuple[Array, ...], varying: list[int]
    ) -> tuple[Array, dict[int, Array]]:
        """The sum, and its gradients with respect to the inputs at the places `varying`.

        Each share sums its own gradients of the values; the shares are added once, after the scan.
        """
        slots, values = _Slots(*inputs[:_SLOTS]), self.gathered(inputs[_SLOTS:])

        def loss(number: Array, *inputs: Array) -> Array:
            return jnp.sum(self.of_part(number, _Slots(*inputs[:_SLOTS]), inputs[_SLOTS:]))

        differentiated = _by_shares(
            jax.value_and_grad(loss, argnums=[1 + i for i in varying]),
            (0, *[0] * _SLOTS, *[None] * len(values)),
        )

        def counted(sums: Any, numbers: Array, chunk: _Slots) -> tuple[Any, dict[int, Array]]:
            value, found = differentiated(numbers, *chunk, *values)
            gradients = dict(zip(varying, found, strict=True))
            own = {i: gradients.pop(i) for i in varying if i < _SLOTS}
            return jax.tree.map(jnp.add, sums, (value, gradients)), own

        def unused(sums: Any, numbers: Array, chunk: _Slots) -> tuple[Any, dict[int, Array]]:
            return sums, {i: jnp.zeros_like(chunk[i]) for i in varying if i < _SLOTS}

        def step(sums: Any, numbered: tuple[Array, _Slots]) -> tuple[Any, dict[int, Array]]:
            # Slots without an output are the last ones of a batch, at times a chunk or more.
            some = jnp.any(numbered[1].weights != 0)
            result: tuple[Any, dict[int, Array]] = jax.lax.cond(
                some, counted, unused, sums, *numbered
            )
            return result

        def zeros(value: Array, place: Axes) -> Array:
            wide = jnp.promote_types(value.dtype, jnp.float32)
            empty = jnp.zeros((slots.labels.shape[1], *value.shape), wide)
            return constrain(empty, "batch", *place) if place else empty

        of_values = {i: zeros(inputs[i], self.places[i - _SLOTS]) for i in varying if i >= _SLOTS}
        start = zeros(jnp.zeros((), slots.weights.dtype), ()), of_values
        sums, own = jax.lax.scan(step, start, (_numbers(slots), slots))
        value, gradients = jax.tree.map(lambda shares: jnp.sum(shares, axis=0), sums)
        return value, {**own, **gradients}


def _by_shares(function: Callable[..., Any], in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """The function for all shares of a chunk, each on its own devices."""
    return jax.vmap(function, in_axes, spmd_axis_name=split_over("batch") or None)


def _numbers(slots: _Slots) -> Int[Array, "chunks shares"]:
    """One for every part."""
    return jnp.arange(slots.labels[..., 0].size).reshape(slots.labels.shape[:2])
