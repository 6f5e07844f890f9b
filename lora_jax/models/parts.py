"""The layers that encoders and decoders are made of, with the logical axes of their parameters."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from flax import nnx

from lora_jax.sharding.axes import named


@runtime_checkable
class Settings(Protocol):
    """What the layers take from a model's configuration."""

    @property
    def compute_dtype(self) -> str:
        """Type of activations and matrix products."""
        ...

    @property
    def initializer_range(self) -> float:
        """Standard deviation of kernels and tables at the start."""
        ...


def check_compute_dtype(name: str) -> None:
    """Raises ValueError for a type of computation that is not supported."""
    if name not in ("float32", "bfloat16"):
        raise ValueError(
            f"compute_dtype (config.base_dtype) must be 'float32' or 'bfloat16', got {name!r}"
        )


def linear(settings: Settings, axes: tuple[str, str], sizes: Any, rngs: nnx.Rngs) -> Any:
    """A linear map.

    Args:
      settings: of the model.
      axes: logical axes of inputs and outputs.
      sizes: (inputs, outputs); outputs may be (parts, width), which share one product.
      rngs: for the kernel.
    """
    inputs, outputs = sizes
    fused = isinstance(outputs, tuple)
    kind: Any = nnx.LinearGeneral if fused else nnx.Linear
    lead = (None,) if fused else ()
    # A bias of the model's width is added to activations that every device of `fsdp` has whole.
    vector = "width" if axes[1] == "embed" else axes[1]
    return kind(
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
    """An embedding table; `axis` is the logical axis of its rows."""
    return nnx.Embed(
        rows,
        width,
        promote_dtype=as_stored,
        embedding_init=nnx.initializers.normal(settings.initializer_range),
        embedding_metadata=named(axis, "embed"),
        rngs=rngs,
    )


def as_stored(values: Any, **_: Any) -> Any:
    """`promote_dtype` of a table: rows are looked up in the type the table is stored in.

    Converting comes after, so neither a converted table nor sums of its gradient in bfloat16 arise.
    """
    return values
