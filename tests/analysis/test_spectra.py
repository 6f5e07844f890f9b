"""Spectra of updates against dense float64 SVDs, and effective ranks against closed forms."""

from __future__ import annotations

import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.analysis import spectra
from lora_jax.analysis.factor_pairs import FactorPair

LAYERS, INPUTS, OUTPUTS, RANK = 3, 24, 20, 4
EPS = float(np.finfo(np.float32).eps)


def float32(x):
    return jnp.asarray(x, jnp.float32)


def pair_of(a, b, scale=1.0):
    return FactorPair(float32(a), float32(b), scale)


def random_pair(rank=RANK, scale=2.5, size=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return pair_of(
        size * rng.normal(size=(LAYERS, INPUTS, rank)),
        size * rng.normal(size=(LAYERS, rank, OUTPUTS)),
        scale,
    )


def exact(x):
    return np.asarray(x).astype(np.float64)


def dense(pair):
    return pair.scale * exact(pair.a) @ exact(pair.b)


def assert_is_svd_of(svd, delta, rank):
    """Values, directions and order, against float64; errors relative to the largest value."""
    u, values, v = map(exact, svd)
    layers, inputs, outputs = delta.shape
    shapes = (layers, inputs, rank), (layers, rank), (layers, outputs, rank)
    assert (u.shape, values.shape, v.shape) == shapes
    eye = np.broadcast_to(np.eye(rank), (layers, rank, rank))
    # Sums of float32 squares in Householder products.
    np.testing.assert_allclose(u.swapaxes(1, 2) @ u, eye, rtol=0, atol=20 * EPS)
    np.testing.assert_allclose(v.swapaxes(1, 2) @ v, eye, rtol=0, atol=20 * EPS)
    assert (values >= 0).all() and (np.diff(values, axis=-1) <= 0).all()
    largest = np.linalg.norm(delta, 2, axis=(1, 2))[:, None]
    expected = np.linalg.svd(delta, compute_uv=False)[:, :rank]
    assert (np.abs(values - expected) <= 20 * EPS * largest).all()
    # A product fixes the directions up to one sign for both sides of each.
    rebuilt = u * values[:, None] @ v.swapaxes(1, 2)
    error = np.linalg.norm(rebuilt - delta, 2, axis=(1, 2))
    assert (error <= 20 * EPS * largest[:, 0]).all()


# --- SVD of the update ----------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, RANK, OUTPUTS])
def test_delta_svd_is_that_of_the_dense_update(rank):
    pair = random_pair(rank)
    assert_is_svd_of(spectra.delta_svd(pair), dense(pair), rank)


def test_single_directions_are_those_of_numpy():
    pair = random_pair()
    u, _, v = map(exact, spectra.delta_svd(pair))
    left, expected, right = np.linalg.svd(dense(pair), full_matrices=False)
    gap = -np.diff(expected[:, : RANK + 1]).max(axis=1) / expected[:, 0]
    assert gap.min() > 1e-3  # no two values so near that their directions are arbitrary
    for layer in range(LAYERS):
        signs = np.sign((u[layer] * left[layer, :, :RANK]).sum(axis=0))
        # eps / gap, and LAPACK's constant of about 10.
        tolerance = 10 * EPS / gap[layer]
        np.testing.assert_allclose(u[layer] * signs, left[layer, :, :RANK], atol=tolerance)
        np.testing.assert_allclose(v[layer] * signs, right[layer, :RANK].T, atol=tolerance)


def test_scale_is_part_of_the_update():
    """The effective update is alpha/r times a b: the values grow with it, the directions stay."""
    one, four = spectra.delta_svd(random_pair(scale=1.0)), spectra.delta_svd(random_pair(scale=4.0))
    np.testing.assert_allclose(four.values, 4 * one.values, rtol=1e-6)
    np.testing.assert_array_equal(four.inputs, one.inputs)
    np.testing.assert_array_equal(four.outputs, one.outputs)


def test_layers_are_independent_of_each_other():
    pair = random_pair()
    together = spectra.delta_svd(pair)
    for layer in range(LAYERS):
        one_layer = slice(layer, layer + 1)
        alone = spectra.delta_svd(FactorPair(pair.a[one_layer], pair.b[one_layer], pair.scale))
        np.testing.assert_allclose(alone.values, together.values[one_layer], rtol=1e-5)


def test_mixing_of_the_factors_does_not_change_the_update():
    """a G and G^-1 b are the same update: unlike phi of `a` alone, its SVD cannot tell them apart."""
    pair = random_pair()
    g = np.random.default_rng(1).normal(size=(LAYERS, RANK, RANK))
    assert np.linalg.cond(g).max() < 50
    mixed = pair_of(exact(pair.a) @ g, np.linalg.inv(g) @ exact(pair.b), pair.scale)
    got, before = spectra.delta_svd(mixed), spectra.delta_svd(pair)
    # Each factor is rounded to float32, and the condition multiplies that.
    limit = 50 * 10 * EPS * before.values[:, :1]
    assert (jnp.abs(got.values - before.values) < limit).all()


@pytest.mark.parametrize("shape", [(INPUTS, OUTPUTS + 1, OUTPUTS), (5, 6, OUTPUTS)])
def test_rank_above_a_side_is_refused(shape):
    inputs, rank, outputs = shape
    pair = FactorPair(jnp.zeros((1, inputs, rank)), jnp.zeros((1, rank, outputs)), 1.0)
    with pytest.raises(ValueError, match=f"rank {rank} is larger than a side of the {inputs} x 20"):
        spectra.delta_svd(pair)


def test_update_at_step_0_is_zero_with_directions_all_the_same():
    pair = random_pair()
    svd = spectra.delta_svd(FactorPair(pair.a, jnp.zeros_like(pair.b), pair.scale))
    np.testing.assert_array_equal(svd.values, 0)
    for side in (svd.inputs, svd.outputs):
        gram = np.einsum("lij,lik->ljk", exact(side), exact(side))
        np.testing.assert_allclose(gram, np.broadcast_to(np.eye(RANK), gram.shape), atol=20 * EPS)


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1e3])
def test_size_of_the_factors_does_not_cost_digits(size):
    pair = random_pair(size=size)
    assert_is_svd_of(spectra.delta_svd(pair), dense(pair), RANK)


