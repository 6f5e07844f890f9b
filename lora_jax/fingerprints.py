"""Fingerprints of bases: what tells the pre-trained model that an adapter belongs to from others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from lora_jax.arguments import BY_PATH, MODEL, takes
from lora_jax.errors import InputError
from lora_jax.expressions import Expression
from lora_jax.method import Method
from lora_jax.partition import Params
from lora_jax.quantisation.weight import PackedPart
from lora_jax.sharding.placement import gather
from lora_jax.state import leaves, values


@takes(params=BY_PATH)
def fingerprint(params: Mapping[str, Any], dtype: DTypeLike = jnp.bfloat16) -> str:
    """A hash of parameters and statistics (by path), to tell an adapter's base from another.

    Values are rounded to `dtype` first. With the default a base loaded in float32 and the same base
    loaded in bfloat16 have one fingerprint; float32 tells trained weights apart exactly. Integers that
    `dtype` cannot hold are hashed as they are.
    """
    digest = hashlib.sha256()
    whole = gather(dict(params))
    for path in sorted(whole):
        value = rounded(whole[path], dtype)
        digest.update(f"{path} {value.shape} ".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def rounded(value: Any, dtype: DTypeLike = jnp.bfloat16) -> np.ndarray:
    """A whole array as fingerprints see it."""
    result = np.asarray(jnp.asarray(value, dtype))
    exact = np.asarray(value)
    if np.issubdtype(exact.dtype, np.integer) and np.any(result.astype(exact.dtype) != exact):
        return exact
    return result


@takes(model=MODEL)
def base_parameters(model: nnx.Module, head: str | None = None) -> Params:
    """What makes a model, before a method is inserted, the base that it is.

    Its parameters and statistics (see `state`), without the head's. Packed weights are told apart exactly:
    their scales are here as the integers that have their bits, which `fingerprint` does not round.

    Args:
      model: pre-trained.
      head: regular expression for the paths of the head's leaves, such as `method.head`.

    Raises:
      ValueError: a Variable holds something else than one array.
    """
    params = values(model, "parameter", "statistic")
    for path, value in params.items():
        if not hasattr(value, "shape"):
            raise InputError(
                f"the Variable {path} holds a {type(value).__name__}; a base is made of arrays: give "
                "every array a Variable of its own"
            )
    return _without({**params, **_bits_of_scales(model)}, head)


def _bits_of_scales(model: nnx.Module) -> Params:
    """The floating-point arrays of packed weights as integers, by path."""
    return {
        path: value.view(f"int{8 * value.dtype.itemsize}")
        for path, leaf in leaves(model).items()
        if isinstance(leaf, PackedPart)
        and not isinstance(value := leaf.get_raw_value(), jax.ShapeDtypeStruct)
        and jnp.issubdtype(value.dtype, jnp.floating)
    }


def accepted(model: nnx.Module, method: Method, head: str | None = None) -> Iterator[str]:
    """Fingerprints under which adapter folders may name this base.

    The first is the one that new folders get. Others are those of earlier versions: they rounded the
    scales of packed weights, they covered parameters only, and the head's too where nobody named it.

    Args:
      model: pre-trained.
      method: of the adapter; it names the head.
      head: regular expression for the paths of the head's leaves, in place of the method's.
    """
    seen: list[dict[str, Any]] = []
    rounded_scales = values(model, "parameter", "statistic")
    for pattern in (method.head, None) if head is None else (head,):
        for kept in (base_parameters(model), rounded_scales, values(model, "parameter")):
            params = _without(kept, pattern)
            types = {path: np.dtype(value.dtype) for path, value in params.items()}
            if types not in seen:
                seen.append(types)
                yield fingerprint(params)


def _without(params: Mapping[str, Any], head: str | None) -> Params:
    if head is None:
        return dict(params)
    of_head = Expression(head, "'head'")
    return {path: value for path, value in params.items() if not of_head.matches(path)}
