"""Splits examples into those to train on and those held out; no prompt is in both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lora_jax.errors import InputError


def split(keys: Sequence[str], held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """Chooses the examples to hold out: whole groups of the same key, in an order that the seed decides.

    A group that would make too many is passed over, so that the number wanted is met nearly always.

    Args:
      keys: of every example, such as its prompt; those of the same key stay together.
      held_out: a share of the examples below 1, else their number.
      seed: of the choice; it depends on nothing else.

    Returns:
      Indices of the examples to train on, and of those held out, each in the order of the file.

    Raises:
      InputError: none could be held out, or none would be left.
    """
    wanted = round(held_out * len(keys)) if held_out < 1 else round(held_out)
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    members = list(groups.values())
    chosen: list[int] = []
    for number in np.random.default_rng(seed).permutation(len(members)):
        if len(chosen) + len(members[number]) <= wanted:
            chosen += members[number]
    if not chosen or len(chosen) == len(keys):
        raise InputError(
            f"held_out={held_out:g} of {len(keys):,} examples with {len(groups):,} different prompts holds "
            f"out {len(chosen):,}, expected at least 1 and not all; set config.data.held_out (a share "
            "below 1, or a number of examples), or name a file of its own in config.data.validation"
        )
    out = set(chosen)
    return [i for i in range(len(keys)) if i not in out], sorted(out)
