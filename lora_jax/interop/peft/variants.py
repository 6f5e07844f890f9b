"""What PEFT's other methods that change weights share: settings, tensors of a module, and our method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from lora_jax import methods
from lora_jax.errors import InputError
from lora_jax.interop.peft.config import PeftConfig, Types
from lora_jax.interop.peft.layers import Runs, Spec, target_of
from lora_jax.interop.peft.names import Leaf, Shape, width
from lora_jax.interop.peft.tensors import Arrays
from lora_jax.low_rank.update_settings import UpdateSettings
from lora_jax.method import Method

TO_LORA = "Make it LoRA first, which PEFT has for all of it: lora_jax.to_lora(model, method)"
_COMMON = (
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "modules_to_save",
    "peft_type", "peft_version", "revision", "target_modules", "task_type",
)  # fmt: skip
LAYERS = ("layers_pattern", "layers_to_transform")


@dataclasses.dataclass
class Update:
    """Our update of one module of one layer.

    Attributes:
      path: of our layer, in the cut stack.
      settings: with which it was inserted.
      parts: its leaves by name, by the part of a fused projection; "" for the whole.
      weight: the weight that it changes.
    """

    path: str
    settings: UpdateSettings
    parts: Mapping[str, Arrays]
    weight: Leaf

    @property
    def leaves(self) -> Arrays:
        """The leaves of an update of the whole weight.

        Raises:
          InputError: it is of parts.
        """
        if set(self.parts) != {""}:
            raise InputError(
                f"{self.path}: the parts {', '.join(self.parts)} of a fused projection have updates of their "
                f"own, and PEFT has one for the whole module. {TO_LORA}"
            )
        return self.parts[""]


class Variant:
    """A method of PEFT.

    Attributes:
      peft_type: its name in adapter_config.json.
      method: that of our constructor.
      keys: of adapter_config.json that only it has.
      ends: ends of the names of a module's tensors, and what they are called here.
      types: of values of these keys.
      own_bias: PEFT's name of our mode `lora_only`; "" if biases never train.
      of_conv1d: whether PEFT has it for the layers of GPT-2 (`Conv1D`).
    """

    peft_type: ClassVar[str]
    method: ClassVar[str]
    keys: ClassVar[tuple[str, ...]]
    ends: ClassVar[Mapping[str, str]]
    types: ClassVar[Types] = {}
    own_bias: ClassVar[str] = ""
    of_conv1d: ClassVar[bool] = True

    @property
    def known(self) -> tuple[str, ...]:
        """All keys."""
        return (*_COMMON, *self.keys)

    def check(self, settings: PeftConfig) -> None:
        """Raises InputError for settings that cannot be followed."""

    def shared(self, tensors: Mapping[str, np.ndarray]) -> tuple[Arrays, Mapping[str, np.ndarray]]:
        """Tensors that belong to no module, by our names, and the rest."""
        return {}, tensors

    def arguments(
        self, module: str, factors: Arrays, weight: Leaf, settings: PeftConfig
    ) -> dict[str, Any]:
        """The arguments of our constructor for one module.

        Raises:
          InputError: the tensors do not fit the settings or the weight.
        """
        raise NotImplementedError

    def leaves(
        self, module: str, factors: Arrays, shared: Arrays, weight: Leaf, settings: PeftConfig
    ) -> Arrays:
        """Our leaves of one module, trained and fixed ones."""
        raise NotImplementedError

    def build(
        self, specs: Mapping[str, Spec], runs: Runs, settings: PeftConfig, head: str | None
    ) -> Method:
        """The method that adapts modules as their specs say, by path."""
        targets = {target_of(path): spec.arguments() for path, spec in specs.items()}
        constructor = getattr(methods, self.method)
        result: Method = constructor(
            targets, head=head, cut=runs.cut, **self.own_arguments(settings)
        )
        return result

    def own_arguments(self, settings: PeftConfig) -> dict[str, Any]:
        """Arguments of our constructor for all modules."""
        return {}

    def tensors(self, update: Update) -> Arrays:
        """The tensors of a module by the ends of their names."""
        raise NotImplementedError

    def of_all(self, updates: Mapping[str, Update]) -> Arrays:
        """The tensors that belong to no module, by their whole names."""
        return {}

    def config(
        self, updates: Mapping[str, Update], own: Mapping[str, Any], modules: set[str]
    ) -> dict[str, Any]:
        """The settings that only this method has.

        Args:
          updates: by module.
          own: the arguments of our method.
          modules: names of all modules.

        Raises:
          InputError: PEFT has one setting for all modules where ours have several.
        """
        raise NotImplementedError

    def as_stored(self, tensors: Arrays, config: Mapping[str, Any]) -> Arrays:
        """The tensors as PEFT saves them with these settings."""
        return tensors

    def check_layer(self, name: str, update: Update) -> None:
        """Raises InputError for a layer that PEFT has no such update for."""
        conv1d = not update.weight.transposed
        if update.weight.is_table or (conv1d and not self.of_conv1d):
            what = "a table of embeddings" if update.weight.is_table else "a Conv1D"
            raise InputError(f"{name} is {what}, for which PEFT has no {self.peft_type}. {TO_LORA}")

    def one(self, what: str, updates: Mapping[str, Update]) -> Any:
        """The value that a setting has in all modules.

        Raises:
          InputError: it has several.
        """
        values = {getattr(update.settings, what) for update in updates.values()}
        if len(values) > 1:
            raise InputError(
                f"the layers differ in {what} ({sorted(values)}), and PEFT's {self.peft_type} has one for "
                f"all. {TO_LORA}"
            )
        return values.pop()


def sizes(weight: Leaf) -> tuple[int, int]:
    """Numbers of inputs and outputs of a matrix."""
    return weight.shape[0], width(weight)


def check_shapes(module: str, factors: Arrays, expected: Mapping[str, Shape]) -> None:
    """Raises InputError for tensors of a module that are missing, too many or of wrong shapes."""
    found = {side: value.shape for side, value in factors.items()}
    if found != dict(expected):
        raise InputError(
            f"{module}: its tensors are {found}, the settings and the base need {dict(expected)}; the file "
            "is incomplete, or the adapter is of another model"
        )


def turned(value: np.ndarray, shape: Shape | None = None) -> np.ndarray:
    """A matrix turned round, in a shape of its own."""
    result = np.ascontiguousarray(value.T)
    return result if shape is None else result.reshape(shape)


def whole_number(value: float) -> float:
    """A number as PEFT's users write it: 8 and not 8.0."""
    return int(value) if float(value).is_integer() else value
