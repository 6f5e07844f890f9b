"""What is served: a base, its tokenizer, and the adapters of a folder, which come and go while it runs."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from flax import nnx

from experiments.runs import origins
from experiments.serve.subfolders import State, subfolders
from lora_jax import lora
from lora_jax.adapters import Adapter, load_adapter
from lora_jax.data import tokenizers
from lora_jax.errors import InputError, did_you_mean
from lora_jax.low_rank.targets import ALL_LINEAR
from lora_jax.method import Method
from lora_jax.models.architectures import AnyConfig
from lora_jax.pool.pool import AdapterPool
from lora_jax.serving.adapters import UnknownAdapterError, Version
from lora_jax.serving.worker import Worker

_LOG = logging.getLogger(__name__)
_Config = TypeVar("_Config", bound=AnyConfig)
BASE = "base"  # the name of the model without an adapter


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is served at once.

    Attributes:
      rows: requests that are answered at once; of classifiers, rows of a batch.
      room: tokens of the longest prompt with its continuation, or of the longest text to be classified.
      steps: tokens between two chances to enter and leave.
      waiting: requests that may wait, or texts to be classified; 0: 256, or 4,096 texts.
      capacity: adapters on the device.
      rank: the largest rank of adapters that come later; 0: of those that are there.
      outputs: of the widest head of adapters that come later.
    """

    rows: int
    room: int
    steps: int
    waiting: int
    capacity: int
    rank: int
    outputs: int = 64


class Base(NamedTuple, Generic[_Config]):
    """The model that is served.

    Attributes:
      name: as the user gave it.
      folder: of its files.
      config: of the model.
    """

    name: str
    folder: Path
    config: _Config


class Served(abc.ABC):
    """A base with the adapters of a folder.

    Attributes:
      model: name of the base.
      engine: that answers.
      tokenizer: of the base.
      tokenizing: held while texts are read: a fast tokenizer's settings are those of all threads.
      refused: what is wrong with what is not served, by name: folders that are no adapters of this base.
    """

    engine: Worker[Any]
    special_tokens: ClassVar[tuple[str, ...]]  # that the tokenizer must have
    head: str | None = None  # of the adapters' methods

    def __init__(self, base: Base[Any], adapters: str):
        """Reads the tokenizer; subclasses make the engine, and scan.

        Args:
          base: the model.
          adapters: folder whose subfolders are adapters or runs; "" for none.

        Raises:
          InputError: there is no tokenizer, or none of this model.
        """
        self.model = base.name
        self.tokenizer = tokenizers.load_tokenizer(
            base.folder, self.special_tokens, base.config.vocab_size
        )
        self.tokenizing = threading.Lock()
        self._folder = Path(adapters) if adapters else None
        self._origin = origins.origin(base.config, self.tokenizer)
        self.refused: dict[str, str] = {}
        self._seen: dict[str, tuple[Path, State]] = {}
        self._scanning = threading.Lock()

    @abc.abstractmethod
    def _about(self, adapter: Adapter, folder: Path) -> Any:
        """What requests need to know of an adapter; InputError for one that is not served."""

    def _pool(self, base: nnx.Module, found: Sequence[Adapter], sizes: Sizes) -> AdapterPool:
        """A pool that can hold the adapters found, and has room for what comes later."""
        usable: list[Method] = []
        methods = [adapter.method for adapter in found]
        for method in {str(method): method for method in methods}.values():
            try:  # together with those before it
                AdapterPool(base, [*usable, method], capacity=1)
                usable.append(method)
            except InputError as error:
                _LOG.warning("not served: %s", error)
        if sizes.rank or not usable:
            usable.append(lora(ALL_LINEAR, rank=sizes.rank or 16, too_large="cap", head=self.head))
            try:
                AdapterPool(base, usable, capacity=1)
            except InputError as error:
                raise InputError(
                    f"--rank={sizes.rank} beside the adapters that are there: {error}"
                ) from error
        return AdapterPool(base, usable, capacity=max(sizes.capacity, sizes.rows))

    def _loaded(self) -> dict[str, Adapter]:
        loaded = {}
        for name, (folder, _) in subfolders(self._folder).items():
            try:
                loaded[name] = load_adapter(folder)
            except (ValueError, OSError) as error:
                self.refused[name] = str(error)
        return loaded

    def scan(self) -> None:
        """Takes in what came into the folder, and out what left it."""
        with self._scanning:
            there = subfolders(self._folder)
            for name in [name for name in self._seen if name not in there]:
                if name in self.engine.names:
                    self.engine.remove(name)
                self._seen.pop(name, None)
                self.refused.pop(name, None)
            for name, (folder, changed) in there.items():
                if self._seen.get(name) == (folder, changed):
                    continue
                self._seen[name] = folder, changed
                self._take(name, folder)

    def _take(self, name: str, folder: Path) -> None:
        try:
            if name in (BASE, self.model):
                raise InputError(f"the name {name!r} is taken by the model without an adapter")
            if name != folder.name:
                raise InputError("the name of its folder is no UTF-8 text; give it another one")
            adapter = load_adapter(folder)
            origins.check(adapter, self._origin, f"adapter {name!r}")
            self.engine.add(name, adapter, folder, self._about(adapter, folder))
            self.refused.pop(name, None)
        except (ValueError, OSError) as error:
            _LOG.warning("adapter %r is not served: %s", name, error)
            self.refused[name] = str(error)
            if name in self.engine.names:  # of what lay in the folder before
                self.engine.remove(name)

    @property
    def names(self) -> list[str]:
        """The names that requests may use: the base's two, and the adapters'."""
        return [self.model, BASE, *self.engine.names]

    def described(self) -> list[dict[str, Any]]:
        """What clients are told of each name."""
        return [{"id": name} for name in self.names]

    def unknown(self, name: str) -> str:
        """What to say to those who ask for a name that is not served."""
        why = self.refused.get(name)
        if why:
            return f"{name!r} is not served: {why}"
        meant = did_you_mean(name, self.names)
        return f"there is no model {name!r}{meant or ';'} /v1/models lists what is served"

    @contextlib.contextmanager
    def using(self, name: str) -> Iterator[Version]:
        """What a name that a request uses stands for, as long as the block lasts.

        Raises:
          UnknownAdapterError: there is nothing of this name.
        """
        if name not in self.names:
            raise UnknownAdapterError(self.unknown(name))
        with self.engine.using(None if name in (BASE, self.model) else name) as version:
            yield version
