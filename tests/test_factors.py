"""Checks of the low-rank algebra against closed forms in float64."""

import math
import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype import beartype
from jaxtyping import jaxtyped

from lora_jax import checks
from lora_jax.low_rank import contraction
from lora_jax.low_rank.contraction import Contraction

# name: (roles, weight shape, rank, shape of A, shape of B)
CASES = {
    "dense": (Contraction((), (0,), (1,)), (5, 7), 3, (5, 3), (3, 7)),
    "transposed": (Contraction((), (1,), (0,)), (7, 5), 3, (5, 3), (3, 7)),
    "attention query": (Contraction((), (0,), (1, 2)), (6, 2, 4), 2, (6, 2), (2, 2, 4)),
    "attention out": (Contraction((), (0, 1), (2,)), (2, 4, 6), 2, (2, 4, 2), (2, 6)),
    "einsum hab": (Contraction((), (1,), (0, 2)), (3, 4, 5), 2, (4, 2), (2, 3, 5)),
    "experts ebi,eio": (Contraction((0,), (1,), (2,)), (3, 4, 5), 2, (3, 4, 2), (3, 2, 5)),
    "experts last": (Contraction((2,), (1,), (0,)), (5, 4, 3), 2, (3, 4, 2), (3, 2, 5)),
    "two batch axes": (
        Contraction((3, 0), (2,), (1,)), (2, 5, 4, 3), 2, (3, 2, 4, 2), (3, 2, 2, 5),
    ),
    "inputs out of order": (
        Contraction((), (2, 0), (3, 1)), (3, 4, 5, 2), 4, (5, 3, 4), (4, 2, 4),
    ),
    "conv 2D in 3 groups": (
        Contraction((3,), (0, 1, 2), (4,)), (3, 3, 2, 3, 5), 2, (3, 3, 3, 2, 2), (3, 2, 5),
    ),
    "stacked dense": (
        Contraction((), (0,), (1,)).stacked(1), (12, 5, 7), 3, (12, 5, 3), (12, 3, 7),
    ),
    "stacked experts": (
        Contraction((0,), (1,), (2,)).stacked(2), (2, 6, 3, 4, 5), 2, (2, 6, 3, 4, 2),
        (2, 6, 3, 2, 5),
    ),
}  # fmt: skip
cases = pytest.mark.parametrize("case", CASES)


def random_pair(seed, shape_a, shape_b):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape_a), rng.normal(size=shape_b)


def exact_delta(roles, a, b, scale):
    """One letter per weight axis, one einsum, in float64."""
    letters = string.ascii_lowercase[: roles.ndim]
    batch, inputs, outputs = (
        "".join(letters[axis] for axis in axes)
        for axes in (roles.batch, roles.inputs, roles.outputs)
    )
    return scale * np.einsum(f"{batch}{inputs}z,{batch}z{outputs}->{letters}", a, b)


@cases
def test_shapes_follow_the_roles(case):
    roles, shape, rank, shape_a, shape_b = CASES[case]
    assert contraction.factor_shapes(roles, shape, rank) == (shape_a, shape_b)


@cases
def test_delta_equals_float64_einsum(case):
    roles, shape, _, shape_a, shape_b = CASES[case]
    a, b = random_pair(0, shape_a, shape_b)
    result = contraction.delta(roles, jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32), 1.7)
    assert result.shape == shape and result.dtype == jnp.float32
    # Sums of at most four float32 products of size about 1.
    np.testing.assert_allclose(result, exact_delta(roles, a, b, 1.7), rtol=1e-5, atol=1e-5)


def test_delta_of_bfloat16_factors_is_accumulated_in_float32():
    a, b = (jnp.asarray(x, jnp.bfloat16) for x in random_pair(1, (64, 32), (32, 48)))
    roles = Contraction((), (0,), (1,))
    result = contraction.delta(roles, a, b, 2.0)
    expected = exact_delta(roles, np.asarray(a, np.float64), np.asarray(b, np.float64), 2.0)
    assert result.dtype == jnp.float32
    # A bfloat16 sum of 32 products would be off by about 1e-2 of its size.
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-4)


def test_delta_of_each_map_of_a_stack_is_its_own():
    roles = Contraction((), (0,), (1,))
    a, b = random_pair(2, (3, 5, 2), (3, 2, 4))
    a, b = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    stacked = contraction.delta(roles.stacked(1), a, b, 0.5)
    for layer in range(3):
        one = contraction.delta(roles, a[layer], b[layer], 0.5)
        np.testing.assert_allclose(stacked[layer], one, rtol=1e-6, atol=1e-6)


@cases
def test_rank_of_delta_is_the_rank(case):
    roles, shape, rank, shape_a, shape_b = CASES[case]
    a, b = random_pair(3, shape_a, shape_b)
    delta = np.asarray(contraction.delta(roles, jnp.asarray(a), jnp.asarray(b), 1.0))
    by_role = delta.transpose(roles.batch + roles.inputs + roles.outputs)
    batch, inputs, outputs = roles.sizes(shape)
    for matrix in by_role.reshape(math.prod(batch), math.prod(inputs), math.prod(outputs)):
        assert np.linalg.matrix_rank(matrix, tol=1e-4) == rank


