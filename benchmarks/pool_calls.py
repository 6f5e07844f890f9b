"""Inputs of many tasks through a pool of adapters, and through merged models: calls to be timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lora_jax
from experiments.latency.random_adapters import random_adapter
from lora_jax import partition
from lora_jax.adapter_files import Adapter
from lora_jax.adapters import base_parameters, fingerprint
from lora_jax.data.packing import lay_out
from lora_jax.decoding.sampling import Sampling, sample
from lora_jax.pool import AdapterPool, packed_slots, route

TARGETS, RANK = ".*/attention/(query|value)", 8
Call = Callable[[], object]


def random_adapters(base: Any, count: int, head: str | None) -> dict[str, Adapter]:
    """Adapters with random values: LoRA on queries and values.

    Args:
      base: the model.
      count: of the adapters.
      head: pattern of the leaves of a task's head, which each adapter has for itself.
    """
    method = lora_jax.lora(TARGETS, rank=RANK, alpha=16, head=head)
    of_base = fingerprint(base_parameters(base, head))
    return {f"t{seed}": random_adapter(base, method, seed, of_base) for seed in range(count)}


class Inputs:
    """The inputs of a batch, and programs for all of them or some.

    Attributes:
      ids: tokens of every input, of random lengths from 8 to 59.
      tokens: of every greedy continuation of a decoder; None for a classifier over packed rows.
    """

    def __init__(self, count: int, vocabulary: int, tokens: int | None):
        rng = np.random.default_rng(0)
        lengths = rng.integers(8, 60, count)
        self.ids = [rng.integers(5, vocabulary, n).astype(np.int32) for n in lengths]
        self.tokens = tokens

    def arguments(self, indices: np.ndarray) -> tuple[Any, ...]:
        """Of these inputs: packed rows and places, or padded prompts and lengths."""
        ids = [self.ids[i] for i in indices]
        if self.tokens is None:
            count = -(-sum(map(len, ids)) * 11 // 10 // 128)
            packed, places = lay_out(ids, (max(count, 1), 128))
            return packed, *np.array(places, np.int32).T
        rows = np.zeros((len(ids), 64), np.int32)
        for row, tokens in zip(rows, ids, strict=True):
            row[: len(tokens)] = tokens
        return rows, np.array(list(map(len, ids)), np.int32)

    def run(self, model: Any, *arguments: Any) -> Any:
        """The logits, or the tokens."""
        if self.tokens is None:
            return model(*arguments)
        settings = Sampling((), max_tokens=self.tokens)
        return sample(model, *arguments, settings, jax.random.key(0)).tokens


def frozen_program(inputs: Inputs, model: Any) -> tuple[Callable[..., Any], Any]:
    """A program of parameters and arguments, and the parameters."""
    structure, params = partition.all_frozen(model)
    return jax.jit(lambda p, *a: inputs.run(partition.join(structure, {}, p), *a)), params


def of_pool(
    inputs: Inputs,
    base: Any,
    adapters: dict[str, Adapter],
    used: int,
    slots: int,
    dtype: Any = jnp.float32,
) -> Call:
    """All inputs in one batch, with `used` of the adapters, out of a pool of `slots` in a type."""
    pool = AdapterPool(base, [adapters["t0"].method], capacity=slots, dtype=dtype)
    for name in list(adapters)[:used]:
        pool.add(name, adapters[name])
    names = [f"t{i % used}" for i in range(len(inputs.ids))]
    arguments = inputs.arguments(np.arange(len(names)))
    if inputs.tokens is not None:
        answer = pool.compiled(inputs.run, looped=True)
        return lambda: answer(names, *arguments).block_until_ready()

    def run(slots: Any, frozen: Any, numbers: Any, packed: Any, rows: Any, columns: Any) -> Any:
        model = pool.model(slots, frozen)
        route(model, packed_slots(packed.segments, rows, columns, numbers), numbers)
        return model(packed, rows, columns)

    program = jax.jit(run)
    return lambda: program(*pool.ready(names), *arguments).block_until_ready()


def merged_in_turn(
    inputs: Inputs, base: Any, adapters: dict[str, Adapter], used: int, models: int | None = None
) -> Call:
    """For each adapter its merged model and its share of the inputs, one after the other.

    Args:
      inputs: of all.
      base: the model.
      adapters: named t0, t1 and so on.
      used: number of those that have a share.
      models: number of merged models that are held; the shares of others run through these, which takes the
        same time and less memory. None: all.
    """
    params: list[Any] = []
    program: Callable[..., Any] | None = None
    for number in range(models or used):
        model = lora_jax.merge(lora_jax.attach(base, adapters[f"t{number}"]))
        own, of_model = frozen_program(inputs, model)
        program = program or own
        params.append(of_model)
    assert program is not None
    run = program
    shares = [
        (params[number % len(params)], inputs.arguments(np.arange(number, len(inputs.ids), used)))
        for number in range(used)
    ]
    return lambda: [run(own, *arguments) for own, arguments in shares][-1].block_until_ready()
