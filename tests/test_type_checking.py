"""The library's functions are checked at every call of a test, also those inside other functions."""

import dataclasses

import pytest
import type_checking
from jaxtyping import Float, TypeCheckError, jaxtyped
from numpy import ndarray, zeros
from type_checking import check

from lora_jax import partition, patterns, ranges
from lora_jax.low_rank import contraction


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


@dataclasses.dataclass
class Sizes:
    rank: int
    alpha: float = 1


def halved(values: list[int], *, by: int = 2) -> int:
    return sum(values) / by if by > 1 else sum(values)


def test_functions_and_classes_without_arrays_are_checked_too():
    function = type_checking.jaxtyped(typechecker=check)(halved)
    assert function([1, 2], by=1) == 3 and function.__name__ == "halved"
    with pytest.raises(TypeCheckError, match="by"):
        function([1, 2], by="1")
    with pytest.raises(TypeCheckError, match="values"):
        function(["1"])
    with pytest.raises(TypeCheckError, match="return"):
        function([1, 2])
    sizes = type_checking.jaxtyped(Sizes, typechecker=check)
    assert sizes(2, alpha=3).alpha == 3
    with pytest.raises(TypeCheckError, match="rank"):
        sizes("2")


@pytest.mark.wrong_types
def test_where_tests_give_wrong_types_they_are_unchecked():
    assert type_checking.jaxtyped(typechecker=check)(halved)([1, 2]) == 1.5


@pytest.mark.parametrize(
    "call",
    [
        lambda: patterns.check("a", 1),
        lambda: ranges.Whole(most="3"),
        lambda: partition.count(3),
        lambda: contraction.product(zeros((1, 3, 2)), zeros((1, 4, 3))),
    ],
    ids=["function", "class", "generic type", "arrays"],
)
def test_the_library_is_checked(call):
    with pytest.raises(TypeCheckError):
        call()
