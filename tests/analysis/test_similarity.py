"""Subspace similarity against explicit projections in float64, and chance against many draws."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from jaxtyping import TypeCheckError

from lora_jax.analysis import similarity

# One set of shapes for nearly all tests: every new one compiles an SVD.
LAYERS, D, M, N = 3, 24, 4, 6
KEY = jax.random.key(0, impl="rbg")


# A singular vector is known to eps * sigma_1 / gap = 6e-8 * 6 / 1 for the matrices of `matrices`, phi
# is a mean of squared cosines of them, and LAPACK's constant is about 10.
FLOAT32 = {"rtol": 0, "atol": 5e-6}


def orthonormal(rng, *shape):
    return np.linalg.qr(rng.normal(size=shape))[0]


def matrices(rng, columns, left=None):
    """Stacked D x columns with singular values columns, ..., 2, 1, so no direction is arbitrary."""
    left = orthonormal(rng, LAYERS, D, columns) if left is None else left
    values = np.arange(columns, 0.0, -1)
    return left * values @ orthonormal(rng, LAYERS, columns, columns)


def float32(x):
    return jnp.asarray(x, jnp.float32)


def phi(first, second):
    return np.asarray(similarity.phi(float32(first), float32(second)), np.float64)


def left_vectors(matrix):
    return np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)[0]


def phi_by_projections(first, second):
    """trace(P Q) / min(i, j) for explicit D x D projections, one i and j at a time, in float64."""
    u, v = left_vectors(first), left_vectors(second)
    result = np.empty((u.shape[1], v.shape[1]))
    for i in range(1, u.shape[1] + 1):
        for j in range(1, v.shape[1] + 1):
            p, q = u[:, :i] @ u[:, :i].T, v[:, :j] @ v[:, :j].T
            result[i - 1, j - 1] = np.trace(p @ q) / min(i, j)
    return result


def angles(first, second, i, j):
    u, v = left_vectors(first), left_vectors(second)
    return scipy.linalg.subspace_angles(u[:, :i], v[:, :j])


@pytest.fixture(scope="module")
def pair():
    """Two stacks that share part of their directions, so that phi is neither 0 nor 1."""
    rng = np.random.default_rng(0)
    first = matrices(rng, M)
    mixed = np.concatenate([left_vectors(first), rng.normal(size=(LAYERS, D, N - M))], axis=-1)
    mixed = np.linalg.qr(mixed + 0.15 * rng.normal(size=mixed.shape))[0]
    return first, matrices(rng, N, mixed)


# --- phi ------------------------------------------------------------------------------------------


def test_phi_is_that_of_explicit_projections(pair):
    got = phi(*pair)
    assert got.shape == (LAYERS, M, N)
    for layer in range(LAYERS):
        expected = phi_by_projections(pair[0][layer], pair[1][layer])
        assert expected.min() > 0.02 and expected.max() < 0.98  # a case that says something
        np.testing.assert_allclose(got[layer], expected, **FLOAT32)


def test_phi_is_the_mean_squared_cosine_of_the_principal_angles(pair):
    got = phi(*pair)
    for layer in range(LAYERS):
        for i in range(1, M + 1):
            for j in range(1, N + 1):
                cosines = np.cos(angles(pair[0][layer], pair[1][layer], i, j))
                assert len(cosines) == min(i, j)
                assert got[layer, i - 1, j - 1] == pytest.approx(np.mean(cosines**2), abs=5e-6)


def test_phi_is_from_0_to_1():
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(LAYERS, D, M)), rng.normal(size=(LAYERS, D, N))
    second[0, :, :M] = first[0]  # one layer with equal directions
    second[1] -= left_vectors(first[1]) @ (left_vectors(first[1]).T @ second[1])  # one with none
    got = phi(first, second)
    assert got.min() > -1e-6 and got.max() < 1 + 1e-6  # rounding of sums of up to 24 squares


def test_symmetry(pair):
    np.testing.assert_allclose(phi(*pair), phi(*pair[::-1]).swapaxes(1, 2), **FLOAT32)


@pytest.mark.parametrize("factor", [1e-6, -3.0, 1e6])
def test_scale_does_not_matter(pair, factor):
    """So neither alpha/r nor the size of A does."""
    np.testing.assert_allclose(phi(factor * pair[0], pair[1]), phi(*pair), **FLOAT32)


def test_orthogonal_mixing_of_the_columns_changes_no_phi(pair):
    """a -> a Q keeps a's left-singular vectors and values (its partner b -> Q^T b, the update)."""
    rng = np.random.default_rng(2)
    mixed = pair[0] @ orthonormal(rng, LAYERS, M, M), pair[1] @ orthonormal(rng, LAYERS, N, N)
    np.testing.assert_allclose(phi(*mixed), phi(*pair), **FLOAT32)


