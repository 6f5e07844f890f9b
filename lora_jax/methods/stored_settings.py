"""The settings of adapted layers that are known by their paths only, as in an adapter folder."""

from __future__ import annotations

from collections.abc import Collection

from lora_jax import patterns
from lora_jax.errors import InputError
from lora_jax.low_rank.settings import STARTS, LoRASettings
from lora_jax.low_rank.targets import is_open, layer_number
from lora_jax.method import Method
from lora_jax.methods.lora import LoRAInsertion
from lora_jax.methods.parameters import ParameterInsertion
from lora_jax.methods.updates import UpdateInsertion


def are_factor_pairs(method: Method) -> bool:
    """Whether the updates of a method are LoRA's factor pairs alone, so that its leaves `a` and `b` tell all.

    They are not where factors have a start that is taken off, or A is drawn from a seed.
    """
    return all(
        isinstance(own, LoRASettings) and own.init not in STARTS and own.gradient != "lora_fa"
        for insertion in method.insertions
        if isinstance(insertion, UpdateInsertion | ParameterInsertion)
        for _, own in insertion.targets
    )


def refuse_other_updates(method: Method, what: str) -> None:
    """Raises InputError for a method whose updates are not LoRA's factor pairs alone.

    Args:
      method: of an adapter.
      what: cannot be done with it, for the message.
    """
    if not are_factor_pairs(method):
        raise InputError(
            f"{what} takes LoRA's factors A and B, and the updates of {method.name} are more or others. "
            "Convert the adapter to LoRA first: lora_jax.to_lora(model, method), see docs/variants.md"
        )


def settings_of_layer(
    method: Method, path: str, rank: int, adapted: Collection[str], part: str = ""
) -> LoRASettings:
    """The settings of one adapted layer.

    Without the model a type of layer may mean any of them. That is no harm where all targets that may
    have chosen the layer agree.

    Args:
      method: that adapted it.
      path: of the layer.
      rank: of its factors; less than the target's where the layer was capped.
      adapted: the paths of all adapted layers.
      part: of the layer that the factors are for, or the parameter of the module at that path.

    Raises:
      ValueError: no target of the method can have chosen it, or targets that differ.
    """
    refuse_other_updates(method, "this")
    possible: list[LoRASettings] = []
    for insertion in method.insertions:
        if isinstance(insertion, LoRAInsertion):
            possible += _possible(insertion, path, rank, list(adapted))
        elif isinstance(insertion, ParameterInsertion):
            possible += _of_parameter(insertion, f"{path}/{part}".removeprefix("/"), rank)
    if not possible:
        raise InputError(
            f"no target of the adapter's method {method} matches its factors at {path}, of rank {rank}"
        )
    if any(settings != possible[0] for settings in possible):
        raise InputError(
            f"the targets of {method} leave open which settings {path} has; put the adapter onto its "
            "model, which shows it"
        )
    return possible[0]


def _possible(
    insertion: LoRAInsertion, path: str, rank: int, adapted: list[str]
) -> list[LoRASettings]:
    """The settings that the targets of one insertion can have given to a layer, the first match last."""
    if any(_names(excluded, path, adapted) is True for excluded in insertion.exclude):
        return []
    numbers, certain = insertion.layers, not any(map(is_open, insertion.exclude))
    if numbers is not None:
        if layer_number(path) not in numbers and min(numbers) >= 0:
            return []
        certain = certain and min(numbers) >= 0
    found = []
    for target, settings in insertion.targets:
        assert isinstance(settings, LoRASettings)
        named = _names(target, path, adapted)
        if named is False:
            continue
        if rank == settings.rank:
            found.append(settings)
        elif rank < settings.rank and settings.too_large == "cap":
            found.append(settings.capped(rank))
        if named and certain:
            break
    return found


def _of_parameter(insertion: ParameterInsertion, path: str, rank: int) -> list[LoRASettings]:
    """The settings of the first target that names a parameter."""
    for target, settings in insertion.targets:
        if patterns.paths_of(target, [path], "target"):
            return [settings if rank == settings.rank else settings.capped(rank)]
    return []


def _names(target: str, path: str, adapted: list[str]) -> bool | None:
    """Whether a target names the layer; None if only the model shows it."""
    return None if is_open(target) else path in patterns.paths_of(target, adapted, "target")
