"""The rows of a user's own examples: what is cut, dropped and refused, and what the loss counts."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from lora_jax.data.completions import TokenisedPairs
from lora_jax.data.conversations import Example
from lora_jax.data.formats import Format
from lora_jax.errors import InputError

LONG = ("cut", "drop", "refuse")
LOSSES = ("completions", "all")
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Counted:
    """What became of the examples of a split.

    Attributes:
      examples: number of them.
      cut: longer ones that lost their end.
      dropped: longer ones that were left out, and those that had nothing left to learn.
      tokens: of the rows that are left.
      learned: of these, the tokens that the loss counts.
    """

    examples: int
    cut: int
    dropped: int
    tokens: int
    learned: int


def tokenise(
    examples: Sequence[Example], form: Format, *, max_length: int, long: str, loss: str
) -> tuple[TokenisedPairs, Counted]:
    """The rows of examples to train on.

    Args:
      examples: with a turn of the assistant each.
      form: how they are written.
      max_length: most tokens of a row.
      long: what becomes of longer ones, of `LONG`; one that is cut so far that nothing of the assistant is
        left is dropped.
      loss: what the loss counts, of `LOSSES`: what the assistant writes, or every token but the first,
        which nothing predicts.

    Raises:
      InputError: an example is too long and should be refused, or none is left.
    """
    ids, starts, counted, cut = [], [], [], 0
    for example, (tokens, own) in zip(examples, form.rows(examples), strict=True):
        if len(tokens) > max_length:
            if long == "refuse":
                raise InputError(
                    f"{example.where}: {len(tokens):,} tokens, expected at most {max_length:,}. Raise "
                    "config.data.max_length, or set config.data.long to 'cut' or 'drop'"
                )
            if long == "drop" or not own[:max_length].any():
                continue
            cut += 1
        learned = (
            own[:max_length].copy() if loss == "completions" else np.ones_like(own[:max_length])
        )
        learned[0] = False
        if learned.any():
            ids.append(np.array(tokens[:max_length], np.int32))
            counted.append(learned)
            starts.append(int(np.flatnonzero(own)[0]))
    dropped = len(examples) - len(ids)
    if not ids:
        raise InputError(
            f"none of {len(examples):,} examples is left: all are longer than max_length={max_length:,} "
            "tokens. Raise config.data.max_length"
        )
    if cut or dropped:
        _LOG.warning("of %d examples %d were cut and %d dropped (max_length=%d)", len(examples), cut,
                     dropped, max_length)  # fmt: skip
    rows = TokenisedPairs(ids, np.array(starts, np.int32), cut, counted)
    sizes = int(rows.lengths.sum()), rows.outputs(range(len(rows)))
    return rows, Counted(len(examples), cut, dropped, *sizes)
