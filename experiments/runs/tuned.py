"""A model to talk to: a base by name, with a run's adapter and in the format that it was trained with."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from experiments.runs import origins, tune_format
from experiments.runs.decoding import merged
from experiments.runs.tune_data import CHAT, TEXT
from lora_jax import inputs
from lora_jax.adapters import Adapter, attach, load_adapter
from lora_jax.data import tokenizers
from lora_jax.data.chat_templates import ChatTemplate
from lora_jax.data.conversations import SYSTEM, USER, Message
from lora_jax.data.end_tokens import end_tokens
from lora_jax.data.formats import Format
from lora_jax.data.special_tokens import SpecialIds, in_prompts, special_ids
from lora_jax.decoding.sampling import Sampling
from lora_jax.decoding.streaming import Stream
from lora_jax.errors import InputError, MissingFileError
from lora_jax.models import hub
from lora_jax.models.architectures import AnyDecoderConfig
from lora_jax.models.decoder import Decoder
from lora_jax.reading import read_object
from lora_jax.run_folder import RESULT, SETTINGS
from lora_jax.sharding.placement import in_host_memory

_PLAIN = {"template": "{prompt}", "separator": "", "system": "", "messages": "messages",
          "completion": "completion", "chat_template": ""}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a model and its format come from.

    Attributes:
      model: name, see `hub.find`.
      adapter: folder of an adapter or of a run; "" for none.
      form: `text` or `chat`; "" where nothing says it.
      data: the record's words on the format, see `tune_format.record`.
      made_from: digests of the run's model and tokenizer, by name.
    """

    model: str
    adapter: str
    form: str
    data: Mapping[str, str]
    made_from: Mapping[str, str] = dataclasses.field(default_factory=dict)


def of_run(run: Path) -> Origin:
    """The origin that a run's record names.

    Raises:
      MissingFileError: no run of experiments.tune, or an unfinished one.
      FileError, OSError: its files are broken.
    """
    if not (run / RESULT).is_file():
        state = "is not finished" if (run / SETTINGS).is_file() else "is no run"
        raise MissingFileError(
            f"{run} {state}: there is no {RESULT}. Name the --workdir of a finished run of "
            "experiments.tune, or --model and --adapter"
        )
    record = read_object(run / RESULT)
    if "format" not in record.values:
        raise InputError(
            f"{run} is the run of another command (task {record.values.get('task')!r}), which says nothing "
            "of a format of prompts. Of a decoder (experiments.nlg) name --model and --adapter instead; "
            "classifiers answer by experiments.predict"
        )
    data = record.text_by_name("format")
    made_from = record.text_by_name("inputs")
    trained = "adapter" in record.values  # else the run had no epochs
    if trained and record.values["adapter"] is None:
        raise MissingFileError(f"{run} has no adapter: all of its seeds diverged")
    adapter = str(run) if trained else ""
    return Origin(record.get("model", str), adapter, data["format"], data, made_from)


def of_names(model: str, adapter: str) -> Origin:
    """The origin of a model and an adapter by name; nothing says how it was trained."""
    return Origin(model, adapter, "", _PLAIN)


