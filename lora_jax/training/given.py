"""What a user's functions give back to the trainer, checked where it comes in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lora_jax.arguments import Model
from lora_jax.errors import InputError, InputTypeError, brief
from lora_jax.training.step import Loss


def scalar(loss: Loss[Model]) -> Loss[Model]:
    """The loss, which raises InputTypeError if it returns something else than one floating-point number."""

    def checked(model: Model, batch: Any, key: jax.Array | None) -> Float[Array, ""]:
        value: Any = loss(model, batch, key)
        if not isinstance(value, jax.Array):
            found = f"{brief(value)} of type {type(value).__name__}"
        elif value.shape or not jnp.issubdtype(value.dtype, jnp.floating):
            found = f"an array of shape {value.shape} and type {value.dtype}"
        else:
            return value
        raise InputTypeError(
            "the loss must return one floating-point number, computed with jax.numpy of (model, batch, key); "
            f"got {found}. Of the losses of examples take jnp.mean"
        )

    return checked


def numbers(metrics: Any) -> dict[str, float]:
    """A user's metrics as Python numbers, whatever kind of scalar they are."""
    if not isinstance(metrics, Mapping):
        raise InputTypeError(
            'evaluate must return a mapping of metrics, such as {"accuracy": 0.5}; got '
            f"{brief(metrics)} of type {type(metrics).__name__}"
        )
    result = {}
    for name, value in metrics.items():
        try:
            result[name] = float(value)
        except (TypeError, ValueError) as error:
            raise InputError(f"evaluate: the metric {name!r} is not a number ({error})") from error
    return result
