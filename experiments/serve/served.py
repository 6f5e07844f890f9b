"""What is served: a base, its tokenizer, and the adapters of a folder, which come and go while it runs."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from experiments.runs import origins, tune_format
from experiments.runs.tune_data import CHAT, TEXT
from lora_jax import lora
from lora_jax.adapter_files import WEIGHTS
from lora_jax.adapters import DESCRIPTION, Adapter, load_adapter
from lora_jax.data import tokenizers
from lora_jax.data.conversations import Message
from lora_jax.data.end_tokens import end_tokens
from lora_jax.data.formats import Format
from lora_jax.errors import InputError
from lora_jax.low_rank.targets import ALL_LINEAR
from lora_jax.method import Method
from lora_jax.models import hub
from lora_jax.models.decoder import Decoder
from lora_jax.pool.pool import AdapterPool
from lora_jax.reading import read_object
from lora_jax.run_folder import RESULT
from lora_jax.serving.adapters import UnknownAdapterError
from lora_jax.serving.engine import Engine
from lora_jax.serving.requests import Request

_LOG = logging.getLogger(__name__)
_State = tuple[tuple[int, int], ...]
BASE = "base"  # the name of the model without an adapter


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is served at once.

    Attributes:
      rows: requests that are answered at once.
      room: tokens of the longest prompt with its continuation.
      steps: tokens between two chances to enter and leave.
      waiting: requests that may wait.
      capacity: adapters on the device.
      rank: the largest rank of adapters that come later; 0: of those that are there.
    """

    rows: int
    room: int
    steps: int
    waiting: int
    capacity: int
    rank: int


