"""Texts as token ids, and which of their tokens are learned; GPT-2's rows of a data-to-text corpus."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int32
from transformers import PreTrainedTokenizerBase

from lora_jax.data.batch import Batch
from lora_jax.data.packing import Integers, Shape, TokenSequences, lay_out, with_slots
from lora_jax.data.pairs import EvaluationSet, Pairs
from lora_jax.errors import InputError

_SEQUENCE = 512  # seq_len of the public scripts; the longest E2E row has 133 tokens


@dataclasses.dataclass(frozen=True)
class TokenisedPairs(TokenSequences):
    """Rows as token ids.

    Attributes:
      ids: one int32 array per row: context, end token, completion, end token.
      starts: index of the first completion token. The loss counts the predictions
        of ids[start:], which are made at start - 1 and later.
      cut: rows that were longer than the limit and lost the end of their completion.
      counted: one array of truth values per row, where not all tokens from the start on are counted, as
        in a conversation, whose model learns its own turns only; the first token never is.
    """

    starts: Int32[np.ndarray, " rows"]
    cut: int = 0
    counted: list[np.ndarray] | None = None

    def places(self, index: int) -> Int32[np.ndarray, " outputs"]:
        """Which tokens of a row the loss counts: their indices, each at least 1."""
        if self.counted is not None:
            return np.flatnonzero(self.counted[index]).astype(np.int32)
        return np.arange(self.starts[index], len(self.ids[index]), dtype=np.int32)

    def outputs(self, indices: Integers) -> int:
        """Number of outputs of a batch: one per token that is counted."""
        return sum(len(self.places(int(i))) for i in indices)

    def slots(self, batches: Iterable[Integers]) -> int:
        """Number of slots: 10% more than the most completion tokens of a batch, rounded up to 32s."""
        return -(-max(map(self.outputs, batches)) * 11 // 320) * 32

    def pack(self, indices: Integers, shape: Shape, slots: int) -> Batch:
        """Packs the rows at `indices`: every token that counts is an output of the token before it.

        Args:
          indices: which rows.
          shape: (rows, length) of the batch.
          slots: size of the per-output arrays; unused slots have weight 0.

        Raises:
          ValueError: the rows or their completions do not fit.
        """
        inputs, places = lay_out([self.ids[i] for i in indices], shape)
        rows, columns, targets = [], [], []
        for index, (row, column) in zip(indices, places, strict=True):
            tokens = self.places(int(index))
            rows.append(np.full(len(tokens), row, np.int32))
            columns.append(tokens + np.int32(column - 1))
            targets.append(self.ids[index][tokens])
        outputs = np.concatenate(rows), np.concatenate(columns), np.concatenate(targets)
        return with_slots(inputs, *outputs, slots)


def tokenise_pairs(
    pairs: Pairs, tokenizer: PreTrainedTokenizerBase, max_length: int = _SEQUENCE
) -> TokenisedPairs:
    """Turns every row into bpe(context) + [eos] + bpe(' ' + completion) + [eos].

    Separator and end are the same token, as in the public code (gpt2_encode.py with add_bos and
    add_eos). A row longer than `max_length` loses its end, as in that code's data loader; it is
    counted in `cut` and logged.

    Args:
      pairs: rows of a corpus.
      tokenizer: GPT-2's, from `transformers`.
      max_length: most tokens of a row.

    Raises:
      ValueError: the tokenizer has no end token, or a context leaves no room for its completion.
    """
    end = _end(tokenizer)
    contexts = _encode_once(pairs.contexts, tokenizer)
    completions = _encode([f" {text}" for text in pairs.completions], tokenizer)
    ids, starts, cut = [], [], 0
    for row, (text, completion) in enumerate(zip(pairs.contexts, completions, strict=True)):
        context = contexts[text]
        start, length = len(context) + 1, len(context) + len(completion) + 2
        if start >= max_length:
            raise InputError(
                f"Row {row}: the context {text[:60]!r} has {start} tokens with its separator, so "
                f"max_length={max_length} leaves no room for the completion. Raise max_length."
            )
        cut += length > max_length
        ids.append(np.array([*context, end, *completion, end][:max_length], np.int32))
        starts.append(start)
    _warn(cut, len(ids), "lost the end of their completion", max_length)
    return TokenisedPairs(ids, np.array(starts, np.int32), int(cut))


def prompts(
    examples: EvaluationSet, tokenizer: PreTrainedTokenizerBase, max_length: int = _SEQUENCE
) -> list[np.ndarray]:
    """Turns every context into bpe(context) + [eos], int32, to be continued by decoding.

    A prompt longer than `max_length` loses its beginning, as in the public code; this is logged.

    Args:
      examples: contexts to continue.
      tokenizer: GPT-2's, from `transformers`.
      max_length: most tokens of a prompt. The public code leaves room for what is generated: the
        sequence length less the tokens to generate.

    Raises:
      ValueError: the tokenizer has no end token, or `max_length` is not positive.
    """
    if max_length < 1:
        raise InputError(f"max_length={max_length}: a prompt has at least its separator. Raise it.")
    end = _end(tokenizer)
    whole = [[*context, end] for context in _encode(examples.contexts, tokenizer)]
    cut = sum(len(prompt) > max_length for prompt in whole)
    _warn(cut, len(whole), "lost the beginning of their context", max_length)
    return [np.array(prompt[-max_length:], np.int32) for prompt in whole]


def _end(tokenizer: PreTrainedTokenizerBase) -> int:
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        raise InputError(
            f"{type(tokenizer).__name__} has no end token (eos_token), which separates data from "
            "text. Use a GPT-2 tokenizer, or set tokenizer.eos_token."
        )
    return end


def _encode(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids in one call, as fast tokenizers use all cores; '<|endoftext|>' is plain text."""
    if not texts:
        return []
    encoded = tokenizer(
        texts, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _encode_once(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Token ids by text, each computed once: a context comes with up to 46 references."""
    different = list(dict.fromkeys(texts))
    return dict(zip(different, _encode(different, tokenizer), strict=True))


def _warn(cut: int, rows: int, loss: str, max_length: int) -> None:
    if cut:
        logging.getLogger(__name__).warning(
            "%d of %d rows are longer than max_length=%d and %s.", cut, rows, max_length, loss
        )
