"""Chat templates: the text that a model reads of a conversation, as its tokenizer's Jinja template writes it.

A template is from outside. transformers' sandbox keeps it from files and from Python; here it runs in a
process of its own besides, whose time and memory are bounded (`render_chats`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from lora_jax import reading
from lora_jax.data import render_chats
from lora_jax.data.conversations import Message
from lora_jax.errors import FileError, InputError

MOST = 2**20  # characters of a template
SECONDS = 20.0  # for the jobs of one call below; one takes less than a millisecond
_JOBS = 256
_REMEDY = "Give another template in config.data.chat_template, or set config.data.format='text'"
Job = tuple[Sequence[Message], bool]  # a conversation, and whether the assistant is to speak next


class ChatTemplate:
    """A template, and the process that renders it; use it in a `with` statement, or `close` it.

    Attributes:
      text: of the template.
      source: where it is from, for messages.
    """

    def __init__(self, text: str, source: str, special_tokens: dict[str, str]):
        """Takes a template; the process starts with the first conversation.

        Args:
          text: Jinja, as of `apply_chat_template` in transformers.
          source: where it is from.
          special_tokens: texts by name, such as `bos_token`.

        Raises:
          FileError: it is too long.
        """
        if len(text) > MOST:
            raise FileError(
                source, "the chat template", f"{len(text):,} characters", f"at most {MOST:,}"
            )
        self.text, self.source, self._tokens = text, source, special_tokens
        self._process: subprocess.Popen[str] | None = None

    def render(self, jobs: Sequence[Job], seconds: float | None = None) -> list[str]:
        """The text of every conversation.

        Args:
          jobs: conversations.
          seconds: that a few hundred of them may take.

        Raises:
          FileError: the template is wrong, refuses a conversation, or takes too much time or memory.
        """
        limit = SECONDS if seconds is None else seconds
        texts: list[str] = []
        for start in range(0, len(jobs), _JOBS):
            texts += self._some(jobs[start : start + _JOBS], limit)
        return texts

    def _some(self, jobs: Sequence[Job], seconds: float) -> list[str]:
        lines = [([message._asdict() for message in messages], prompt) for messages, prompt in jobs]
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        timer = threading.Timer(seconds, process.kill)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(json.dumps(lines) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:  # it has ended already
            answer = ""
        finally:
            timer.cancel()
        if not answer:
            self.close()
            raise self._error(f"no end within {seconds:g} s, or too much memory")
        value = json.loads(answer)
        if "error" in value:
            messages = jobs[value["number"]][0]
            roles = ", ".join(message.role for message in messages)
            raise self._error(f"{value['error']} (for a conversation of {roles})")
        texts: list[str] = value["texts"]
        try:
            "".join(texts).encode()
        except UnicodeEncodeError as error:
            raise self._error("half of a surrogate pair in what it writes") from error
        return texts

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                # -P: without lora_jax/data on the path, whose modules have common names.
                [sys.executable, "-P", str(Path(render_chats.__file__))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                encoding="utf-8", start_new_session=True,  # Ctrl-C is for this program alone
            )  # fmt: skip
            assert self._process.stdin is not None
            first = {"template": self.text, "tokens": self._tokens}
            self._process.stdin.write(json.dumps(first) + "\n")
        return self._process

    def _error(self, found: str) -> FileError:
        return FileError(
            self.source, "the chat template", found, "a template that renders it", _REMEDY
        )

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __enter__(self) -> ChatTemplate:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The special tokens of a tokenizer by name, as chat templates know them."""
    named = tokenizer.special_tokens_map.items()
    return {name: str(token) for name, token in named if isinstance(token, str)}


def of_tokenizer(tokenizer: PreTrainedTokenizerBase, path: str = "") -> ChatTemplate:
    """The chat template of a model, or one in a file.

    Args:
      tokenizer: the model's.
      path: of a file with a template; "" takes the tokenizer's own.

    Raises:
      InputError: the tokenizer has none, as those of base models.
      MissingFileError, FileError, OSError: the file cannot be read.
    """
    tokens = special_tokens(tokenizer)
    if path:
        return ChatTemplate(reading.read_text(Path(path).expanduser(), 4 * MOST), path, tokens)
    found = tokenizer.chat_template
    source = str(tokenizer.name_or_path)
    if isinstance(found, dict):
        found = found.get("default")
    if not isinstance(found, str) or not found:
        raise InputError(
            f"the tokenizer of {source} has no chat template, as the model was not made for "
            "conversations; set config.data.format='text' for prompts and completions, or name a file "
            "with a Jinja template in config.data.chat_template"
        )
    return ChatTemplate(found, source, tokens)