def test_invertible_mixing_of_the_columns_keeps_phi_of_the_whole_spaces_only(pair):
    """a -> a G gives the same update with b -> G^-1 b, but not the same leading directions."""
    rng = np.random.default_rng(3)
    g = rng.normal(size=(LAYERS, M, M))
    assert np.linalg.cond(g).max() < 50
    mixed = pair[0] @ g
    got, before = phi(mixed, pair[1]), phi(*pair)
    # The last of its singular values and gaps are up to cond(g) * 4 times smaller.
    np.testing.assert_allclose(got[:, -1], before[:, -1], rtol=0, atol=1e-4)
    assert np.abs(got - before)[:, :-1].max() > 0.05
    same = phi(mixed, pair[0])
    np.testing.assert_allclose(same[:, -1, -1], 1, rtol=0, atol=1e-4)
    assert same[:, 0, 0].max() < 0.99


def test_rotation_of_the_space_they_share_changes_no_phi(pair):
    rotation = orthonormal(np.random.default_rng(4), LAYERS, D, D)
    np.testing.assert_allclose(phi(rotation @ pair[0], rotation @ pair[1]), phi(*pair), **FLOAT32)
    assert np.abs(phi(rotation @ pair[0], pair[1]) - phi(*pair)).max() > 0.1


def test_nested_subspaces_give_1():
    rng = np.random.default_rng(5)
    outer = matrices(rng, N)
    inner = matrices(rng, M, left_vectors(outer)[..., :M])
    got = phi(inner, outer)
    np.testing.assert_allclose(got, np.ones_like(got), **FLOAT32)
    # In reverse order of importance only i + j > N directions can meet.
    inner = matrices(rng, M, left_vectors(outer)[..., ::-1][..., :M])
    got = phi(inner, outer)
    for i in range(1, M + 1):
        for j in range(1, N + 1):
            expected = max(0, i + j - N) / min(i, j)
            np.testing.assert_allclose(got[:, i - 1, j - 1], expected, **FLOAT32)


def test_orthogonal_subspaces_give_0():
    rng = np.random.default_rng(6)
    basis = orthonormal(rng, LAYERS, D, M + N)
    got = phi(matrices(rng, M, basis[..., :M]), matrices(rng, N, basis[..., M:]))
    np.testing.assert_allclose(got, np.zeros_like(got), rtol=0, atol=1e-10)  # squares of 1e-7


def test_layers_are_independent_of_each_other(pair):
    together = phi(*pair)
    for layer in range(LAYERS):
        alone = phi(pair[0][layer], pair[1][layer])
        assert alone.shape == (M, N)
        np.testing.assert_allclose(alone, together[layer], **FLOAT32)
    seeds = tuple(np.stack([x, x[::-1]]) for x in pair)  # a further axis in front
    got = phi(*seeds)
    assert got.shape == (2, LAYERS, M, N)
    np.testing.assert_allclose(got, np.stack([together, together[::-1]]), **FLOAT32)


def test_directions_are_the_left_singular_vectors_in_order(pair):
    # A base matrix may have more columns than rows.
    wide = np.concatenate([*pair, np.random.default_rng(8).normal(size=(LAYERS, D, D))], axis=-1)
    for matrix in (pair[0], wide):
        got = np.asarray(similarity.directions(float32(matrix)), np.float64)
        k = min(matrix.shape[1:])
        assert got.shape == (LAYERS, D, k)
        eye = np.broadcast_to(np.eye(k), (LAYERS, k, k))
        np.testing.assert_allclose(got.swapaxes(1, 2) @ got, eye, rtol=0, atol=5e-6)
    got = np.asarray(similarity.directions(float32(pair[0])), np.float64)
    cosines = np.abs((got * left_vectors(pair[0])).sum(axis=1))
    np.testing.assert_allclose(cosines, np.ones((LAYERS, M)), **FLOAT32)


