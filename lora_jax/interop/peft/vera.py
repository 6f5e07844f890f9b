"""PEFT's VeRA: vectors `vera_lambda_d` and `vera_lambda_b` of every module, and one `vera_A` and `vera_B`.

A (rank, most inputs) and B (most outputs, rank) are those of the largest module; others have their first
columns and rows. Where the file has them (`save_projection`), they are the adapter's: PyTorch drew them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from lora_jax.errors import InputError
from lora_jax.interop.peft.config import REMEDY, PeftConfig, Types
from lora_jax.interop.peft.names import Leaf, outputs
from lora_jax.interop.peft.tensors import Arrays
from lora_jax.interop.peft.variants import (
    LAYERS,
    TO_LORA,
    Update,
    Variant,
    check_shapes,
    sizes,
    turned,
)
from lora_jax.low_rank.vera_settings import VeRASettings
from lora_jax.ranges import LARGEST

_A, _B = "base_model.vera_A", "base_model.vera_B"


class VeRA(Variant):
    """Trained vectors around shared random matrices."""

    peft_type = "VERA"
    method = "vera"
    keys = (
        "bias", "d_initial", "fan_in_fan_out", "init_weights", "projection_prng_key", "r",
        "save_projection", "vera_dropout", *LAYERS,
    )  # fmt: skip
    ends: ClassVar[Mapping[str, str]] = {"vera_lambda_d": "lambda_d", "vera_lambda_b": "lambda_b"}
    types: ClassVar[Types] = {
        "r": int, "vera_dropout": (int, float), "d_initial": (int, float), "bias": str,
        "projection_prng_key": int, "save_projection": bool,
    }  # fmt: skip
    own_bias = "vera_only"

    def check(self, settings: PeftConfig) -> None:
        """Raises InputError where the matrices are not in the file."""
        if not settings.get("save_projection", True):
            raise InputError(
                "save_projection is false: vera_A and vera_B are not in the file, and only PyTorch's own "
                "random numbers give them (projection_prng_key). Convert it in PEFT (peft.convert_to_lora). "
                + REMEDY
            )

    def shared(self, tensors: Mapping[str, np.ndarray]) -> tuple[Arrays, Mapping[str, np.ndarray]]:
        """A and B."""
        if missing := [name for name in (_A, _B) if name not in tensors]:
            raise InputError(
                f"{missing[0]} is not in the file, although save_projection is true; it is incomplete"
            )
        rest = {name: value for name, value in tensors.items() if name not in (_A, _B)}
        return {"a": np.asarray(tensors[_A]), "b": np.asarray(tensors[_B])}, rest

    def arguments(
        self, module: str, factors: Arrays, weight: Leaf, settings: PeftConfig
    ) -> dict[str, Any]:
        """Rank, the start of d, and the seed."""
        rank, start = settings.get("r", 256), settings.get("d_initial", 0.1)
        seed = settings.get("projection_prng_key", 0)
        check_shapes(module, factors, {"lambda_d": (rank,), "lambda_b": (sizes(weight)[1],)})
        return {
            "rank": rank,
            "d_initial": start if start > 0 else VeRASettings.d_initial,
            "seed": seed if 0 <= seed <= LARGEST else 0,
        }

    def leaves(
        self, module: str, factors: Arrays, shared: Arrays, weight: Leaf, settings: PeftConfig
    ) -> Arrays:
        """The vectors, and the module's part of A and B."""
        inputs, out = sizes(weight)
        rank, a, b = len(factors["lambda_d"]), shared["a"], shared["b"]
        fits = a.ndim == b.ndim == 2 and a.shape[0] == b.shape[1] == rank
        if not fits or a.shape[1] < inputs or b.shape[0] < out:
            raise InputError(
                f"vera_A is {a.shape} and vera_B {b.shape}, {module} needs ({rank}, {inputs} or more) and "
                f"({out} or more, {rank}): the adapter is of another model"
            )
        return {
            "lambda_d": factors["lambda_d"],
            "lambda_b": factors["lambda_b"].reshape(outputs(weight)),
            "shared_a": turned(a[:, :inputs]),
            "shared_b": turned(b[:out], (rank, *outputs(weight))),
        }

    def own_arguments(self, settings: PeftConfig) -> dict[str, Any]:
        """Dropout and biases."""
        return {"dropout": settings.get("vera_dropout", 0.0), "bias": settings.bias}

    def tensors(self, update: Update) -> Arrays:
        """The vectors."""
        leaves = update.leaves
        return {
            "vera_lambda_d": leaves["lambda_d"], "vera_lambda_b": leaves["lambda_b"].reshape(-1),
        }  # fmt: skip

    def of_all(self, updates: Mapping[str, Update]) -> Arrays:
        """A and B of the largest modules, which those of all others must be the beginning of."""
        every = {}
        for name, update in updates.items():
            leaves = update.leaves
            rank = len(leaves["lambda_d"])
            b = leaves["shared_b"].reshape(rank, -1)
            every[name] = (turned(leaves["shared_a"]), turned(b))
        a = max((a for a, _ in every.values()), key=lambda value: value.shape[1])
        b = max((b for _, b in every.values()), key=len)
        for name, (own_a, own_b) in every.items():
            same = np.array_equal(own_a, a[:, : own_a.shape[1]])
            if not same or not np.array_equal(own_b, b[: len(own_b)]):
                raise InputError(
                    f"the random matrices of {name} are not the beginning of those of the largest layer, as "
                    f"they are in PEFT: the layers differ in seed or fan_in. {TO_LORA}"
                )
        return {_A: a, _B: b}

    def config(
        self, updates: Mapping[str, Update], own: Mapping[str, Any], modules: set[str]
    ) -> dict[str, Any]:
        """Rank, dropout and the start."""
        first = next(iter(updates.values())).settings
        assert isinstance(first, VeRASettings)
        return {
            "r": self.one("rank", updates),
            "vera_dropout": self.one("dropout", updates),
            "d_initial": first.d_initial,
            "projection_prng_key": first.seed,
            "save_projection": True,
            "init_weights": True,
        }
