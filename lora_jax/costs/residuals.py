"""What a backward pass keeps of the forward pass: its residuals, by tracing alone."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jaxtyping import Array, PyTree


def residuals(
    objective: Callable[..., Array], trainable: PyTree, *args: PyTree
) -> list[jax.ShapeDtypeStruct]:
    """Arrays that are kept from the forward pass until the backward pass needs them.

    Arguments that the backward pass reads again, as frozen weights, are among them, although they take no
    memory of their own: see `per_token`.

    Args:
      objective: a scalar function of the trainable leaves and further arguments.
      trainable: a tree of arrays, or of shapes.
      *args: trees of arrays or shapes.
    """

    def pulled_back(trainable: PyTree, *args: PyTree) -> PyTree:
        return jax.vjp(lambda leaves: objective(leaves, *args), trainable)[1]

    return list(jax.tree.leaves(jax.eval_shape(pulled_back, trainable, *args)))


def per_token(kept_bytes: Callable[[int, int], int], depth: int = 2, length: int = 64) -> float:
    """Bytes that are kept for every token and layer.

    What does not grow with the tokens, as weights, or is there once for all layers, is not counted.

    Args:
      kept_bytes: bytes of the residuals of a model of so many layers, for one row of so many tokens.
      depth: number of layers to begin with.
      length: number of tokens to begin with.
    """
    short, long = (
        kept_bytes(2 * depth, tokens) - kept_bytes(depth, tokens) for tokens in (length, 2 * length)
    )
    return (long - short) / (depth * length)
