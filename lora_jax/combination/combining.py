"""One adapter of several of the same base, and one of a smaller rank.

The exact sum of updates of ranks r1 and r2 has rank r1 + r2: `cat` gives it. `svd` is the nearest one of a
chosen rank. `linear`, `magnitude_prune`, `ties` and `dare_*` combine the factors A and B by themselves, which
keeps the rank and is no sum of the updates (A1 + A2)(B1 + B2); with `_svd` behind the name they combine the
updates as matrices, of which the SVD of a chosen rank is taken. All as PEFT's `add_weighted_adapter`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lora_jax.adapter_files import UNKNOWN_BASE, Adapter, digest, unmeasured
from lora_jax.analysis import spectra
from lora_jax.analysis.factor_pairs import FactorPair
from lora_jax.checks import integer, one_of
from lora_jax.combination import rules
from lora_jax.combination.pairs import (
    A,
    B,
    Pair,
    cuts_of,
    pairs_of,
    rest_of,
    with_pairs,
)
from lora_jax.errors import InputError
from lora_jax.factor_leaves import Place
from lora_jax.patterns import some
from lora_jax.ranges import Number, check

OF_FACTORS = ("linear", "magnitude_prune", "ties", "dare_linear", "dare_ties")
OF_UPDATES = ("svd", *(f"{rule}_svd" for rule in OF_FACTORS[1:]))
WAYS = ("cat", *OF_FACTORS, *OF_UPDATES)
NOTE = "combination"
Weighted = Sequence[tuple[Pair, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How adapters are combined.

    Attributes:
      by: one of `WAYS`.
      rank: of the result, where an SVD makes it; None is the largest rank of the adapters.
      energy: instead of a rank, the share of the squared norm that each layer's update must keep.
      density: share of values that pruning keeps.
      signs: how TIES elects signs: `total` or `frequency`.
      seed: of DARE.
    """

    by: str = "cat"
    rank: int | None = None
    energy: float | None = None
    density: float | None = None
    signs: str = "total"
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("by", self.by, WAYS)
        one_of("signs", self.signs, rules.SIGNS)
        by_svd = self.by in OF_UPDATES
        if (self.rank is not None or self.energy is not None) and not by_svd:
            raise InputError(
                f"rank and energy are of {', '.join(OF_UPDATES)}; {self.by!r} has its own"
            )
        if self.rank is not None and self.energy is not None:
            raise InputError("give rank or energy, not both")
        prunes = self.by not in ("cat", "linear", "svd")
        if prunes != (self.density is not None):
            raise InputError(
                f"{self.by!r} needs density, the share of values that is kept, from 0 to 1"
                if prunes else f"density is of pruning; {self.by!r} keeps all values"
            )  # fmt: skip
        if self.rank is not None:
            integer("rank", self.rank)
        for name in ("energy", "density"):
            if (value := getattr(self, name)) is not None:
                check(name, value, Number(above=0, most=1))


def combine(
    adapters: Mapping[str, Adapter],
    weights: Mapping[str, float] | None = None,
    *,
    rest: str | None = None,
    **settings: Any,
) -> Adapter:
    """One adapter that stands for the weighted sum of several.

    A layer that only some of them adapt gets the sum of those. The factors of the result have the scale 1.

    Args:
      adapters: from `load_adapter`, by a name of one's choice; of one base.
      weights: by name; 1 where there is none. A negative one takes a task out (task arithmetic).
      rest: the adapter whose heads, biases and statistics the result has; needed where there are any,
        as these are not added up.
      settings: see `Settings`: by, rank, energy, density, signs, seed.

    Raises:
      InputError: the adapters do not fit together, have updates that do not add up (DoRA), or a setting is
        out of range.
    """
    given = Settings(**settings)
    weights = _weights(adapters, weights)
    _check_together(adapters, rest)
    pairs = {name: pairs_of(adapter, f"adapter {name!r}") for name, adapter in adapters.items()}
    keys = _keys(pairs)
    random = np.random.default_rng(given.seed)
    factors, shapes = {}, {}
    for key in keys:
        weighted = [(found[key], weights[name]) for name, found in pairs.items() if key in found]
        shapes[key] = weighted[0][0]
        factors[key] = _combined(weighted, given, random, key.name)
    first = adapters[rest if rest is not None else next(iter(adapters))]
    described = {**dataclasses.asdict(given), "weights": weights, "rest": rest}
    notes = _common_notes(adapters) | {
        NOTE: {**described, "adapters": {name: digest(a) for name, a in adapters.items()}}
    }
    return with_pairs(first, shapes, factors, notes, keep=rest is not None)


