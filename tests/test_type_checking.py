"""The library's functions are checked at every call of a test, also those inside other functions."""

import pytest
from jaxtyping import Float, TypeCheckError, jaxtyped
from numpy import ndarray, zeros
from type_checking import check


def outer(annotation, default=0):
    @jaxtyped(typechecker=check)
    def inner(x: annotation, y: int = default) -> Float[ndarray, "b"]:
        return x.sum(1) if default == 0 else x

    return inner


def test_a_function_made_anew_is_checked_anew():
    pairs = Float[ndarray, "b 2"]
    for _ in range(2):
        assert outer(pairs)(zeros((3, 2))).shape == (3,)
        with pytest.raises(TypeCheckError, match="parameters"):
            outer(pairs)(zeros((3, 1)))
        with pytest.raises(TypeCheckError, match="parameters"):
            outer(pairs)(zeros((3, 2)), "1")


def test_what_it_calls_and_returns_is_its_own():
    pairs = Float[ndarray, "b 2"]
    assert outer(pairs)(zeros((3, 2))).shape == (3,)
    with pytest.raises(TypeCheckError, match="return value"):
        outer(pairs, 1)(zeros((3, 2)))


def test_types_of_one_call_are_not_those_of_another():
    assert outer(Float[ndarray, "b 2"])(zeros((3, 2))).shape == (3,)
    assert outer(Float[ndarray, "b 1"])(zeros((3, 1))).shape == (3,)
    with pytest.raises(TypeCheckError, match="parameters"):
        outer(Float[ndarray, "b 1"])(zeros((3, 2)))


def test_a_default_that_is_not_hashable():
    for _ in range(2):
        with pytest.raises(TypeCheckError, match="parameters"):
            outer(Float[ndarray, "b 2"], [])(zeros((3, 1)))
