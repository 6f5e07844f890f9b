"""Packing: the examples of one batch share rows, so almost every token computed is a real one.

A batch of 32 examples is still exactly those 32 examples and one update. Each row holds several
segments (examples) end to end; attention stays inside a segment, positions restart, and the tokens
that have outputs are gathered (a classifier's first one of every segment, a decoder's completion),
so logits and gradients are those of the unpacked batch. Shapes are static: a run uses a few
(rows, length) pairs and compiles a few programs.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from lora_jax.data.batch import Batch, Inputs

ROW_LENGTHS = (32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512)
Shape = tuple[int, int]
Integers = Sequence[int] | np.ndarray


@runtime_checkable
class Packable(Protocol):
    """Tokenised examples of any kind, as batches are made of them."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every example."""
        ...

    def outputs(self, indices: Integers) -> int:
        """Outputs of a batch of examples: the slots it needs."""
        ...

    def slots(self, batches: Iterable[Integers]) -> int:
        """Slots for batches like the given ones."""
        ...

    def pack(self, indices: Integers, shape: Shape, slots: int) -> Batch:
        """The examples at `indices` as a batch of static shape; ValueError if they do not fit."""
        ...


@dataclasses.dataclass(frozen=True)
class TokenSequences:
    """What tokenised examples of every kind have.

    Attributes:
      ids: one int32 array per example.
    """

    ids: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every example."""
        return np.array([len(ids) for ids in self.ids], np.int32)


@dataclasses.dataclass(frozen=True)
class TokenisedExamples(TokenSequences):
    """Examples of a classification or regression task as token ids.

    Attributes:
      types: token types, same lengths as `ids`.
      labels: (examples,) class ids (int32) or scores (float32).
      first: index of the classification token in every example.
    """

    types: list[np.ndarray]
    labels: np.ndarray
    first: int = 0

    def outputs(self, indices: Integers) -> int:
        """One per example."""
        return len(indices)

    def slots(self, batches: Iterable[Integers]) -> int:
        """The most examples of a batch."""
        return max(map(self.outputs, batches))

    def pack(self, indices: Integers, shape: Shape, slots: int) -> Batch:
        """Packs the examples at `indices` into rows of a static shape.

        Args:
          indices: which examples, at most `slots`.
          shape: (rows, length).
          slots: size of the per-example arrays; unused slots have weight 0.

        Raises:
          ValueError: the examples do not fit.
        """
        inputs, where = lay_out([self.ids[i] for i in indices], shape)
        for index, (row, column) in zip(indices, where, strict=True):
            inputs.types[row, column : column + len(self.types[index])] = self.types[index]
        rows, columns = (np.array(where, np.int32) + np.array([0, self.first], np.int32)).T
        return with_slots(inputs, rows, columns, self.labels[np.asarray(indices)], slots)


def place(lengths: Integers, row_length: int) -> tuple[list[tuple[int, int]], int]:
    """Places segments into rows by best fit, longest first.

    Args:
      lengths: length of each segment.
      row_length: length of a row; no segment may be longer.

    Returns:
      ((row, column) of each segment, number of rows used).
    """
    where: list[tuple[int, int]] = [(0, 0)] * len(lengths)
    open_rows: list[tuple[int, int]] = []  # (free, row), ascending
    count = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = int(lengths[index])
        if length > row_length:
            raise ValueError(f"a segment of {length} tokens does not fit a row of {row_length}")
        fit = bisect.bisect_left(open_rows, (length, -1))
        if fit < len(open_rows):
            free, row = open_rows.pop(fit)
        else:
            free, row, count = row_length, count, count + 1
        where[index] = (row, row_length - free)
        if free > length:
            bisect.insort(open_rows, (free - length, row))
    return where, count


def lay_out(segments: Sequence[np.ndarray], shape: Shape) -> tuple[Inputs, list[tuple[int, int]]]:
    """Lays token sequences end to end into rows.

    Returns:
      The rows (token types 0), and (row, column) of each sequence's first token.

    Raises:
      ValueError: the sequences do not fit.
    """
    rows, length = shape
    where, used = place([len(ids) for ids in segments], length)
    if used > rows:
        raise ValueError(
            f"{len(segments)} examples need {used} rows of {length}, the shape has {rows}"
        )
    tokens, numbers, positions, types = np.zeros((4, rows, length), np.int32)
    for number, (ids, (row, column)) in enumerate(zip(segments, where, strict=True), start=1):
        span = slice(column, column + len(ids))
        tokens[row, span] = ids
        numbers[row, span] = number
        positions[row, span] = np.arange(len(ids))
    return Inputs(tokens, numbers, positions, types), where


def with_slots(
    inputs: Inputs, rows: np.ndarray, columns: np.ndarray, labels: np.ndarray, slots: int
) -> Batch:
    """A batch whose slot arrays are filled up to `slots` with weight 0.

    Raises:
      ValueError: there are more outputs than slots.
    """
    unused = slots - len(labels)
    if unused < 0:
        raise ValueError(f"{len(labels)} outputs do not fit {slots} slots")
    weights = np.ones(len(labels), np.float32)
    filled = (np.pad(values, (0, unused)) for values in (rows, columns, labels, weights))
    return Batch(inputs, *filled)


def cost(shape: Shape, hidden_size: int) -> float:
    """Work of a shape in tokens: attention adds length/(6 hidden) per token, its softmax as much."""
    rows, length = shape
    return rows * length * (1 + length / (3 * hidden_size))


def smallest(
    lengths: Integers, hidden_size: int, max_length: int, parts: int = 1, fixed: bool = False
) -> Shape:
    """The cheapest shape for segments of these lengths; `fixed`: with rows of `max_length`."""
    longest = max(lengths)
    options = [n for n in ROW_LENGTHS if longest <= n < max_length and not fixed] + [max_length]
    shapes = [(rounded_up(place(lengths, option)[1], parts), option) for option in options[:4]]
    return min(shapes, key=lambda shape: cost(shape, hidden_size))


def rounded_up(rows: int, parts: int) -> int:
    """The least multiple of `parts` from `rows` on."""
    return -(-rows // parts) * parts


@dataclasses.dataclass(frozen=True)
class ShapeMenu:
    """The static shapes of a run, cheapest first; `fixed`: all with rows of `max_length`."""

    shapes: tuple[Shape, ...]
    hidden_size: int
    max_length: int
    parts: int = 1
    fixed: bool = False

    def choose(self, lengths: Integers) -> Shape:
        """The cheapest shape of the menu that fits; else one made for the batch, rounded up.

        The choice depends on the batch alone, so a resumed run chooses alike.
        """
        longest, total = max(lengths), sum(lengths)
        rows_at: dict[int, int] = {}
        for rows, length in self.shapes:
            if longest > length or total > rows * length:
                continue
            if length not in rows_at:
                rows_at[length] = place(lengths, length)[1]
            if rows_at[length] <= rows:
                return rows, length
        rows, length = smallest(lengths, self.hidden_size, self.max_length, self.parts, self.fixed)
        return rounded_up(rows, math.lcm(4, self.parts)), length


def choose_menu(
    batches: Iterable[Integers],
    steps: int,
    hidden_size: int,
    max_length: int,
    compile_cost: float = 20_000,
    parts: int = 1,
    fixed: bool = False,
) -> ShapeMenu:
    """Chooses the shapes of a run from a sample of its batches.

    Shapes are added while the tokens they save over the whole run exceed the price of compiling one
    more program.

    Args:
      batches: lengths of the examples of sampled batches.
      steps: number of batches in the whole run.
      hidden_size: width of the model, for the share of attention in the work.
      max_length: longest possible example.
      compile_cost: price of a program in tokens (about 4 s on a CPU for a small encoder).
      parts: of equal size in which the devices share the rows out.
      fixed: whether all rows are `max_length` long.
    """
    sample = [list(map(int, lengths)) for lengths in batches]
    best = [smallest(lengths, hidden_size, max_length, parts, fixed) for lengths in sample]
    lengths_used = sorted({length for _, length in best})
    needs = [
        {n: rounded_up(place(lengths, n)[1], parts) for n in lengths_used if n >= max(lengths)}
        for lengths in sample
    ]
    candidates = sorted({(rows, n) for need in needs for n, rows in need.items()})
    prices = np.array([cost(shape, hidden_size) for shape in candidates])
    fits = np.array([[need.get(n, rows + 1) <= rows for rows, n in candidates] for need in needs])
    table = np.where(fits, prices, np.inf)  # (batch, candidate)
    universal = [i for i in range(len(candidates)) if fits[:, i].all()]
    # Where no shape fits all, the most expensive one starts and `choose` makes room for others.
    first = min(universal, key=lambda i: prices[i]) if universal else int(np.argmax(prices))
    chosen = [first]
    current = table[:, chosen[0]]
    while True:
        totals = np.minimum(current[:, None], table)
        totals = np.where(np.isinf(totals), prices.max(), totals).sum(axis=0)
        old = np.where(np.isinf(current), prices.max(), current).sum()
        pick = int(np.argmin(totals))
        if (old - totals[pick]) * steps / len(sample) <= compile_cost:
            break
        chosen.append(pick)
        current = np.minimum(current, table[:, pick])
    shapes = sorted((candidates[i] for i in chosen), key=lambda s: cost(s, hidden_size))
    return ShapeMenu(tuple(shapes), hidden_size, max_length, parts, fixed)
