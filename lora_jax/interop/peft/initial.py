"""Initialisations that changed the base: PiSSA and OLoRA start from factors of W and take them out of it.

PEFT then trains A and B on W - s B0 A0 and saves them alone. On the base as it was the update is

    s (B A - B0 A0),

which has rank 2r: factors (A, A0) and (B, -B0). A0 and B0 follow from W, as PEFT computes them
(`pissa_init` and `olora_init` of its `tuners/lora/layer.py`), to the rounding of an SVD in float32: where the
singular values r and r+1 are near each other, PEFT's own product is off by more than its last digits.

PiSSA: Meng et al. 2024, arXiv 2404.02948; OLoRA: Büyükakyüz 2024, arXiv 2406.01775.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

A = Float[np.ndarray, "r inputs"]
B = Float[np.ndarray, "outputs r"]
Twice = tuple[Float[np.ndarray, "2*r inputs"], Float[np.ndarray, "outputs 2*r"]]


def first_factors(
    kind: str, weight: Float[np.ndarray, "outputs inputs"], rank: int, scale: float
) -> tuple[A, B]:
    """A0 and B0.

    Args:
      kind: `pissa` or `olora`.
      weight: of the base.
      rank: r.
      scale: in front of B A.
    """
    whole = weight.astype(np.float32)
    if kind == "olora":
        left, right = np.linalg.qr(whole)
        return right[:rank], left[:, :rank]
    u, s, v = np.linalg.svd(whole, full_matrices=False)
    root = np.sqrt(s[:rank] / np.float32(scale))
    return root[:, None] * v[:rank], u[:, :rank] * root


def with_first(a: A, b: B, first: tuple[A, B]) -> Twice:
    """The factors of rank 2r, in the type of the given ones."""
    a0, b0 = (factor.astype(a.dtype) for factor in first)
    return np.concatenate([a, a0]), np.concatenate([b, -b0], axis=1)