def test_one_factor_of_lower_rank_than_the_pair():
    """Of the values that are zero only the size of the rounding is left."""
    pair = random_pair()
    a = pair.a.at[..., 2:].set(pair.a[..., :2] @ float32([[1.0, -2.0], [0.5, 3.0]]))
    pair = FactorPair(a, pair.b, pair.scale)
    assert_is_svd_of(spectra.delta_svd(pair), dense(pair), RANK)
    values = spectra.delta_svd(pair).values
    assert (values[:, 2:] < 20 * EPS * values[:, :1]).all()


@pytest.mark.parametrize("side", ["a", "b", "both"])
def test_ill_conditioned_factors_of_a_real_size(side):
    """d = 768, r = 64, singular values of a factor over six orders of magnitude.

    Float32 knows a value to a few eps of the largest one: those below 1e-6 of it have no digits.
    """
    rng = np.random.default_rng(2)
    basis = lambda *shape: np.linalg.qr(rng.normal(size=shape))[0]  # noqa: E731
    factors = [
        basis(768, 64) * (np.logspace(0, -6, 64) if side in (name, "both") else 1) @ basis(64, 64)
        for name in "ab"
    ]
    pair = pair_of(factors[0][None], factors[1].T[None], 2.0)
    u, values, v = (exact(x)[0] for x in spectra.delta_svd(pair))
    # The exact SVD by another way than QR of both sides: of a first, then of (S V^T) b.
    left, middle, right = np.linalg.svd(exact(pair.a)[0], full_matrices=False)
    rotated, expected, last = np.linalg.svd(
        2 * middle[:, None] * right @ exact(pair.b)[0], full_matrices=False
    )
    largest = expected[0]
    assert np.abs(values - expected).max() < 10 * EPS * largest
    # The update comes back: in the bases that span it, so that nothing of 768 x 768 is needed.
    ours = (left.T @ u) * values @ (v.T @ last.T)
    assert np.linalg.norm(ours - rotated * expected, 2) < 20 * EPS * largest
    outside = u - left @ (left.T @ u)
    assert np.linalg.norm(outside * values, 2) < 20 * EPS * largest
    for directions in (u, v):
        assert np.linalg.norm(directions.T @ directions - np.eye(64), 2) < 50 * EPS
    # The spread is in the spectrum, not in the middle of the calculation.
    assert expected[0] / expected[-1] > 1e5


