"""Examples to tune on as conversations: a prompt and its completion are one of two messages.

They come from a column of messages, in OpenAI's form or ShareGPT's, or from a template over columns.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from lora_jax.data.tables import Table
from lora_jax.data.text_files import short
from lora_jax.data.text_templates import TextTemplate

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
ROLES = (SYSTEM, USER, ASSISTANT)
_OPENAI, _SHAREGPT = ("role", "content"), ("from", "value")
_SAME = {"human": USER, "gpt": ASSISTANT, "model": ASSISTANT, "bot": ASSISTANT, "developer": SYSTEM}


class Message(NamedTuple):
    """A turn of a conversation.

    Attributes:
      role: one of `ROLES`.
      content: its text.
    """

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Example:
    """A conversation of a file.

    Attributes:
      messages: in order; after the first of the user every other one is the assistant's.
      where: its file and place, for messages.
    """

    messages: tuple[Message, ...]
    where: str

    @property
    def prompt(self) -> tuple[Message, ...]:
        """What comes before the last turn of the assistant, or all if the user has the last word."""
        return self.messages[:-1] if self.messages[-1].role == ASSISTANT else self.messages

    @property
    def reference(self) -> str:
        """The last turn of the assistant, "" if the user has the last word."""
        last = self.messages[-1]
        return last.content if last.role == ASSISTANT else ""

    @property
    def key(self) -> str:
        """What two examples of the same question share: all up to the first turn of the assistant."""
        roles = [message.role for message in self.messages]
        end = roles.index(ASSISTANT) if ASSISTANT in roles else len(roles)
        return json.dumps(self.messages[:end])

    @property
    def text(self) -> str:
        """The prompt for a person to read: roles are named where there are several messages."""
        if len(self.prompt) == 1:
            return self.prompt[0].content
        return "\n".join(f"{message.role}: {message.content}" for message in self.prompt)


def from_messages(table: Table, column: str) -> list[Example]:
    """The conversations in a column.

    OpenAI's form is a list of {"role", "content"}, ShareGPT's of {"from", "value"}, whose `human` is the
    user and whose `gpt` is the assistant. Other keys of a message are passed over.

    Args:
      table: of the file.
      column: its name.

    Raises:
      FileError: no such column, no such messages, an unknown role, no turn of the user, or roles in
        another order: one system message at most, then user and assistant in turns.
    """
    values = table.values(column)
    return [
        Example(_messages(table, row, column, value), table.where(row))
        for row, value in enumerate(values)
    ]


def _messages(table: Table, row: int, column: str, value: Any) -> tuple[Message, ...]:
    expected = 'a list of messages, such as [{"role": "user", "content": "..."}]'
    if not isinstance(value, list) or not value:
        raise table.error(row, column, short(value), expected)
    messages: list[Message] = []
    for number, item in enumerate(value, 1):
        place = f"message {number}: "
        keys = _SHAREGPT if isinstance(item, dict) and "from" in item else _OPENAI
        role, content = (item.get(key) for key in keys) if isinstance(item, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise table.error(row, column, place + short(item), expected + ' or {"from", "value"}')
        if "\0" in content:
            raise table.error(row, column, f"{place}a NUL character", "a text without")
        role = _SAME.get(role, role)
        if role not in ROLES:
            raise table.error(row, column, f"{place}the role {short(role)}", f"one of {ROLES}")
        wanted = USER if not messages or messages[-1].role != USER else ASSISTANT
        if role != wanted and not (role == SYSTEM and not messages):
            raise table.error(
                row, column, f"{place}the role {role}",
                f"{wanted}: at most one system message, then user and assistant in turns",
            )  # fmt: skip
        messages.append(Message(role, content))
    if messages[-1].role == SYSTEM:
        raise table.error(row, column, "a system message alone", "a message of the user")
    return tuple(messages)


def from_columns(
    table: Table, template: TextTemplate, completion: str = "", system: str = ""
) -> list[Example]:
    """A prompt from a template for every row, and its completion.

    Args:
      table: of the file.
      template: of the prompt.
      completion: name of the column; "" for prompts alone.
      system: a message in front, "" for none.

    Raises:
      FileError: a column is missing (those of optional parts may be), a value is no text, or a prompt
        or completion is blank.
    """
    columns = {name: table.text(name) for name in template.required}
    there = [name for name in template.optional if name in table.columns]
    columns |= {name: table.text(name, missing="") for name in there}
    answers = table.text(completion) if completion else [""] * len(table)
    first = (Message(SYSTEM, system),) if system else ()
    examples = []
    for row, answer in enumerate(answers):
        prompt = template.fill({name: texts[row] for name, texts in columns.items()})
        if completion and not answer.strip():
            raise table.error(row, completion, "a blank text", "a completion")
        if not prompt.strip():
            raise table.error(row, template.required[0] if template.required else "", "a blank text",
                              "a prompt")  # fmt: skip
        last = (Message(ASSISTANT, answer),) if completion else ()
        examples.append(Example((*first, Message(USER, prompt), *last), table.where(row)))
    return examples


def texts(examples: Sequence[Example]) -> list[str]:
    """All texts of examples with their roles, in order; what a digest is made of."""
    return [text for example in examples for m in (("", ""), *example.messages) for text in m]
