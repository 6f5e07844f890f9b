"""Initialisations that changed the base: PiSSA and OLoRA start from factors of W and take them out of it.

PEFT then trains A and B on W - s B0 A0 and saves them alone. On the base as it was the update is

    s (B A - B0 A0),

which here is `init="pissa"` or `"olora"`, see `low_rank.starts`. A0 and B0 follow from W, as PEFT computes
them (`pissa_init` and `olora_init` of its `tuners/lora/layer.py`), to the rounding of an SVD in float32:
where the singular values r and r+1 are near each other, PEFT's own product is off by more than its last
digits.

`pissa_niter_N` decomposes W by N rounds of subspace iteration from random numbers, which PEFT draws anew
whenever it loads the adapter. Only where these rounds converge, A0 and B0 follow from W.

PiSSA: Meng et al. 2024, arXiv 2404.02948; OLoRA: Büyükakyüz 2024, arXiv 2406.01775.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from lora_jax.errors import InputError

A = Float[np.ndarray, "r inputs"]
B = Float[np.ndarray, "outputs r"]
_CONVERGED = 1e-6  # of the angle between the subspaces, of which the rounds leave about this


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


def check_iterations(
    module: str, weight: Float[np.ndarray, "outputs inputs"], rank: int, iterations: int
) -> None:
    """Raises InputError where `pissa_niter_N` depends on the random numbers that it began with.

    An error in the subspace of the first r singular vectors shrinks by (s_{r+1} / s_r)^2 each round (Halko et
    al. 2011, section 4.5), and by one such factor before the first.

    Args:
      module: name of the weight.
      weight: of the base.
      rank: r.
      iterations: N.
    """
    s = np.linalg.svd(weight.astype(np.float32), compute_uv=False)
    if rank >= len(s):
        return
    left = float(s[rank] / s[rank - 1]) ** (2 * iterations + 1)
    if left > _CONVERGED:
        raise InputError(
            f"init_lora_weights='pissa_niter_{iterations}' began with random numbers that are not in the "
            f"file, and {module} depends on them: its singular values {rank} and {rank + 1} are "
            f"{s[rank - 1]:.4g} and {s[rank]:.4g}, so {left:.2g} of an error is left after {iterations} "
            f"rounds ({_CONVERGED:g} would do). PEFT itself draws other numbers when it loads such an "
            "adapter. Save it where it was trained as a plain adapter of rank 2r: model.save_pretrained(DIR, "
            "path_initial_model_for_weight_conversion=FOLDER_OF_THE_INITIAL_ADAPTER). Or take the exact "
            "start in its place, with which outputs are other ones than in training: "
            "--ignore=init_lora_weights"
        )