def test_update_is_never_formed():
    """It would have 100,000 x 100,000 values; numpy reports its allocations to tracemalloc."""
    d, rank = 100_000, 2
    a, b = np.ones((1, d, rank), np.float32), np.ones((1, rank, d), np.float32)
    tracemalloc.start()
    svd = spectra.delta_svd(FactorPair(a, b, 2.0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 8 * d * rank < peak < 100 * 8 * d * rank  # it saw the factors, and little more
    np.testing.assert_allclose(svd.values, [[2.0 * rank * d, 0.0]], rtol=1e-12, atol=1e-6)


def test_shapes_on_the_signatures():
    values = np.ones((LAYERS, RANK))
    for function in (spectra.stable_rank, spectra.entropy_rank, spectra.rank_for_energy):
        assert function(values).shape == (LAYERS,)
    assert spectra.energy(values).shape == (LAYERS, RANK)
    svd = spectra.delta_svd(random_pair())
    assert {x.dtype for x in svd} == {np.dtype("float64")}


# --- Effective ranks ------------------------------------------------------------------------------


def all_ranks(values):
    values = float32(values)
    return tuple(
        np.asarray(f(values))
        for f in (spectra.stable_rank, spectra.entropy_rank, spectra.rank_for_energy)
    )


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_equal_values_use_every_direction(size):
    values = np.full((LAYERS, RANK), size)
    stable, entropy, ninety = all_ranks(values)
    np.testing.assert_allclose(stable, RANK, rtol=1e-6)
    np.testing.assert_allclose(entropy, RANK, rtol=1e-6)
    np.testing.assert_array_equal(ninety, RANK)
    shares = np.tile([0.25, 0.5, 0.75, 1], (LAYERS, 1))
    np.testing.assert_allclose(spectra.energy(float32(values)), shares, rtol=1e-6)
    assert spectra.rank_for_energy(float32(values), 0.75).tolist() == [3] * LAYERS
    assert spectra.rank_for_energy(float32(values), 0.7501).tolist() == [4] * LAYERS


def test_one_direction_is_rank_1():
    values = [[7, 0, 0, 0], [1e-6, 0, 0, 0], [1e6, 0, 0, 0]]
    for figure in (*all_ranks(values), spectra.energy(float32(values))):
        np.testing.assert_array_equal(figure, np.ones_like(figure))


def test_zero_update_has_no_rank():
    """And does not spoil the layers beside it."""
    values = [[0, 0, 0, 0], [2, 2, 0, 0], [3, 0, 0, 0]]
    stable, entropy, ninety = all_ranks(values)
    np.testing.assert_allclose(stable, [np.nan, 2, 1])
    np.testing.assert_allclose(entropy, [np.nan, 2, 1], rtol=1e-6)
    np.testing.assert_array_equal(ninety, [0, 2, 1])
    expected = [[np.nan] * 4, [0.5, 1, 1, 1], [1, 1, 1, 1]]
    np.testing.assert_allclose(spectra.energy(float32(values)), expected)


@pytest.mark.parametrize("seed", range(8))
def test_ranks_of_random_spectra(seed):
    rng = np.random.default_rng(seed)
    values = exact(float32(np.sort(np.exp(rng.normal(size=(LAYERS, RANK))))[:, ::-1]))
    squares = values**2
    shares = values / values.sum(axis=1, keepdims=True)
    stable, entropy, ninety = all_ranks(values)
    # Sums of four float32 terms.
    np.testing.assert_allclose(stable, squares.sum(axis=1) / squares.max(axis=1), rtol=2e-6)
    expected = np.exp(-(shares * np.log(shares)).sum(axis=1))
    np.testing.assert_allclose(entropy, expected, rtol=2e-6)
    cumulative = np.cumsum(squares, axis=1) / squares.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(spectra.energy(float32(values)), cumulative, rtol=2e-6)
    np.testing.assert_array_equal(ninety, (cumulative < 0.9).sum(axis=1) + 1)
    assert (stable >= 1).all() and (stable < entropy).all() and (entropy <= RANK).all()


@pytest.mark.parametrize(
    "share, expected",
    [(0.1, 1), (0.64, 1), (0.65, 2), (0.84, 2), (0.85, 3), (0.99, 3), (0.995, 4), (1.0, 4)],
)
def test_rank_for_a_share(share, expected):
    """The squares are percentages: 64, 84, 99 and 100 of the energy, cumulated."""
    values = np.sqrt([[64, 20, 15, 1]] * LAYERS)
    assert spectra.rank_for_energy(float32(values), share).tolist() == [expected] * LAYERS


def test_whole_energy_takes_all_directions_in_spite_of_rounding():
    """The float32 sum of 768 squares may end below or above 1."""
    for value in (0.37, 1 / 3, 5.1):
        assert spectra.rank_for_energy(jnp.full((1, 768), value), 1.0).tolist() == [768]


@pytest.mark.parametrize("share", [0, -0.5, 1.01, float("nan")])
def test_bad_share_is_refused(share):
    with pytest.raises(ValueError, match="share must be above 0 and at most 1"):
        spectra.rank_for_energy(jnp.ones((1, 3)), share)


def test_ranks_of_an_update():
    """Through the factors: orthonormal columns with chosen weights."""
    rng = np.random.default_rng(4)
    u = np.linalg.qr(rng.normal(size=(LAYERS, INPUTS, RANK)))[0]
    v = np.linalg.qr(rng.normal(size=(LAYERS, OUTPUTS, RANK)))[0]
    weights = np.array([[1, 1, 1, 1], [3, 0, 0, 0], [2, 1, 0, 0]])[:, None]
    values = spectra.delta_svd(pair_of(u * weights, v.swapaxes(1, 2), 0.5)).values
    np.testing.assert_allclose(values, weights[:, 0] * 0.5, atol=1e-6)
    np.testing.assert_allclose(spectra.stable_rank(values), [4, 1, 5 / 4], rtol=1e-5)
    np.testing.assert_array_equal(spectra.rank_for_energy(values), [4, 1, 2])
    entropy = np.exp(np.log(3) - 2 / 3 * np.log(2))
    # A value of rounding size eps adds eps * log(1 / eps) to the entropy.
    np.testing.assert_allclose(spectra.entropy_rank(values), [4, 1, entropy], rtol=3e-5)


@pytest.mark.parametrize("size", [1e-20, 1e20])
def test_figures_do_not_depend_on_the_size_of_the_update(size):
    """Squares of these values leave float32's range."""
    values = jnp.asarray([[4.0, 3.0, 2.0, 1.0]])
    for figure in (spectra.energy, spectra.stable_rank, spectra.rank_for_energy):
        np.testing.assert_allclose(figure(values * size), figure(values), rtol=1e-6)


@pytest.mark.parametrize("rank", [3, 9])  # of 5 x 7 matrices
def test_updates_of_any_rank(rank):
    random = np.random.default_rng(rank)
    a, b = random.standard_normal((2, 5, rank)), random.standard_normal((2, rank, 7))
    pair = FactorPair(a.astype(np.float32), b.astype(np.float32), 0.5)
    found = spectra.any_delta_svd(pair)
    again = (found.inputs * found.values[:, None]) @ np.swapaxes(found.outputs, -1, -2)
    np.testing.assert_allclose(again, 0.5 * pair.a @ pair.b, atol=1e-5)
    np.testing.assert_array_equal(np.sort(found.values)[:, ::-1], found.values)