def test_product_has_the_shapes_on_its_signature():
    typed = jaxtyped(contraction.product, typechecker=beartype)
    assert typed(jnp.ones((2, 5, 3)), jnp.ones((2, 3, 4))).shape == (2, 5, 4)
    with pytest.raises(Exception, match=r"rank|batch"):
        typed(jnp.ones((2, 5, 3)), jnp.ones((1, 4, 4)))


@pytest.mark.parametrize(
    "batch, inputs, outputs",
    [
        ((), (0,), ()),
        ((), (), (0,)),
        ((0,), (0,), (1,)),
        ((), (0,), (2,)),
        ((), (1,), (2,)),
        ((), (-2,), (-1,)),
    ],
)
def test_every_axis_needs_one_role(batch, inputs, outputs):
    with pytest.raises(ValueError, match="one role"):
        Contraction(batch, inputs, outputs)


def test_weight_with_another_number_of_axes_is_refused():
    with pytest.raises(ValueError, match="does not have the 2 axes"):
        contraction.factor_shapes(Contraction((), (0,), (1,)), (3, 4, 5), 2)


@pytest.mark.parametrize("stack", [(), (12,), (3, 4)])
def test_kaiming_start_of_a_stack_is_that_of_one_layer(stack):
    """A fan-in taken from the stacked shape makes the factors sqrt(12) = 3.5 times too small."""
    fan_in, rank = 256, 8
    values = np.asarray(
        contraction.initial_values(jax.random.key(0), (*stack, fan_in, rank), fan_in), np.float64
    )
    bound = 1 / math.sqrt(fan_in)
    assert values.dtype == np.float64 and abs(values).max() <= bound
    # The largest of 2048 or more uniform values misses the bound by more than 1% once in 1e8.
    assert abs(values).max() > 0.99 * bound
    # The std of n uniform values has a relative error of 0.45/sqrt(n) <= 1%; 5 of those.
    assert values.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert abs(values.mean()) < 0.1 * bound


def test_kaiming_start_is_that_of_loralib():
    loralib = pytest.importorskip("loralib")
    reference = loralib.Linear(256, 256, r=64).lora_A.detach().numpy()
    ours = contraction.initial_values(jax.random.key(1), (256, 64), 256)
    # 16384 values each: the std is known to 0.4%.
    assert np.std(ours) == pytest.approx(reference.std(), rel=0.03)
    assert np.abs(ours).max() == pytest.approx(np.abs(reference).max(), rel=0.01)


@pytest.mark.parametrize("std", [0.02, 1.0])
def test_gaussian_start(std):
    values = np.asarray(
        contraction.initial_values(jax.random.key(2), (4, 128, 32), 128, "gaussian", std)
    )
    assert values.std() == pytest.approx(std, rel=0.03)  # 16384 values: 0.6% is one sigma
    assert 3 * std < abs(values).max() < 6 * std  # a uniform start has no such tail


@pytest.mark.parametrize("init", ["kaiming", "gaussian"])
def test_layers_of_a_stack_start_differently(init):
    values = np.asarray(contraction.initial_values(jax.random.key(3), (6, 16, 4), 16, init))
    for i in range(6):
        for j in range(i):
            assert not np.isin(values[i], values[j]).any()


def test_unknown_init_is_refused():
    with pytest.raises(ValueError, match="'kaiming' or 'gaussian'"):
        contraction.initial_values(jax.random.key(0), (2, 2), 2, "xavier")


@pytest.mark.parametrize(
    "rank, alpha, scaling, expected",
    [
        (4, 16.0, "alpha/r", 4.0),
        (8, 8.0, "alpha/r", 1.0),
        (4, 32, "alpha/r", 8.0),
        (3, 1.0, "alpha/r", 1 / 3),
        (4, 16.0, "alpha/sqrt(r)", 8.0),
        (64, 16.0, "alpha/sqrt(r)", 2.0),
    ],
)
def test_scale(rank, alpha, scaling, expected):
    assert contraction.scale(rank, alpha, scaling) == pytest.approx(expected, rel=1e-15)


def test_unknown_scaling_is_refused():
    with pytest.raises(ValueError, match="scaling must be"):
        contraction.scale(4, 8, "alpha")


@pytest.mark.parametrize("rank", [0, -1, True, False, 2.5, 2.0, "4", None, math.nan])
def test_unusable_rank_is_refused(rank):
    with pytest.raises(ValueError, match=r"positive integer for encoder/query, got"):
        contraction.check_rank(rank, where="encoder/query")


def test_rank_larger_than_the_matrix_is_refused():
    assert contraction.check_rank(6, limit=6) == 6
    with pytest.raises(ValueError, match=r"rank 7 .* for encoder/query.* from 1 to 6"):
        contraction.check_rank(7, limit=6, where="encoder/query")


def test_numpy_rank_becomes_an_int():
    assert type(contraction.check_rank(np.int64(4))) is int


@pytest.mark.parametrize("alpha", [0, -1, 0.0, True, math.nan, math.inf, -math.inf, "1", None, 1j])
def test_unusable_alpha_is_refused(alpha):
    with pytest.raises(ValueError, match="positive finite number"):
        checks.positive(alpha)


@pytest.mark.parametrize("alpha", [1, 0.5, np.float32(2), np.int64(3)])
def test_usable_alpha_becomes_a_float(alpha):
    assert type(checks.positive(alpha)) is float
    assert checks.positive(alpha) == alpha
