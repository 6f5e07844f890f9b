"""Special tokens of prefix methods, put into tokenised data: before every example, behind its input."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lora_jax.data.completions import TokenisedPairs
from lora_jax.data.packing import TokenisedExamples


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """Ids of a method's special tokens.

    Attributes:
      prefix: those before every example.
      infix: those behind its input.
    """

    prefix: np.ndarray
    infix: np.ndarray

    @property
    def count(self) -> int:
        """Tokens that every example gets in addition."""
        return len(self.prefix) + len(self.infix)


def special_ids(counts: tuple[int, int], vocab_size: int) -> SpecialIds:
    """Ids from the vocabulary's size on.

    Args:
      counts: of prefix and infix tokens, from `Method.special_tokens`.
      vocab_size: of the model.
    """
    prefix, infix = counts
    ids = np.arange(vocab_size, vocab_size + prefix + infix, dtype=np.int32)
    return SpecialIds(ids[:prefix], ids[prefix:])


def in_examples(examples: TokenisedExamples, special: SpecialIds) -> TokenisedExamples:
    """Prefix before, infix behind each example; token type 0. The classification token moves."""
    before, behind = np.zeros_like(special.prefix), np.zeros_like(special.infix)
    return dataclasses.replace(
        examples,
        ids=[np.concatenate([special.prefix, ids, special.infix]) for ids in examples.ids],
        types=[np.concatenate([before, types, behind]) for types in examples.types],
        first=examples.first + len(special.prefix),
    )


def in_pairs(pairs: TokenisedPairs, special: SpecialIds) -> TokenisedPairs:
    """Prefix before each row, infix between its context (with the separator) and its completion."""
    return dataclasses.replace(
        pairs,
        ids=[
            np.concatenate([special.prefix, ids[:start], special.infix, ids[start:]])
            for ids, start in zip(pairs.ids, pairs.starts, strict=True)
        ],
        starts=pairs.starts + special.count,
    )


def in_prompts(prompts: Sequence[np.ndarray], special: SpecialIds) -> list[np.ndarray]:
    """Prefix before and infix behind each prompt: what `in_pairs` has before the completion."""
    return [np.concatenate([special.prefix, ids, special.infix]) for ids in prompts]
