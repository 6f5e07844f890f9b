"""Attention as encoders and decoders call it, and the choice of how it is computed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lora_jax import ranges
from lora_jax.costs import gpu_targets
from lora_jax.dropout import DropoutKey, dropping
from lora_jax.errors import InputError
from lora_jax.models.attention import gpus, plain, splash
from lora_jax.models.attention.relative import Relative
from lora_jax.models.attention.scores import PLAIN, Scores
from lora_jax.models.attention.spans import Spans
from lora_jax.ranges import OneOf
from lora_jax.sharding.axes import spec, ways

# By whom scores, softmax and mix are computed: "xla" as three operations; the others as one that never
# holds the scores, "splash" on TPUs, "triton" and "cudnn" on GPUs. "auto" is the one for the device at
# hand, see `for_device`.
Kernel = Literal["auto", "xla", "splash", "triton", "cudnn"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)
# The platform that each kernel is for.
PLATFORMS: Mapping[str, str] = {"splash": "tpu", "triton": "gpu", "cudnn": "gpu"}
_SHORT = 256  # tokens; of shorter rows the scores are no larger than queries, keys and values
_TRITON = (8, 0)  # compute capability that Triton needs


def for_device(platform: str, capability: tuple[int, int] | None = None) -> Kernel:
    """What "auto" is on a device.

    Args:
      platform: of JAX: "cpu", "gpu" or "tpu".
      capability: compute capability of a GPU.
    """
    if platform == "tpu":
        return "splash"
    return "triton" if capability is not None and capability >= _TRITON else "xla"


def check_kernel(config: Any, dropout: str) -> None:
    """Checks the field `attention` of a model's configuration.

    Args:
      config: with `attention` and `compute_dtype`.
      dropout: name of its rate of dropout of attention weights.

    Raises:
      InputError: no such kernel, or one that is asked for by name cannot do what the model needs.
    """
    kernel = config.attention
    ranges.check("attention", kernel, OneOf(KERNELS))
    needs: dict[str, Any] = {dropout: 0.0} if kernel in PLATFORMS else {}
    if PLATFORMS.get(kernel) == "gpu":
        needs |= {"compute_dtype": "bfloat16", "attn_logit_softcapping": None}
    for name, needed in needs.items():
        if (found := getattr(config, name, needed)) != needed:
            field = "compute_dtype (config.base_dtype)" if name == "compute_dtype" else name
            raise InputError(
                f"attention {kernel!r} needs {field} {needed!r}, got {found!r}; set that, or attention 'xla'"
            )


def check_platform(kernel: Kernel, platform: str) -> None:
    """Raises InputError if a kernel is asked for by name and computes on other devices than these."""
    if PLATFORMS.get(kernel, platform) != platform:
        raise InputError(
            f"config.model.attention is {kernel!r}, which computes on {PLATFORMS[kernel].upper()}s, and this "
            f"is a {platform}. Set config.model.attention='auto' or 'xla'"
        )


def attend(
    q: Float[Array, "rows length heads size"],
    k: Float[Array, "rows length shared size"],
    v: Float[Array, "rows length shared size"],
    spans: Spans,
    rate: float = 0.0,
    key: DropoutKey = None,
    scores: Scores = PLAIN,
    kernel: Kernel = "auto",
    relative: Relative | None = None,
) -> Float[Array, "rows length heads size"]:
    """Scaled dot-product attention.

    Args:
      q: queries.
      k: keys; neighbouring query heads share them where there are fewer.
      v: values, one for each key.
      spans: which tokens attend to which.
      rate: dropout rate of the attention weights.
      key: random key of that dropout; None switches it off.
      scores: how products of queries and keys become scores.
      kernel: by whom it is computed. With dropout it is XLA, as no kernel has one that changes from step to
        step; so it is on other devices, and for shapes, spans or scores that the kernel does not have.
      relative: embeddings of relative positions, which no kernel has either.
    """
    key = dropping(key, rate)
    by_xla = key is not None or relative is not None
    chosen = "xla" if by_xla else _chosen(kernel, q, spans, scores)
    if chosen == "xla":
        return plain.attend(q, k, v, spans, scores, rate, key, relative)
    computed = {"splash": splash.attend, "triton": gpus.triton, "cudnn": gpus.cudnn}[chosen]
    return on_each_device(functools.partial(computed, scores=scores), q, k, v, spans)


def _chosen(kernel: Kernel, q: Array, spans: Spans, scores: Scores) -> Kernel:
    rows, length, heads, size = q.shape
    platform, best = _at_hand()
    if kernel == "auto":
        kernel = best if q.dtype.itemsize == 2 and length >= _SHORT else "xla"
    over = ways("batch")
    if PLATFORMS.get(kernel) != platform or rows % over or heads % ways("heads"):
        return "xla"
    fits = {
        "splash": splash.fits(rows // over, length),
        "triton": gpus.triton_fits(length, size, spans, scores),
        "cudnn": gpus.cudnn_fits(length, scores),
    }
    return kernel if fits[kernel] else "xla"


def _at_hand() -> tuple[str, Kernel]:
    """Platform of the devices that a program is traced for, and what "auto" is on them.

    They are those of the mesh around, which may be without axes, or the default one.
    """
    asked: Any = jax.config.values["jax_default_device"]
    here = asked if isinstance(asked, jax.Device) else jax.local_devices()[0]
    device: Any = jax.sharding.get_abstract_mesh().abstract_device or here
    if device.platform == here.platform:
        major, _, minor = str(getattr(here, "compute_capability", "0.0")).partition(".")
        capability: tuple[int, int] | None = int(major), int(minor)
    else:  # compiled for, and not there
        capability = gpu_targets.capability(device.device_kind)
    platform = "gpu" if device.platform in ("gpu", "cuda") else device.platform
    return platform, for_device(platform, capability)


def on_each_device(
    attention: Callable[[Array, Array, Array, Spans], Array],
    q: Float[Array, "rows length heads size"],
    k: Float[Array, "rows length shared size"],
    v: Float[Array, "rows length shared size"],
    spans: Spans,
) -> Float[Array, "rows length heads size"]:
    """Runs a kernel, on a mesh for each device's own rows and heads: the compiler cannot divide it."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return attention(q, k, v, spans)
    if k.shape[2] % ways("heads"):
        k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    spans = jax.tree.map(lambda x: jnp.broadcast_to(x, q.shape[:2]), spans)
    heads = spec(("batch", None, "heads", None), mesh.axis_names)
    rows = spec(("batch", None), mesh.axis_names)
    mapped = jax.shard_map(
        attention, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )
    mixed: Array = mapped(q, k, v, spans)
    return mixed


