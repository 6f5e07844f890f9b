"""What the methods share that insert an update into each of the layers that their targets name."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
from flax import nnx
from jaxtyping import Array, Key

from lora_jax import patterns
from lora_jax.checks import Integer, integer
from lora_jax.errors import InputError, brief
from lora_jax.low_rank import flax_layers as _flax_layers  # noqa: F401 - registers Flax's layers
from lora_jax.low_rank.layers import LoRALayer, adapt
from lora_jax.low_rank.sharing import shared_weights
from lora_jax.low_rank.targets import (
    ALL_LINEAR,
    Exclude,
    Layers,
    Targets,
    by_target,
    is_open,
    layer_numbers,
    several,
)
from lora_jax.low_rank.update_settings import Settings, UpdateSettings
from lora_jax.method import Insertion, LayerRule, Method
from lora_jax.methods import common
from lora_jax.methods.chosen_layers import Choice, Chooser, row
from lora_jax.methods.cuts import MOST_LAYERS, CutInsertion
from lora_jax.partition import Rule
from lora_jax.summary import MatchedLayer, SkippedLayer
from lora_jax.surgery import pretrained_modules

Bias = Literal["none", "all", "lora_only"]


@dataclasses.dataclass(frozen=True)
class UpdateInsertion(Chooser, Insertion):
    """Adapts the layers that its targets choose, see `Chooser`; the first match wins."""

    def insert(self, model: nnx.Module, key: Key[Array, ""]) -> None:
        """Turns the chosen layers into their LoRA layers, in place."""
        modules = pretrained_modules(model)
        chosen = self.choose(modules).layers
        shared = shared_weights(modules)
        if odd := [path for path in chosen if path in shared]:
            raise InputError(shared[odd[0]])
        for path, layer in chosen.items():
            layer_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
            adapt(modules[path], layer.settings, layer_key, path)

    def matches(self, model: nnx.Module) -> list[MatchedLayer]:
        """One row per adapted layer."""
        modules = pretrained_modules(model)
        rows = []
        for path, chosen in self.choose(modules).layers.items():
            layer = modules[path]
            if not isinstance(layer, LoRALayer):
                raise InputError(f"{path or 'the model'} is not adapted; insert the method first")
            rows.append(row(path, layer, chosen))
        return rows

    def choose_in(self, model: nnx.Module) -> Choice:
        """What the targets choose in a model, adapted or not."""
        return self.choose(pretrained_modules(model))

    def paths(self, model: nnx.Module) -> list[str]:
        """The paths of the adapted layers."""
        return list(self.choose_in(model).layers)

    def skipped(self, model: nnx.Module) -> list[SkippedLayer]:
        """One row per layer that a target names and that has no update."""
        return self.choose_in(model).skipped


def settings_by_target(
    name: str, kind: type[Settings], targets: Targets, shared: Mapping[str, Any]
) -> dict[str, Settings]:
    """The settings of every target, by its text.

    Args:
      name: of the constructor, for messages.
      kind: of the settings.
      targets: as of `lora`.
      shared: arguments of all targets, which a target's own replace; `too_large` None is the default of
        the target.

    Raises:
      ValueError: no target, or an argument that is unknown or out of range.
    """
    per_target = {} if targets is None else by_target(targets)  # a config without them
    if not per_target:
        raise InputError(f"{name} needs at least one target pattern")
    settings = {}
    for target, own in per_target.items():
        values = dict(shared)
        if "too_large" in values and values["too_large"] is None:
            values["too_large"] = "skip" if target == ALL_LINEAR else "error"
        settings[target] = kind.from_arguments({**values, **own}, f"target {target!r}")
    return settings


def update_method(
    name: str,
    settings: Mapping[str, UpdateSettings],
    *,
    insertion: Callable[..., UpdateInsertion] = UpdateInsertion,
    exclude: Exclude = None,
    layers: Layers = None,
    cut: Sequence[Integer] = (),
    bias: Bias = "none",
    head: str | None = None,
    others: Sequence[Insertion] = (),
    own: Mapping[str, Any] | None = None,
) -> Method:
    """The method that inserts an update into every layer that a target names.

    Args:
      name: of the constructor.
      settings: of all targets, by their text; those of `others` too.
      insertion: makes the insertion of layers, as `UpdateInsertion` does.
      exclude, layers, cut, bias, head: as of `lora`.
      others: further insertions; targets with `axes` are theirs.
      own: arguments that only this constructor has.

    Raises:
      ValueError: an argument is out of range, or a pattern is none.
    """
    if bias not in ("none", "all", "lora_only"):
        raise InputError(f"bias must be 'none', 'all' or 'lora_only', got {brief(bias)}")
    excluded, numbers = several(exclude, "exclude"), layer_numbers(layers)
    for text in (*settings, *excluded):
        if not is_open(text):
            patterns.check(text, "target" if text in settings else "exclude", names=True)
    of_layers = tuple(
        (target, each) for target, each in settings.items() if not getattr(each, "axes", "")
    )
    chooser = insertion(of_layers, excluded, numbers, head)
    rules: list[Rule] = [Rule(".*", "lora", inserted="lora")]
    if bias == "all":
        rules.append(common.BIAS)
    elif bias == "lora_only":
        rules.append(LayerRule("bias", "bias", "", insertion=chooser))
    resolved = {target: each.to_arguments() for target, each in settings.items()}
    if ALL_LINEAR in settings and "too_large" not in settings[ALL_LINEAR].without:
        # whose default is another one
        resolved[ALL_LINEAR]["too_large"] = settings[ALL_LINEAR].too_large
    arguments: dict[str, Any] = {"targets": resolved, **(own or {}), "bias": bias, "head": head}
    # What came after the first adapters were saved is left out where it has its default.
    cuts = tuple(CutInsertion(integer("a number in cut", last, most=MOST_LAYERS)) for last in cut)
    narrowing = {"exclude": excluded, "layers": numbers, "cut": [c.last for c in cuts]}
    arguments |= {key: value for key, value in narrowing.items() if value}
    insertions = (*((chooser,) if of_layers else ()), *others)
    return common.method(name, arguments, (*cuts, *insertions), *rules)
