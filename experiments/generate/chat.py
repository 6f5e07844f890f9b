"""A conversation with a model at the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TextIO

from experiments.runs.tune_data import CHAT
from experiments.runs.tuned import Tuned, key_of, with_system
from lora_jax.data import text_templates
from lora_jax.data.conversations import ASSISTANT, SYSTEM, USER, Message
from lora_jax.decoding.sampling import Sampling
from lora_jax.errors import InputError

_HELP = "/reset begins a new conversation, /exit ends; Ctrl-C stops an answer\n"
_ALONE = "this model was trained on single prompts, not on conversations: every line is answered by itself\n"


def talk(tuned: Tuned, settings: Sampling, seed: int, lines: TextIO) -> None:
    """Answers every line as it comes, and keeps the conversation where the model was trained on such.

    Stdout gets the answers, one behind the other; all else goes to stderr.

    Args:
      tuned: the model.
      settings: of the choice of tokens.
      seed: of the draws; with the same lines it gives the same answers.
      lines: of the user, such as stdin.

    Raises:
      InputError: there is no room for answers of that length.
    """
    tuned.room(settings)
    talker = tuned.stream(settings)
    keeps = tuned.form == CHAT
    note = sys.stderr.write
    note(_HELP if keeps else _ALONE + _HELP)
    messages: list[Message] = []
    number = 0
    for line in _asked(lines):
        if line == "/exit":
            break
        if line == "/reset":
            messages, number = [], 0
            note("a new conversation\n")
            continue
        if line.startswith("/"):
            note(f"unknown command {line.split()[0]!r}\n{_HELP}")
            continue
        try:
            turn = Message(USER, line if keeps else _filled(tuned, line))
            asked = [*messages, turn] if keeps else [turn]
            pieces: list[str] = []
            try:
                whole = _fitting(tuned, with_system(asked, tuned.data), talker.longest)
                for piece in talker.words(whole, key_of(seed, number)):
                    pieces.append(piece)
                    sys.stdout.write(piece)
                    sys.stdout.flush()
            except KeyboardInterrupt:
                note(" (stopped)")
            sys.stdout.write("\n")
            sys.stdout.flush()
        except InputError as error:  # such as a special token in the line
            note(f"error: {error}\n")
            continue
        number += 1
        messages = [*asked, Message(ASSISTANT, "".join(pieces))]


def _asked(lines: TextIO) -> Iterable[str]:
    """The lines of the user; at a terminal each is asked for. Ctrl-C at the prompt ends."""
    terminal = lines.isatty()
    while True:
        if terminal:
            sys.stderr.write("> ")
            sys.stderr.flush()
        try:
            line = lines.readline()
        except KeyboardInterrupt:
            sys.stderr.write("\n")
            return
        if not line:
            return
        if text := line.strip():
            yield text


def _fitting(tuned: Tuned, messages: list[Message], longest: int) -> list[Message]:
    """A conversation that leaves room for an answer: without its oldest turns, if need be."""
    first = 1 if messages[0].role == SYSTEM else 0
    left = list(messages)
    while len(left) > first + 2 and len(tuned.prompt(left)) > longest:
        del left[first : first + 2]
    if len(left) < len(messages):
        gone = len(messages) - len(left)
        sys.stderr.write(f"(the {gone} oldest turns do not fit the model any more)\n")
    return left


def _filled(tuned: Tuned, line: str) -> str:
    """The run's template with the line in its first column; the others are optional, or it is refused."""
    template = text_templates.parse(tuned.data["template"])
    first, *others = template.required or template.optional
    if others and template.required:
        raise InputError(
            f"the run's template has several columns ({', '.join(template.required)}), of which a line at "
            "the terminal gives one; put them into a file, --input=FILE.jsonl"
        )
    return template.fill({first: line})
