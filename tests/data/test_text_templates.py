"""Templates over columns: what is filled in, what is left out, what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.tune.common import ALPACA
from lora_jax.data.text_templates import parse
from lora_jax.errors import InputError


def test_alpaca_with_and_without_an_input():
    template = parse(ALPACA)
    assert template.required == ("instruction",) and template.optional == ("input",)
    whole = template.fill({"instruction": "Add.", "input": "1 2"})
    assert whole.endswith("### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n")
    for values in ({"instruction": "Add.", "input": ""}, {"instruction": "Add."}):
        assert template.fill(values) == whole.replace("\n\n### Input:\n1 2", "")


def test_braces_and_values_that_look_like_templates():
    assert parse("{{{a}}} {b}[[ {a}{c}]]").fill({"a": "{b}", "b": "[[", "c": ""}) == "{{b}} [["
    assert parse("{a}{a}").fill({"a": "x"}) == "xx"


@given(st.text(alphabet="ab \n", min_size=1), st.text(), st.text(alphabet="xyz[]{}", min_size=1))
def test_filling_is_replacing(before, value, behind):
    literal = behind.replace("[", "").replace("]", "").replace("{", "{{").replace("}", "}}")
    filled = parse(f"{before}{{c}}{literal}").fill({"c": value})
    assert filled == before + value + behind.replace("[", "").replace("]", "")


@pytest.mark.parametrize(
    "text",
    [
        "{a",
        "a}",
        "{}",
        "{ }",
        "[[x]]{a}",
        "[[{a}",
        "{a}]]",
        "[[{a}[[{b}]]]]",
        "{a{b}}",
        "no column",
        "",
    ],
)
def test_what_is_not_well_formed_is_refused(text):
    with pytest.raises(InputError, match="the template"):
        parse(text)
