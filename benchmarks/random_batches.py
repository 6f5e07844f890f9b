"""Batches of random tokens in full rows, one example in each."""

from __future__ import annotations

import numpy as np

from lora_jax.data.batch import Batch, Inputs


def _inputs(rows: int, length: int, vocabulary: int, random: np.random.Generator) -> Inputs:
    tokens = random.integers(3, vocabulary, (rows, length)).astype(np.int32)
    segments = np.broadcast_to(np.arange(1, rows + 1, dtype=np.int32)[:, None], tokens.shape)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    return Inputs(tokens, segments, positions, np.zeros_like(tokens))


def classification(rows: int, length: int, vocabulary: int, seed: int = 0) -> Batch:
    """A batch of examples of two classes."""
    random = np.random.default_rng(seed)
    inputs = _inputs(rows, length, vocabulary, random)
    labels = random.integers(0, 2, rows).astype(np.int32)
    row = np.arange(rows, dtype=np.int32)
    return Batch(inputs, row, 0 * row, labels, np.ones(rows, np.float32))


def completion(rows: int, length: int, vocabulary: int, seed: int = 0) -> Batch:
    """A batch of a language model that predicts every token but the first of each row.

    There is a slot for every token, so that their number is as round as the batch; that of the last token of
    a row has weight 0.
    """
    inputs = _inputs(rows, length, vocabulary, np.random.default_rng(seed))
    row, column = (index.reshape(-1).astype(np.int32) for index in np.indices((rows, length)))
    labels = np.roll(np.asarray(inputs.tokens), -1, axis=1).reshape(-1)
    weights = (column < length - 1).astype(np.float32)
    return Batch(inputs, row, column, labels, weights)
