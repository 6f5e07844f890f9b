"""Looks ahead in a stream of batches: a thread makes the next ones while a step runs."""

from __future__ import annotations

import collections
import contextvars
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import jax

from lora_jax.checks import integer

_Item = TypeVar("_Item")
_END = object()


@contextmanager
def ahead(items: Iterable[_Item], depth: int = 2) -> Iterator[Iterator[_Item]]:
    """Inside of it a thread draws items before they are asked for; at its end the thread ends.

        with ahead(placed(batches)) as stream:
            for batch in stream: ...

    The items and their order are those of the iterable, which is only used in the thread, by one call
    after another. What it raises is raised where its item would have come, with its traceback. In the
    thread hold JAX's width of types and default device, and the context variables, of where this is called.

    Args:
      items: what to iterate over.
      depth: number of items that are made, at most, beyond those that were taken.
    """
    integer("depth", depth)
    source = iter(items)
    wide, device = jax.config.values["jax_enable_x64"], jax.config.values["jax_default_device"]
    variables = contextvars.copy_context()
    drawn: collections.deque[Future[Any]] = collections.deque()

    def draw() -> Any:
        with jax.enable_x64(wide), jax.default_device(device):
            return variables.run(next, source, _END)

    def taken() -> Iterator[_Item]:
        while (item := drawn.popleft().result()) is not _END:
            drawn.append(thread.submit(draw))
            yield item

    with ThreadPoolExecutor(1, thread_name_prefix="lora_jax batches") as thread:
        drawn.extend(thread.submit(draw) for _ in range(depth))
        try:
            yield taken()
        finally:
            thread.shutdown(wait=False, cancel_futures=True)  # the `with` waits for the last one
