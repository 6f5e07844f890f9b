"""The adapters of a pool by name, in host memory or on disk."""

from __future__ import annotations

import dataclasses
import os
from collections import OrderedDict

from lora_jax.adapter_files import Adapter, digest
from lora_jax.adapters import load_adapter
from lora_jax.errors import InputError
from lora_jax.patterns import some


@dataclasses.dataclass
class _Member:
    """An adapter.

    Attributes:
      adapter: None while it is on disk only.
      folder: where it can be read again; None if it came from memory.
      digest: of its method and values.
    """

    adapter: Adapter | None
    folder: str | os.PathLike[str] | None
    digest: str


class Members:
    """Adapters by name, of which some are in host memory.

    Attributes:
      most: adapters in memory; those that came from no folder stay there even so.
    """

    def __init__(self, most: int):
        self.most = most
        self._members: dict[str, _Member] = {}
        self._recent: OrderedDict[str, None] = OrderedDict()  # of those in memory, the newest last

    @property
    def names(self) -> list[str]:
        """The names, in the order in which they came."""
        return list(self._members)

    @property
    def in_memory(self) -> list[str]:
        """Those that are in host memory."""
        return [name for name, member in self._members.items() if member.adapter is not None]

    def check(self, name: str) -> None:
        """Raises InputError if there is no adapter of this name."""
        if name not in self._members:
            raise InputError(
                f"there is no adapter {name!r}; there are {some(self.names) or 'none'}"
            )

    def check_new(self, name: str) -> None:
        """Raises InputError if there is an adapter of this name."""
        if name in self._members:
            raise InputError(
                f"there is an adapter {name!r} already; remove it first, or take another name"
            )

    def add(self, name: str, adapter: Adapter, folder: str | os.PathLike[str] | None) -> None:
        """Adds an adapter.

        Args:
          name: a new one.
          adapter: checked to fit.
          folder: where it can be read again; None: nowhere.
        """
        self._members[name] = _Member(adapter, folder, digest(adapter))
        self._used(name)

    def remove(self, name: str) -> None:
        """Takes an adapter out; InputError if there is none."""
        self.check(name)
        del self._members[name]
        self._recent.pop(name, None)

    def get(self, name: str) -> Adapter:
        """An adapter, read again if it is on disk only.

        Raises:
          InputError: there is none, or its folder holds another one now.
        """
        self.check(name)
        member = self._members[name]
        adapter = member.adapter
        if adapter is None:
            assert member.folder is not None
            adapter = load_adapter(member.folder)
            if digest(adapter) != member.digest:
                raise InputError(
                    f"adapter {name!r}: {member.folder} holds another adapter than when it was added; "
                    "remove it and add it again"
                )
            member.adapter = adapter
        self._used(name)
        return adapter

    def _used(self, name: str) -> None:
        """Leaves those to the disk that were not used for longest, where they are in a folder."""
        self._recent[name] = None
        self._recent.move_to_end(name)
        for other in list(self._recent)[:-1]:
            if len(self._recent) <= self.most:
                return
            member = self._members[other]
            if member.folder is not None:
                member.adapter = None
                del self._recent[other]
