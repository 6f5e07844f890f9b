"""The layers that LoRA adapts, as a run record lists them, and the paper's names for them.

A record of a LoRA run has `"layers": [{"path": ..., "rank": ..., "parts": [...]}, ...]`, one entry per
layer that the method matched: its path in the model, the rank of its factors, and the adapted parts of a
fused projection (empty for a layer that is not fused).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

LETTERS = {"query": "q", "key": "k", "value": "v", "output": "o"}
FUSED = "qkv"
_ATTENTION = re.compile(r"(?:.*/)?layers/block/attention/(\w+)")


@dataclasses.dataclass(frozen=True)
class AdaptedLayer:
    """One adapted layer.

    Attributes:
      path: in the model, such as `encoder/layers/block/attention/query`.
      rank: of its factors.
      parts: of a fused projection, those with a pair of factors each; empty where one pair serves all.
    """

    path: str
    rank: int
    parts: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, layer: Mapping[str, Any]) -> AdaptedLayer:
        """The layer of an entry of `layers` in result.json."""
        return cls(layer["path"], layer["rank"], tuple(layer["parts"]))

    @property
    def letters(self) -> str | None:
        """The attention weights that it is, such as `q`, or `qv` of a fused projection; else None."""
        match = _ATTENTION.fullmatch(self.path)
        if match is None:
            return None
        if match[1] == FUSED:  # one pair of factors for all of it is none of the paper's choices
            return "".join(self.parts) if self.parts and set(self.parts) <= set(FUSED) else None
        return LETTERS.get(match[1])


def attention_weights(layers: Sequence[AdaptedLayer]) -> str | None:
    """The adapted attention weights in the order q, k, v, o.

    Returns:
      None if there are none, if a layer is anything else, or if the layers differ in rank.
    """
    letters: set[str] = set()
    for layer in layers:
        if layer.letters is None:
            return None
        letters |= set(layer.letters)
    if not letters or common_rank(layers) is None:
        return None
    return "".join(letter for letter in "qkvo" if letter in letters)


def common_rank(layers: Sequence[AdaptedLayer]) -> int | None:
    """The rank of all layers; None if they differ, or if there are none."""
    ranks = {layer.rank for layer in layers}
    return ranks.pop() if len(ranks) == 1 else None
