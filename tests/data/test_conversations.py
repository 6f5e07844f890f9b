"""Conversations from columns of messages and from templates."""

import pytest
import tune_files

from lora_jax.data import conversations
from lora_jax.data.conversations import Message, from_columns, from_messages
from lora_jax.data.tables import read_table
from lora_jax.data.text_templates import parse
from lora_jax.errors import FileError


def table(tmp_path, *rows):
    return read_table(tune_files.write_lines(tmp_path / "a.jsonl", list(rows)))


def test_sharegpt_is_openai_with_other_names(tmp_path):
    roles = ("system", "user", "assistant", "user", "assistant")
    openai = [{"role": role, "content": text} for role, text in zip(roles, "sabcd", strict=True)]
    same = {"user": "human", "assistant": "gpt", "system": "system"}
    sharegpt = [{"from": same[m["role"]], "value": m["content"], "weight": 1} for m in openai]
    data = table(tmp_path, {"m": openai}, {"m": sharegpt})
    one, two = from_messages(data, "m")
    assert one.messages == two.messages == tuple(Message(m["role"], m["content"]) for m in openai)
    assert one.where == f"{tmp_path}/a.jsonl, line 1" and two.where.endswith("line 2")
    assert one.reference == "d" and one.prompt == one.messages[:-1]
    assert one.key == conversations.Example(one.messages[:3], "elsewhere").key
    assert one.text.splitlines() == ["system: s", "user: a", "assistant: b", "user: c"]


BAD = [
    ("text", "a list of messages"),
    ([], "a list of messages"),
    (["a"], "message 1: 'a'"),
    ([{"role": "user"}], "message 1"),
    ([{"role": "user", "content": None}], "message 1"),
    ([{"role": "user", "content": "a\0"}], "message 1: a NUL character"),
    ([{"role": "tool", "content": "a"}], "the role 'tool', expected one of"),
    ([{"role": "assistant", "content": "a"}], "message 1: the role assistant, expected user"),
    ([{"role": "user", "content": "a"}] * 2, "message 2: the role user, expected assistant"),
    ([{"role": "system", "content": "a"}], "a system message alone"),
    ([{"role": "system", "content": "a"}] * 2, "message 2: the role system, expected user"),
]


@pytest.mark.parametrize(("value", "says"), BAD)
def test_bad_messages_are_refused_with_their_place(tmp_path, value, says):
    good = [{"role": "user", "content": "a"}]
    with pytest.raises(FileError, match=f"line 2, column 'm': .*{says}"):
        from_messages(table(tmp_path, {"m": good}, {"m": value}), "m")


def test_templates_make_prompts_and_completions(tmp_path):
    data = table(
        tmp_path, {"q": "a", "n": 3, "out": "x"}, {"q": "b", "n": 4, "hint": "h", "out": "y"}
    )
    template = parse("{q} {n}[[ ({hint})]]")
    one, two = from_columns(data, template, "out", system="s")
    assert one.messages == (
        Message("system", "s"),
        Message("user", "a 3"),
        Message("assistant", "x"),
    )
    assert two.messages[1].content == "b 4 (h)" and two.reference == "y"
    (alone, _) = from_columns(data, template)
    assert alone.messages == (Message("user", "a 3"),) and alone.reference == ""
    with pytest.raises(FileError, match=r"the columns q, n, out, hint, expected a column 'none'"):
        from_columns(data, parse("{none}"), "out")


def test_blank_completions_and_prompts_are_refused(tmp_path):
    with pytest.raises(
        FileError, match="line 1, column 'out': found a blank text, expected a compl"
    ):
        from_columns(table(tmp_path, {"q": "a", "out": " \n"}), parse("{q}"), "out")
    with pytest.raises(
        FileError, match="line 1, column 'q': found a blank text, expected a prompt"
    ):
        from_columns(table(tmp_path, {"q": " ", "out": "a"}), parse("{q}"), "out")
