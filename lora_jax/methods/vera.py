"""VeRA (Kopiczko et al. 2023): trained vectors around random matrices that all layers share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from flax import nnx

from lora_jax.checks import Integer, Real
from lora_jax.low_rank.limits import inputs_of
from lora_jax.low_rank.targets import Exclude, Layers, Targets
from lora_jax.low_rank.vera_settings import VeRASettings
from lora_jax.method import Method
from lora_jax.methods.chosen_layers import Choice
from lora_jax.methods.updates import Bias, UpdateInsertion, settings_by_target, update_method


@dataclasses.dataclass(frozen=True)
class VeRAInsertion(UpdateInsertion):
    """Adapts the layers that its targets choose with vectors."""

    def choose(self, modules: Mapping[str, nnx.Module]) -> Choice:
        """Chooses layers, see `Chooser`; A is as large in all of them as the one with most inputs has it."""
        choice = super().choose(modules)
        largest = max((inputs_of(modules[path], path) for path in choice.layers), default=0)
        layers = {}
        for path, layer in choice.layers.items():
            settings = layer.settings
            if isinstance(settings, VeRASettings) and not settings.fan_in:
                settings = dataclasses.replace(settings, fan_in=largest)
            layers[path] = dataclasses.replace(layer, settings=settings)
        return Choice(layers, choice.skipped)


def vera(
    targets: Targets,
    *,
    rank: Integer = 256,
    d_initial: Real = 0.1,
    seed: Integer = 0,
    fan_in: Integer = 0,
    dropout: Real = 0.0,
    parts: Sequence[str] = (),
    fused: Sequence[str] = (),
    fused_sizes: Sequence[int] = (),
    exclude: Exclude = None,
    layers: Layers = None,
    cut: Sequence[Integer] = (),
    bias: Bias = "none",
    head: str | None = None,
) -> Method:
    """VeRA (section 3.1): y = x W + ((x A) * d) B * b. Groups: `lora`, and `bias` and `head` if asked for.

    A and B are random, frozen and the same in all layers; a layer trains d and b, rank + outputs values. The
    rank may be larger than a matrix, so no layer is too small.

    Args:
      targets: the layers to adapt, and arguments of some of them; see `lora`.
      rank: length of d.
      d_initial: what d starts with; b starts at zero.
      seed: from which A and B are drawn, of all runs alike, so that folders need not hold them.
      fan_in: number of inputs that the size of A is for, sqrt(6 / fan_in). The default 0 is the largest
        number among the adapted layers, as in PEFT; tables of embeddings do not count.
      dropout: rate on the branch's input; takes effect after `lora_jax.seed_dropout`.
      parts: of a fused projection, the parts to adapt; each has vectors of its own.
      fused: names of all its parts, in order.
      fused_sizes: sizes of the parts where they are not equal.
      exclude: what the targets shall not mean, in the same syntax.
      layers: numbers of the layers to adapt, see `lora`.
      cut: where to cut a scanned stack of layers, see `lora`.
      bias: which bias vectors train: none, all, or those of the adapted layers.
      head: regular expression for the task head's leaves.

    Raises:
      ValueError: an argument is out of range. What depends on the model is checked by `insert`.
    """
    shared = {
        "rank": rank, "d_initial": d_initial, "seed": seed, "fan_in": fan_in, "dropout": dropout,
        "parts": parts, "fused": fused, "fused_sizes": fused_sizes, "too_large": None,
    }  # fmt: skip
    settings = settings_by_target("vera", VeRASettings, targets, shared)
    return update_method(
        "vera", settings, insertion=VeRAInsertion, exclude=exclude, layers=layers, cut=cut, bias=bias,
        head=head,
    )  # fmt: skip
