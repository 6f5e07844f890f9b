"""The argument behind a config's file name: `FILE.py:first,variant`."""

from __future__ import annotations

from collections.abc import Sequence


def parse(argument: str, variants: Sequence[str], kind: str = "variant") -> tuple[str, str]:
    """`rte,script` -> ("rte", "script"); the first variant is the default."""
    first, _, variant = argument.partition(",")
    variant = variant or variants[0]
    if variant not in variants:
        raise ValueError(f"unknown {kind} {variant!r} in {argument!r}; known are {list(variants)}")
    return first, variant
