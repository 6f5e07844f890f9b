"""Which layers of a base get a pool, and how large."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from lora_jax import partition, surgery
from lora_jax.arguments import Model
from lora_jax.errors import InputError
from lora_jax.expressions import Expression
from lora_jax.factor_leaves import LORA
from lora_jax.low_rank.dora import DoRAUpdate
from lora_jax.low_rank.fused import FusedUpdate
from lora_jax.low_rank.layers import LoRALayer, adapted_layers, factor_path, lora_layer_of
from lora_jax.low_rank.pairs import LowRankUpdate, pairs_of
from lora_jax.low_rank.updates import WeightUpdate
from lora_jax.low_rank.weights import WeightView
from lora_jax.method import Method
from lora_jax.methods.cuts import CutInsertion
from lora_jax.models.sublayer import AttentionSublayer
from lora_jax.partition import HEAD
from lora_jax.pool.routed import PooledModule
from lora_jax.pool.updates import PooledPair

_REMEDY = (
    "merge it and run it as a model of its own, serve it beside the pool, or convert it to LoRA "
    "(lora_jax.to_lora)"
)


@dataclasses.dataclass(frozen=True)
class PairSize:
    """What a pool has to hold for one factor pair.

    Attributes:
      rank: the largest.
      b_bias: whether B has a bias.
      dora: whether there are magnitudes.
      lookup_only: whether the update of a table is for lookups only.
    """

    rank: int
    b_bias: bool
    dora: bool
    lookup_only: bool

    def joined(self, other: PairSize, path: str) -> PairSize:
        """One that has room for both."""
        if self.lookup_only != other.lookup_only:
            raise InputError(
                f"one method adapts the table {path} for lookups only and another its logits too "
                "(lookup_only); a pool takes adapters that do the same"
            )
        return PairSize(
            max(self.rank, other.rank), self.b_bias or other.b_bias, self.dora or other.dora,
            self.lookup_only,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The factor pairs of one layer.

    Attributes:
      sizes: by the name of the part; "" for a whole weight.
      parts: names and sizes of all parts of a fused weight; None for a whole one.
    """

    sizes: Mapping[str, PairSize]
    parts: tuple[tuple[str, ...], tuple[int, ...]] | None

    def joined(self, other: Pairs, path: str) -> Pairs:
        """One that has room for both."""
        if self.parts != other.parts:
            raise InputError(
                f"methods see {path} in different parts (`fused`); a pool takes adapters that see the same"
            )
        both = {**self.sizes}
        for name, size in other.sizes.items():
            both[name] = both[name].joined(size, path) if name in both else size
        return Pairs(both, self.parts)


@dataclasses.dataclass(frozen=True)
class Inserted:
    """What a method does to a base, as a pool needs it.

    Attributes:
      layers: the factor pairs by path of the layer.
      scales: of every pair, by its `factor_path`.
      shapes: of its leaves by path, without heads.
      head: paths of the head's leaves.
    """

    layers: Mapping[str, Pairs]
    scales: Mapping[str, float]
    shapes: Mapping[str, tuple[int, ...]]
    head: frozenset[str]


def inserted(base: nnx.Module, method: Method, where: str) -> Inserted:
    """What a method does to a base.

    Args:
      base: pre-trained.
      method: of an adapter.
      where: name of the adapter, for messages.

    Raises:
      InputError: it changes or trains something that has no form with slots.
    """
    if any(isinstance(insertion, CutInsertion) for insertion in method.insertions):
        raise InputError(
            f"{where} adapts single layers of a stack (cut), which a pool holds as one; {_REMEDY}"
        )
    model = method.insert(base, jax.random.key(0))
    labels = method.labels(model)
    params = partition.parameters(model)
    if other := sorted(p for p, g in labels.items() if g not in (partition.FROZEN, LORA, HEAD)):
        raise InputError(
            f"{where} trains {other[0]} ({labels[other[0]]}), which has no form with slots: a pool holds "
            f"low-rank updates and heads; {_REMEDY}"
        )
    layers, scales = {}, {}
    positions = {
        "/".join(map(str, (*path, name)))
        for path, module in nnx.iter_modules(base)
        if isinstance(module, AttentionSublayer)
        for name in module.of_positions
    }
    for path, layer in adapted_layers(model).items():
        if path in positions:
            raise InputError(
                f"{where} adapts {path}, which projects the model's relative positions, too: they belong to "
                f"no row of a batch, so that a pool has no slot for them; {_REMEDY}"
            )
        layers[path] = _pairs(layer, path, where)
        for part, pair in pairs_of(layer.lora).items():
            scales[factor_path(path, layer, part)] = float(pair.scale)
    return Inserted(
        layers, scales,
        {p: tuple(params[p].shape) for p, group in labels.items() if group == LORA},
        frozenset(p for p, group in labels.items() if group == HEAD),
    )  # fmt: skip


