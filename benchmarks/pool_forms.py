"""The forms of a pool's products for one layer, as the compilers of accelerators see them; nothing runs.

    python -m benchmarks.pool_forms [--topology=v5e:2x2] [--width=4096] [--ranks=8,64] [--slots=9,65]
        [--batches=64x1,16x512,16x512t] [--output=FILE.json]

A batch `64x1` has 64 rows of one token, each with a slot; with a `t` at the end every token has a slot of its
own, as in packed rows. Beside the forms of lora_jax.pool.routes: JAX's own product of sorted groups
(`ragged_dot`), and on TPUs its Pallas kernel for these (`megablox`, whose cost is what its author states).
Everything is in bfloat16.

On a TPU the figure is the compiler's estimate in microseconds (a second is taken off there for each operation
that it has no estimate for, and is added again here). On a GPU, whose compiler estimates no time: the number
of kernels, and the MB of their operands and results (a kernel that gathers may read less or more).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from jax.experimental.pallas.ops.tpu.megablox import gmm
from jaxtyping import Array
from tqdm import tqdm

import lora_jax
from benchmarks import timing
from lora_jax import partition
from lora_jax.costs import chips, hlo, topologies
from lora_jax.pool import AdapterPool, route
from lora_jax.pool.routing import Form

_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "Where the chip is, such as h100:1.")
_WIDTH = flags.DEFINE_integer("width", 4096, "Inputs and outputs of the layer.")
_RANKS = flags.DEFINE_list("ranks", ["8", "64"], "Ranks.")
_SLOTS = flags.DEFINE_list("slots", ["9", "65"], "Slots, with that of the base.")
_BATCHES = flags.DEFINE_list("batches", ["64x1", "16x512", "16x512t"], "Rows x tokens, see above.")
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for the record.")
_FORMS: tuple[Form, ...] = ("rows", "tiles", "beside")
_KERNELS = ("fusion", "custom-call", "copy", "sort", "scatter", "gather", "while", "dot")
_LANES = 128  # columns of a TPU's product
Program = tuple[Callable[..., Array], tuple[Any, ...]]


class Layer(nnx.Module):
    """One layer."""

    def __init__(self, width: int):
        self.layer = nnx.Linear(
            width, width, use_bias=False, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16,
            kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0),
        )  # fmt: skip

    def __call__(self, x: Array) -> Array:
        """Calls it."""
        return self.layer(x)


def of_pool(rank: int, slots: int, form: Form) -> Program:
    """A layer with a pool, as a function of its leaves, the slots of the batch and the inputs."""
    method = lora_jax.lora("layer", rank=rank, alpha=rank)
    pool = AdapterPool(Layer(_WIDTH.value), [method], capacity=slots - 1, dtype="bfloat16")

    def run(with_slots: Any, frozen: Any, numbers: Array, x: Array) -> Array:
        model: Any = pool.model(with_slots, frozen)
        route(model, numbers, form=form)
        result: Array = model(x)
        return result

    return run, (pool.slots, pool.frozen)


def base() -> Program:
    """The layer alone."""
    structure, params = partition.all_frozen(Layer(_WIDTH.value))
    return lambda p, _, x: partition.join(structure, {}, p)(x), (params,)


def grouped(product: Callable[[Array, Array, Array], Array], rank: int, slots: int) -> Program:
    """Tokens sorted by slot, and a product of groups with each factor."""
    width = _WIDTH.value

    def run(w: Array, a: Array, b: Array, numbers: Array, x: Array) -> Array:
        tokens = x.reshape(-1, width)
        each = jnp.repeat(numbers, x.shape[1]) if numbers.ndim == 1 else numbers.reshape(-1)
        order = jnp.argsort(each)
        sizes = jnp.bincount(each, length=slots).astype(jnp.int32)
        low = product(product(tokens[order], a, sizes), b, sizes)
        return x @ w + low[jnp.argsort(order)].reshape(x.shape)

    shapes = ((width, width), (slots, width, rank), (slots, rank, width))
    return run, tuple(jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes)


def megablox(tokens: Array, factors: Array, sizes: Array) -> Array:
    """JAX's Pallas kernel for groups."""
    tile = (min(len(tokens), _LANES), *(min(512, size) for size in factors.shape[1:]))
    result: Array = gmm(tokens, factors, sizes, preferred_element_type=jnp.bfloat16, tiling=tile)
    return result


def figure(program: Program, batch: str, device: jax.Device) -> str:
    """What the compiler says of a program."""
    rows, length = (int(size) for size in batch.rstrip("t").split("x"))
    numbers = jax.ShapeDtypeStruct((rows, length) if batch.endswith("t") else (rows,), jnp.int32)
    x = jax.ShapeDtypeStruct((rows, length, _WIDTH.value), jnp.bfloat16)
    there = jax.sharding.SingleDeviceSharding(device)
    function, leaves = program
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there),
        (*leaves, numbers, x),
    )
    try:
        compiled = jax.jit(function).lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return "out of memory"
        raise
    if topologies.is_gpu(chips.by_topology(_TOPOLOGY.value)):
        return _kernels(hlo.parse(compiled.as_text()))
    seconds = compiled.cost_analysis()["optimal_seconds"]
    return f"{(seconds + np.ceil(max(-seconds, 0))) * 1e6:,.0f}"


def _kernels(program: hlo.Program) -> str:
    entry = program.computations[program.entry].instructions
    used = [i for i in entry.values() if i.opcode in _KERNELS]
    moved = sum(
        hlo.size_bytes(i.type) + sum(hlo.size_bytes(entry[o].type) for o in i.operands if o)
        for i in used
    )
    return f"{len(used)}; {moved / 1e6:,.0f} MB"


def main(_: list[str]) -> None:
    """Compiles everything and prints the table."""
    device = topologies.devices(_TOPOLOGY.value)[0]
    gpu = topologies.is_gpu(chips.by_topology(_TOPOLOGY.value))
    cases = [(r, s, b) for r in _RANKS.value for s in _SLOTS.value for b in _BATCHES.value]
    records, rows = (
        [],
        ["| rank | slots | batch | layer alone | rows | tiles | beside | ragged_dot | megablox |"],
    )
    rows.append("|---" * 9 + "|")
    for rank, slots, batch in tqdm(cases):
        sizes = int(rank), int(slots)
        found = {"base": figure(base(), batch, device)}
        for form in _FORMS:
            possible = form != "rows" or not batch.endswith("t")
            found[form] = figure(of_pool(*sizes, form), batch, device) if possible else ""
        found["ragged_dot"] = figure(grouped(jax.lax.ragged_dot, *sizes), batch, device)
        found["megablox"] = "" if gpu else figure(grouped(megablox, *sizes), batch, device)
        records.append({"rank": rank, "slots": slots, "batch": batch, **found})
        rows.append(f"| {rank} | {slots} | {batch} | {' | '.join(found.values())} |")
    title = f"{_TOPOLOGY.value}, a layer of {_WIDTH.value:,} x {_WIDTH.value:,}"
    timing.report(title, rows, {"cases": records}, _OUTPUT.value)


if __name__ == "__main__":
    timing.run(main)
