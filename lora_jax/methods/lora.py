"""LoRA (Hu et al. 2021): low-rank updates of the layers that its targets name."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import jax
from flax import nnx
from jaxtyping import Array, Key

from lora_jax import patterns
from lora_jax.checks import Integer, Real, integer
from lora_jax.errors import InputError, brief
from lora_jax.low_rank import flax_layers as _flax_layers  # noqa: F401 - registers Flax's layers
from lora_jax.low_rank.contraction import Init, Scaling
from lora_jax.low_rank.layers import LoRALayer, adapt
from lora_jax.low_rank.settings import LoRASettings, TooLarge
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
from lora_jax.method import Insertion, LayerRule, Method
from lora_jax.methods import common
from lora_jax.methods.chosen_layers import Chooser, row
from lora_jax.methods.cuts import MOST_LAYERS, CutInsertion
from lora_jax.methods.parameters import ParameterInsertion
from lora_jax.partition import Rule
from lora_jax.summary import MatchedLayer, SkippedLayer
from lora_jax.surgery import pretrained_modules


@dataclasses.dataclass(frozen=True)
class LoRAInsertion(Chooser, Insertion):
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

    def paths(self, model: nnx.Module) -> list[str]:
        """The paths of the adapted layers."""
        return list(self.choose(pretrained_modules(model)).layers)

    def skipped(self, model: nnx.Module) -> list[SkippedLayer]:
        """One row per layer that a target names and that has no update."""
        return self.choose(pretrained_modules(model)).skipped


def lora(
    targets: Targets,
    *,
    rank: Integer = 8,
    alpha: Real | None = None,
    scaling: Scaling = "alpha/r",
    init: Init = "kaiming",
    std: Real = 0.02,
    dropout: Real = 0.0,
    parts: Sequence[str] = (),
    fused: Sequence[str] = (),
    fused_sizes: Sequence[int] = (),
    magnitude: bool = False,
    b_bias: bool = False,
    lookup_only: bool = False,
    axes: str = "",
    too_large: TooLarge | None = None,
    exclude: Exclude = None,
    layers: Layers = None,
    cut: Sequence[Integer] = (),
    bias: Literal["none", "all", "lora_only"] = "none",
    head: str | None = None,
) -> Method:
    """LoRA (Hu et al. 2021, section 4.1). Groups: `lora`, and `bias` and `head` if asked for.

    Args:
      targets: the layers to adapt, as one or several of: a path or the end of paths (`"q_proj"`,
        `"attention/query"`), a regular expression for whole paths, a class of layers (`nnx.Linear`; in
        configs `"type:Linear"`), or `"all-linear"`: every supported layer whose weight is a matrix,
        but heads (`head`, and the names in `targets.HEADS`) and layers that can have no update, which
        the summary lists. The first target that names a layer counts. A mapping gives arguments per
        target that replace those below:
        `{".*/qkv": {"rank": 4, "parts": ("q", "v"), "fused": ("q", "k", "v")}, ".*/output": {}}`.
      rank: r, per matrix, and per part of a fused one.
      alpha: the constant of section 4.1; the default is the rank, which makes the scale 1.
      scaling: `alpha/r`, or rsLoRA's `alpha/sqrt(r)`.
      init: start of A; `kaiming` as loralib, `gaussian` N(0, std^2) as the paper. B starts at zero.
      std: standard deviation of `gaussian`.
      dropout: rate on the branch's input; takes effect after `lora_jax.seed_dropout`.
      parts: of a fused projection, the parts to adapt; each has factors of its own.
      fused: names of all its parts, in order.
      fused_sizes: sizes of the parts where they are not equal.
      magnitude: trains the norm of every output's weights too: DoRA, see `low_rank.dora`.
      b_bias: B has a bias, so that the update is scale * (x A B + bias): PEFT's `lora_bias`.
      lookup_only: of a table of embeddings that is the output layer too, adapts the lookups only. PEFT
        does so unless `ensure_weight_tying`; such an update cannot be merged.
      axes: makes the targets parameters that a module contracts in its own code, such as tensors of
        experts, and tells the roles of their axes: `bio` for (experts, inputs, outputs), `io` for a
        matrix, also of a table (rows, features) that is used in two ways. The targets then are paths of
        parameters; what reads one reads W + scale * A B, formed at each read.
      too_large: what becomes of a layer whose matrix is smaller than the rank: `error`; `cap`: it gets
        the largest rank that it allows, with the same scale (alpha follows the rank); `skip`: no update.
        Both are in the summary. The default is `skip` for `"all-linear"`, else `error`.
      exclude: what the targets shall not mean, in the same syntax.
      layers: numbers of the layers to adapt, where a number is the first integer of a path;
        negative ones count from the end. None is all layers.
      cut: where to cut a scanned stack of layers so that its parts have updates of their own: a cut
        before the last N layers for every N. The parts are `first` and `last_N`, so a target such as
        `last_2/block/attention/query` means the query of the last two layers only.
      bias: which bias vectors train: none, all, or those of the adapted layers.
      head: regular expression for the task head's leaves.

    Raises:
      ValueError: an argument is out of range. What depends on the model is checked by `insert`: ranks,
        and whether every target, exclusion and number of a layer has an effect.
    """
    per_target = {} if targets is None else by_target(targets)  # a config without them
    if not per_target:
        raise InputError("lora needs at least one target pattern")
    if bias not in ("none", "all", "lora_only"):
        raise InputError(f"bias must be 'none', 'all' or 'lora_only', got {brief(bias)}")
    shared = {
        "rank": rank, "alpha": alpha, "scaling": scaling, "init": init, "std": std,
        "dropout": dropout, "parts": parts, "fused": fused, "fused_sizes": fused_sizes,
        "magnitude": magnitude, "b_bias": b_bias, "lookup_only": lookup_only, "axes": axes,
    }  # fmt: skip
    settings = {}
    for target, own in per_target.items():
        default = "skip" if target == ALL_LINEAR else "error"
        values = {**shared, "too_large": default if too_large is None else too_large, **own}
        settings[target] = LoRASettings.from_arguments(values, f"target {target!r}")
    excluded, numbers = several(exclude, "exclude"), layer_numbers(layers)
    for name in (*settings, *excluded):
        if not is_open(name):
            patterns.check(name, "target" if name in settings else "exclude", names=True)
    chooser = LoRAInsertion(
        tuple((target, own) for target, own in settings.items() if not own.axes),
        excluded, numbers, head,
    )  # fmt: skip
    of_parameters = ParameterInsertion(
        tuple((target, own) for target, own in settings.items() if own.axes)
    )
    if of_parameters.targets:
        _check_parameters(of_parameters, chooser, bias)
    rules: list[Rule] = [Rule(".*", "lora", inserted="lora")]
    if bias == "all":
        rules.append(common.BIAS)
    elif bias == "lora_only":
        rules.append(LayerRule("bias", "bias", "", insertion=chooser))
    resolved = {target: own.to_arguments() for target, own in settings.items()}
    if ALL_LINEAR in settings:  # whose default is another one
        resolved[ALL_LINEAR]["too_large"] = settings[ALL_LINEAR].too_large
    arguments: dict[str, Any] = {"targets": resolved, "bias": bias, "head": head}
    # What came after the first adapters were saved is left out where it has its default.
    cuts = tuple(CutInsertion(integer("a number in cut", last, most=MOST_LAYERS)) for last in cut)
    narrowing = {"exclude": excluded, "layers": numbers, "cut": [c.last for c in cuts]}
    arguments |= {name: value for name, value in narrowing.items() if value}
    insertions = tuple(insertion for insertion in (chooser, of_parameters) if insertion.targets)
    return common.method("lora", arguments, (*cuts, *insertions), *rules)


def _check_parameters(insertion: ParameterInsertion, of_layers: LoRAInsertion, bias: str) -> None:
    """Raises ValueError for arguments about layers beside targets that are parameters."""
    if of_layers.exclude or of_layers.layers:
        raise InputError(
            f"exclude and layers are about layers, and {insertion.targets[0][0]!r} names parameters (it has "
            "axes); say it in the pattern of that target, or write lora(...) + lora(...)"
        )
    if not of_layers.targets and bias == "lora_only":
        raise InputError("bias='lora_only' is about layers, and all targets here are parameters")
    for target, _ in insertion.targets:
        if is_open(target):
            raise InputError(
                f"axes takes paths of parameters, such as 'experts/w_in', as targets; got {target!r}"
            )
