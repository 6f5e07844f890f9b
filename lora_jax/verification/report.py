"""What a self-check of an adapted model found, as data and as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from lora_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Failure:
    """One thing that is wrong.

    Attributes:
      check: name of the check, a key of `CHECKS`.
      path: of the layer, or "" where no layer could be named.
      found: what was measured.
    """

    check: str
    path: str
    found: str

    def __str__(self) -> str:
        return f"{CHECKS[self.check]} {self.path or 'the model (no single layer)'}: {self.found}"


# What is wrong, and where and how to mend it.
CHECKS: Mapping[str, str] = {
    "start": "the new update changes the output before training:",
    "effect": "random factors do not change the output:",
    "merge": "merged and unmerged differ:",
    "gradient": "factors without gradient:",
}
REMEDIES: Mapping[str, str] = {
    "start": "what its LoRA layer's low_rank_output gives must be zero where a factor is",
    "effect": "the model calls none of its adapted layers on these inputs",
    "merge": (
        "the model also reads the weight outside the layer's call, or the call does more to its result "
        "than the LoRA layer knows. Adapt the parameter itself (its path as target, with `axes`), give "
        "the layer's class a LoRA layer of its own (docs/layers.md), or leave it out"
    ),
    "gradient": (
        "the layer is not called on these inputs, what it gets or gives is multiplied by zero, or the "
        "model only reads its weight outside the call. Give inputs that use it, adapt the parameter "
        "itself (its path as target, with `axes`), or leave it out"
    ),
}


@dataclasses.dataclass(frozen=True)
class Verification:
    """What `verify` found. `str()` gives a report.

    Attributes:
      layers: paths of the adapted layers.
      failures: what is wrong; empty if nothing is.
      start: |adapted - base| / |base| of the outputs before training.
      effect: the same with random factors.
      merge: |merged - unmerged| / |unmerged - base| of the outputs with random factors.
      differing: pre-trained leaves of an adapted model whose values are not those of the base.
    """

    layers: tuple[str, ...]
    failures: tuple[Failure, ...]
    start: float
    effect: float
    merge: float
    differing: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.failures

    def check(self) -> None:
        """Raises ValueError with the report if something is wrong."""
        if self.failures:
            raise InputError(str(self))

    def __str__(self) -> str:
        several = ", ".join(self.differing[:5]) + ", ..." * (len(self.differing) > 5)
        lines = [
            f"verified {len(self.layers)} adapted layers: {'passed' if self.passed else 'FAILED'}",
            f"  start: adapted differs from base by {self.start:.1e} of the output",
            f"  effect: random factors change the output by {self.effect:.1e} of it",
            f"  merge: merged differs from unmerged by {self.merge:.1e} of that change",
        ]
        if self.differing:
            lines.append(f"  not the base's, so trained or of another base: {several}")
        for check, remedy in REMEDIES.items():
            found = [failure for failure in self.failures if failure.check == check]
            lines += [f"  {failure}" for failure in found] + [f"    {remedy}"] * bool(found)
        return "\n".join(lines)