class Served:
    """A base with the adapters of a folder.

    Attributes:
      model: name of the base.
      engine: that answers.
      tokenizer: of the base.
      refused: what is wrong with folders that are no adapters of this base, by name.
    """

    def __init__(self, model: str, adapters: str, base_format: str, sizes: Sizes):
        """Reads the base and the adapters that are there.

        Args:
          model: see `hub.find`.
          adapters: folder whose subfolders are adapters or runs; "" for none.
          base_format: of the base's matrices, see `models.base_formats`.
          sizes: how much is served at once.

        Raises:
          InputError: something is missing or broken.
        """
        self.model = model
        self._folder = Path(adapters) if adapters else None
        if self._folder is not None and not self._folder.is_dir():
            raise InputError(f"--adapters={adapters} is not a folder")
        folder = hub.find(model)
        config = hub.read_decoder_config(folder, base_format=base_format)
        self.tokenizer: PreTrainedTokenizerBase = tokenizers.load_tokenizer(
            folder, tokenizers.DECODER, config.vocab_size
        )
        self._origin = origins.origin(config, self.tokenizer)
        self._ends = end_tokens(folder, config.vocab_size)
        self.refused: dict[str, str] = {}
        self._formats: dict[str, dict[str, Format]] = {BASE: self._formats_of({})}
        self._seen: dict[str, tuple[Path, _State]] = {}
        self._scanning = threading.Lock()
        base = hub.load_decoder(folder, config)
        found = self._loaded()
        methods = self._methods(base, [adapter.method for adapter in found.values()], sizes.rank)
        pool = AdapterPool(base, methods, capacity=max(sizes.capacity, sizes.rows))
        self.engine = Engine(
            pool, rows=sizes.rows, room=sizes.room, steps=sizes.steps, waiting=sizes.waiting
        )
        self.scan()
        self._warm()

    def _warm(self) -> None:
        """Answers a request of its own, so that the first client does not wait for the compiler."""
        done = threading.Event()
        request = Request((0,), max_tokens=2, ends=())
        self.engine.submit(request, lambda ticket: done.set() if ticket.reason else None)
        done.wait()

    def _methods(self, base: Decoder, found: Sequence[Method], rank: int) -> list[Method]:
        """Methods that a pool can hold, and room for what comes later."""
        usable: list[Method] = []
        for method in {str(method): method for method in found}.values():
            try:  # together with those before it
                AdapterPool(base, [*usable, method], capacity=1)
                usable.append(method)
            except InputError as error:
                _LOG.warning("not served: %s", error)
        if rank or not usable:
            usable.append(lora(ALL_LINEAR, rank=rank or 16, too_large="cap"))
            try:
                AdapterPool(base, usable, capacity=1)
            except InputError as error:
                raise InputError(
                    f"--rank={rank} beside the adapters that are there: {error}"
                ) from error
        return usable

    def _loaded(self) -> dict[str, Adapter]:
        loaded = {}
        for name, (folder, _) in self._there().items():
            try:
                loaded[name] = load_adapter(folder)
            except (ValueError, OSError) as error:
                self.refused[name] = str(error)
        return loaded

    def _there(self) -> dict[str, tuple[Path, _State]]:
        """The subfolders that hold an adapter or a run, with the state of their files."""
        found: dict[str, tuple[Path, _State]] = {}
        try:
            folders = sorted(self._folder.iterdir()) if self._folder else []
        except OSError as error:  # it may come back
            _LOG.warning("no adapters: %s", error)
            return found
        for folder in folders:
            for place in (folder, folder / "adapter", folder / "seed_0" / "adapter"):
                if (place / DESCRIPTION).is_file():
                    files = place / DESCRIPTION, place / WEIGHTS, folder / RESULT
                    found[folder.name] = folder, tuple(map(_state, files))
                    break
        return found

    def scan(self) -> None:
        """Takes in what came into the folder, and out what left it."""
        with self._scanning:
            there = self._there()
            for name in [name for name in self._seen if name not in there]:
                if name in self.engine.names:
                    self.engine.remove(name)
                self._forget(name)
            for name, (folder, changed) in there.items():
                if self._seen.get(name) == (folder, changed):
                    continue
                self._seen[name] = folder, changed
                self._take(name, folder)

    def _forget(self, name: str) -> None:
        self._seen.pop(name, None)
        self._formats.pop(name, None)
        self.refused.pop(name, None)

    def _take(self, name: str, folder: Path) -> None:
        try:
            if name in (BASE, self.model):
                raise InputError(f"the name {name!r} is taken by the model without an adapter")
            adapter = load_adapter(folder)
            origins.check(adapter, self._origin, f"adapter {name!r}")
            formats = self._formats_of(_recorded(folder))
            before = self._formats.get(name)
            self._formats[name] = (
                formats  # before the engine knows the name: requests may come at once
            )
            try:
                self.engine.add(name, adapter, folder)
            except BaseException:
                self._formats.pop(name)
                if before is not None:
                    self._formats[name] = before
                raise
            self.refused.pop(name, None)
        except (ValueError, OSError) as error:
            _LOG.warning("adapter %r is not served: %s", name, error)
            self.refused[name] = str(error)
            if name in self.engine.names:  # of what lay in the folder before
                self.engine.remove(name)

    def _formats_of(self, recorded: Mapping[str, str]) -> dict[str, Format]:
        """The forms of prompts: plain texts, and conversations where there is a chat template."""
        separator = recorded.get("separator", "") if recorded.get("format") == TEXT else ""
        formats = {TEXT: tune_format.make(TEXT, self.tokenizer, separator, None, self._ends)}
        own = recorded.get("chat_template", "")
        if own or self.tokenizer.chat_template:
            template = tune_format.chat_template(CHAT, self.tokenizer, "", own)
            formats[CHAT] = tune_format.make(CHAT, self.tokenizer, "", template, self._ends)
        return formats

    @property
    def names(self) -> list[str]:
        """The names that requests may use: the base's two, and the adapters'."""
        return [self.model, BASE, *self.engine.names]

    def adapter(self, name: str) -> str | None:
        """The adapter of a name that a request uses; None for the base.

        Raises:
          UnknownAdapterError: there is none of this name.
        """
        if name in (self.model, BASE):
            return None
        if name not in self.engine.names:
            why = self.refused.get(name)
            raise UnknownAdapterError(
                f"the adapter {name!r} is not served: {why}"
                if why
                else f"there is no model {name!r}"
            )
        return name

    def text_prompt(self, name: str | None, text: str) -> tuple[list[int], tuple[int, ...]]:
        """The tokens of a text that is to be continued, and those that end it."""
        return self._prompt(name, TEXT, [Message("user", text)])

    def chat_prompt(
        self, name: str | None, messages: Sequence[Message]
    ) -> tuple[list[int], tuple[int, ...]]:
        """The tokens of a conversation that is to be continued, and those that end a turn.

        Raises:
          InputError: the model has no chat template, or it refuses the conversation.
        """
        if CHAT not in self._forms(name):
            raise InputError(
                "this model has no chat template: use /v1/completions, or serve a run that has one"
            )
        return self._prompt(name, CHAT, messages)

    def _forms(self, name: str | None) -> dict[str, Format]:
        forms = self._formats.get(name or BASE)
        if forms is None:  # it has left since the request came
            raise UnknownAdapterError(f"there is no model {name!r}")
        return forms

    def _prompt(
        self, name: str | None, form: str, messages: Sequence[Message]
    ) -> tuple[list[int], tuple[int, ...]]:
        chosen = self._forms(name)[form]
        (ids,) = chosen.prompts([messages])
        return ids, chosen.ends


def _state(file: Path) -> tuple[int, int]:
    """Time and size of a file; zeros if there is none."""
    try:
        found = file.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def _recorded(folder: Path) -> dict[str, Any]:
    """What a run of experiments.tune says of its format; {} for other folders."""
    if not (folder / RESULT).is_file():
        return {}
    record = read_object(folder / RESULT)
    return record.text_by_name("format") if "format" in record.values else {}
