"""Table 7's figures against dense float64 matrices, and on weights with planted directions."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from lora_jax.analysis.amplification import amplification, projected_norm
from lora_jax.analysis.factor_pairs import FactorPair

# One set of shapes for all tests: every new one compiles QRs and SVDs.
LAYERS, INPUTS, OUTPUTS, RANK = 3, 40, 36, 4
KEY = jax.random.key(0, impl="rbg")
EPS = float(np.finfo(np.float32).eps)


def float32(x):
    return jnp.asarray(x, jnp.float32)


def exact(x):
    return np.asarray(x).astype(np.float64)


def bases(rng):
    """Orthonormal bases of the input and the output space, per layer."""
    draw = lambda size: np.linalg.qr(rng.normal(size=(LAYERS, size, size)))[0]  # noqa: E731
    return draw(INPUTS), draw(OUTPUTS)


def update_along(u, v, sizes, scale=1.0):
    """An update with given directions (columns) and singular values."""
    return FactorPair(float32(u * np.asarray(sizes)), float32(v.swapaxes(1, 2)), scale)


def rows(numbers):
    return {name: exact(value) for name, value in numbers._asdict().items()}


@pytest.fixture(scope="module")
def random():
    """An update, and weights that lean towards its directions, so that `in_delta` is not chance."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(LAYERS, INPUTS, RANK))
    b = rng.normal(size=(LAYERS, RANK, OUTPUTS))
    w = rng.normal(size=(LAYERS, INPUTS, OUTPUTS)) + 0.1 * a @ b
    return FactorPair(float32(a), float32(b), 2.5), float32(w)


def by_hand(pair, w, layer, r):
    """Table 7 of one layer from dense matrices, with the paper's letters: W is (outputs, inputs)."""
    delta = (pair.scale * exact(pair.a)[layer] @ exact(pair.b)[layer]).T
    weight = exact(w)[layer].T
    u, _, v = np.linalg.svd(delta)
    weight_u, _, weight_v = np.linalg.svd(weight)
    inside = np.linalg.norm(u[:, :r].T @ weight @ v[:r].T)
    return {
        "in_delta": inside,
        "in_weight": np.linalg.norm(weight_u[:, :r].T @ weight @ weight_v[:r].T),
        "in_random_expected": np.linalg.norm(weight) * r / np.sqrt(weight.size),
        "delta_norm": np.linalg.norm(delta),
        "weight_norm": np.linalg.norm(weight),
        "factor": np.linalg.norm(delta) / inside,
    }


# --- Against dense matrices -----------------------------------------------------------------------


@pytest.mark.parametrize("rank", [None, 1, 3])
def test_figures_are_those_of_dense_matrices(random, rank):
    numbers = rows(amplification(*random, KEY, rank=rank))
    assert {value.shape for value in numbers.values()} == {(LAYERS,)}
    for layer in range(LAYERS):
        expected = by_hand(*random, layer, rank or RANK)
        for name, value in expected.items():
            # Float32 SVDs of values and gaps of one order of magnitude, sums of 1440 products.
            assert numbers[name][layer] == pytest.approx(value, rel=2e-5), name


def test_projected_norm_is_that_of_the_core_and_of_the_whole_projection(random):
    rng = np.random.default_rng(1)
    u, v = (basis[..., :RANK] for basis in bases(rng))
    w = exact(random[1])
    got = projected_norm(float32(u), random[1], float32(v))
    core = u.swapaxes(1, 2) @ w @ v
    np.testing.assert_allclose(got, np.linalg.norm(core, axis=(1, 2)), rtol=1e-5)
    whole = u @ core @ v.swapaxes(1, 2)  # U U^T W V^T V of the paper
    np.testing.assert_allclose(got, np.linalg.norm(whole, axis=(1, 2)), rtol=1e-5)


def test_projected_norm_has_the_shapes_on_its_signature():
    ones = lambda *shape: np.ones(shape)  # noqa: E731
    assert projected_norm(ones(2, 5, 3), ones(2, 5, 4), ones(2, 4, 3)).shape == (2,)
    with pytest.raises(TypeCheckError, match="parameter 'v'"):
        projected_norm(ones(2, 5, 3), ones(2, 5, 4), ones(2, 5, 3))


def test_scale_of_the_update_scales_its_norm_and_the_factor_alone(random):
    """The paper does not say whether its Delta W has alpha/r: the factor is linear in it."""
    pair, w = random
    one = rows(amplification(dataclasses.replace(pair, scale=1.0), w, KEY))
    eight = rows(amplification(dataclasses.replace(pair, scale=8.0), w, KEY))
    for name in one:
        times = 8 if name in ("delta_norm", "factor") else 1
        np.testing.assert_allclose(eight[name], times * one[name], rtol=1e-5, err_msg=name)


def test_scale_of_the_weight_scales_all_but_the_updates_norm(random):
    pair, w = random
    one, ten = rows(amplification(pair, w, KEY)), rows(amplification(pair, 10 * w, KEY))
    for name in one:
        times = {"delta_norm": 1, "factor": 0.1}.get(name, 10)
        np.testing.assert_allclose(ten[name], times * one[name], rtol=1e-5, err_msg=name)