Attention = Callable[..., Float[Array, "rows length heads size"]]  # of q, k, v and spans


def kept_apart(
    attention: Attention,
    q: Float[Array, "rows length heads size"],
    k: Float[Array, "rows length shared size"],
    v: Float[Array, "rows length shared size"],
    spans: Spans,
) -> Float[Array, "rows length heads size"]:
    """Attention whose result a token that is not finite changes only where it is attended to, or attends.

    A weight of zero does not keep a NaN away: 0 x NaN is NaN. Where the examples of a row are of different
    models (`lora_jax.pool`), that of one must not reach the others. Gradients are not kept apart so.

    Args:
      attention: of q, k, v and spans.
      q: queries.
      k: keys.
      v: values.
      spans: which tokens attend to which.
    """
    finite = jnp.isfinite(k).all(axis=(2, 3)) & jnp.isfinite(v).all(axis=(2, 3))
    k, v = (jnp.where(finite[:, :, None, None], x, 0) for x in (k, v))
    before = jnp.cumsum(~finite, axis=1, dtype=jnp.int32)  # that are not finite, up to each token
    before = jnp.pad(before, ((0, 0), (1, 0)))
    first, last = (jnp.broadcast_to(x, finite.shape) for x in (spans.first, spans.last))
    among = [jnp.take_along_axis(before, column, axis=1) for column in (first, last)]
    reached = (among[1] > among[0])[:, :, None, None]
    return jnp.where(reached, jnp.nan, attention(q, k, v, spans))
