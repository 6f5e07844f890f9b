"""The product with the table of tokens, and its gradients, against float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lora_jax.costs import flops
from lora_jax.models.parts import tied_logits

WORDS, WIDTH = 50, 16


@pytest.fixture(scope="module")
def operands():
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape) for shape in ((4, 7, WIDTH), (WORDS, WIDTH), (4, 7, WORDS))]


def logits(hidden, table):
    tokens = nnx.Embed(WORDS, WIDTH, rngs=nnx.Rngs(0))
    tokens.embedding[...] = table
    return tied_logits(tokens, hidden)


def far(found, expected):
    """Largest difference, in units of the largest expected value."""
    return np.abs(np.asarray(found, np.float64) - expected).max() / np.abs(expected).max()


# bfloat16 rounds operands and results to 2^-9 of themselves; sums of 16 to 50 such products average that out.
@pytest.mark.parametrize(("dtype", "within"), [("float32", 1e-6), ("bfloat16", 2**-7)])
def test_logits_and_gradients(operands, dtype, within):
    hidden, table, direction = operands
    inputs = jnp.asarray(hidden, dtype), jnp.asarray(table, jnp.float32)
    found, backward = jax.vjp(logits, *inputs)
    assert found.dtype == jnp.float32  # of both: a loss is computed from float32
    assert far(found, hidden @ table.T) < within
    gradients = backward(jnp.asarray(direction, jnp.float32))
    assert [x.dtype for x in gradients] == [x.dtype for x in inputs]
    assert far(gradients[0], direction @ table) < within
    assert far(gradients[1], np.einsum("abv,abw->vw", direction, hidden)) < within
    # Forward mode, which FLOPs are counted by, with both changes and with one.
    changes = jnp.asarray(hidden[::-1], dtype), jnp.asarray(table[::-1], jnp.float32)
    expected = hidden[::-1] @ table.T, hidden @ table[::-1].T
    assert far(jax.jvp(logits, inputs, changes)[1], sum(expected)) < within
    alone = jax.jvp(lambda h: logits(h, inputs[1]), inputs[:1], changes[:1])[1]
    assert far(alone, expected[0]) < within


def products(jaxpr):
    """Types of the operands of every product, those inside of other equations too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield tuple(str(v.aval.dtype) for v in equation.invars)
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from products(inner)


def test_no_product_of_the_gradient_is_in_float32(operands):
    """On GPUs one would have a float32 copy of the table, of 0.4 GiB for GPT-2 large."""
    hidden, table = jnp.asarray(operands[0], jnp.bfloat16), jnp.asarray(operands[1], jnp.float32)
    loss = lambda h, t: jax.nn.logsumexp(logits(h, t), axis=-1).sum()  # noqa: E731
    both = jax.make_jaxpr(jax.grad(loss, (0, 1)))(hidden, table).jaxpr
    frozen = jax.make_jaxpr(jax.grad(loss))(hidden, table).jaxpr
    assert list(products(both)) == 3 * [("bfloat16", "bfloat16")]
    assert list(products(frozen)) == 2 * [("bfloat16", "bfloat16")]
    assert flops.training(loss, hidden, table) == 2 * 2 * 28 * WIDTH * WORDS
