"""Answers: the last number as GSM8K has it, and equal words."""

import json
from decimal import Decimal

import pytest

from lora_jax.metrics.answers import exact_match, last_number, same_number

NUMBERS = [
    ("#### 18", "18"), ("3 + 4 = 7\n#### 1,234", "1234"), ("#### -5 (of 7)", "-5"), ("#### $3.50", "3.50"),
    ("it is 3, then 12.", "12"), ("5-3", "3"), ("x = -3", "-3"), ("1,000,000.25", "1000000.25"),
    ("12,34", "34"), ("no number", None), ("#### none, 3 before", "3"), ("4 ####", None), ("", None),
    ("2.", "2"), ("(a)-4", "4"), ("9" * 400, "9" * 400),
]  # fmt: skip


@pytest.mark.parametrize(("text", "number"), NUMBERS)
def test_last_number(text, number):
    assert last_number(text) == (None if number is None else Decimal(number))


def test_equal_answers():
    assert same_number("so 18.0", "a\n#### 18") and not same_number("18", "#### 19")
    assert not same_number("nothing", "nothing")
    assert exact_match(" a  b\n", "a b") and not exact_match("a b", "a B")


def test_every_answer_of_gsm8k_is_read(real_data):
    lines = (real_data / "nlg/gsm8k/test.jsonl").read_text().splitlines()
    for line in lines:
        answer = json.loads(line)["answer"]
        behind = answer.split("####")[1].strip().replace(",", "")
        assert last_number(answer) == Decimal(behind)
    assert len(lines) == 1319
