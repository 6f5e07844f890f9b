"""What `verify` concludes from a comparison, and which layers it names."""

from __future__ import annotations

import math

import numpy as np

from lora_jax.partition import Params
from lora_jax.verification.program import Comparison, Measured
from lora_jax.verification.report import Failure, Verification

# Random updates are this share of their weights, as root mean squares: what training does at most.
SHARE = 0.3
# Smaller effects drown in rounding: then larger updates are tried, since merging is exact at any size.
LARGE_ENOUGH = 0.03
NOISE = 32  # units of the last place, of the outputs, that sums in another order may differ by


def concluded(comparison: Comparison, fresh: bool) -> Verification:
    """Runs all checks.

    Args:
      comparison: of an adapted model with its base.
      fresh: whether the factors are as inserted, and not trained.

    Raises:
      ValueError: the outputs are not finite.
    """
    epsilon = comparison.epsilon
    loose = max(1e-4, 6 * epsilon)  # of the output: other fusions, other bits
    start = comparison.measure(comparison.inserted if fresh else comparison.start)
    if not start.is_finite:
        raise ValueError(
            "the outputs are not finite, so nothing can be compared; give other inputs"
        )
    together = _measured(comparison, None)[-1]
    failures = []
    if not np.any(together.change):
        failures.append(Failure("effect", "", "not by a bit"))
    if start.effect > loose:
        failures += _wrong_start(comparison, start, loose)
    else:
        failures += _wrong_merges(comparison, together)
    failures += _without_gradient(comparison)
    return Verification(
        tuple(comparison.layers), tuple(failures), start.effect, together.effect,
        together.disagreement(NOISE * epsilon),
    )  # fmt: skip


def _measured(comparison: Comparison, layer: str | None) -> list[Measured]:
    """With random factors, in one layer or all, that become larger until they are seen.

    A larger update may saturate what follows it, so the smaller ones count, too.
    """
    share, found = SHARE, []
    for _ in range(5):
        measured = comparison.measure(_values(comparison, layer, share))
        if not measured.is_finite:
            share /= 30
            continue
        found.append(measured)
        effect, seen = measured.effect, any(np.any(g) for g in measured.gradients.values())
        if effect >= LARGE_ENOUGH or not seen:
            break
        share *= min(max(0.1 / effect, 3), 1e4) if effect else 1e3
    if not found:
        raise ValueError(
            "the outputs are not finite with random factors, so nothing can be compared; give other inputs"
        )
    return found


def _values(comparison: Comparison, layer: str | None, share: float) -> Params:
    values = comparison.random(share)
    if layer is None:
        return values
    alone = {path: v for path, v in values.items() if comparison.layer_of(path) == layer}
    return comparison.start | alone


def _merges_wrongly(measured: Measured, epsilon: float) -> bool:
    """Whether merged and unmerged differ by more than rounding."""
    return measured.disagreement(NOISE * epsilon) > min(max(1e-3, 32 * epsilon), 0.5)


def _wrong_merges(comparison: Comparison, together: Measured) -> list[Failure]:
    """Merges with random factors in one layer after the other: one among many would drown in all."""
    epsilon, failures = comparison.epsilon, []
    for layer in comparison.layers:
        worst = max(_measured(comparison, layer), key=lambda m: m.disagreement(NOISE * epsilon))
        if _merges_wrongly(worst, epsilon):
            failures.append(Failure("merge", layer, _times(worst, epsilon)))
    if not failures and _merges_wrongly(together, epsilon):
        failures.append(Failure("merge", "", _times(together, epsilon)))
    return failures


def _wrong_start(comparison: Comparison, start: Measured, loose: float) -> list[Failure]:
    """Compares with the base where only one layer's update is on."""
    failures = []
    for layer in comparison.layers:
        change = comparison.alone(layer)
        if change > loose:
            failures.append(Failure("start", layer, f"by {change:.1e} of the output"))
    return failures or [Failure("start", "", f"by {start.effect:.1e} of the output")]


def _without_gradient(comparison: Comparison) -> list[Failure]:
    found: dict[str, list[str]] = {}
    for path, sizes in comparison.measure(comparison.random(SHARE)).gradients.items():
        zero = np.argwhere(sizes == 0)
        if len(zero):
            layer = comparison.layer_of(path)
            name = path.removeprefix(f"{comparison.prefix(layer)}/")
            if len(zero) < sizes.size:
                numbers = ", ".join("/".join(map(str, index)) for index in zero)
                name += f" in layers {numbers} of the stack"
            found.setdefault(layer, []).append(name)
    return [Failure("gradient", layer, ", ".join(names)) for layer, names in found.items()]


def _times(measured: Measured, epsilon: float) -> str:
    share = measured.disagreement(NOISE * epsilon)
    if math.isinf(share) or share > 1e3:
        return "merging alone changes the output"
    return f"by {share:.1e} of the change that the update makes"
