"""The argument behind a config's file name: `FILE.py:first,variant`."""

from __future__ import annotations

from collections.abc import Sequence


def parse(argument: str, variants: Sequence[str], kind: str = "variant") -> tuple[str, str]:
    """Splits an argument into its two parts: `rte,script` -> ("rte", "script").

    Args:
      argument: as given on the command line; the part behind the comma may be missing.
      variants: known second parts; the first one is the default.
      kind: what a second part is called in the error.

    Raises:
      ValueError: the second part is unknown; the message names the known ones.
    """
    first, _, variant = argument.partition(",")
    variant = variant or variants[0]
    if variant not in variants:
        raise ValueError(f"unknown {kind} {variant!r} in {argument!r}; known are {list(variants)}")
    return first, variant
