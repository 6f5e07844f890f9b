"""Sentence TER against pyter, the package of the paper's code: equal to the last bit."""

from __future__ import annotations

import itertools
import random
import time

import pyter
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_jax.data import data_to_text
from lora_jax.data.pairs import by_context
from lora_jax.metrics import ter
from lora_jax.metrics import webnlg as nlg

# Few words, of unequal length and order, so that phrases repeat and moves tie.
TOKENS = st.lists(st.sampled_from(["a", "b", "ab", "B", "é", ",", "日"]), max_size=9)


def pyters(text, references):
    return min(pyter.ter(text, reference) for reference in references)


def check(text, references):
    assert ter.least(text, references) == pyters(text, references)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(TOKENS, st.lists(TOKENS.filter(bool), min_size=1, max_size=4))
def test_random_tokens(text, references):
    check(text, references)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.data(), TOKENS.filter(bool))
def test_reorderings(data, reference):
    check(data.draw(st.permutations(reference)), [reference, reference[::-1]])


@pytest.mark.slow
def test_many_random_tokens():
    draw = random.Random(0)
    for _ in range(20_000):
        words = "abcdefgh"[: draw.randint(1, 8)]
        text, *references = [draw.choices(words, k=draw.randint(1, 13)) for _ in range(3)]
        check(text, references)


def test_all_short_texts():
    texts = [list(t) for n in range(4) for t in itertools.product("ab", repeat=n)]
    for text, reference in itertools.product(texts, filter(None, texts)):
        check(text, [reference])


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "split"), [("webnlg", "test"), ("dart", "valid")])
def test_real_references(real_data, dataset, split):
    """The last reference of each input against its others, as the scorer sees them."""
    pairs = data_to_text.read(dataset, split, str(real_data))
    for instance in by_context(pairs).references:
        *references, text = [nlg.words(nlg.decoded(t)).split() for t in instance[:6]]
        if references:
            check(text, references)


def test_long_texts_end_in_time():
    draw = random.Random(0)
    text, reference = (draw.choices(range(200), k=400) for _ in range(2))
    text, reference = list(map(str, text)), list(map(str, reference))
    assert 0.5 < ter.least(text, [reference]) < 1
    with pytest.raises(TimeoutError, match="a text of 400 tokens against one of 400"):
        ter.least(text, [reference], deadline=time.monotonic() - 1)
    # Nothing to gain by any move: found at once, however many there are.
    assert ter.least(["a"] * 5000, [["a"] * 4000]) == 1000 / 4000


def test_a_reference_has_a_token():
    with pytest.raises(ValueError, match="a reference has no token"):
        ter.least(["a"], [["a"], []])
