"""IA3 (Liu et al. 2022): learned vectors that scale the activations of the layers that targets name."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

from flax import nnx

from lora_jax import patterns
from lora_jax.checks import Integer
from lora_jax.errors import InputError
from lora_jax.low_rank import targets as layer_targets
from lora_jax.low_rank.ia3 import IA3Settings
from lora_jax.low_rank.targets import Exclude, Layers, Targets
from lora_jax.method import Method
from lora_jax.methods.chosen_layers import Choice
from lora_jax.methods.updates import Bias, UpdateInsertion, settings_by_target, update_method


@dataclasses.dataclass(frozen=True)
class IA3Insertion(UpdateInsertion):
    """Scales the outputs of the layers that its targets choose, and of some of them the inputs.

    Attributes:
      feed_forward: targets whose layers have their inputs scaled.
    """

    feed_forward: tuple[str, ...] = ()

    def choose(self, modules: Mapping[str, nnx.Module]) -> Choice:
        """Chooses among the pre-trained modules of a model, see the base class.

        Raises:
          ValueError: besides, `feed_forward` names a layer that no target names, or no chosen one.
        """
        choice = super().choose(modules)
        layers = dict(choice.layers)
        targeted = {
            path
            for target, _ in self.targets
            for path in layer_targets.matching(target, modules, "target")
        }
        for text in self.feed_forward:
            named = layer_targets.matching(text, modules, "feed_forward", _OF_PARAMETERS)
            if others := [path for path in named if path not in targeted]:
                raise InputError(
                    f"feed_forward={text!r} names layers that no target names ({patterns.some(others)}): "
                    "feed_forward says of targets that their inputs are scaled and not their outputs, so "
                    "the layers belong in both"
                )
            chosen = [path for path in named if path in choice.layers]
            if not chosen:
                raise InputError(
                    f"feed_forward={text!r} has no layer left: `exclude` or `layers` leave out all that it "
                    f"names ({patterns.some(named)})"
                )
            for path in chosen:
                layer = choice.layers[path]
                assert isinstance(layer.settings, IA3Settings)
                settings = dataclasses.replace(layer.settings, of_inputs=True)
                layers[path] = dataclasses.replace(layer, settings=settings)
        return dataclasses.replace(choice, layers=layers)


_OF_PARAMETERS = "IA3 scales the activations of layers, so name layers"


def ia3(
    targets: Targets,
    feed_forward: Exclude = None,
    *,
    parts: Sequence[str] = (),
    fused: Sequence[str] = (),
    fused_sizes: Sequence[int] = (),
    exclude: Exclude = None,
    layers: Layers = None,
    cut: Sequence[Integer] = (),
    bias: Bias = "none",
    head: str | None = None,
) -> Method:
    """IA3 (Liu et al. 2022, section 3.3): vectors that scale activations. Groups as of `lora`.

    The paper scales the outputs of keys and values and the inputs of the feed-forward block's second layer:
    `ia3(["key", "value", "down"], feed_forward="down")`.

    Args:
      targets: the layers to scale, in the syntax of `lora`'s targets; a mapping may give parts per target.
      feed_forward: those of them whose inputs are scaled and not their outputs, in the same syntax.
      parts: of a fused projection, the parts whose outputs are scaled.
      fused: names of all its parts, in order.
      fused_sizes: sizes of the parts where they are not equal.
      exclude: what the targets shall not mean, in the same syntax.
      layers: numbers of the layers to scale, as of `lora`.
      cut: where to cut a scanned stack of layers, as of `lora`.
      bias: which bias vectors train: none, all, or those of the scaled layers.
      head: regular expression for the task head's leaves.

    Raises:
      ValueError: an argument is out of range. What depends on the model is checked by `insert`.
    """
    shared = {"parts": parts, "fused": fused, "fused_sizes": fused_sizes}
    settings = settings_by_target("ia3", IA3Settings, targets, shared)
    of_inputs = layer_targets.several(feed_forward, "feed_forward")
    for text in of_inputs:
        if not layer_targets.is_open(text):
            patterns.check(text, "feed_forward", names=True)
    return update_method(
        "ia3", settings, insertion=functools.partial(IA3Insertion, feed_forward=of_inputs),
        exclude=exclude, layers=layers, cut=cut, bias=bias, head=head,
        own={"feed_forward": of_inputs} if of_inputs else {},
    )  # fmt: skip
