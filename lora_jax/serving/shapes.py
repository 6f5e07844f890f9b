"""The few shapes of packed batches that a server compiles, and how many of those that wait fit one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lora_jax.data.packing import Shape, place

ROW = 128  # tokens of a row, unless an example is longer
_SHORT = (32, 64, 96)  # lengths of single rows for few tokens
TOKENS_OF_AN_EXAMPLE = 8  # on average at least, where a batch is full of examples


def shapes(rows: int, room: int) -> list[Shape]:
    """(rows, length) of all batches, the smallest first.

    Single rows are 32, 64, 96, 128, 256, ... tokens long. Batches of 2, 3, 4, 6, 8, 12, ... rows have rows of
    `ROW` tokens, or of as many as the longest example asks for, and no more tokens than `rows` of `ROW`.

    Args:
      rows: of the largest batch of `ROW` tokens.
      room: tokens of the longest example.
    """
    row = min(ROW, room)
    found = {(1, length) for length in _SHORT if length < row}
    for length in _doubled(row, room):
        most = max(1, rows * row // length)
        counts = {*_doubled(1, most), *_doubled(3, most)}
        found |= {(count, length) for count in counts if count <= most}
    return sorted(found, key=lambda shape: (shape[0] * shape[1], shape[1]))


def _doubled(first: int, last: int) -> Iterator[int]:
    """first, 2 first, 4 first, ... and the last."""
    while first < last:
        yield first
        first *= 2
    yield last


def slots(shape: Shape) -> int:
    """Examples that a batch has room for."""
    return max(1, shape[0] * shape[1] // TOKENS_OF_AN_EXAMPLE)


def fitting(lengths: Sequence[int], menu: Sequence[Shape]) -> Shape | None:
    """The first shape in which these examples have room; None if there is none."""
    longest, total = max(lengths), sum(lengths)
    for rows, length in menu:
        enough = longest <= length and total <= rows * length
        if enough and len(lengths) <= slots((rows, length)) and place(lengths, length)[1] <= rows:
            return rows, length
    return None


def first_batch(lengths: Sequence[int], menu: Sequence[Shape]) -> tuple[int, Shape]:
    """How many of the first examples fit one batch, and its shape.

    Args:
      lengths: tokens of every example, none longer than the longest row.
      menu: from `shapes`.
    """
    fits, best = 1, fitting(lengths[:1], menu)
    assert best is not None, "an example is longer than every row"
    too_many = min(len(lengths), max(map(slots, menu))) + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        shape = fitting(lengths[:middle], menu)
        if shape is None:
            too_many = middle
        else:
            fits, best = middle, shape
    return fits, best
