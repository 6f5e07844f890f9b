"""Model FLOPs of any function, forward and in training, counted on its jaxpr.

The convention is that of MFU (Chowdhery et al. 2022, appendix B): matrix products and convolutions
count, two FLOPs per multiply-add; other operations, and what a program recomputes, do not. So the
count depends on the model, on the parameters that train and on the batch's shape, but not on remat,
kernels or the number of devices.

Nothing is computed: arguments may be arrays or `jax.ShapeDtypeStruct`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval
from jax.sharding import AbstractDevice, AbstractMesh
from jaxtyping import PyTree

from lora_jax.errors import InputError

# The products inside of these cannot be seen (a kernel), or are not those of the forward pass (the
# rule of a `jax.custom_vjp`).
_OPAQUE = ("custom_lin", "pallas_call")
# A device without kernels: models that choose them by the device are counted as they are without.
_PLAIN = AbstractMesh((), (), abstract_device=AbstractDevice("cpu", None, "cpu"))


def count(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> int:
    """FLOPs of the products in a jaxpr and in all jaxprs inside it.

    The body of a scan counts as often as it runs; of a conditional the most expensive branch counts,
    of `jax.lax.platform_dependent` the one for all other platforms; condition and body of a while loop
    count once, because its length is not known; the body of a shard_map counts on every device; the
    padding of a convolution counts as data.

    Raises:
      ValueError: there is a kernel or a differentiated `jax.custom_vjp`, whose products cannot be
        seen.
    """
    inner = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    return sum(_equation(equation) for equation in inner.eqns)


def forward(function: Callable[..., PyTree], *args: PyTree) -> int:
    """FLOPs of `function(*args)`, without operations that no output depends on."""
    with jax.sharding.use_abstract_mesh(_PLAIN):
        return _live(jax.make_jaxpr(function)(*args))


def training(objective: Callable[..., jax.Array], trainable: PyTree, *args: PyTree) -> int:
    """FLOPs of the value and gradient of `objective(trainable, *args)` with respect to `trainable`.

    They are counted on the forward-mode derivative: it has each product of the forward pass once,
    and each product of the gradient once, because the transpose of a product has the FLOPs of that
    product. What the backward pass recomputes (`jax.checkpoint`) is not in it.

    All iterations of a scan count the same, as they cost the same: the first one includes the
    gradient of the scan's input, which straight-line code may leave out.

    Args:
      objective: returns a scalar.
      trainable: a tree; leaves that are not floating point are not differentiated.
      args: further arguments of the objective, not differentiated.

    Raises:
      ValueError: the objective does not return a scalar; for others see `count`.
    """
    leaves, structure = jax.tree.flatten(trainable)
    inexact = [jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves]
    directions = [leaf for leaf, varies in zip(leaves, inexact, strict=True) if varies]

    def derivative(
        leaves: list[PyTree], directions: list[PyTree], args: tuple[PyTree, ...]
    ) -> tuple[jax.Array, jax.Array]:
        remaining = iter(directions)
        tangents = [
            next(remaining) if varies else np.zeros(np.shape(leaf), jax.dtypes.float0)
            for leaf, varies in zip(leaves, inexact, strict=True)
        ]
        of = lambda leaves: objective(jax.tree.unflatten(structure, leaves), *args)  # noqa: E731
        value, change = jax.jvp(of, (leaves,), (tangents,))
        return value, change

    with jax.sharding.use_abstract_mesh(_PLAIN):
        traced = jax.make_jaxpr(derivative)(leaves, directions, args)
    if [aval.shape for aval in traced.out_avals] != [(), ()]:
        shapes = [aval.shape for aval in traced.out_avals[: len(traced.out_avals) // 2]]
        raise InputError(f"the objective must return one scalar, it returns the shapes {shapes}")
    return _live(traced)


def _live(closed: core.ClosedJaxpr) -> int:
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return count(jaxpr)


def _passes_on(equation: core.JaxprEqn) -> bool:
    """Whether it is the rule of a `jax.custom_vjp` that says it is the identity but for its gradient."""
    rule = getattr(equation.params.get("bwd"), "f", None)  # JAX wraps it
    return bool(getattr(rule, "of_identity", False))


def _equation(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name in _OPAQUE and not _passes_on(equation):
        raise InputError(
            f"the products inside {name!r} cannot be counted: count the same function written "
            "without kernels and without jax.custom_vjp"
        )
    if name == "dot_general":
        return _dot_general(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "cond" and params.get("branches_platforms"):
        return count(params["branches"][-1])  # the same without the kernel of a platform
    inner = [count(jaxpr) for jaxpr in inner_jaxprs(list(params.values()))]
    if name == "cond":
        return max(inner)
    if name == "scan":
        return int(params["length"]) * sum(inner)
    if name == "shard_map":
        sizes = params["mesh"].shape
        old = "manual_axes"  # its name before jax 0.10
        axes = params["newly_manual_axes"] if "newly_manual_axes" in params else params[old]
        return math.prod(int(sizes[axis]) for axis in axes) * sum(inner)
    return sum(inner)


def inner_jaxprs(value: object) -> Iterator[core.Jaxpr | core.ClosedJaxpr]:
    """Yields the jaxprs in the parameters of an equation."""
    if isinstance(value, core.Jaxpr | core.ClosedJaxpr):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from inner_jaxprs(part)


def _shape(variable: core.Var | core.Literal) -> tuple[int, ...]:
    array = variable.aval
    assert isinstance(array, jax.core.ShapedArray)
    return tuple(array.shape)


def _dot_general(equation: core.JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = _shape(equation.invars[0])
    depth = math.prod(left[int(axis)] for axis in contracted)
    return 2 * math.prod(_shape(equation.outvars[0])) * depth


def _convolution(equation: core.JaxprEqn) -> int:
    kernel = _shape(equation.invars[1])  # its input axis holds the channels of one group only
    outputs = kernel[int(equation.params["dimension_numbers"].rhs_spec[0])]
    depth = math.prod(kernel) // outputs if outputs else 0
    return 2 * math.prod(_shape(equation.outvars[0])) * depth