def test_directions_of_a_factor_are_the_papers_right_singular_vectors(pair):
    """The paper's A is (r, d); `a` of the code is its transpose."""
    paper = np.linalg.svd(pair[0].swapaxes(1, 2), full_matrices=False)[2].swapaxes(1, 2)
    got = similarity.overlap(similarity.directions(float32(pair[0])), float32(paper))
    np.testing.assert_allclose(np.diagonal(got, axis1=1, axis2=2), np.ones((3, M)), **FLOAT32)


@pytest.mark.parametrize("decades", [3, 6])
def test_directions_of_an_ill_conditioned_factor_are_as_good_as_float32_allows(decades):
    """d = 768, r = 64 with singular values over six orders of magnitude.

    Davis and Kahan: the space of the first i directions of a + E turns by at most ||E|| / gap_i,
    where backward stability makes ||E|| a few eps * sigma_1.
    """
    rng = np.random.default_rng(7)
    values = np.logspace(0, -decades, 64)
    a = orthonormal(rng, 768, 64) * values @ orthonormal(rng, 64, 64)
    a = np.asarray(a[None], np.float32)
    got = np.asarray(similarity.directions(jnp.asarray(a)), np.float64)[0]
    exact, singular_values, _ = np.linalg.svd(a[0].astype(np.float64), full_matrices=False)
    eps = np.finfo(np.float32).eps
    for i in (1, 2, 4, 8, 16, 32, 48, 63):
        gap = singular_values[i - 1] - singular_values[i]
        sine = np.linalg.norm(got[:, :i] - exact[:, :i] @ (exact[:, :i].T @ got[:, :i]))
        assert sine < 10 * eps * singular_values[0] / gap, i
    # They are orthonormal whatever the condition is.
    np.testing.assert_allclose(got.T @ got, np.eye(64), rtol=0, atol=1e-5)
    itself = np.asarray(similarity.phi(jnp.asarray(a), jnp.asarray(a)))[0]
    np.testing.assert_allclose(np.diagonal(itself), np.ones(64), rtol=0, atol=1e-5)


def test_shapes_on_the_signatures():
    def shape(function, *arrays):
        return function(*(np.ones(array) for array in arrays)).shape

    overlap = similarity.overlap
    assert shape(overlap, (2, 5, 3), (2, 5, 4)) == (2, 3, 4)
    with pytest.raises(TypeCheckError, match="parameter 'second'"):
        shape(overlap, (2, 5, 3), (2, 6, 4))
    assert shape(similarity.directions, (2, 3, 5)) == (2, 3, 3)
    assert shape(similarity.phi, (2, 7, 5, 3), (2, 7, 5, 4)) == (2, 7, 3, 4)
    assert shape(similarity.squared_distance, (2, 3, 4)) == (2, 3, 4)
    for function in (similarity.random_mean, similarity.random_deviation):
        assert function(9, 3, 4).shape == (3, 4)


# --- Chance ---------------------------------------------------------------------------------------

DRAWS = 4000


@pytest.fixture(scope="module")
def control():
    return np.asarray(similarity.gaussian_control(KEY, D, M, N, DRAWS), np.float64)


def test_control_has_the_mean_of_random_subspaces(control):
    assert control.shape == (DRAWS, M, N)
    errors = control.std(axis=0) / np.sqrt(DRAWS)  # of the mean of independent draws
    mean = np.asarray(similarity.random_mean(D, M, N))
    # 24 entries: the largest of so many normal deviates is above 4 once in 700 seeds.
    assert (np.abs(control.mean(axis=0) - mean) < 4 * errors).all()
    assert (errors < 0.025 * mean).all()  # so the check can tell max(i, j)/d from min(i, j)/d


def test_control_has_the_deviation_of_random_subspaces(control):
    centred = control - control.mean(axis=0)
    variance = (centred**2).mean(axis=0)
    # The standard error of a variance, from the fourth moment of the draws themselves.
    errors = np.sqrt(((centred**4).mean(axis=0) - variance**2) / DRAWS)
    expected = np.asarray(similarity.random_deviation(D, M, N), np.float64) ** 2
    assert (np.abs(variance - expected) < 4 * errors).all()
    assert (errors < 0.1 * expected).all()


def test_control_of_single_directions_is_beta_distributed(control):
    """The squared cosine of two random unit vectors is Beta(1/2, (d-1)/2)."""
    fit = scipy.stats.kstest(control[:, 0, 0], scipy.stats.beta(0.5, (D - 1) / 2).cdf)
    assert fit.pvalue > 1e-3


