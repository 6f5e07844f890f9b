"""The layers that encoders and decoders consist of, with the logical axes of their parameters."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, runtime_checkable

import jax.numpy as jnp
from flax import nnx

from lora_jax.errors import InputError
from lora_jax.sharding.axes import named


@runtime_checkable
class Settings(Protocol):
    """What the layers read of a model's configuration."""

    @property
    def compute_dtype(self) -> str:
        """Type of activations and matrix products."""
        ...

    @property
    def initializer_range(self) -> float:
        """Standard deviation of the normal initial values of kernels and tables."""
        ...


def check_compute_dtype(name: str) -> None:
    """Raises ValueError if the models cannot compute in the type `name`."""
    if name not in ("float32", "bfloat16"):
        raise InputError(
            f"compute_dtype (config.base_dtype) must be 'float32' or 'bfloat16', got {name!r}"
        )


def linear(
    settings: Settings,
    axes: tuple[str, str],
    sizes: tuple[int, int | tuple[int, int]],
    rngs: nnx.Rngs,
) -> Any:
    """A linear layer, `nnx.Linear` or for several parts `nnx.LinearGeneral`.

    Args:
      settings: of the model.
      axes: logical axes of inputs and outputs.
      sizes: (inputs, outputs); outputs may be (parts, width) for parts computed by one product.
      rngs: for the kernel's initial values.
    """
    inputs, outputs = sizes
    fused = isinstance(outputs, tuple)
    layer_class: Any = nnx.LinearGeneral if fused else nnx.Linear
    lead = (None,) if fused else ()
    # A bias of the model's width is added to activations that are whole on every device of `fsdp`.
    vector = "width" if axes[1] == "embed" else axes[1]
    return layer_class(
        inputs,
        outputs,
        dtype=jnp.dtype(settings.compute_dtype),
        kernel_init=nnx.initializers.normal(settings.initializer_range),
        kernel_metadata=named(axes[0], *lead, axes[1]),
        bias_metadata=named(*lead, vector),
        rngs=rngs,
    )


def norm(settings: Settings, width: int, epsilon: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A LayerNorm over the model's width; its statistics are float32."""
    return nnx.LayerNorm(
        width,
        epsilon=epsilon,
        dtype=jnp.dtype(settings.compute_dtype),
        scale_metadata=named("width"),
        bias_metadata=named("width"),
        rngs=rngs,
    )


def table(
    settings: Settings, rows: int, width: int, rngs: nnx.Rngs, axis: str | None = None
) -> nnx.Embed:
    """An embedding table (rows, width); `axis` is the logical name of its rows."""
    return nnx.Embed(
        rows,
        width,
        promote_dtype=as_stored,
        embedding_init=nnx.initializers.normal(settings.initializer_range),
        embedding_metadata=named(axis, "embed"),
        rngs=rngs,
    )


_Arrays = TypeVar("_Arrays", bound=tuple[Any, ...])


def as_stored(values: _Arrays, /, **_: object) -> _Arrays:
    """`promote_dtype` of a table: rows are looked up in the type that the table is stored in.

    They are converted afterwards: no converted copy of the table is made, and its gradient is not
    summed in bfloat16.
    """
    return values
