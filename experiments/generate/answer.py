"""Answers to a file of prompts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.runs.column_fields import of_run
from experiments.runs.decoding import PromptDecoding
from experiments.runs.tune_data import Columns
from experiments.runs.tuned import Tuned, with_system
from lora_jax import partition, reading
from lora_jax.data.conversations import USER, Example, Message
from lora_jax.data.tables import MissingColumnError
from lora_jax.decoding import predictions
from lora_jax.decoding.sampling import Sampling
from lora_jax.errors import FileError
from lora_jax.files import to_json, write_text


class Request(NamedTuple):
    """What is to be answered, and how.

    Attributes:
      source: file of prompts.
      target: file for the answers; "" for stdout.
      settings: of the choice of tokens.
      seed: of the draws.
      batch_size: prompts answered at once.
    """

    source: str
    target: str
    settings: Sampling
    seed: int
    batch_size: int


def read(tuned: Tuned, source: str) -> list[Example]:
    """The prompts of a file: lines of a .txt, or a table with the columns of the run.

    Raises:
      MissingFileError, FileError, OSError: as `read_table`, or no line that is not blank.
    """
    path = Path(source).expanduser()
    if path.suffix.lower() == ".txt":
        lines = [line.rstrip("\r") for line in reading.read_text(path).split("\n")]
        examples = [
            Example((Message(USER, line),), f"{path}, line {number}")
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]
        if not examples:
            raise FileError(path, "", "no prompt", "a prompt in every line")
        return examples
    data = ConfigDict({**tuned.data, "format": tuned.form})
    columns = Columns(data)
    try:
        return columns.read(source, answered=False)
    except MissingColumnError as error:
        raise error.advised(of_run(columns.template.required)) from None


def answer_file(tuned: Tuned, request: Request) -> None:
    """Answers all prompts of a file, and writes JSON lines: `prompt` and `text`."""
    examples = read(tuned, request.source)
    texts = answers(tuned, [example.prompt for example in examples], request)
    lines = [
        to_json({"prompt": example.text, "text": text}, indent=None)
        for example, text in zip(examples, texts, strict=True)
    ]
    content = "".join(f"{line}\n" for line in lines)
    if request.target:
        write_text(request.target, content)
        sys.stderr.write(f"{len(lines)} answers: {request.target}\n")
    else:
        sys.stdout.write(content)


def answers(
    tuned: Tuned, conversations: Sequence[Sequence[Message]], request: Request
) -> list[str]:
    """The model's next turn in every conversation.

    Raises:
      InputError: there is no room for answers of that length.
    """
    room = tuned.room(request.settings)
    whole = [with_system(messages, tuned.data) for messages in conversations]
    prompts = [
        tuned.with_special(np.array(ids, np.int32), room) for ids in tuned.format.prompts(whole)
    ]
    size = min(request.batch_size, len(prompts))
    decoding = PromptDecoding(
        tuned.tokenizer,
        request.settings,
        prompts,
        batch_size=size,
        depends_on={},
        seed=request.seed,
    )
    structure, params = partition.all_frozen(tuned.model)
    decode = partial(decoding.compiled(structure), params)
    tokens: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for indices, rows, lengths in predictions.batches(prompts, order, size):
        found = jax.device_get(decode(rows, lengths))
        for row, index in enumerate(indices):
            tokens[index] = found.tokens[row, : found.lengths[row]].tolist()
    ends = request.settings.end_tokens
    kept = [ids[:-1] if ids and ids[-1] in ends else ids for ids in tokens]
    return [str(text) for text in tuned.tokenizer.batch_decode(kept, skip_special_tokens=True)]
