"""The layers that encoders and decoders consist of, with the logical axes of their parameters."""

from __future__ import annotations

import functools
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from lora_jax.errors import InputError, brief
from lora_jax.quantisation.registry import FORMATS
from lora_jax.sharding.axes import named

FLOAT, STORED = "float", "stored"
BASE_FORMATS = (FLOAT, STORED, *FORMATS)  # see `base_formats`


@runtime_checkable
class Computes(Protocol):
    """What every layer reads of a model's configuration."""

    @property
    def compute_dtype(self) -> str:
        """Type of activations and matrix products."""
        ...


@runtime_checkable
class Settings(Computes, Protocol):
    """What layers with random initial values read beside it."""

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


def check_base_format(name: str) -> None:
    """Raises ValueError if the matrices of a model cannot be held in the form `name`."""
    if name not in BASE_FORMATS:
        raise InputError(f"base_format must be one of {', '.join(BASE_FORMATS)}; got {brief(name)}")


def all_but_kernel(arrays: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
    """Flax's promotion to one type, but for the kernel, which `cast_again` casts."""
    x, kernel, bias = arrays
    x, bias = promote_dtype((x, bias), dtype=dtype, inexact=inexact)
    return x, kernel, bias


def cast_again(x: Array, kernel: Array, *args: Any, **kwargs: Any) -> Array:
    """A product in the type of x, for which the backward pass casts the kernel again: a copy is not kept."""

    def product(x: Array, kernel: Array) -> Array:
        return jax.lax.dot_general(x, kernel.astype(x.dtype), *args, **kwargs)

    if kernel.dtype == x.dtype:
        return product(x, kernel)
    result: Array = jax.checkpoint(product)(x, kernel)
    return result


def linear(
    settings: Settings,
    axes: tuple[str, str],
    sizes: tuple[int, int | tuple[int, int]],
    rngs: nnx.Rngs,
    bias: bool = True,
) -> Any:
    """A linear layer, `nnx.Linear` or for several parts `nnx.LinearGeneral`.

    Args:
      settings: of the model.
      axes: logical axes of inputs and outputs.
      sizes: (inputs, outputs); outputs may be (parts, width) for parts computed by one product.
      rngs: for the kernel's initial values.
      bias: whether it has one.
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
        use_bias=bias,
        dtype=jnp.dtype(settings.compute_dtype),
        promote_dtype=all_but_kernel,
        dot_general=cast_again,
        kernel_init=nnx.initializers.normal(settings.initializer_range),
        kernel_metadata=named(axes[0], *lead, axes[1]),
        bias_metadata=named(*lead, vector),
        rngs=rngs,
    )


class LayerNorm(nnx.LayerNorm):
    """Flax's LayerNorm, of which the backward pass keeps the input only."""

    def __call__(self, x: Float[Array, "... width"], **settings: Any) -> Float[Array, "... width"]:
        """Normalises the last axis, see the base class."""
        normalise = super().__call__
        result: Array = jax.checkpoint(lambda x: normalise(x, **settings))(x)
        return result


def norm(settings: Computes, width: int, epsilon: float, rngs: nnx.Rngs) -> LayerNorm:
    """A LayerNorm over the model's width; its statistics are float32."""
    return LayerNorm(
        width,
        epsilon=epsilon,
        dtype=jnp.dtype(settings.compute_dtype),
        scale_metadata=named("width"),
        bias_metadata=named("width"),
        rngs=rngs,
    )


class RMSNorm(nnx.RMSNorm):
    """x / rms(x) times a scale (Zhang and Sennrich 2019), computed in float32.

    Attributes:
      offset: added to the scale: 1 in Gemma, whose scales are stored around 0.
    """

    offset: float

    def __call__(self, x: Float[Array, "... width"], *_: Any) -> Float[Array, "... width"]:
        """Normalises the last axis; the result is in the type of computation."""
        result: Array = jax.checkpoint(self._normalised)(x)
        return result

    def _normalised(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        x = x.astype(jnp.float32)
        y = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
        assert self.scale is not None
        scaled = y * (self.offset + self.scale[...].astype(jnp.float32))
        return scaled.astype(self.dtype)


class NormSettings(Settings, Protocol):
    """What RMSNorms read of a model's configuration."""

    @property
    def rms_norm_eps(self) -> float:
        """Added to the mean square."""
        ...

    @property
    def norm_offset(self) -> float:
        """Added to the scale."""
        ...


def rms_norm(
    settings: NormSettings, width: int, rngs: nnx.Rngs, axis: str | None = "width"
) -> RMSNorm:
    """An RMSNorm; `axis` is the logical name of what it normalises."""
    initial = nnx.initializers.constant(1 - settings.norm_offset)
    made = RMSNorm(
        width,
        epsilon=settings.rms_norm_eps,
        dtype=jnp.dtype(settings.compute_dtype),
        scale_init=initial,
        scale_metadata=named(axis),
        rngs=rngs,
    )
    made.offset = settings.norm_offset
    return made


def tied_logits(
    tokens: nnx.Embed, hidden: Float[Array, "... width"]
) -> Float[Array, "... vocabulary"]:
    """The table of tokens as output layer: a product in the type of `hidden`, with float32 sums."""
    if type(tokens).attend is not nnx.Embed.attend:  # a method has changed the table
        adapted: Array = tokens.attend(hidden.astype(jnp.float32))
        return adapted
    logits: Array = _logits(hidden, tokens.embedding[...].astype(hidden.dtype))
    return logits


@jax.custom_jvp
def _logits(
    hidden: Float[Array, "... width"], table: Float[Array, "vocabulary width"]
) -> Float[Array, "... vocabulary"]:
    return _by_rows(hidden, table, jnp.float32)


@functools.partial(_logits.defjvp, symbolic_zeros=True)
def _logits_jvp(operands: tuple[Array, Array], changes: tuple[Any, Any]) -> tuple[Array, Any]:
    """In the type of `hidden`, and so the gradient: of one in float32 GPUs would make a float32 table."""
    hidden, table = operands
    pairs = ((changes[0], table), (hidden, changes[1]))
    products = [
        _by_rows(*pair, hidden.dtype)
        for pair, change in zip(pairs, changes, strict=True)
        if not isinstance(change, SymbolicZero)
    ]
    return _logits(hidden, table), functools.reduce(jnp.add, products).astype(jnp.float32)


def _by_rows(hidden: Any, table: Any, dtype: Any) -> Array:
    axes = ((hidden.ndim - 1,), (1,)), ((), ())
    return jax.lax.dot_general(hidden, table, axes, preferred_element_type=dtype)


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
