"""The hash for dropout against JAX's own and published answers, and what dropout makes of it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32

from lora_jax import threefry
from lora_jax.dropout import dropout


# From the known answers of the authors' library, Random123 (counters, key, result).
@pytest.mark.parametrize(
    ("counters", "key", "answer"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((2**32 - 1, 2**32 - 1), (2**32 - 1, 2**32 - 1), (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_published_answers(counters, key, answer):
    found = threefry.threefry2x32(jnp.asarray(key, jnp.uint32), *map(jnp.uint32, counters))
    assert tuple(map(int, found)) == answer


def test_the_hash_is_jaxs():
    rng = np.random.default_rng(0)
    key, x, y = (rng.integers(0, 2**32, n, dtype=np.uint32) for n in (2, 1000, 1000))
    found = jax.jit(threefry.threefry2x32)(key, x, y)
    expected = threefry_2x32(tuple(jnp.asarray(key)), jnp.concatenate([x, y]))
    np.testing.assert_array_equal(jnp.concatenate(found), expected)


@pytest.mark.parametrize("shape", [(6000,), (80, 75), (8, 10, 5, 15)])
def test_words_of_every_element_are_random(shape):
    found = np.asarray(threefry.words(jax.random.key(3), shape))
    assert found.shape == shape and found.dtype == np.uint32
    # Of 6,000 words of 32 bits two are equal with a chance of 0.4%; the seed is fixed.
    assert len(np.unique(found)) == found.size
    bits = np.unpackbits(found.reshape(-1, 1).view(np.uint8), axis=1)
    assert np.abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / 6000**0.5
    assert not np.intersect1d(found, threefry.words(jax.random.key(4), shape)).size


def test_words_name_rows_apart_however_many_there_are():
    """Counters are the row and the column, so the words of an element do not depend on later axes' sizes."""
    key = jax.random.key(0)
    narrow, wide = (threefry.words(key, (6, columns)) for columns in (5, 9))
    np.testing.assert_array_equal(narrow, wide[:, :5])


@pytest.mark.parametrize("generator", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("last", [1, 3, 4, 6, 401])
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_its_share_everywhere(generator, last, rate):
    x = jax.random.normal(jax.random.key(0), (60_000 // last, last))
    key = jax.random.key(5, impl=generator)
    dropped = np.asarray(dropout(x, rate, key))
    kept = dropped != 0
    rounding = 1e-6 if generator == "threefry2x32" else 1e-5  # of the rate, to 2^-24 or 2^-16
    np.testing.assert_allclose(dropped[kept], np.asarray(x / (1 - rate))[kept], rtol=rounding)
    deviation = (rate * (1 - rate)) ** 0.5
    assert abs(kept.mean() - (1 - rate)) < 5 * deviation / kept.size**0.5
    assert np.abs(kept.mean(0) - (1 - rate)).max() < 5 * deviation / len(x) ** 0.5
    # Values that share words are dropped independently: no column goes with another one.
    if 1 < last < 10:
        together = np.corrcoef(kept, rowvar=False) - np.eye(last)
        assert np.abs(together).max() < 5 / len(x) ** 0.5


@pytest.mark.parametrize("generator", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rate", [1e-9, 0.1, 0.9, 0.9999, 0.99999, 1 - 1e-9])
def test_what_is_left_makes_up_for_what_is_dropped(rate, dtype, generator):
    """By the rate that bits can express, so near 1 as well; and no gradient is NaN."""
    x, key = jnp.ones((512, 512), dtype), jax.random.key(7, impl=generator)
    dropped, backward = jax.vjp(lambda x: dropout(x, rate, key), x)
    gradient = backward(x)[0]
    kept = np.asarray(dropped != 0)
    np.testing.assert_array_equal(gradient, dropped)
    if dtype != "float16" or rate < 0.99999:  # 65,536 and more overflow there
        assert jnp.isfinite(dropped).all()
        levels = 2**24 if generator == "threefry2x32" else 2**16
        share = 1 - min(round(rate * levels), levels - 1) / levels
        rounding = float(jnp.finfo(dtype).eps)
        assert np.unique(np.asarray(dropped, np.float64)[kept]) == pytest.approx(
            1 / share, rel=rounding
        )
        assert abs(kept.mean() - share) < 5 * (share * (1 - share) / kept.size) ** 0.5 + 1e-9


def test_gradients_draw_the_same_again():
    x, key = jnp.ones((8, 33)), jax.random.key(1)
    for keeps_mask in (False, True):
        drop = functools.partial(dropout, rate=0.3, key=key, keeps_mask=keeps_mask)
        dropped, backward = jax.vjp(drop, x)
        np.testing.assert_array_equal(backward(x)[0], dropped)  # x is ones, so both are the mask
        assert (dropped == 0).any() and (dropped != 0).any()
