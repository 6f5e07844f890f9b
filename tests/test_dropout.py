"""Dropout: its random words, its rate, and what they do not depend on."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.dropout import dropout, random_words

SHAPES = [(1,), (7,), (3, 5), (2, 3, 4, 9)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_words_are_those_of_jax(shape, seed):
    """JAX gives the exclusive or of the two; both must be right for it to be."""
    key = jax.random.key(seed)
    first, second = jax.jit(random_words, static_argnums=1)(key, shape)
    np.testing.assert_array_equal(first ^ second, jax.random.bits(key, shape, jnp.uint32))


def test_known_answers_of_threefry():
    """Random123's kat_vectors, threefry2x32 with 20 rounds: key and counter 0."""
    first, second = random_words(jax.random.wrap_key_data(jnp.zeros(2, jnp.uint32)), (1,))
    assert (int(first[0]), int(second[0])) == (0x6B200159, 0x99BA4EFE)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("rate", [0.0001, 0.1, 0.5, 0.9])
def test_share_of_every_quarter_of_the_last_axis(impl, rate):
    """Each has bits of its own: shares within 5 standard deviations, and no two quarters alike."""
    x = jnp.ones((4000, 100))
    y = np.asarray(dropout(x, rate, jax.random.key(3, impl=impl)))
    quarters = (y == 0).reshape(4000, 4, 25)
    deviation = math.sqrt(rate * (1 - rate) / (4000 * 25))
    np.testing.assert_allclose(quarters.mean((0, 2)), rate, atol=5 * deviation + 2**-17)
    for one in range(4):
        for other in range(one):
            both = np.mean(quarters[:, one] & quarters[:, other])
            assert abs(both - rate**2) <= 5 * math.sqrt(rate**2 / (4000 * 25))
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)


@pytest.mark.parametrize("last", [1, 2, 3, 4, 5, 33])
def test_the_backward_pass_drops_what_the_forward_pass_did(last):
    key, x = jax.random.key(2), jnp.ones((50, last))
    gradient = jax.grad(lambda x: dropout(x, 0.3, key).sum())(x)
    np.testing.assert_array_equal(gradient, dropout(x, 0.3, key))
