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
    together = _measured(comparison, None)
    failures = []
    if together.change == 0:
        failures.append(Failure("effect", "", "not by a bit"))
    if start.change > loose * start.size:
        failures += _wrong_start(comparison, start, loose)
    elif _merges_wrongly(together, epsilon) or epsilon > 1e-5:
        failures += _wrong_merges(comparison, together)
    failures += _without_gradient(comparison)
    return Verification(
        tuple(comparison.layers), tuple(failures), start.effect, together.effect,
        together.disagreement,
    )  # fmt: skip


def _measured(comparison: Comparison, layer: str | None) -> Measured:
    """With random factors, in one layer or all, which are as large as it takes to see them."""
    share, found = SHARE, None
    for _ in range(5):
        measured = comparison.measure(_values(comparison, layer, share))
        if not measured.is_finite:
            share /= 30
            continue
        found = measured
        if found.effect >= LARGE_ENOUGH or not any(np.any(g) for g in found.gradients.values()):
            break
        share *= min(max(0.1 / found.effect, 3), 1e4) if found.effect else 1e3
    if found is None:
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
    tolerance = min(max(1e-3, 32 * epsilon), 0.5)  # of the change
    noise = 32 * epsilon * measured.size
    return measured.difference > max(tolerance * measured.change, noise)


def _wrong_merges(comparison: Comparison, together: Measured) -> list[Failure]:
    """Merges with random factors in one layer after the other."""
    failures = []
    for layer in comparison.layers:
        found = _measured(comparison, layer)
        if _merges_wrongly(found, comparison.epsilon):
            failures.append(Failure("merge", layer, _times(found)))
    if not failures and _merges_wrongly(together, comparison.epsilon):
        failures.append(Failure("merge", "", _times(together)))
    return failures


def _wrong_start(comparison: Comparison, start: Measured, loose: float) -> list[Failure]:
    """Compares with the base where only one layer's update is on."""
    failures = []
    for layer in comparison.layers:
        base, change = comparison.alone(layer)
        if change > loose * base:
            failures.append(Failure("start", layer, f"by {change / base:.1e} of the output"))
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


def _times(measured: Measured) -> str:
    share = measured.disagreement
    if math.isinf(share) or share > 1e3:
        return "merging alone changes the output"
    return f"by {share:.1e} of the change that the update makes"
