"""The precision in which models compute, and models in float32."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from lora_jax.arguments import Model
from lora_jax.costs.flops import inner_jaxprs


def has_low_precision(model: nnx.Module) -> bool:
    """Whether any Variable of a model is of a lower precision than float32."""
    return any(_is_low(getattr(leaf, "dtype", None)) for leaf in jax.tree.leaves(nnx.state(model)))


def raised(model: Model) -> Model:
    """A copy that holds and computes numbers of lower precision in float32."""
    copy = nnx.clone(model)
    for _, module in nnx.iter_modules(copy):
        if _is_low(vars(module).get("dtype")):
            setattr(module, "dtype", jnp.float32)  # noqa: B010 - not every module has one
        for value in vars(module).values():
            if isinstance(value, nnx.Variable) and _is_low(getattr(value, "dtype", None)):
                value.set_value(value.get_raw_value().astype(jnp.float32))
    return copy


def _is_low(dtype: Any) -> bool:
    try:
        return bool(jnp.issubdtype(dtype, jnp.floating)) and jnp.finfo(dtype).bits < 32
    except TypeError:
        return False


def epsilons(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> set[float]:
    """The precisions of all floating-point values that a jaxpr computes."""
    inner = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    found: set[float] = set()
    for equation in inner.eqns:
        for variable in equation.outvars:
            dtype = getattr(variable.aval, "dtype", None)
            if dtype is not None and jnp.issubdtype(dtype, jnp.floating):
                found.add(float(jnp.finfo(dtype).eps))
        for part in inner_jaxprs(list(equation.params.values())):
            found |= epsilons(part)
    return found
