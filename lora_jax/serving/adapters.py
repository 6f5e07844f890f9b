"""The adapters of a pool by the names that requests use, while they are replaced and removed."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

from lora_jax.adapter_files import Adapter
from lora_jax.adapters import load_adapter
from lora_jax.errors import InputError
from lora_jax.pool.pool import AdapterPool


class UnknownAdapterError(InputError):
    """There is no adapter of this name."""


class Version:
    """What a name stands for until the adapter is replaced or removed, and longer for requests that have it.

    Attributes:
      name: in the pool; None is the base.
      about: what the one who added it wants to know of it.
      outputs: width of its head; None without one.
      uses: requests that have it.
    """

    def __init__(self, name: str | None, about: Any = None, outputs: int | None = None):
        self.name, self.about, self.outputs, self.uses = name, about, outputs, 0


class Adapters:
    """Names of a pool's adapters. A request keeps the version that it was taken for.

    Attributes:
      pool: of the base and its adapters; nobody else may change it.
      base: what requests without an adapter get.
    """

    def __init__(self, pool: AdapterPool[Any]):
        self.pool, self.base = pool, Version(None)
        self._versions: dict[str, Version] = {}
        self._number = 0
        self._lock = threading.RLock()  # of all of the above

    @property
    def names(self) -> list[str]:
        """The names that requests may use."""
        return list(self.versions)

    @property
    def versions(self) -> dict[str, Version]:
        """What each of these names stands for now."""
        with self._lock:
            return dict(self._versions)

    def add(
        self,
        name: str,
        adapter: Adapter | str | os.PathLike[str],
        folder: str | os.PathLike[str] | None = None,
        about: Any = None,
    ) -> None:
        """Adds an adapter; one of this name that is there already gives way.

        Args:
          name, adapter, folder: see `AdapterPool.add`.
          about: see `Version`.

        Raises:
          InputError: as `AdapterPool.add`; then nothing has changed.
        """
        folder = folder if isinstance(adapter, Adapter) else adapter
        loaded = adapter if isinstance(adapter, Adapter) else load_adapter(adapter)
        # Before the lock is taken: it may take a while.
        self.pool.check(loaded, f"adapter {name!r}")
        with self._lock:
            self._number += 1
            in_pool = f"{name} #{self._number}"
            self.pool.add(in_pool, loaded, folder)
            old = self._versions.get(name)
            self._versions[name] = Version(in_pool, about, self.pool.outputs(in_pool))
            self._retire(old)

    def remove(self, name: str) -> None:
        """Takes an adapter out of what requests may name; those that have it keep it.

        Raises:
          UnknownAdapterError: there is none.
        """
        with self._lock:
            self._check(name)
            self._retire(self._versions.pop(name))

    def _check(self, name: str) -> None:
        if name not in self._versions:
            raise UnknownAdapterError(f"there is no adapter {name!r}")

    @contextlib.contextmanager
    def using(self, name: str | Version | None) -> Iterator[Version]:
        """What a name stands for now; it stays in the pool at least as long as the block lasts.

        Args:
          name: of an adapter, None for the base; or what another block around this one has got.

        Raises:
          UnknownAdapterError: there is none.
        """
        with self._lock:
            if isinstance(name, str):
                self._check(name)
                name = self._versions[name]
            version = self.base if name is None else name
            version.uses += 1
        try:
            yield version
        finally:
            self._release(version)

    def _release(self, version: Version) -> None:
        with self._lock:
            version.uses -= 1
            if version not in self._versions.values():
                self._retire(version)

    def _retire(self, version: Version | None) -> None:
        """Takes a version without a name out of the pool as soon as no request has it."""
        if version is not None and version.name is not None and not version.uses:
            self.pool.remove(version.name)
