"""A pool of adapters on one base: each row of a batch names its own, and one program serves all of them.

Section 4.2 of the paper: inputs of different tasks cannot share a batch once their updates are merged into
the weights. Here they stay beside the weights, in slots; a batch says by numbers which slot each row uses.
The number of slots is part of the program, what is in them is not: adapters come and go without compiling.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from lora_jax import partition
from lora_jax.adapter_files import Adapter
from lora_jax.adapters import load_adapter
from lora_jax.arguments import MODEL, TEXT, Kind, takes
from lora_jax.arguments import check as check_kind
from lora_jax.checks import Integer, floating, integer
from lora_jax.errors import InputError
from lora_jax.method import METHOD, Method
from lora_jax.partition import Params
from lora_jax.patterns import some
from lora_jax.pool.members import Members
from lora_jax.pool.routing import Form, route
from lora_jax.pool.slots import Slots
from lora_jax.sharding.mesh import AnyMesh

MOST_SLOTS = 4096
NO_ADAPTER = 0  # the slot that gives the base
_METHODS = Kind((list, tuple), 'a list of methods, such as [lora_jax.lora("all-linear")]')


class AdapterPool:
    """Adapters of one base, several of them in one batch.

        pool = lora_jax.AdapterPool(base, [method], capacity=8)
        pool.add("e2e", "runs/e2e/adapter")
        pool.add("dart", "runs/dart/adapter")
        answer = pool.compiled(lambda model, x: model(x))
        y = answer(["e2e", None, "dart", "e2e"], x)     # row by row; None is the base

    As many adapters as `capacity` are on the device; the least recently used one makes room for the next,
    and stays in host memory, or on disk if there are more than `in_memory`. Threads that share a pool must
    take turns: what one brings to the device takes the leaves away that another has just got.

    Attributes:
      base: the pre-trained model; it is never changed.
      capacity: adapters that a batch may have.
      dtype: of the factors on the device.
      structure: of the model with slots.
      frozen: its leaves that no adapter changes, by path.
      placement: of the leaves on a mesh; None without one.
    """

    @takes(base=MODEL, methods=_METHODS)
    def __init__(
        self,
        base: nnx.Module,
        methods: Sequence[Method],
        *,
        capacity: Integer = 8,
        in_memory: Integer = 1024,
        dtype: DTypeLike = jnp.float32,
        mesh: AnyMesh | None = None,
    ):
        """Makes an empty pool.

        Args:
          base: pre-trained, without inserted modules; with a head as wide as the widest, if there are any.
          methods: of the adapters that are to come: their layers, and the largest of their ranks, get
            slots.
          capacity: number of adapters on the device.
          in_memory: number of adapters in host memory.
          dtype: of the factors on the device. Layers cast them to the type of their results, so for a model
            that computes in bfloat16 that type gives the same results and is read in half the time.
          mesh: over which the model is split; None for one device.

        Raises:
          InputError: the base is adapted already, a number is out of range, or a method changes something
            that has no form with slots.
        """
        if not methods:
            raise InputError(
                "a pool needs the methods of the adapters that it is to hold, at least one"
            )
        for number, method in enumerate(methods):
            check_kind("AdapterPool", f"methods[{number}]", method, METHOD)
        self.capacity = integer("capacity", capacity, most=MOST_SLOTS)
        self.dtype = floating("dtype", jnp.float32 if dtype is None else dtype)
        self._members = Members(integer("in_memory", in_memory))
        self._resident: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self._slots = Slots(base, methods, self.capacity + 1, self.dtype, mesh)
        self.base, self.placement = self._slots.base, self._slots.placement
        self.structure, self.frozen = self._slots.structure, self._slots.frozen

    def __repr__(self) -> str:
        """With the names."""
        held = some(self.names) or "empty"
        return f"AdapterPool({type(self.base).__name__}, capacity={self.capacity}: {held})"

    @property
    def slots(self) -> Params:
        """The leaves of the model with an axis of slots, by path; replaced when an adapter enters."""
        return self._slots.leaves

    @property
    def names(self) -> list[str]:
        """The names of the adapters, in the order in which they came."""
        return self._members.names

    @property
    def resident(self) -> list[str]:
        """Those that are on the device, the least recently used one first."""
        return list(self._resident)

    @property
    def in_memory(self) -> list[str]:
        """Those that are in host memory."""
        return self._members.in_memory

    def __contains__(self, name: object) -> bool:
        """Whether there is an adapter of this name."""
        return name in self._members.names

    def __getitem__(self, name: str) -> Adapter:
        """The adapter of a name, read again if it is on disk only.

        Raises:
          InputError: there is none, or its folder is another adapter's now.
        """
        return self._members.get(name)

    @takes(name=TEXT)
    def add(
        self,
        name: str,
        adapter: Adapter | str | os.PathLike[str],
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        """Adds an adapter of this base; it comes to the device when a batch names it.

        Args:
          name: of the adapter.
          adapter: from `load_adapter`, or the folder of one or of a run.
          folder: of an adapter that is loaded, where it can be read again.

        Raises:
          InputError: the name is taken, or the adapter is of another base, has no form with slots, or does
            not fit the slots.
        """
        self._members.check_new(name)
        folder = folder if isinstance(adapter, Adapter) else adapter
        loaded = adapter if isinstance(adapter, Adapter) else load_adapter(adapter)
        self.check(loaded, f"adapter {name!r}")
        self._members.add(name, loaded, folder)

    def check(self, adapter: Adapter, where: str = "the adapter") -> None:
        """Raises InputError for an adapter that `add` would refuse."""
        self._slots.check(adapter, where)

    def remove(self, name: str) -> None:
        """Takes an adapter out; its slot is free for another one.

        Raises:
          InputError: there is none of this name.
        """
        self._members.remove(name)
        self._resident.pop(name, None)

    def slots_of(
        self, names: Sequence[str | None], in_use: Collection[str] = ()
    ) -> Int[np.ndarray, " rows"]:
        """The slots of a batch's adapters, which come to the device where they are not there.

        Args:
          names: of every row's adapter; None for the base.
          in_use: adapters of earlier batches that must keep their slots.

        Raises:
          InputError: a name is unknown, or there are more different ones than slots.
        """
        wanted = list(dict.fromkeys(name for name in names if name is not None))
        for name in wanted:
            self._members.check(name)
        kept = {*wanted, *in_use}
        if len(kept) > self.capacity:
            raise InputError(
                f"the batch has {len(kept)} different adapters, and the pool room for {self.capacity}; "
                "make it with a larger capacity, or divide the batch"
            )
        for name in wanted:
            if name not in self._resident:
                self._enter(name, kept)
            self._resident.move_to_end(name)
        found = [NO_ADAPTER if name is None else self._resident[name] for name in names]
        return np.array(found, np.int32)

    def ready(
        self, names: Sequence[str | None], in_use: Collection[str] = ()
    ) -> tuple[Params, Params, Int[np.ndarray, " rows"]]:
        """What a program of several adapters takes: the leaves with slots, the others, and `slots_of`.

        The leaves of an earlier batch are gone where an adapter has entered since.
        """
        numbers = self.slots_of(names, in_use)
        return self.slots, self.frozen, numbers

    def _enter(self, name: str, kept: Collection[str]) -> None:
        own = self._slots.values(self[name], f"adapter {name!r}")
        free = set(range(1, self.capacity + 1)) - set(self._resident.values())
        if not free:
            oldest = next(other for other in self._resident if other not in kept)
            free = {self._resident.pop(oldest)}
        slot = min(free)
        self._slots.write(slot, own)
        self._resident[name] = slot

    def outputs(self, name: str) -> int | None:
        """Width of an adapter's head, whatever layers it has inside; None without one."""
        adapter = self[name]
        leaves = [v for p, v in adapter.values.items() if adapter.groups.get(p) == partition.HEAD]
        inside = {leaf.shape[-2] for leaf in leaves if leaf.ndim > 1}
        widths = {leaf.shape[-1] for leaf in leaves}
        return min(widths - inside or widths, default=None)

    def compiled(
        self, function: Callable[..., Any], *, looped: bool = False, form: Form = "auto"
    ) -> Callable[..., Any]:
        """A function of a model as one program for all adapters, for batches whose rows name theirs.

        Args:
          function: of a model and arrays whose first axis is the rows.
          looped: whether it calls the model again and again, as decoding does; see `route`.
          form: see `route`.

        Returns:
          A function of the rows' adapters (names, or None for the base) and the arrays.
        """

        def run(slots: Params, frozen: Params, numbers: Array, *args: Any) -> Any:
            model = self.model(slots, frozen)
            route(model, numbers, looped=looped, form=form)
            return function(model, *args)

        program = jax.jit(run) if self.placement is None else self.placement.jit(run)

        def of_names(names: Sequence[str | None], *args: Any) -> Any:
            return program(*self.ready(names), *args)

        return of_names

    def model(self, slots: Params | None = None, frozen: Params | None = None) -> nnx.Module:
        """The model with slots; `route` has to say which ones a batch uses, before it is called.

        Args:
          slots: in place of the pool's, inside a program.
          frozen: in place of the pool's, inside a program.
        """
        return partition.join(
            self.structure,
            self.slots if slots is None else slots,
            self.frozen if frozen is None else frozen,
        )
