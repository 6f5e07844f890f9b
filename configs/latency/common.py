"""What all configs of the latency measurement share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from configs.nlg.common import LORA


def latency_config(
    *,
    width: int,
    depth: int,
    heads: int,
    vocab_size: int,
    positions: int,
    adapters: Mapping[str, Mapping[str, Any]],
    bottlenecks: Sequence[int],
    batch_sizes: Sequence[int],
    lengths: Sequence[int],
) -> ConfigDict:
    """All fields with their defaults.

    Args:
      width, depth, heads, vocab_size, positions: sizes of the GPT-2.
      adapters: methods with their arguments, by the name that they have in tables and figures.
      bottlenecks: sizes of Adapter H and Adapter L on the axis of Figure 5.
      batch_sizes: rows of a batch; every one is timed with every length.
      lengths: tokens of a row.
    """
    return ConfigDict(
        {
            # A folder or hub name reads a decoder; without one its weights are random.
            "model": {
                "name": "",
                "n_embd": width,
                "n_layer": depth,
                "n_head": heads,
                "vocab_size": vocab_size,
                "n_positions": positions,
            },
            "base_dtype": "float32",  # of all weights and of the computation
            # Logits of "all" tokens, as the forward pass of a language model gives them, or of the "last"
            # of every row, as decoding needs them.
            "outputs": "all",
            "method": dict(LORA),  # merged, unmerged, and in the pool
            "adapters": {name: dict(method) for name, method in adapters.items()},
            "bottlenecks": tuple(
                bottlenecks
            ),  # Adapter H and Adapter L have each of these sizes (Figure 5)
            "batch_sizes": tuple(batch_sizes),
            "lengths": tuple(lengths),
            "trials": 100,  # of every contender at every point
            "seed": 0,  # of weights, tokens, and the order of the contenders
        }
    )