def test_layers_are_independent_of_each_other(random):
    """Layers in another order give the same rows in that order, but for the random draws."""
    pair, w = random
    order = np.array([2, 0, 1])
    moved = FactorPair(pair.a[order], pair.b[order], pair.scale)
    before, after = rows(amplification(pair, w, KEY)), rows(amplification(moved, w[order], KEY))
    for name in before.keys() - {"in_random"}:
        np.testing.assert_allclose(after[name], before[name][order], rtol=1e-5, err_msg=name)


# --- Random directions ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def draws(random):
    return rows(amplification(*random, KEY, draws=32))


def test_random_directions_find_what_chance_gives(random, draws):
    """E ||U^T W V||_F^2 = ||W||_F^2 r^2 / (inputs outputs), exactly, for random U and V.

    The square is a sum of r^2 = 16 squares of nearly normal numbers: its deviation is about
    sqrt(2/16) = 0.35 of it, that of the mean of 32 draws 0.062, and of its root 0.031.
    """
    norms = np.linalg.norm(exact(random[1]), axis=(1, 2))
    np.testing.assert_allclose(
        draws["in_random_expected"], norms * RANK / np.sqrt(INPUTS * OUTPUTS), rtol=1e-5
    )
    np.testing.assert_allclose(draws["in_random"], draws["in_random_expected"], rtol=4 * 0.031)
    # These weights lean towards the update, so chance finds less than the update does.
    assert (draws["in_random"] < draws["in_delta"]).all() and (
        draws["in_delta"] < draws["in_weight"]
    ).all()


def test_random_directions_depend_on_the_key_and_not_on_the_update(random, draws):
    pair, w = random
    same = rows(amplification(dataclasses.replace(pair, a=pair.a[::-1]), w, KEY))
    again = rows(amplification(pair, w, KEY))
    another_key = rows(amplification(pair, w, jax.random.fold_in(KEY, 1)))
    np.testing.assert_array_equal(same["in_random"], again["in_random"])
    assert (again["in_random"] != another_key["in_random"]).all()
    # 32 draws are not one draw 32 times.
    assert (np.abs(draws["in_random"] / again["in_random"] - 1) > 1e-4).all()
    equal_weights = rows(amplification(pair, jnp.stack([w[0]] * LAYERS), KEY))
    assert len(set(equal_weights["in_random"])) == LAYERS  # directions of their own for each layer


# --- Planted directions ---------------------------------------------------------------------------


def test_planted_amplification():
    """W has the update's directions with known weights, and all else is orthogonal to them."""
    rng = np.random.default_rng(2)
    x, y = bases(rng)
    u, v = x[..., :RANK], y[..., :RANK]
    weights = np.array([[0.1, 0.1, 0.1, 0.1], [1.0, 0.5, 0.25, 0.0], [3.0, 0.0, 0.0, 4.0]])
    rest = x[..., RANK:] @ rng.normal(size=(LAYERS, INPUTS - RANK, OUTPUTS - RANK))
    w = u * weights[:, None] @ v.swapaxes(1, 2) + rest @ y[..., RANK:].swapaxes(1, 2)
    numbers = rows(amplification(update_along(u, v, [4, 3, 2, 1], scale=2.0), float32(w), KEY))
    inside = np.linalg.norm(weights, axis=1)
    # W's norm is 36; what it has beside the directions leaks in by a few eps of that.
    np.testing.assert_allclose(numbers["in_delta"], inside, rtol=0, atol=36 * 10 * EPS)
    np.testing.assert_allclose(numbers["delta_norm"], 2 * np.sqrt(30), rtol=1e-5)
    np.testing.assert_allclose(numbers["factor"], 2 * np.sqrt(30) / inside, rtol=1e-3)
    first = rows(amplification(update_along(u, v, [4, 3, 2, 1], scale=2.0), float32(w), KEY, 1))
    np.testing.assert_allclose(first["in_delta"], weights[:, 0], rtol=0, atol=36 * 10 * EPS)
    np.testing.assert_allclose(first["factor"], 2 * np.sqrt(30) / weights[:, 0], rtol=1e-3)


def test_directions_paired_otherwise_count_too():
    """||U^T W V|| takes W from any of the input directions to any of the output directions."""
    x, y = bases(np.random.default_rng(3))
    u, v = x[..., :RANK], y[..., :RANK]
    w = 5 * u[..., :1] @ v[..., 1:2].swapaxes(1, 2)  # from the update's first to its second
    numbers = rows(amplification(update_along(u, v, [4, 3, 2, 1]), float32(w), KEY))
    np.testing.assert_allclose(numbers["in_delta"], 5, rtol=1e-5)
    first = rows(amplification(update_along(u, v, [4, 3, 2, 1]), float32(w), KEY, 1))
    np.testing.assert_allclose(first["in_delta"], 0, atol=1e-5)


