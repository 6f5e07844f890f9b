"""A user's own examples as the config of a tuning run names them: files, columns, what is held out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ml_collections import ConfigDict

from experiments.runs.column_fields import named_by
from lora_jax.data import conversations, held_out, text_templates
from lora_jax.data.conversations import ASSISTANT, Example
from lora_jax.data.tables import Table, read_table
from lora_jax.data.text_templates import TextTemplate
from lora_jax.errors import FileError, InputError

TEXT, CHAT, AUTO = "text", "chat", "auto"
FORMATS = (AUTO, TEXT, CHAT)
HELD_OUT = "held_out"  # as `data.test`: decodes what was held out


class Columns:
    """Where the conversations of a run's files are: in a column of messages, or made by a template.

    Attributes:
      template: of prompts.
      form: TEXT or CHAT; AUTO until a file has been read.
    """

    def __init__(self, data: ConfigDict):
        """Takes the config's `data`, or what a record says of it.

        Raises:
          InputError: the template is not well formed, or `data.system` has no format that takes it.
        """
        self.template: TextTemplate = text_templates.parse(data.template)
        self._messages: str = data.messages
        self._completion: str = data.completion
        self._system: str = data.system
        self.form: str = data.format
        if self.form == TEXT and self._system:
            raise InputError(
                "config.data.system is a message, which the format 'text' has no place for; write it into "
                "config.data.template, or set config.data.format='chat'"
            )

    @property
    def flags(self) -> dict[str, Sequence[str]]:
        """Columns by what names them on the command line of experiments.tune, for `named_by`."""
        prompt, chats = self.template.required, "--config.data.messages=COLUMN"
        columns: dict[str, Sequence[str]] = {
            "--config.data.template='{COLUMN}'": prompt,
            "--config.data.completion=COLUMN": [self._completion],
        }
        # A file that lacks the column of messages is read as one of prompts, so it may be that one.
        return columns | ({chats: [*prompt, self._completion]} if self.form != TEXT else {})

    def read(self, path: str, answered: bool = True) -> list[Example]:
        """The examples of a file.

        Args:
          path: of a table, see `read_table`.
          answered: whether every example must have a turn of the assistant; else its completion or last
            turn may be missing.

        Raises:
          MissingFileError, FileError, OSError: see `read_table`, `from_messages` and `from_columns`.
        """
        table = read_table(path)
        if self.form == AUTO:
            self.form = CHAT if self._has_messages(table) else TEXT
        if self.form == CHAT and self._has_messages(table):
            examples = conversations.from_messages(table, self._messages)
        else:
            completion = self._completion
            if not answered and completion not in table.columns:
                completion = ""
            system = self._system if self.form == CHAT else ""
            examples = conversations.from_columns(table, self.template, completion, system)
        return [_answered(example) for example in examples] if answered else examples

    def _has_messages(self, table: Table) -> bool:
        return bool(self._messages) and self._messages in table.columns


def _answered(example: Example) -> Example:
    """The example up to its last turn of the assistant."""
    roles = [message.role for message in example.messages]
    if ASSISTANT not in roles:
        file, _, place = example.where.rpartition(", ")
        raise FileError(file, place, "no turn of the assistant", "one, as it is what is learned")
    end = len(roles) - roles[::-1].index(ASSISTANT)
    return dataclasses.replace(example, messages=example.messages[:end])


@dataclasses.dataclass(frozen=True)
class Splits:
    """The examples of a run.

    Attributes:
      train: to learn from.
      validation: held out.
      test: to decode after training.
      shared: prompts that training and validation have in common, where both are files.
    """

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    shared: int


def read_splits(data: ConfigDict, columns: Columns) -> Splits:
    """Reads the files of a config.

    Raises:
      MissingFileError, FileError, OSError, InputError: see `Columns.read` and `split`.
    """
    with named_by(columns.flags):
        return _read_splits(data, columns)


def _read_splits(data: ConfigDict, columns: Columns) -> Splits:
    train = columns.read(data.train)
    if data.validation:
        validation = columns.read(data.validation)
    else:
        train, validation = split(train, data.held_out, data.split_seed)
    train, validation = take(train, data.max_examples), take(validation, data.max_eval_examples)
    shared = len({e.key for e in train} & {e.key for e in validation})
    if data.test == HELD_OUT:
        test = validation
    else:
        test = columns.read(data.test, answered=False) if data.test else []
    return Splits(train, validation, take(test, data.max_prompts), shared)


def split(
    examples: Sequence[Example], wanted: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Examples to train on, and held-out ones; those of the same prompt are on one side.

    Args:
      examples: of a file.
      wanted: to hold out: a share below 1, or a number; met but for examples of the same prompt.
      seed: of the choice.

    Raises:
      InputError: none or all would be held out.
    """
    keys = [example.key for example in examples]
    share = wanted if wanted < 1 else wanted / len(keys)
    if not 0 < share < 1 or len(set(keys)) < 2:
        raise InputError(
            f"config.data.held_out={wanted:g} of {len(keys):,} examples with {len(set(keys)):,} different "
            "prompts: at least one must be held out, and one left; give a share below 1, or a smaller "
            "number, or name a file of its own in config.data.validation"
        )
    marked = held_out.held_out(keys, [0] * len(keys), share, seed)
    sides: tuple[list[Example], list[Example]] = [], []
    for example, is_out in zip(examples, marked, strict=True):
        sides[int(is_out)].append(example)
    return sides


def take(examples: Sequence[Example], limit: int) -> list[Example]:
    """The first `limit` examples; all if it is 0."""
    return list(examples[:limit] if limit else examples)
