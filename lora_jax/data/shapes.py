"""The static shapes of a run's batches: few, since every shape is one more program to compile."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from lora_jax.data.packing import Integers, Shape, place

ROW_LENGTHS = (32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512)


def cost(shape: Shape, hidden_size: int) -> float:
    """Work of a shape, in tokens.

    Attention adds length / (6 hidden_size) to each token's work, and its softmax as much again.
    """
    rows, length = shape
    return rows * length * (1 + length / (3 * hidden_size))


def cheapest(
    lengths: Integers, hidden_size: int, max_length: int, parts: int = 1, fixed: bool = False
) -> Shape:
    """The shape of least cost that holds these segments.

    Args:
      lengths: number of tokens of each segment.
      hidden_size: width of the model.
      max_length: longest row allowed.
      parts: number of equal parts in which the devices share the rows out.
      fixed: whether rows must be `max_length` long.

    Raises:
      ValueError: a segment is longer than `max_length`.
    """
    longest = max(lengths)
    options = [n for n in ROW_LENGTHS if longest <= n < max_length and not fixed] + [max_length]
    shapes = [(rounded_up(place(lengths, option)[1], parts), option) for option in options[:4]]
    return min(shapes, key=lambda shape: cost(shape, hidden_size))


def rounded_up(count: int, multiple: int) -> int:
    """The least multiple of `multiple` that is not below `count`."""
    return -(-count // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class ShapeMenu:
    """The static shapes of a run.

    Attributes:
      shapes: (rows, length) of each, the cheapest first.
      hidden_size: width of the model.
      max_length: longest possible example.
      parts: number of equal parts in which the devices share the rows out.
      fixed: whether all rows are `max_length` long.
    """

    shapes: tuple[Shape, ...]
    hidden_size: int
    max_length: int
    parts: int = 1
    fixed: bool = False

    def choose(self, lengths: Integers) -> Shape:
        """The cheapest shape of the menu that fits; if none does, one made for the batch.

        The choice depends on the batch alone, so a resumed run chooses alike.

        Args:
          lengths: number of tokens of each example of the batch.

        Raises:
          ValueError: an example is longer than `max_length`.
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
        rows, length = cheapest(lengths, self.hidden_size, self.max_length, self.parts, self.fixed)
        return rounded_up(rows, math.lcm(4, self.parts)), length


def choose_menu(
    batches: Iterable[Integers],
    *,
    steps: int,
    hidden_size: int,
    max_length: int,
    compile_cost: float = 20_000,
    parts: int = 1,
    fixed: bool = False,
) -> ShapeMenu:
    """Chooses the shapes of a run from a sample of its batches.

    Shapes are added while the tokens that they save over the whole run exceed the price of
    compiling one more program.

    Args:
      batches: lengths of the examples of sampled batches.
      steps: number of batches in the whole run.
      hidden_size: width of the model, for the share of attention in the work.
      max_length: longest possible example.
      compile_cost: price of a program in tokens (about 4 s on a CPU for a small encoder).
      parts: number of equal parts in which the devices share the rows out.
      fixed: whether all rows are `max_length` long.
    """
    sample = [list(map(int, lengths)) for lengths in batches]
    best = [cheapest(lengths, hidden_size, max_length, parts, fixed) for lengths in sample]
    lengths_used = sorted({length for _, length in best})
    needs = [
        {n: rounded_up(place(lengths, n)[1], parts) for n in lengths_used if n >= max(lengths)}
        for lengths in sample
    ]
    candidates = sorted({(rows, n) for need in needs for n, rows in need.items()})
    prices = np.array([cost(shape, hidden_size) for shape in candidates])
    fits = np.array([[need.get(n, rows + 1) <= rows for rows, n in candidates] for need in needs])
    costs = np.where(fits, prices, np.inf)  # (batch, candidate)
    universal = [i for i in range(len(candidates)) if fits[:, i].all()]
    # Where no shape fits all, the most expensive one starts and `choose` makes room for others.
    first = min(universal, key=lambda i: prices[i]) if universal else int(np.argmax(prices))
    chosen = [first]
    current = costs[:, first]
    while True:
        totals = np.minimum(current[:, None], costs)
        totals = np.where(np.isinf(totals), prices.max(), totals).sum(axis=0)
        before = np.where(np.isinf(current), prices.max(), current).sum()
        pick = int(np.argmin(totals))
        if (before - totals[pick]) * steps / len(sample) <= compile_cost:
            break
        chosen.append(pick)
        current = np.minimum(current, costs[:, pick])
    shapes = sorted((candidates[i] for i in chosen), key=lambda s: cost(s, hidden_size))
    return ShapeMenu(tuple(shapes), hidden_size, max_length, parts, fixed)
