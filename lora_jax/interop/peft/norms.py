"""PEFT's LN_TUNING: norms that train whole, as `ln_tuning_layers` of their modules."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from lora_jax import methods
from lora_jax.errors import InputError
from lora_jax.interop.peft import targets
from lora_jax.interop.peft.config import PeftConfig
from lora_jax.interop.peft.layers import Runs
from lora_jax.interop.peft.names import Names
from lora_jax.interop.peft.tensors import Arrays
from lora_jax.interop.peft.variants import Update, Variant
from lora_jax.method import Method
from lora_jax.patterns import some

_MIDDLE = ".ln_tuning_layers."


class Norms(Variant):
    """Whole norms; there are no updates."""

    peft_type = "LN_TUNING"
    method = "norms"
    keys = ()
    ends: ClassVar[Mapping[str, str]] = {}

    def config(
        self, updates: Mapping[str, Update], own: Mapping[str, Any], modules: set[str]
    ) -> dict[str, Any]:
        """Nothing of its own."""
        return {}


def renamed(tensors: Arrays) -> tuple[Arrays, list[str]]:
    """The tensors by the names that they have in the model, and the names of those that train here."""
    plain = {name.replace(_MIDDLE, "."): value for name, value in tensors.items()}
    trained = [name.replace(_MIDDLE, ".") for name in tensors if _MIDDLE in name]
    if twice := [name for name in trained if name in tensors]:
        raise InputError(f"{twice[0]} is in the file twice; save the adapter again in PEFT")
    return plain, trained


def stored(name: str) -> str:
    """The name of a trained parameter in the file."""
    module, _, leaf = name.rpartition(".")
    return f"{module}{_MIDDLE}{leaf}"


def check_modules(trained: Collection[str], settings: PeftConfig, names: Names) -> None:
    """The trained parameters must be all those of the modules that the settings name.

    Args:
      trained: their names.
      settings: of the adapter.
      names: of the base.

    Raises:
      InputError: some are missing or too many, or PEFT chooses the modules by a table of its own.
    """
    if not trained:
        raise InputError("no tensor is of a norm (ln_tuning_layers); the adapter is empty")
    if settings.values.get("target_modules") is None:
        raise InputError(
            "target_modules is not given, so that PEFT chooses the norms by the model; name them"
        )
    modules = {name.rpartition(".")[0] for name in names.leaves}
    wanted = targets.chosen(settings, modules) or set()
    every = {name for name in names.leaves if name.rpartition(".")[0] in wanted}
    if odd := sorted(every ^ set(trained)):
        what = "lacks" if odd[0] in every else "has, besides those of target_modules,"
        raise InputError(
            f"the file {what} {some(odd)}; it is incomplete, or the adapter is of another model"
        )


def method_of(trained: Sequence[str], names: Names, runs: Runs, head: str | None) -> Method:
    """The method that trains these norms.

    Raises:
      InputError: it would be some layers of a stack only.
    """
    if runs.starts:
        raise InputError(
            "the layers differ in what trains; norms here are those of all layers of a stack. "
            "Merge the adapter in PEFT and name the result as the model"
        )
    paths = dict.fromkeys(names.leaves[name].module for name in trained)
    return methods.norms(head, targets=list(paths))
