"""Packing: the examples of one batch share rows, so almost every token computed is a real one.

A batch of 32 examples is still exactly those 32 examples and one optimizer update. Each row holds
several segments (examples) end to end; attention stays inside a segment and positions restart with
it. Only the tokens that have outputs are gathered (a classifier's first token of every segment, a
decoder's completion tokens), so logits and gradients equal those of the padded batch. The shapes
are static: `lora_jax.data.shapes` chooses a few of them for a whole run.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Int32

from lora_jax import digests
from lora_jax.data.batch import Batch, Inputs
from lora_jax.errors import InputError

Shape = tuple[int, int]  # (rows, length) of a batch
Integers = Sequence[int] | Int[np.ndarray, " _"]
# Kernels of attention need a bound of the segments of a row; examples this short are rare.
TOKENS_PER_SEGMENT = 4
Places = list[tuple[int, int]]  # (row, column) of every segment's first token


@runtime_checkable
class Packable(Protocol):
    """Tokenised examples of any kind, as batches are made from them."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    @property
    def lengths(self) -> Int32[np.ndarray, " examples"]:
        """Number of tokens of every example."""
        ...

    def outputs(self, indices: Integers) -> int:
        """Number of outputs of a batch of these examples: the slots that it needs."""
        ...

    def slots(self, batches: Iterable[Integers]) -> int:
        """Number of slots with which a batch like any of these has enough."""
        ...

    def pack(self, indices: Integers, shape: Shape, slots: int) -> Batch:
        """Packs the examples at `indices` into a batch of static shape.

        Raises:
          ValueError: the examples do not fit.
        """
        ...


@dataclasses.dataclass(frozen=True)
class TokenSequences:
    """The part that tokenised examples of every kind share.

    Attributes:
      ids: one int32 array of token ids per example.
    """

    ids: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> Int32[np.ndarray, " examples"]:
        """Number of tokens of every example."""
        return np.array([len(ids) for ids in self.ids], np.int32)

    @property
    def digest(self) -> str:
        """What tells these examples from others."""
        values = [getattr(self, field.name) for field in dataclasses.fields(self)]
        return digests.of_texts(
            digests.of_sequences(v) if isinstance(v, list) else digests.of_arrays(v)
            for v in values
            if v is not None
        )


@dataclasses.dataclass(frozen=True)
class TokenisedExamples(TokenSequences):
    """Examples of a classification or regression task as token ids.

    Attributes:
      types: token types, of the same lengths as `ids`.
      labels: class ids (int32) or scores (float32).
      class_token: index of the classification token in every example.
    """

    types: list[np.ndarray]
    labels: Int[np.ndarray, " examples"] | Float[np.ndarray, " examples"]
    class_token: int = 0

    def outputs(self, indices: Integers) -> int:
        """Number of outputs of a batch: one per example."""
        return len(indices)

    def slots(self, batches: Iterable[Integers]) -> int:
        """Number of slots: the examples of the largest batch."""
        return max(map(self.outputs, batches))

    def pack(self, indices: Integers, shape: Shape, slots: int) -> Batch:
        """Packs the examples at `indices` into rows of a static shape.

        Args:
          indices: which examples, at most `slots`.
          shape: (rows, length) of the batch.
          slots: size of the per-example arrays; unused slots have weight 0.

        Raises:
          ValueError: the examples do not fit.
        """
        inputs, places = lay_out([self.ids[i] for i in indices], shape)
        for index, (row, column) in zip(indices, places, strict=True):
            inputs.types[row, column : column + len(self.types[index])] = self.types[index]
        rows, columns = np.array(places, np.int32).T
        labels = self.labels[np.asarray(indices)]
        return with_slots(inputs, rows, columns + np.int32(self.class_token), labels, slots)


def place(lengths: Integers, row_length: int) -> tuple[Places, int]:
    """Places segments into rows by best fit, longest first.

    A row has at most a `TOKENS_PER_SEGMENT`th as many segments as tokens, but may have one.

    Args:
      lengths: number of tokens of each segment.
      row_length: number of tokens of a row; no segment may be longer.

    Returns:
      (row, column) of each segment's first token, and the number of rows used.

    Raises:
      ValueError: a segment is longer than a row.
    """
    places: Places = [(0, 0)] * len(lengths)
    open_rows: list[tuple[int, int]] = []  # (free tokens, row), ascending
    held: list[int] = []  # segments of each row
    most = row_length // TOKENS_PER_SEGMENT
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = int(lengths[index])
        if length > row_length:
            raise InputError(f"a segment of {length} tokens does not fit a row of {row_length}")
        fit = bisect.bisect_left(open_rows, (length, -1))
        if fit < len(open_rows):
            free, row = open_rows.pop(fit)
        else:
            free, row = row_length, len(held)
            held.append(0)
        places[index] = (row, row_length - free)
        held[row] += 1
        if free > length and held[row] < most:
            bisect.insort(open_rows, (free - length, row))
    return places, len(held)


def lay_out(segments: Sequence[np.ndarray], shape: Shape) -> tuple[Inputs, Places]:
    """Lays token sequences end to end into rows.

    Args:
      segments: token ids of every sequence.
      shape: (rows, length) of the batch.

    Returns:
      The rows (token types 0), and (row, column) of each sequence's first token.

    Raises:
      ValueError: the sequences do not fit.
    """
    rows, length = shape
    places, used = place([len(ids) for ids in segments], length)
    if used > rows:
        raise InputError(
            f"{len(segments)} examples need {used} rows of {length}, the shape has {rows}"
        )
    tokens, numbers, positions, types = np.zeros((4, rows, length), np.int32)
    for number, (ids, (row, column)) in enumerate(zip(segments, places, strict=True), start=1):
        span = slice(column, column + len(ids))
        tokens[row, span] = ids
        numbers[row, span] = number
        positions[row, span] = np.arange(len(ids))
    return Inputs(tokens, numbers, positions, types), places


def with_slots(
    inputs: Inputs,
    rows: Int32[np.ndarray, " outputs"],
    columns: Int32[np.ndarray, " outputs"],
    labels: Int[np.ndarray, " outputs"] | Float[np.ndarray, " outputs"],
    slots: int,
) -> Batch:
    """Makes a batch whose slot arrays are filled up to `slots` with weight 0.

    Args:
      inputs: packed token rows.
      rows: row of each output's token.
      columns: column of each output's token.
      labels: what each output should be.
      slots: size of the batch's slot arrays.

    Raises:
      ValueError: there are more outputs than slots.
    """
    unused = slots - len(labels)
    if unused < 0:
        raise InputError(f"{len(labels)} outputs do not fit {slots} slots")
    weights = np.ones(len(labels), np.float32)
    filled = (np.pad(values, (0, unused)) for values in (rows, columns, labels, weights))
    return Batch(inputs, *filled)
