"""Ranges accept what they say, name what they refuse, and give Python's own numbers."""

import math
from fractions import Fraction

import numpy as np
import pytest

from lora_jax.ranges import (
    SEED,
    Flag,
    Number,
    OneOf,
    OrNone,
    Several,
    Text,
    Whole,
    check,
)

NAN, INF = math.nan, math.inf
CASES = {
    "an integer from 0 on": (Whole(least=0), [0, 7, np.int8(3), np.uint64(5), 2**31 - 1],
                             [-1, 1.0, True, None, "3", 2**31, 10**5000, NAN, np.bool_(True)]),
    "a positive integer": (Whole(), [1], [0, False]),
    "an integer from 2 to 1,000": (Whole(least=2, most=1000), [2, 1000], [1, 1001]),
    "a finite number from 0 on": (
        Number(least=0), [0, 0.0, 1e-3, np.float16(2), Fraction(1, 3), 3e38],
        [-1e-9, 1e-60, 1e-38, NAN, INF, -INF, "1", None, True, 1e39, 10**400, np.float32("nan"), 1j],
    ),
    "a positive finite number": (Number(above=0), [2**-126, 1], [0, -1, 5e-324, 1e-60, NAN]),
    "a number in [0, 1)": (
        Number(least=0, below=1), [0, 0.999, 1 - 2**-24], [1, 1.0, 1 - 2**-26, -0.1, NAN]
    ),
    "a number in (0, 1]": (Number(above=0, most=1), [1e-9, 1], [0, 1.01]),
    "a finite number": (Number(), [-1e30, 0], [NAN, INF]),
    "True or False": (Flag(), [True, False, np.bool_(False)], [0, 1, None, "True"]),
    "a text that is not empty": (Text(), ["a", "ü"], ["", " ", "\n", None, 3, "a\0b"]),
    'a text, "" for none': (Text(empty="none"), ["", "a"], [None, b"a"]),
    "'a', 'b' or 1": (OneOf(("a", "b", 1)), ["a", 1], ["c", True, 1.0, None]),
    "a positive integer, or None for all": (OrNone(of=Whole(), none="all"), [None, 3], [0, ""]),
    "a tuple, all different, at least one, each a positive integer": (
        Several(of=Whole()), [(1,), [2, 3], (np.int32(1), 2)],
        [(), [], (1, 1), (1, np.int64(1)), (0,), 1, "12", None, {1}],
    ),
    "a tuple; () for none, each 'a'": (Several(of=OneOf(("a",)), different=False, empty="none"),
                                       [(), ("a", "a")], [("b",)]),
}  # fmt: skip


@pytest.mark.parametrize("says", CASES)
def test_what_is_in_a_range_and_what_is_not(says):
    allowed, good, bad = CASES[says]
    assert str(allowed) == says
    for value in good:
        plain = check("it", value, allowed)
        assert plain == (
            float(value)
            if isinstance(value, Fraction)
            else tuple(value)
            if isinstance(value, list)
            else value
        )
        assert type(plain).__module__ == "builtins"
    for value in bad:
        with pytest.raises(ValueError, match="^it must be ") as refused:
            check("it", value, allowed)
        assert len(str(refused.value)) < 300


@pytest.mark.parametrize("value", [1e-60, 1 - 2**-26, 1e300])
def test_a_number_that_float32_rounds_to_a_bound_is_told_as_what_it_is_there(value):
    with np.errstate(over="ignore", under="ignore"):
        held = np.float32(value)
    shown = "infinite" if np.isinf(held) else f"{held:g}"
    for allowed in (Number(above=0, below=1), OrNone(of=Number(above=0, below=1), none="all")):
        with pytest.raises(ValueError, match=f", which is {shown} in float32$"):
            check("it", value, allowed)


def test_every_number_that_is_accepted_is_in_the_range_for_float32():
    allowed, rng = Number(above=0, below=1), np.random.default_rng(0)
    exponents = rng.uniform(-60, 0, 2000)
    values = [*10**exponents, *(1 - 10 ** (exponents / 4))]
    taken = [v for v in values if allowed.accepts(v)]
    assert 0 < len(taken) < len(values)
    held = np.array(taken, np.float32)
    assert np.all((held >= 2.0**-126) & (held < 1))


def test_the_largest_seed_has_a_next_one():
    import jax

    check("seed", 2**31 - 2, SEED)
    jax.random.key(2**31 - 1)
    with pytest.raises(ValueError, match="seed must be"):
        check("seed", 10**20, SEED)
