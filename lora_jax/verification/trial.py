"""What `verify` concludes from a comparison, and which layers it names."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from lora_jax.errors import InputError
from lora_jax.low_rank.lora_layer import LoRALayer
from lora_jax.partition import Params
from lora_jax.verification.outputs import Measured
from lora_jax.verification.program import Comparison
from lora_jax.verification.report import Failure, Verification

# Random updates are this share of their weights, as root mean squares: what training does at most.
SHARE = 0.3


@dataclasses.dataclass(frozen=True)
class _Limits:
    """What is more than rounding.

    Attributes:
      start: change of the output by a new update, as a share of it: other fusions, other bits.
      noise: difference between merged and unmerged, as a share of the output.
      merge: the same as a share of the change that the update makes.
      effect: smaller changes drown in rounding: then larger updates are tried, since merging is exact at
        any size.
    """

    start: float
    noise: float
    merge: float
    effect: float

    @classmethod
    def of(cls, epsilon: float) -> _Limits:
        """For programs that compute in this precision at the least."""
        if epsilon < 1e-5:
            return cls(start=1e-4, noise=4e-6, merge=1e-3, effect=0.03)
        # A few roundings of weights and activations; a wrong layer is wrong by its whole effect.
        return cls(start=6 * epsilon, noise=3 * epsilon, merge=0.25, effect=0.3)


def concluded(comparison: Comparison, fresh: bool) -> Verification:
    """Runs all checks.

    Args:
      comparison: of an adapted model with its base.
      fresh: whether the factors are as inserted, and not trained.

    Raises:
      ValueError: the outputs are not finite.
    """
    limits = _Limits.of(comparison.epsilon)
    start = comparison.measure(comparison.inserted if fresh else comparison.start)
    if not start.is_finite:
        raise InputError(
            "the outputs are not finite, so nothing can be compared; give other inputs"
        )
    all_random = _measured(comparison, None, limits)
    together = all_random[-1]
    failures = []
    if not np.any(together.change):
        failures.append(Failure("effect", "", "not by a bit"))
    if start.effect > limits.start:
        failures += _wrong_start(comparison, start, limits)
    else:
        failures += _wrong_merges(comparison, together, limits)
    failures += _without_gradient(comparison, all_random[0])
    return Verification(
        tuple(comparison.layers), tuple(failures), start.effect, together.effect,
        together.disagreement(0),
    )  # fmt: skip


def _measured(comparison: Comparison, layer: str | None, limits: _Limits) -> list[Measured]:
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
        if effect >= limits.effect or not seen:
            break
        share *= min(max(3 * limits.effect / effect, 3), 1e4) if effect else 1e3
    if not found:
        raise InputError(
            "the outputs are not finite with random factors, so nothing can be compared; give other inputs"
        )
    return found


def _values(comparison: Comparison, layer: str | None, share: float) -> Params:
    values = comparison.random(share)
    if layer is None:
        return values
    alone = {path: v for path, v in values.items() if comparison.layer_of(path) == layer}
    return comparison.start | alone


def _wrong_merges(comparison: Comparison, together: Measured, limits: _Limits) -> list[Failure]:
    """Merges with random factors in one layer after the other: one among many would drown in all."""
    failures = []
    for layer in comparison.layers:
        measured = _measured(comparison, layer, limits)
        worst = max(measured, key=lambda m: m.disagreement(limits.noise))
        if worst.disagreement(limits.noise) > limits.merge:
            found = f"{_times(worst, limits)}{_as_parameter(comparison, layer)}"
            failures.append(Failure("merge", layer, found))
    if not failures and together.disagreement(limits.noise) > limits.merge:
        failures.append(Failure("merge", "", _times(together, limits)))
    return failures


def _wrong_start(comparison: Comparison, start: Measured, limits: _Limits) -> list[Failure]:
    """Compares with the base where only one layer's update is on."""
    failures = []
    for layer in comparison.layers:
        change = comparison.alone(layer)
        if change > limits.start:
            failures.append(Failure("start", layer, f"by {change:.1e} of the output"))
    return failures or [Failure("start", "", f"by {start.effect:.1e} of the output")]


def _without_gradient(comparison: Comparison, measured: Measured) -> list[Failure]:
    found: dict[str, list[str]] = {}
    for path, sizes in measured.gradients.items():
        zero = np.argwhere(sizes == 0)
        if len(zero):
            layer = comparison.layer_of(path)
            name = path.removeprefix(f"{comparison.prefix(layer)}/")
            if len(zero) < sizes.size:
                numbers = ", ".join("/".join(map(str, index)) for index in zero)
                name += f" in layers {numbers} of the stack"
            found.setdefault(layer, []).append(name)
    return [Failure("gradient", layer, ", ".join(names)) for layer, names in found.items()]


def _as_parameter(comparison: Comparison, path: str) -> str:
    """The target that adapts a layer's weight itself."""
    layer = comparison.layers[path]
    roles = layer.roles()
    if not isinstance(layer, LoRALayer) or roles.ndim != layer.weight_ndim():
        return ""
    letters = {axis: letter for letter, axes in roles.by_letter().items() for axis in axes}
    axes = "".join(letters[axis] for axis in range(roles.ndim))
    name = f"{path}/{type(layer).weight}".removeprefix("/")
    return f"; as a parameter it is the target {{{name!r}: {{'axes': {axes!r}}}}}"


def _times(measured: Measured, limits: _Limits) -> str:
    share = measured.disagreement(limits.noise)
    if math.isinf(share) or share > 1e3:
        return "merging alone changes the output"
    return f"by {share:.1e} of the change that the update makes"
