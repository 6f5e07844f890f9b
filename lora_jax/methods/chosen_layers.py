"""Which layers of a model the targets of LoRA choose, with which settings, and which they leave out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from flax import nnx

from lora_jax import partition, patterns, surgery
from lora_jax.errors import InputError
from lora_jax.expressions import Expression
from lora_jax.low_rank import limits, targets
from lora_jax.low_rank.layers import AdaptedLayer, lora_layer_of
from lora_jax.low_rank.parameters import ReadsUpdated
from lora_jax.low_rank.settings import LoRASettings
from lora_jax.low_rank.sharing import shared_weights
from lora_jax.low_rank.update_settings import UpdateSettings
from lora_jax.methods.common import NORMS
from lora_jax.summary import MatchedLayer, SkippedLayer


@dataclasses.dataclass(frozen=True)
class ChosenLayer:
    """A layer, or a parameter, that gets an update.

    Attributes:
      target: that chose it.
      settings: of its update; of a capped layer, with the rank that it allows.
      wanted: the rank that the target asked for.
    """

    target: str
    settings: UpdateSettings
    wanted: int


@dataclasses.dataclass(frozen=True)
class Choice:
    """What targets choose in a model.

    Attributes:
      layers: that get an update, by path.
      skipped: that a target named and that get none.
    """

    layers: dict[str, ChosenLayer]
    skipped: list[SkippedLayer]


@dataclasses.dataclass(frozen=True)
class Chooser:
    """The targets of LoRA, in order, and what narrows them.

    Attributes:
      targets: text (see `targets`), and the settings of the layers that it names.
      exclude: targets that no target means.
      layers: numbers of the layers that are meant; None for all.
      head: regular expression for the task head's leaves, which "all-linear" leaves out.
    """

    targets: tuple[tuple[str, UpdateSettings], ...]
    exclude: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    head: str | None = None

    def choose(self, modules: Mapping[str, nnx.Module]) -> Choice:
        """Chooses among the pre-trained modules of a model.

        They may be adapted already: the choice is the same.

        Args:
          modules: by path.

        Raises:
          ValueError: a target or an exclusion without effect, a layer's number that is not there, a
            rank larger than a layer allows, or no layer that allows an update.
        """
        chosen: dict[str, ChosenLayer] = {}
        skipped: list[SkippedLayer] = []
        shared = shared_weights(modules)
        owners = self._owners(modules)
        head = None if self.head is None else Expression(self.head, "'head'")
        for path in (path for path in modules if path in owners):
            target, wanted = owners[path].pattern, owners[path].outcome
            reason = None
            if target == targets.ALL_LINEAR:
                reason = self._not_linear(path, modules[path], wanted, head) or shared.get(path)
            decided = reason or _fitted(path, modules[path], wanted)
            if isinstance(decided, str):
                skipped.append(SkippedLayer(target, path, decided))
            else:
                chosen[path] = ChosenLayer(target, decided, wanted.rank)
        if any(name == targets.ALL_LINEAR for name, _ in self.targets):
            skipped += _unknown(modules)
        if not chosen:
            reasons = "\n  ".join(f"{layer.path}: {layer.reason}" for layer in skipped[:5])
            raise InputError(f"no layer is left that could have an update:\n  {reasons}")
        return Choice(chosen, skipped)

    def _owners(self, modules: Mapping[str, nnx.Module]) -> dict[str, patterns.Ordered]:
        """The target of every path, after exclusions and numbers of layers."""
        found = {name: targets.matching(name, modules, "target") for name, _ in self.targets}
        every = {path for paths in found.values() for path in paths}
        left = every - self._excluded(every, modules)
        if self.layers is not None:
            ordered = [path for path in modules if path in left]
            self._refuse_stacks(ordered, modules)
            left = set(targets.in_layers(ordered, self.layers, modules))
        ordered_targets = []
        for name, settings in self.targets:
            paths = [path for path in found[name] if path in left]
            if not paths:
                raise InputError(
                    f"the target {name!r} has no layer left: `exclude` or `layers` leave out all that "
                    f"it names ({patterns.some(found[name])})"
                )
            ordered_targets.append(patterns.Ordered("target", name, settings, paths))
        return patterns.first_matches(ordered_targets)

    def _excluded(self, every: set[str], modules: Mapping[str, nnx.Module]) -> set[str]:
        excluded: set[str] = set()
        for name in self.exclude:
            paths = targets.matching(name, modules, "exclude")
            if not every.intersection(paths):
                raise InputError(
                    f"the exclude rule {name!r} excludes nothing: no target names {patterns.some(paths)}. "
                    "A module's name does not stand for what it holds; that is a regular expression "
                    "such as '.*/decoder/.*'"
                )
            excluded.update(paths)
        return excluded

    def _refuse_stacks(self, paths: Sequence[str], modules: Mapping[str, nnx.Module]) -> None:
        settings = self.targets[0][1]
        for path in paths:
            module = modules[path]
            if lora_layer_of(module) is None or targets.layer_number(path) is not None:
                continue
            if limits.refusal(module, settings, path) is not None:
                continue
            if stack := limits.stack_shape(module, settings, path):
                raise InputError(
                    f"layers={list(self.layers or ())} cannot choose among the layers of {path}: it is "
                    f"one module for a stack of {stack[0]} layers, and its update has factors for all "
                    "of them. Leave `layers` out, or hold the layers in an nnx.List"
                )

    def _not_linear(
        self, path: str, module: nnx.Module, settings: UpdateSettings, head: Expression | None
    ) -> str | None:
        """Why "all-linear" leaves a layer out; None if it does not."""
        weight = f"{path}/{limits.weight_name(module)}".removeprefix("/")
        if head is not None and head.matches(weight):
            return f"task head, as head={self.head!r} says"
        if targets.is_head(path):
            return "task head, as its name says; name it as a target of its own to adapt it"
        return limits.refusal(module, settings, path)


def _unknown(modules: Mapping[str, nnx.Module]) -> list[SkippedLayer]:
    """Modules with a matrix of their own whose class has no LoRA layer; Flax's norms are meant so."""
    found = []
    for path, module in modules.items():
        kind = surgery.original_class(module)
        if lora_layer_of(module) is not None or kind.__module__.startswith("flax."):
            continue
        if issubclass(kind, NORMS):  # in a stack their scales have two axes, and look like matrices
            continue
        if isinstance(module, ReadsUpdated):
            continue
        held = [n for n, v in vars(module).items() if isinstance(v, nnx.Param) and len(v.shape) > 1]
        if held:
            reason = (
                f"{kind.__name__} with {', '.join(held)} has no LoRA layer, see docs/layers.md, or "
                "`axes` in docs/any_model.md"
            )
            found.append(SkippedLayer(targets.ALL_LINEAR, path, reason))
    return found


