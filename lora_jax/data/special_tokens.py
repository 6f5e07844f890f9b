"""Puts the special tokens of prefix methods into tokenised data (paper section 5.1, PreEmbed).

Prefix tokens come before every example, infix tokens behind its input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from lora_jax.data.completions import TokenisedPairs
from lora_jax.data.packing import TokenisedExamples


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """Ids of a method's special tokens.

    Attributes:
      prefix: ids of the tokens before every example.
      infix: ids of the tokens behind its input.
    """

    prefix: Int32[np.ndarray, " prefix"]
    infix: Int32[np.ndarray, " infix"]

    @property
    def count(self) -> int:
        """Number of tokens that every example gets in addition."""
        return len(self.prefix) + len(self.infix)


def special_ids(counts: tuple[int, int], vocab_size: int) -> SpecialIds:
    """Numbers a method's special tokens, from the vocabulary's size on.

    Args:
      counts: number of prefix and of infix tokens, from `Method.special_tokens`.
      vocab_size: number of tokens of the pre-trained model.
    """
    prefix, infix = counts
    ids = np.arange(vocab_size, vocab_size + prefix + infix, dtype=np.int32)
    return SpecialIds(ids[:prefix], ids[prefix:])


def in_examples(examples: TokenisedExamples, special: SpecialIds) -> TokenisedExamples:
    """Puts the prefix before and the infix behind each example, with token type 0.

    The classification token moves behind the prefix.
    """
    before, behind = np.zeros_like(special.prefix), np.zeros_like(special.infix)
    return dataclasses.replace(
        examples,
        ids=[np.concatenate([special.prefix, ids, special.infix]) for ids in examples.ids],
        types=[np.concatenate([before, types, behind]) for types in examples.types],
        class_token=examples.class_token + len(special.prefix),
    )


def in_pairs(pairs: TokenisedPairs, special: SpecialIds) -> TokenisedPairs:
    """Puts the prefix before each row, and the infix between its context and its completion.

    The separator belongs to the context; a conversation's completion begins with its first counted token.
    """
    counted = pairs.counted
    if counted is not None:
        front, between = np.zeros(len(special.prefix), bool), np.zeros(len(special.infix), bool)
        counted = [
            np.concatenate([front, mask[:start], between, mask[start:]])
            for mask, start in zip(counted, pairs.starts, strict=True)
        ]
    return dataclasses.replace(
        pairs,
        counted=counted,
        ids=[
            np.concatenate([special.prefix, ids[:start], special.infix, ids[start:]])
            for ids, start in zip(pairs.ids, pairs.starts, strict=True)
        ],
        starts=pairs.starts + special.count,
    )


def in_prompts(prompts: Sequence[np.ndarray], special: SpecialIds) -> list[np.ndarray]:
    """Puts the prefix before and the infix behind each prompt, as `in_pairs` has them."""
    return [np.concatenate([special.prefix, ids, special.infix]) for ids in prompts]