def reduce(adapter: Adapter, *, rank: int | None = None, energy: float | None = None) -> Adapter:
    """The adapter with the nearest update of a smaller rank, by SVD (Eckart and Young 1936).

    Args:
      adapter: from `load_adapter`; heads, biases and statistics stay.
      rank: of the result.
      energy: instead of it, the share of the squared norm that each layer's update must keep.

    Raises:
      InputError: see `combine`, or neither rank nor energy is given.
    """
    if rank is None and energy is None:
        raise InputError("give rank or energy")
    reduced = combine({"adapter": adapter}, rest="adapter", by="svd", rank=rank, energy=energy)
    return dataclasses.replace(reduced, notes=unmeasured(adapter.notes) | reduced.notes)


def _combined(
    weighted: Weighted, given: Settings, random: np.random.Generator, name: str
) -> tuple[A, B]:
    """The factors of one update."""
    if given.by in ("cat", "svd"):
        a, b = _concatenated(weighted)
        if given.by == "cat" and a.shape[-1] <= min(a.shape[1], b.shape[2]):
            return a, b
        found = spectra.any_delta_svd(FactorPair(a, b, 1.0))
        return _nearest(found, len(found.values[0]) if given.by == "cat" else None, weighted, given)
    rule = rules.rules(given.density or 1.0, given.signs, random)[given.by.removesuffix("_svd")]
    if given.by in OF_FACTORS:
        return _of_factors(weighted, rule, name)
    deltas = np.stack([pair.scale * np.matmul(pair.a, pair.b) for pair, _ in weighted])
    delta = _by_layer(rule, deltas, np.array([weight for _, weight in weighted]))
    return _nearest(spectra.matrix_svd(delta), None, weighted, given)


def _concatenated(weighted: Weighted) -> tuple[A, B]:
    """The exact sum: all factors side by side, weight and scale in A (as PEFT)."""
    a = np.concatenate([pair.a * (weight * pair.scale) for pair, weight in weighted], axis=-1)
    return a.astype(np.float32), np.concatenate([pair.b for pair, _ in weighted], axis=1)


def _of_factors(weighted: Weighted, rule: rules.Rule, name: str) -> tuple[A, B]:
    """A and B by themselves; each gets the root of weight times scale, and A the sign."""
    ranks = sorted({pair.a.shape[-1] for pair, _ in weighted})
    if len(ranks) > 1:
        raise InputError(
            f"{name} has the ranks {ranks} in the adapters, and factors of different ranks do not combine "
            "one by one. Use cat or svd, or bring them to one rank first (reduce)"
        )
    amounts = np.array([weight * pair.scale for pair, weight in weighted])
    roots = np.sqrt(np.abs(amounts))
    a, b = (np.stack([getattr(pair, side) for pair, _ in weighted]) for side in ("a", "b"))
    signed = np.where(amounts >= 0, 1, -1) * roots
    return _by_layer(rule, a, signed), _by_layer(rule, b, roots)