def _pairs(layer: Any, path: str, where: str) -> Pairs:
    update = layer.lora
    pairs = pairs_of(update)
    members = update.members().values()
    plain = all(type(m) in (LowRankUpdate, DoRAUpdate) and m.is_plain for m in members)
    if not isinstance(layer, LoRALayer) or not plain:
        what = "a parameter" if plain else f"{path} by {type(next(iter(members))).__name__}"
        raise InputError(
            f"{where} adapts {what}, which has no form with slots: a pool holds W + scale * A B of layers; "
            f"{_REMEDY}"
        )
    parts = (update.names, update.sizes) if isinstance(update, FusedUpdate) else None
    sizes = {
        name: PairSize(
            pair.rank, hasattr(pair, "b_bias"), isinstance(pair, DoRAUpdate), pair.lookup_only
        )
        for name, pair in pairs.items()
    }
    return Pairs(sizes, parts)


def joined(all_of: Sequence[Inserted]) -> dict[str, Pairs]:
    """The layers of several methods, with room for each of them."""
    layers: dict[str, Pairs] = {}
    for one in all_of:
        for path, pairs in one.layers.items():
            layers[path] = layers[path].joined(pairs, path) if path in layers else pairs
    return dict(sorted(layers.items()))


def with_slots(
    base: Model, layers: Mapping[str, Pairs], head: str | None, slots: int, dtype: DTypeLike
) -> Model:
    """A copy of the base with empty slots in its layers; heads have the base's own values in all slots.

    Args:
      base: pre-trained, with a head that is as wide as the widest.
      layers: from `joined`.
      head: regular expression for the leaves of the head; None without one.
      slots: number of them.
      dtype: of the factors.
    """
    model = nnx.clone(base)
    modules = surgery.pretrained_modules(model)
    for path, pairs in layers.items():
        layer = modules[path]
        form = lora_layer_of(layer)
        assert form is not None  # a method adapted it
        surgery.become(layer, form)
        assert isinstance(layer, LoRALayer)
        layer.lora = _update(WeightView(layer), pairs, slots, dtype)
    for path in [] if head is None else head_modules(model, head):
        parent, _, name = path.rpartition("/")
        setattr(modules[parent], name, PooledModule(_repeated(modules[path], slots)))
    return model


def _update(weight: WeightView, pairs: Pairs, slots: int, dtype: DTypeLike) -> WeightUpdate:
    def empty(part: WeightView, size: PairSize) -> LowRankUpdate:
        return PooledPair.empty(
            part, slots, size.rank, dtype,
            b_bias=size.b_bias, dora=size.dora, lookup_only=size.lookup_only,
        )  # fmt: skip

    if pairs.parts is None:
        return empty(weight, pairs.sizes[""])
    names, sizes = pairs.parts
    views = dict(zip(names, weight.parts(sizes), strict=True))
    return FusedUpdate(
        {name: empty(views[name], size) for name, size in pairs.sizes.items()}, names, sizes
    )


def head_modules(model: nnx.Module, head: str) -> list[str]:
    """The outermost modules whose parameters are all the head's; each of those is in one of them."""
    of_head = Expression(head, "'head'")
    params = list(partition.parameters(model))
    chosen = {path for path in params if of_head.matches(path)}
    found: list[str] = []
    for path in surgery.pretrained_modules(model):
        below = {p for p in params if p.startswith(f"{path}/")} if path else set(params)
        inside = any(path.startswith(f"{outer}/") for outer in found)
        if path and below and below <= chosen and not inside:
            found.append(path)
    if left := sorted(p for p in chosen if not any(p.startswith(f"{path}/") for path in found)):
        raise InputError(
            f"{left[0]} is of the head, and its module has other parameters: a pool holds heads that are "
            f"modules of their own; {_REMEDY}"
        )
    return found


def _repeated(module: nnx.Module, slots: int) -> nnx.Module:
    """A module with an axis of slots in front of its leaves, the same values in each."""
    graphdef, state = nnx.split(module)
    stacked = jax.tree.map(lambda leaf: np.repeat(np.asarray(leaf)[None], slots, axis=0), state)
    return nnx.merge(graphdef, jax.tree.map(jax.numpy.asarray, stacked))
