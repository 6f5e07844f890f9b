"""What is timed: one decoder as it was pre-trained, with LoRA in three ways, and with adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from experiments.latency.programs import Program, Tokens, forward
from lora_jax import methods, partition
from lora_jax.adapter_files import Adapter
from lora_jax.adapters import attach
from lora_jax.errors import InputError
from lora_jax.fingerprints import base_parameters, fingerprint
from lora_jax.low_rank.merge import merge
from lora_jax.method import Method
from lora_jax.models import hub
from lora_jax.models.decoder import Decoder
from lora_jax.models.gpt2 import GPT2, GPT2Config
from lora_jax.pool import AdapterPool

BASE, MERGED, UNMERGED, POOL = "base", "merged", "unmerged", "pool"
OWN = (BASE, MERGED, UNMERGED, POOL)  # names that no adapter of a config can have
_SPREAD = 0.02  # standard deviation of LoRA's factors
Call = Callable[[Tokens], Array]


@dataclasses.dataclass(frozen=True)
class Contender:
    """One of what is timed.

    Attributes:
      call: gives the logits of a batch.
      method: name of the method; "" for the base.
      about: the method in full, as text.
      values: number of values that a row's forward pass has beside the base's; 0 where they are merged.
    """

    call: Call
    method: str
    about: str
    values: int

    def described(self) -> dict[str, Any]:
        """For the record."""
        return {"method": self.method, "about": self.about, "values": self.values}


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
    found = {}
    for name, arguments in config.adapters.items():
        if name in OWN:
            raise InputError(f"config.adapters.{name}: the name is taken, as are {', '.join(OWN)}")
        if not isinstance(arguments, ConfigDict):
            raise InputError(f"config.adapters.{name} must be a method's name and its arguments")
        found[name] = methods.create(**arguments.to_dict())
    return found


def base_model(config: ConfigDict) -> Decoder:
    """The decoder of a config in its type.

    Raises:
      FileNotFoundError, InputError: it cannot be read, its sizes do not fit one another, or the rows of the
        grid are longer than it takes.
    """
    dtype = str(config.base_dtype)
    if name := config.model.name:
        folder = hub.find(name)
        sizes: Any = hub.read_decoder_config(folder, compute_dtype=dtype)
        _check_lengths(config, sizes.max_length)
        return hub.load_decoder(folder, sizes, dtype)
    named = {key: value for key, value in config.model.items() if key != "name"}
    _check_lengths(config, named["n_positions"])
    model = GPT2(GPT2Config(**named, compute_dtype=dtype), nnx.Rngs(config.seed))
    cast = in_type(model, dtype)
    assert isinstance(cast, Decoder)
    return cast


def _check_lengths(config: ConfigDict, most: int) -> None:
    if (longest := max(config.lengths)) > most:
        raise InputError(
            f"config.lengths has {longest}, and the model takes {most} tokens a row: leave it out, or set "
            "config.model.n_positions"
        )


def in_type(model: nnx.Module, dtype: str) -> nnx.Module:
    """A model with all parameters in one floating-point type."""
    structure, params = partition.all_frozen(model)
    kind = jnp.dtype(dtype)
    return partition.join(structure, {}, {path: leaf.astype(kind) for path, leaf in params.items()})


def random_adapter(
    base: nnx.Module, method: Method, seed: int, fingerprint_of_base: str, spread: float = _SPREAD
) -> Adapter:
    """An adapter whose leaves are all random, N(0, spread^2), so that merging it changes the weights."""
    adapted = method.insert(base, jax.random.key(seed))
    labels = method.labels(adapted)
    _, trainable, _ = partition.split(adapted, labels)
    rng = np.random.default_rng(seed)
    values = {
        path: rng.normal(scale=spread, size=leaf.shape).astype(np.float32)
        for path, leaf in sorted(trainable.items())
    }
    return Adapter(method, {path: labels[path] for path in values}, values, fingerprint_of_base, {})


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
    for name, method in adapters.items():
        adapted = method.insert(base, jax.random.key(config.seed))
        program = Program(in_type(adapted, config.base_dtype))
        added = program.values - programs[BASE].values
        found[name] = Contender(program, method.name, str(method), added)
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