class Tuned:
    """A model that continues conversations.

    Attributes:
      form: `text` or `chat`.
      tokenizer: of the model.
      format: how conversations become tokens.
      model: merged, where its base is not quantised; read when it is first asked for, so that all else is
        checked before.
      longest: positions of the model.
    """

    def __init__(self, origin: Origin, form: str = "", system: str | None = None):
        """Reads all but the weights of the model.

        Args:
          origin: of model, adapter and format.
          form: `text` or `chat`; "" for that of the run, or else `chat` if the tokenizer has a template.
          system: system message of `chat`; "" for none, None for that of the run.

        Raises:
          FileNotFoundError, ValueError: something is missing, broken, or not what the run was made from.
        """
        folder = hub.find(origin.model)
        adapter = _adapter(origin.adapter)
        config = hub.read_decoder_config(folder, base_format=origins.base_format(adapter))
        check_unchanged(origin, folder)
        self.tokenizer: PreTrainedTokenizerBase = tokenizers.load_tokenizer(
            folder, tokenizers.DECODER, config.vocab_size
        )
        has_template = CHAT if self.tokenizer.chat_template else TEXT
        self.form = form or origin.form or has_template
        given = {} if system is None else {"system": system}
        data = {**_PLAIN, **origin.data, **given}
        self.data: Mapping[str, str] = data
        self._template: ChatTemplate | None = tune_format.chat_template(
            self.form, self.tokenizer, "", data["chat_template"]
        )
        self.format: Format = tune_format.make(
            self.form,
            self.tokenizer,
            data["separator"],
            self._template,
            end_tokens(folder, config.vocab_size),
        )
        self._check_system(system)
        if adapter:
            origins.check(adapter, origins.origin(config, self.tokenizer), origin.adapter)
        hub.check(folder, config)
        counts = adapter.method.special_tokens if adapter else (0, 0)
        self._special: SpecialIds = special_ids(counts, config.vocab_size)
        self._read = lambda: _model(folder, config, adapter, origin.adapter)
        self.longest: int = config.max_length

    @functools.cached_property
    def model(self) -> Decoder:
        """Base and adapter, merged."""
        return self._read()

    def _check_system(self, system: str | None) -> None:
        """Raises InputError or FileError for a system message that the format cannot take."""
        if not system:
            return
        if self.form != CHAT:
            why = "the model has no chat template" if not self.tokenizer.chat_template else (
                "the run was trained with it, or --format asks for it"
            )  # fmt: skip
            raise InputError(
                f"--system is a message, which the format 'text' has no place for ({why}); write it into the "
                "prompts"
            )
        turn = Message(USER, "a")
        with_it, without = self.format.prompts([[Message(SYSTEM, system), turn], [turn]])
        if with_it == without:
            raise InputError("--system: the model's chat template leaves system messages out")

    def room(self, settings: Sampling) -> int:
        """Tokens of the longest prompt that leaves room for an answer; InputError if there are none."""
        room = self.longest - settings.max_tokens + 1
        if room < 1 + self.special_count:
            raise InputError(
                f"--max_tokens={settings.max_tokens:,} leaves no room for a prompt in the model's "
                f"{self.longest:,} positions; lower it"
            )
        return room

    def prompt(self, messages: Sequence[Message]) -> np.ndarray:
        """The tokens of a conversation in which the model is to speak next."""
        (ids,) = self.format.prompts([messages])
        return np.array(ids, np.int32)

    def with_special(self, prompt: np.ndarray, room: int) -> np.ndarray:
        """A prompt with the method's own tokens; it loses its beginning where it is longer than `room`."""
        kept = prompt[-max(1, room - self._special.count) :]
        (whole,) = in_prompts([kept], self._special)
        return whole

    @property
    def special_count(self) -> int:
        """Number of the method's own tokens in every prompt."""
        return self._special.count

    def stream(self, settings: Sampling) -> Talker:
        """What continues conversations word by word."""
        return Talker(self, Stream(self.model, settings))

    def close(self) -> None:
        """Ends the process of the chat template."""
        if self._template is not None:
            self._template.close()


class Talker:
    """Continues conversations token by token, as text."""

    def __init__(self, tuned: Tuned, stream: Stream):
        self._tuned, self._stream = tuned, stream

    @property
    def longest(self) -> int:
        """Tokens of the longest conversation that leaves room for an answer."""
        return self._stream.longest - self._tuned.special_count

    def words(self, messages: Sequence[Message], key: jax.Array) -> Iterator[str]:
        """Yields the continuation in pieces; a character whose bytes are not all there waits for them."""
        prompt = self._tuned.with_special(self._tuned.prompt(messages), self._stream.longest)
        ids: list[int] = []
        said = ""
        for token in self._stream.tokens(prompt.tolist(), key):
            ids.append(token)
            text = str(self._tuned.tokenizer.decode(ids, skip_special_tokens=True))
            if text.endswith("\N{REPLACEMENT CHARACTER}"):
                continue
            yield text[len(said) :]
            said = text
        text = str(self._tuned.tokenizer.decode(ids, skip_special_tokens=True))
        yield text[len(said) :]


def _adapter(folder: str) -> Adapter | None:
    return load_adapter(folder) if folder else None


def _model(folder: Path, config: AnyDecoderConfig, adapter: Adapter | None, name: str) -> Decoder:
    with in_host_memory():
        base = hub.load_decoder(folder, config)
        whole = attach(base, adapter, None, name) if adapter else base
    model = merged(whole)
    model.eval()
    assert isinstance(model, Decoder)
    return model


def check_unchanged(origin: Origin, folder: Path) -> None:
    """Raises InputError if a run was made from another model or tokenizer than those of this name now.

    Args:
      origin: of the run.
      folder: of the model.
    """
    if not origin.made_from:
        return
    here: inputs.Inputs = {"model": hub.digest(folder), "tokenizer": tokenizers.digest(folder)}
    differing = [k for k, v in here.items() if origin.made_from.get(k, v) != v]
    if differing:
        raise InputError(
            f"the {' and the '.join(differing)} of {origin.model} changed since {origin.adapter} was "
            "trained on it; put the files back, or train again"
        )


def key_of(seed: int, number: int) -> jax.Array:
    """The key of a continuation: of the seed, and of how many there were before."""
    return jax.random.fold_in(jax.random.key(seed), number)


def with_system(messages: Sequence[Message], data: Mapping[str, Any]) -> list[Message]:
    """A conversation behind the system message of `Tuned.data`, if there is one and it has none itself."""
    system = str(data["system"])
    if system and not any(message.role == SYSTEM for message in messages):
        return [Message(SYSTEM, system), *messages]
    return list(messages)
