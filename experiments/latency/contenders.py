"""What is timed: one decoder as it was pre-trained, with LoRA in three ways, and with adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from experiments.latency.models import base_model, in_type
from experiments.latency.programs import Program, Tokens, forward
from experiments.latency.random_adapters import random_adapter
from lora_jax import methods
from lora_jax.adapter_files import Adapter
from lora_jax.adapters import attach
from lora_jax.errors import InputError
from lora_jax.fingerprints import base_parameters, fingerprint
from lora_jax.low_rank.merge import merge
from lora_jax.method import Method
from lora_jax.models.decoder import Decoder
from lora_jax.pool import AdapterPool

BASE, MERGED, UNMERGED, POOL = "base", "merged", "unmerged", "pool"
OWN = (BASE, MERGED, UNMERGED, POOL)
FIGURE_5 = {"adapter_h": "Adapter H", "adapter_l": "Adapter L"}  # have every size of `bottlenecks`
Call = Callable[[Tokens], Array]


@dataclasses.dataclass(frozen=True)
class Contender:
    """One of what is timed.

    Attributes:
      call: gives the logits of a batch.
      method: name of the method; "" for the base.
      about: the method in full, as text.
      values: number of values that a row's forward pass has beside the base's; 0 where they are merged.
      bottleneck: its size if it is one of Figure 5's, else 0.
    """

    call: Call
    method: str
    about: str
    values: int
    bottleneck: int = 0

    def described(self) -> dict[str, Any]:
        """For the record."""
        return {
            "method": self.method, "about": self.about, "values": self.values, "bottleneck": self.bottleneck,
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Contenders:
    """All of them.

    Attributes:
      by_name: the base first.
      base, merged: the programs of the two that are compared as texts.
      vocabulary: number of tokens that the model knows.
    """

    by_name: dict[str, Contender]
    base: Program
    merged: Program
    vocabulary: int


def check(config: ConfigDict) -> dict[str, Method]:
    """The methods of the adapters by name; InputError for what can be known without a model.

    Raises:
      InputError: a name is taken, or a method's arguments are wrong.
    """
    if config.method.get("name") != "lora":
        raise InputError(
            f"config.method.name is {config.method.get('name')!r}: what is merged and pooled here is LoRA; "
            "other methods go into config.adapters"
        )
    methods.create(**config.method.to_dict())
    taken = (*OWN, *_bottlenecks(config))
    found = {}
    for name, arguments in config.adapters.items():
        if name in taken:
            raise InputError(
                f"config.adapters.{name}: the name is taken, as are {', '.join(taken)}"
            )
        if not isinstance(arguments, ConfigDict):
            raise InputError(f"config.adapters.{name} must be a method's name and its arguments")
        found[name] = methods.create(**arguments.to_dict())
    return found


def _bottlenecks(config: ConfigDict) -> dict[str, tuple[Method, int]]:
    """The methods of Figure 5 with their sizes, by the name of the contender."""
    return {
        f"{title}, r = {size}": (methods.create(name, size=size), size)
        for name, title in FIGURE_5.items()
        for size in config.bottlenecks
    }


def make(config: ConfigDict) -> Contenders:
    """Makes all contenders of a checked config.

    Raises:
      FileNotFoundError, InputError: see `check` and `base_model`, or a method does not fit the model.
    """
    adapters = check(config)
    lora = methods.create(**config.method.to_dict())
    base = base_model(config)
    print_of_base = fingerprint(base_parameters(base))
    pooled = {
        f"adapter {number}": random_adapter(base, lora, config.seed + number, print_of_base)
        for number in range(max(config.batch_sizes))
    }
    first = next(iter(pooled.values()))
    count = sum(value.size for value in first.values.values())
    attached = attach(base, first)
    programs = {BASE: Program(base), MERGED: Program(merge(attached))}
    unmerged = Program(in_type(attached, config.base_dtype))
    about = str(lora)
    found = {
        BASE: Contender(programs[BASE], "", "the pre-trained model", 0),
        MERGED: Contender(programs[MERGED], "lora", f"{about}, merged", 0),
        UNMERGED: Contender(unmerged, "lora", about, count),
        POOL: Contender(_pool(base, lora, pooled), "lora", f"{about}, one for every row", count),
    }
    inserted = {name: (method, 0) for name, method in adapters.items()} | _bottlenecks(config)
    for name, (method, size) in inserted.items():
        adapted = method.insert(base, jax.random.key(config.seed))
        program = Program(in_type(adapted, config.base_dtype))
        added = program.values - programs[BASE].values
        found[name] = Contender(program, method.name, str(method), added, size)
    return Contenders(found, programs[BASE], programs[MERGED], base.config.vocab_size)


def _pool(base: Decoder, method: Method, adapters: dict[str, Adapter]) -> Call:
    """A pool with a slot for every row of the largest batch; row i of a batch uses adapter i.

    A call is a user's: names come in, and the pool looks up their slots.
    """
    pool = AdapterPool(base, [method], capacity=len(adapters))
    for name, adapter in adapters.items():
        pool.add(name, adapter)
    pool.ready(list(adapters))  # all of them on the device
    answer = pool.compiled(forward)
    names = list(adapters)

    def call(tokens: Tokens) -> Float[Array, "n vocab"]:
        rows = tokens.inputs.tokens.shape[0]
        logits: Array = answer(names[:rows], *tokens)
        return logits

    return call