def _by_layer(rule: rules.Rule, tensors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A rule on every layer by itself: shares of values and votes are of one matrix."""
    layers = [rule(tensors[:, layer], weights) for layer in range(tensors.shape[1])]
    return np.stack(layers).astype(np.float32)


def _nearest(
    found: spectra.DeltaSVD, rank: int | None, weighted: Weighted, given: Settings
) -> tuple[A, B]:
    """The nearest factors of a rank: A has unit columns, B the singular values (as PEFT).

    Args:
      found: the SVD of the update.
      rank: None is the settings' own.
      weighted: what is combined.
      given: the settings.
    """
    if given.energy is not None:
        rank = max(1, int(spectra.rank_for_energy(found.values, given.energy).max()))
    elif rank is None:
        rank = given.rank or max(pair.a.shape[-1] for pair, _ in weighted)
    a = found.inputs[..., :rank]
    b = found.values[..., :rank, None] * np.swapaxes(found.outputs, -1, -2)[..., :rank, :]
    return a.astype(np.float32), b.astype(np.float32)


def _weights(
    adapters: Mapping[str, Adapter], weights: Mapping[str, float] | None
) -> dict[str, float]:
    if not adapters:
        raise InputError("give at least one adapter")
    given = dict(weights or {})
    if odd := sorted(given.keys() - adapters.keys()):
        raise InputError(
            f"weights are given for {some(odd)}; the adapters are {some(list(adapters))}"
        )
    for name, weight in given.items():
        check(f"the weight of {name!r}", weight, Number())
    values = {name: float(given.get(name, 1.0)) for name in adapters}
    if zero := [name for name, value in values.items() if value == 0]:
        raise InputError(f"the weight of {some(zero)} is 0; leave the adapter out instead")
    return values


def _check_together(adapters: Mapping[str, Adapter], rest: str | None) -> None:
    """Raises InputError unless the adapters are of one base and nothing would be lost."""
    if rest is not None and rest not in adapters:
        raise InputError(f"rest is {rest!r}; the adapters are {some(list(adapters))}")
    bases = {adapter.base for adapter in adapters.values()}
    if len(bases) > 1:
        shown = ", ".join(f"{name!r}: {a.base[:12] or 'unknown'}" for name, a in adapters.items())
        raise InputError(
            f"the adapters are of different bases ({shown}); an update is one of its own base only"
        )
    if len(adapters) > 1 and UNKNOWN_BASE in bases:
        raise InputError(
            "the base of these adapters is not known (they were converted without it), so nothing shows that "
            "it is the same; convert again with --model"
        )
    first, *others = adapters.items()
    for name, adapter in others:
        if cuts_of(adapter) != cuts_of(first[1]):
            raise InputError(
                f"{name!r} and {first[0]!r} cut the stack of layers at different places "
                f"({cuts_of(adapter)} and {cuts_of(first[1])}; adapters whose layers have several ranks "
                "are cut), so their layers have other names. Merge one of them into the base and go on "
                "from that model"
            )
    for name, adapter in adapters.items():
        if rest is None and (leaves := [*rest_of(adapter), *adapter.state]):
            raise InputError(
                f"{name!r} trains more than factors ({some(sorted(leaves))}), which are not added up. Name "
                "the adapter whose ones the result shall have: rest=NAME (--rest=NAME)"
            )


def _keys(pairs: Mapping[str, Mapping[Place, Pair]]) -> list[Place]:
    """All updates, in the order in which they come; of one shape wherever several adapters have one."""
    seen: dict[Place, tuple[str, Pair]] = {}
    for name, found in pairs.items():
        for key, pair in found.items():
            first, other = seen.setdefault(key, (name, pair))
            if (pair.inputs, pair.outputs, pair.settings.fused) != (
                other.inputs, other.outputs, other.settings.fused
            ):  # fmt: skip
                raise InputError(
                    f"{key.name} has inputs {pair.inputs} and outputs {pair.outputs} in {name!r}, but "
                    f"{other.inputs} and {other.outputs} in {first!r}"
                )
            if pair.settings.lookup_only != other.settings.lookup_only:
                raise InputError(
                    f"{key.name} is adapted for lookups only in one of {first!r} and {name!r}, which is "
                    "another kind of update"
                )
    for place in seen:
        whole = Place(place.layer, "")
        if place.part and whole in seen:
            raise InputError(
                f"{seen[whole][0]!r} adapts {place.layer} as a whole, {seen[place][0]!r} parts of it"
            )
    return list(seen)


def _common_notes(adapters: Mapping[str, Adapter]) -> dict[str, Any]:
    """The notes that all adapters have alike, such as the name of the base."""
    first, *others = (unmeasured(adapter.notes) for adapter in adapters.values())
    return {k: v for k, v in first.items() if all(k in o and o[k] == v for o in others)}
