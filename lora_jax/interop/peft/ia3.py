"""PEFT's IA3: a vector `ia3_l` of outputs (outputs, 1), or in feed-forward modules of inputs (1, inputs)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import numpy as np

from lora_jax import methods
from lora_jax.errors import InputError
from lora_jax.expressions import Expression
from lora_jax.interop.peft import targets
from lora_jax.interop.peft.config import PeftConfig, Types
from lora_jax.interop.peft.layers import Runs, Spec, target_of
from lora_jax.interop.peft.names import Leaf, outputs
from lora_jax.interop.peft.tensors import Arrays
from lora_jax.interop.peft.variants import TO_LORA, Update, Variant, check_shapes, sizes
from lora_jax.low_rank.ia3 import IA3Settings
from lora_jax.method import Method


class IA3(Variant):
    """Learned vectors that scale activations."""

    peft_type = "IA3"
    method = "ia3"
    keys = ("fan_in_fan_out", "feedforward_modules", "init_ia3_weights")
    ends: ClassVar[Mapping[str, str]] = {"ia3_l": "vector"}
    types: ClassVar[Types] = {"feedforward_modules": (list, str)}

    def arguments(
        self, module: str, factors: Arrays, weight: Leaf, settings: PeftConfig
    ) -> dict[str, Any]:
        """Whether the inputs are scaled."""
        inputs, out = sizes(weight)
        of_inputs = _named(settings.values.get("feedforward_modules") or [], module)
        check_shapes(module, factors, {"vector": (1, inputs) if of_inputs else (out, 1)})
        return {"of_inputs": True} if of_inputs else {}

    def leaves(
        self, module: str, factors: Arrays, shared: Arrays, weight: Leaf, settings: PeftConfig
    ) -> Arrays:
        """The vector."""
        vector = factors["vector"]
        of_inputs = _named(settings.values.get("feedforward_modules") or [], module)
        return {"vector": vector.reshape(weight.shape[:1] if of_inputs else outputs(weight))}

    def build(
        self, specs: Mapping[str, Spec], runs: Runs, settings: PeftConfig, head: str | None
    ) -> Method:
        """The method; `feed_forward` names the modules whose inputs are scaled."""
        of_inputs = [target_of(path) for path, spec in specs.items() if spec.arguments()]
        every = [target_of(path) for path in specs]
        return methods.ia3(every, feed_forward=of_inputs or None, cut=runs.cut, head=head)

    def tensors(self, update: Update) -> Arrays:
        """The vector; of parts of a fused projection, with ones for the other parts."""
        inputs, out = sizes(update.weight)
        if set(update.parts) == {""}:
            of_inputs = _settings(update).of_inputs
            shape = (1, inputs) if of_inputs else (out, 1)
            return {"ia3_l": np.ascontiguousarray(update.leaves["vector"].reshape(shape))}
        own = update.settings
        sections = own.fused_sizes or (update.weight.shape[1] // len(own.fused),) * len(own.fused)
        ends = np.cumsum((0, *sections)) * (out // update.weight.shape[1])
        first = next(iter(update.parts.values()))["vector"]
        whole = np.ones((out, 1), first.dtype)
        for number, part in enumerate(own.fused):
            if part in update.parts:
                vector = update.parts[part]["vector"]
                whole[ends[number] : ends[number + 1]] = vector.reshape(-1, 1)
        return {"ia3_l": whole}

    def config(
        self, updates: Mapping[str, Update], own: Mapping[str, Any], modules: set[str]
    ) -> dict[str, Any]:
        """The modules by side; PEFT compares ends of text, so that whole names are the safe ones."""
        of_inputs = [name for name, update in updates.items() if _settings(update).of_inputs]
        others = [name for name in updates if name not in of_inputs]
        short = targets.name_all(of_inputs, modules)
        if any(_named(short, name) for name in others):
            short = of_inputs
        if clash := [name for name in others if _named(short, name)]:
            raise InputError(
                f"{clash[0]} ends as the name of a module whose inputs are scaled, and PEFT would take it "
                f"for one. {TO_LORA}"
            )
        return {
            "feedforward_modules": sorted(short),
            "target_modules": sorted({*short, *targets.name_all(others, modules)}),
            "init_ia3_weights": True,
        }


def _settings(update: Update) -> IA3Settings:
    assert isinstance(update.settings, IA3Settings)
    return update.settings


def _named(modules: Collection[str] | str, name: str) -> bool:
    """Whether `feedforward_modules` names a module, as PEFT decides it."""
    if isinstance(modules, str):
        return Expression(modules, "feedforward_modules").matches(name)
    return any(name.endswith(end) for end in modules)