def _fitted(path: str, layer: nnx.Module, settings: UpdateSettings) -> UpdateSettings | str:
    """The settings with a rank that the layer allows, or why it gets no update."""
    if lora_layer_of(layer) is None:
        return settings  # which `adapt` refuses
    return settings.fitted(limits.rank_limit(layer, settings, path), path)


def row(path: str, layer: AdaptedLayer, chosen: ChosenLayer) -> MatchedLayer:
    """The summary's row of an adapted layer or parameter."""
    settings = chosen.settings
    if layer.gathers:  # row numbers have no dropout
        settings = dataclasses.replace(settings, dropout=0.0)
        if isinstance(settings, LoRASettings):  # its B starts at random, and A at zero
            settings = dataclasses.replace(settings, b_rate=1.0)
    capped = settings.rank < chosen.wanted
    return MatchedLayer(
        rule=chosen.target,
        path=path,
        shape=layer.weight_shape(),
        how=f"{settings}{f' (capped from rank {chosen.wanted})' if capped else ''}"
        + ("" if layer.lora.enabled else ", switched off"),
        parameters=partition.count(partition.parameters(layer.lora)),
        rank=settings.rank if settings.has_rank() else None,
        parts=settings.parts,
        scale=settings.scale if settings.has_rank() else None,
    )
