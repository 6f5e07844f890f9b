"""Which leaves of an adapter are the factors of which layer, and of which part of a fused one."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from lora_jax.adapter_files import Adapter

LORA = "lora"  # group of the factors, and name of the module that holds them
_LEAF = re.compile(r"(?:(?P<layer>.*)/)?lora/(?:(?P<part>[^/]+)/)?(?P<side>[^/]+)")
Leaves = dict[str, np.ndarray]  # by name: a, b, b_bias, magnitude


class Place(NamedTuple):
    """What an update is of.

    Attributes:
      layer: its path; "" for a model that is the layer.
      part: of a fused weight, or a bare parameter of the layer; "" for a whole weight.
    """

    layer: str
    part: str

    @property
    def name(self) -> str:
        """For messages and tables."""
        return "/".join(filter(None, self))

    def path(self, side: str) -> str:
        """The path of one of its leaves."""
        return "/".join(filter(None, (self.layer, LORA, self.part, side)))


def place_of(path: str) -> tuple[Place, str] | None:
    """The place and the name of a leaf; None for one that is no factor."""
    match = _LEAF.fullmatch(path)
    return match and (Place(match["layer"] or "", match["part"] or ""), match["side"])


def factors(adapter: Adapter) -> dict[Place, Leaves]:
    """The leaves of an adapter's updates by place, in the order of their paths."""
    result: dict[Place, Leaves] = {}
    for path, value in sorted(adapter.values.items()):
        if adapter.groups.get(path, LORA) == LORA and (found := place_of(path)):
            place, side = found
            result.setdefault(place, {})[side] = value
    return result
