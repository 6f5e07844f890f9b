"""Which rows of a table are held out, or kept of too many: alike for every run with the same seed.

The choice depends on the texts, the labels and a seed, not on the order of the rows. Every label has its
share, and rows of the same text are on one side.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Num

Key = str  # rows with the same key stay together
Group = tuple[Hashable, list[int]]  # stratum and rows


def strata_of(values: Num[np.ndarray, " rows"], count: int = 10) -> list[int]:
    """Equal parts of numbers by their order, as strata of a regression."""
    ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return [int(rank) * count // len(values) for rank in ranks]


def held_out(
    keys: Sequence[Key], strata: Sequence[Hashable], share: float, seed: int
) -> Bool[np.ndarray, " rows"]:
    """Marks a share of the rows, of every stratum its part (to the nearest row).

    Args:
      keys: of every row.
      strata: of every row, such as its class; rows of one key count for the first row's.
      share: of the rows to mark, above 0 and below 1. At least one is marked.
      seed: of the choice.

    Returns:
      True for the rows that are held out. Each stratum keeps a row that is not.
    """
    marked, missing = np.zeros(len(keys), bool), max(1, round(share * len(keys)))
    groups = list(_interleaved(keys, strata, seed))
    left = collections.Counter(stratum for stratum, _ in groups)
    for stratum, rows in groups:
        if missing <= 0:
            break
        if left[stratum] > 1:
            marked[rows] = True
            missing -= len(rows)
            left[stratum] -= 1
    return marked


def limited(keys: Sequence[Key], strata: Sequence[Hashable], limit: int, seed: int) -> list[int]:
    """At most `limit` rows, of every stratum its part, in their order; all if it is not positive.

    Args:
      keys: texts of the rows.
      strata: as of `held_out`.
      limit: most rows.
      seed: of the choice.
    """
    if not 0 < limit < len(keys):
        return list(range(len(keys)))
    apart, seen = [], collections.Counter[Key]()
    for key in keys:
        apart.append(f"{key}\0{seen[key]}")
        seen[key] += 1
    groups = _interleaved(apart, strata, seed)
    return sorted(row for _, (row,) in (group for group, _ in zip(groups, range(limit))))  # noqa: B905


def _interleaved(keys: Sequence[Key], strata: Sequence[Hashable], seed: int) -> Iterator[Group]:
    """Groups of rows with one key, ordered so that whatever comes first has a part of every stratum."""
    rows = collections.defaultdict[Key, list[int]](list)
    for row, key in enumerate(keys):
        rows[key].append(row)
    by_stratum = collections.defaultdict[Hashable, list[Key]](list)
    for key in sorted(rows, key=lambda key: _drawn(key, seed)):
        by_stratum[strata[rows[key][0]]].append(key)
    placed = [
        ((place + 0.5) / len(members), _drawn(key, seed), stratum, key)
        for stratum, members in by_stratum.items()
        for place, key in enumerate(members)
    ]
    for _, _, stratum, key in sorted(placed, key=lambda group: group[:2]):
        yield stratum, rows[key]


def _drawn(key: Key, seed: int) -> bytes:
    """What orders keys at random, each by itself: more rows do not change the order of the others."""
    return hashlib.sha256(f"{seed}\0{key}".encode("utf-8", "surrogatepass")).digest()
