"""A decoder that is served: adapters continue texts and conversations in the form of their training."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.runs import tune_format
from experiments.runs.tune_data import CHAT, TEXT
from experiments.serve.served import Base, Served, Sizes
from lora_jax.adapters import Adapter
from lora_jax.data import tokenizers
from lora_jax.data.conversations import Message
from lora_jax.data.end_tokens import end_tokens
from lora_jax.data.formats import Format
from lora_jax.errors import InputError
from lora_jax.models import hub
from lora_jax.models.architectures import AnyDecoderConfig
from lora_jax.reading import read_object
from lora_jax.run_folder import RESULT
from lora_jax.serving.adapters import Version
from lora_jax.serving.engine import Engine
from lora_jax.serving.requests import Request

Formats = dict[str, Format]  # what the server knows of an adapter: the forms of its prompts


class ServedDecoder(Served):
    """A decoder with the adapters of a folder."""

    engine: Engine
    special_tokens = tokenizers.DECODER

    def __init__(self, base: Base[AnyDecoderConfig], adapters: str, sizes: Sizes):
        """Reads the base and the adapters that are there, see `load`."""
        super().__init__(base, adapters)
        self._ends = end_tokens(base.folder, base.config.vocab_size)
        model = hub.load_decoder(base.folder, base.config)
        pool = self._pool(model, list(self._loaded().values()), sizes)
        self.engine = Engine(
            pool, rows=sizes.rows, room=sizes.room, steps=sizes.steps, waiting=sizes.waiting or 256
        )
        self.engine.base.about = self._formats_of({})
        self.scan()
        self._warm()

    def _warm(self) -> None:
        """Answers a request of its own, so that the first client does not wait for the compiler."""
        done = threading.Event()
        request = Request((0,), max_tokens=2, ends=())
        self.engine.submit(request, lambda ticket: done.set() if ticket.reason else None)
        done.wait()

    def _about(self, adapter: Adapter, folder: Path) -> Formats:
        return self._formats_of(_recorded(folder))

    def _formats_of(self, recorded: Mapping[str, str]) -> Formats:
        """The forms of prompts: plain texts, and conversations where there is a chat template."""
        separator = recorded.get("separator", "") if recorded.get("format") == TEXT else ""
        formats = {TEXT: tune_format.make(TEXT, self.tokenizer, separator, None, self._ends)}
        own = recorded.get("chat_template", "")
        if own or self.tokenizer.chat_template:
            template = tune_format.chat_template(CHAT, self.tokenizer, "", own)
            formats[CHAT] = tune_format.make(CHAT, self.tokenizer, "", template, self._ends)
        return formats

    def text_prompt(self, version: Version, text: str) -> tuple[list[int], tuple[int, ...]]:
        """The tokens of a text that is to be continued, and those that end it."""
        return self._prompt(version, TEXT, [Message("user", text)])

    def chat_prompt(
        self, version: Version, messages: Sequence[Message]
    ) -> tuple[list[int], tuple[int, ...]]:
        """The tokens of a conversation that is to be continued, and those that end a turn.

        Raises:
          InputError: the model has no chat template, or it refuses the conversation.
        """
        if CHAT not in version.about:
            raise InputError(
                "this model has no chat template: use /v1/completions, or serve a run that has one"
            )
        return self._prompt(version, CHAT, messages)

    def _prompt(
        self, version: Version, form: str, messages: Sequence[Message]
    ) -> tuple[list[int], tuple[int, ...]]:
        of_form: Format = version.about[form]
        with self.tokenizing:
            (ids,) = of_form.prompts([messages])
        return ids, of_form.ends


def _recorded(folder: Path) -> dict[str, Any]:
    """What a run of experiments.tune says of its format; {} for other folders."""
    if not (folder / RESULT).is_file():
        return {}
    record = read_object(folder / RESULT)
    return record.text_by_name("format") if "format" in record.values else {}