def test_control_draws_a_pair_of_its_own_for_every_layer(control):
    assert len(np.unique(control[:, 0, 0])) > 0.99 * DRAWS  # float32 has a few in common
    single = similarity.gaussian_control(KEY, D, M, N)
    assert single.shape == (1, M, N)


@pytest.mark.parametrize("d", [2, 24, 768, 12288])
def test_chance_for_single_directions_in_closed_form(d):
    beta = scipy.stats.beta(0.5, (d - 1) / 2)
    assert float(similarity.random_mean(d, 1, 1)[0, 0]) == pytest.approx(beta.mean(), rel=1e-6)
    assert float(similarity.random_deviation(d, 1, 1)[0, 0]) == pytest.approx(beta.std(), rel=1e-6)


def test_chance_against_the_whole_space_is_certain():
    mean, deviation = similarity.random_mean(N, M, N), similarity.random_deviation(N, M, N)
    np.testing.assert_allclose(mean[:, -1], 1)
    np.testing.assert_array_equal(deviation[:, -1], 0)
    assert (np.asarray(deviation)[:, :-1] > 0).all()


def test_chance_of_complements():
    """tr(P Q) + tr(P (1 - Q)) = i: the variances of Q and of its complement are equal."""
    smaller = np.minimum(np.arange(1, M + 1)[:, None], np.arange(1, N + 1))
    trace = np.asarray(similarity.random_deviation(N + 1, M, N), np.float64) * smaller
    np.testing.assert_allclose(trace, trace[:, ::-1], rtol=1e-6)


@pytest.mark.parametrize(
    "d, i, j, expected",
    [(12288, 64, 64, 0.0052), (1024, 64, 8, 0.0625), (768, 64, 64, 0.083), (384, 8, 64, 0.167),
     (12288, 64, 451, 0.037), (12288, 64, 1176, 0.096)],
)  # fmt: skip
def test_chance_in_the_paper_and_in_small_models(d, i, j, expected):
    """The figures of paper.md, section 6.1."""
    mean = similarity.random_mean(d, 64, 1176)[i - 1, j - 1]
    assert float(mean) == pytest.approx(expected, rel=0.02)


def test_chance_is_symmetric():
    for function in (similarity.random_mean, similarity.random_deviation):
        square = np.asarray(function(D, M, N))[:, :M]
        np.testing.assert_allclose(square, square.T, rtol=1e-6)


# --- Projection metric ----------------------------------------------------------------------------


def test_squared_distance_is_the_sum_of_squared_sines(pair):
    got = similarity.squared_distance(float32(phi(*pair)))
    for layer in range(LAYERS):
        for i in range(1, M + 1):
            for j in range(1, N + 1):
                sines = np.sin(angles(pair[0][layer], pair[1][layer], i, j))
                # min(i, j) times the error of phi.
                assert float(got[layer, i - 1, j - 1]) == pytest.approx((sines**2).sum(), abs=2e-5)


def test_squared_distance_of_equal_dimensions_is_that_of_the_projections(pair):
    """d^2 = ||P - Q||_F^2 / 2 of two projections of one rank."""
    got = similarity.squared_distance(float32(phi(*pair)))
    u, v = left_vectors(pair[0][1]), left_vectors(pair[1][1])
    for i in range(1, M + 1):
        p, q = u[:, :i] @ u[:, :i].T, v[:, :i] @ v[:, :i].T
        expected = np.linalg.norm(p - q) ** 2 / 2
        assert float(got[1, i - 1, i - 1]) == pytest.approx(expected, abs=2e-5)


def test_printed_formula_of_appendix_g_is_not_phi(pair):
    """phi = 1 - d^2 / p. The paper has (1 - d^2) / p: equal for p = 1 only, else too small."""
    p = np.minimum(np.arange(1, M + 1)[:, None], np.arange(1, N + 1))
    got = phi(*pair)
    squared = np.asarray(similarity.squared_distance(float32(got)))
    np.testing.assert_allclose(1 - squared / p, got, rtol=0, atol=1e-6)
    printed = (1 - squared) / p
    np.testing.assert_allclose(printed - got, np.broadcast_to(1 / p - 1, got.shape), atol=1e-6)
    assert printed.min() < -0.1
    # The example of paper.md, section 6.1: phi = 0.010 at i = j = 5 prints as -0.79.
    squared = similarity.squared_distance(jnp.full((1, 5, 5), 0.010))[0, 4, 4]
    assert float(1 - squared) / 5 == pytest.approx(-0.79, abs=0.005)
