"""Model FLOPs of any function, forward and in training, counted on its jaxpr.

The convention is that of MFU (Chowdhery et al. 2022, appendix B): matrix products and convolutions
count, two per multiply-add, all other operations and whatever a program recomputes do not. So the
figure is a property of the model, of what trains and of the batch's shape, not of remat, of
kernels or of the number of devices.

Nothing is computed: arguments may be arrays or `jax.ShapeDtypeStruct`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

# Products inside are hidden (a kernel) or not of the forward pass (the rule of a `jax.custom_vjp`).
_OPAQUE = ("custom_lin", "pallas_call")


def count(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> int:
    """FLOPs of the products in a jaxpr and in all jaxprs inside it.

    A scan counts its body times its length, a conditional its most expensive branch, a while loop
    its condition and body once (its length is not known), a shard_map its body on every device.
    A convolution counts its padding as if it were data.

    Raises:
      ValueError: a kernel or a differentiated `jax.custom_vjp`, whose products cannot be seen.
    """
    inner = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    return sum(_equation(equation) for equation in inner.eqns)


def forward(function: Callable[..., Any], *args: Any) -> int:
    """FLOPs of `function(*args)`, without what its outputs do not need."""
    return _live(jax.make_jaxpr(function)(*args))


def training(objective: Callable[..., jax.Array], trainable: Any, *args: Any) -> int:
    """FLOPs of the value and gradient of `objective(trainable, *args)` with respect to `trainable`.

    They are counted on the forward-mode derivative: it has each product of the forward pass once,
    and each product of the gradient once, because the transpose of a product has the FLOPs of that
    product. What the backward pass recomputes (`jax.checkpoint`) is not in it.

    A scan counts the same for each of its iterations, as it runs: the first one includes the
    gradient of the scan's input, which straight-line code may leave out.

    Args:
      objective: gives a scalar.
      trainable: a tree; leaves that are not floating point are not differentiated.
      args: of the objective, not differentiated.

    Raises:
      ValueError: see `count`; or the objective gives no scalar.
    """
    leaves, structure = jax.tree.flatten(trainable)
    inexact = [jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves]
    directions = [leaf for leaf, moves in zip(leaves, inexact, strict=True) if moves]

    def derivative(leaves: list[Any], directions: list[Any], args: tuple[Any, ...]) -> Any:
        rest = iter(directions)
        tangents = [
            next(rest) if moves else np.zeros(np.shape(leaf), jax.dtypes.float0)
            for leaf, moves in zip(leaves, inexact, strict=True)
        ]
        of = lambda leaves: objective(jax.tree.unflatten(structure, leaves), *args)  # noqa: E731
        return jax.jvp(of, (leaves,), (tangents,))

    traced = jax.make_jaxpr(derivative)(leaves, directions, args)
    if [aval.shape for aval in traced.out_avals] != [(), ()]:
        shapes = [aval.shape for aval in traced.out_avals[: len(traced.out_avals) // 2]]
        raise ValueError(f"the objective must give one scalar, it gives the shapes {shapes}")
    return _live(traced)


def _live(closed: core.ClosedJaxpr) -> int:
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return count(jaxpr)


def _equation(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name in _OPAQUE:
        raise ValueError(
            f"the products inside {name!r} cannot be counted: count the same function written "
            "without kernels and without jax.custom_vjp"
        )
    if name == "dot_general":
        return _dot_general(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    inner = [count(jaxpr) for jaxpr in _jaxprs(list(params.values()))]
    if name == "cond":
        return max(inner)
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "shard_map":
        sizes = params["mesh"].shape
        old = "manual_axes"  # its name before jax 0.10
        axes = params["newly_manual_axes"] if "newly_manual_axes" in params else params[old]
        return math.prod(sizes[axis] for axis in axes) * sum(inner)
    return sum(inner)


def _jaxprs(value: Any) -> Iterator[core.Jaxpr | core.ClosedJaxpr]:
    if isinstance(value, core.Jaxpr | core.ClosedJaxpr):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _jaxprs(part)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _dot_general(equation: core.JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = _shape(equation.invars[0])
    depth = math.prod(left[axis] for axis in contracted)
    return 2 * math.prod(_shape(equation.outvars[0])) * depth


def _convolution(equation: core.JaxprEqn) -> int:
    kernel = _shape(equation.invars[1])  # its input axis holds the channels of one group only
    outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    depth = math.prod(kernel) // outputs if outputs else 0
    return 2 * math.prod(_shape(equation.outvars[0])) * depth