def test_update_in_the_weights_top_directions_and_one_outside_of_them():
    rng = np.random.default_rng(4)
    x, y = bases(rng)
    sizes = np.concatenate([[20, 18, 16, 14], np.linspace(2, 1, 12)])  # W has rank 16
    w = float32(x[..., :16] * sizes @ y[..., :16].swapaxes(1, 2))
    top = rows(amplification(update_along(x[..., :4], y[..., :4], [1, 2, 3, 4]), w, KEY))
    np.testing.assert_allclose(top["in_delta"], top["in_weight"], rtol=1e-5)
    np.testing.assert_allclose(top["in_weight"], np.linalg.norm(sizes[:4]), rtol=1e-5)
    # The smallest amplification that any update with these values can have.
    np.testing.assert_allclose(top["factor"], np.sqrt(30) / np.linalg.norm(sizes[:4]), rtol=1e-5)
    outside = rows(amplification(update_along(x[..., 16:20], y[..., 16:20], [1, 2, 3, 4]), w, KEY))
    assert (outside["in_delta"] < 10 * EPS * 35).all()  # of ||W||_F = 35
    assert (outside["factor"] > 1e4).all()
    # Either side alone takes the update out of W.
    mixed = rows(amplification(update_along(x[..., :4], y[..., 16:20], [1, 2, 3, 4]), w, KEY))
    assert (mixed["in_delta"] < 10 * EPS * 35).all()


def test_no_directions_have_more_of_the_weight_than_its_own(random):
    numbers = rows(amplification(*random, KEY))
    for name in ("in_delta", "in_random"):
        assert (numbers[name] < numbers["in_weight"]).all()
    assert (numbers["in_weight"] < numbers["weight_norm"]).all()


def test_zero_update_amplifies_nothing(random):
    pair, w = random
    numbers = rows(amplification(dataclasses.replace(pair, b=jnp.zeros_like(pair.b)), w, KEY))
    np.testing.assert_array_equal(numbers["delta_norm"], 0)
    np.testing.assert_array_equal(numbers["factor"], 0)


# --- Table 7 --------------------------------------------------------------------------------------

TABLE = {4: (0.32, 21.67, 0.02, 6.91), 64: (1.90, 37.71, 0.33, 3.57)}
WEIGHT_NORM, WIDTH = 61.95, 12288


def test_printed_figures_agree_with_each_other():
    """6.91 / 0.32 is printed as 21.5 and 3.57 / 1.90 as "around 2"; random is ||W|| r / d."""
    inside, _, _, norm = TABLE[4]
    assert norm / inside == pytest.approx(21.59, abs=0.01)
    # 21.5 follows from figures that round to those printed.
    assert (norm - 0.005) / (inside + 0.005) < 21.5 < (norm + 0.005) / (inside - 0.005)
    inside, _, _, norm = TABLE[64]
    assert norm / inside == pytest.approx(1.88, abs=0.005)
    for r, expected in ((4, 0.0202), (64, 0.323)):
        assert WEIGHT_NORM * r / WIDTH == pytest.approx(expected, rel=0.002)
        assert WEIGHT_NORM * r / WIDTH == pytest.approx(TABLE[r][2], abs=0.01)


def test_table_7_in_miniature():
    """A 40 x 36 weight and an update with the norms of the row r = 4, but for chance's."""
    x, y = bases(np.random.default_rng(5))
    inside, top, _, norm = TABLE[4]
    below = np.sqrt((WEIGHT_NORM**2 - top**2) / (OUTPUTS - 4))
    assert below < top / 2  # so the first four are W's first
    sizes = np.concatenate([np.full(4, top / 2), np.full(OUTPUTS - 4, below)])
    w = float32(x[..., :OUTPUTS] * sizes @ y.swapaxes(1, 2))
    # Input directions 5 to 8 of W, and output directions that W nearly does not pair with them.
    cosine = inside / (2 * below)
    v = cosine * y[..., 4:8] + np.sqrt(1 - cosine**2) * y[..., 8:12]
    numbers = rows(amplification(update_along(x[..., 4:8], v, [norm / 2] * 4), w, KEY))
    expected = {
        "in_delta": inside,
        "in_weight": top,
        "delta_norm": norm,
        "weight_norm": WEIGHT_NORM,
        "factor": norm / inside,
        "in_random_expected": WEIGHT_NORM * 4 / np.sqrt(INPUTS * OUTPUTS),
    }
    for name, value in expected.items():
        # `in_delta` is small beside ||W||: 62 eps are 2e-5 of it.
        np.testing.assert_allclose(numbers[name], value, rtol=2e-4, err_msg=name)


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(LAYERS + 1, INPUTS, OUTPUTS), (LAYERS, OUTPUTS, INPUTS), (LAYERS, INPUTS, INPUTS)]
)
def test_weights_that_do_not_fit(random, shape):
    """The paper's W, with the outputs first, is refused too."""
    with pytest.raises(ValueError, match=r"an update of 3 x 40 x 36 does not fit weights of shape"):
        amplification(random[0], jnp.zeros(shape), KEY)


@pytest.mark.parametrize("rank", [0, -1, RANK + 1])
def test_ranks_the_update_does_not_have(random, rank):
    with pytest.raises(ValueError, match=f"rank {rank} is not from 1 to the update's, 4"):
        amplification(*random, KEY, rank=rank)
