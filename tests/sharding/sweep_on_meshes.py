"""Trains a sweep on meshes of 8 devices; writes how arrays lie and what is sent between runs, as JSON.

    JAX_DISABLE_MOST_OPTIMIZATIONS=1 XLA_FLAGS=--xla_force_host_platform_device_count=8 \
        python sweep_on_meshes.py MODEL GLUE FOLDER OUT.json

The sweeps are left in FOLDER/NAME. A program of its own: the number of host devices is fixed when
JAX starts.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.sweep.local import run_sweep
from experiments.sweep.memory import Memory
from experiments.sweep.points import points
from experiments.sweep.shared_base import SharedBase
from experiments.sweep.steps import Steps
from lora_jax.costs import hlo
from lora_jax.costs.collectives import KINDS
from tests.experiments.sweep_runs import glue_sweep

# Seven points of three orders: with runs on several devices one more fills the program up.
GRIDS = {"a": {"method": {"rank": (1, 4)}, "seeds": (0, 1, 2)}, "b": {"method": {"rank": (2,)}}}
FIELDS = {
    "batch_size": 8, "epochs": 1, "data__max_examples": 20, "model__hidden_dropout_prob": 0.1,
    "checkpoint_every": 2,
}  # fmt: skip
MESHES = {
    "run": {"run": 8},
    "run x data": {"run": 4, "data": 2},
    "run x fsdp x model": {"run": 2, "fsdp": 2, "model": 2},
}
if not os.environ.get("LORA_JAX_SLOW"):  # each compiles programs of its own
    del MESHES["run"], MESHES["run x data"]
# What a compiled program's text has for groups: lists, a reshaped and transposed range, axes of a mesh.
_LISTS = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}")
_RANGE = re.compile(r"replica_groups=\[([\d,]+)\]<=(.*)")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?\]T?[^ ]*)\))? \{([^}]*)\}"
)


def config(model: Path, data: Path, sizes: dict[str, int]) -> ConfigDict:
    """The sweep on a mesh."""
    result = glue_sweep(model, data, GRIDS, runs=8, **FIELDS)
    result.run.mesh.update({"run": 1, "data": 1, **sizes})
    return result


def groups(attributes: str, devices: int) -> list[list[int]]:
    """Groups of devices of a collective; pairs of a permutation."""
    if found := _LISTS.search(attributes):
        parts = re.findall(r"\{([\d,]+)\}", found[1])
        return [[int(number) for number in part.split(",")] for part in parts]
    if found := _RANGE.search(attributes):
        return numbers(found[2], devices).reshape([int(n) for n in found[1].split(",")]).tolist()
    if found := _MESH.search(attributes):
        sizes = re.findall(r"'(\w+)'=(\d+)", found[1])
        wanted = {
            axis: part for axis, *part in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", found[3])
        }
        shape, joined = [], []
        for axis, size in sizes:  # a part of an axis is an axis between two others
            before, size_here = (
                int(n or d) for n, d in zip(wanted.get(axis, "11"), (1, size), strict=True)
            )
            shape += [before, size_here, int(size) // before // size_here]
            joined += [False, axis in wanted, False]
        ids = numbers(found[2] or "", devices).reshape(shape)
        ids = ids.transpose(np.argsort(joined, stable=True))
        size = math.prod(n for n, size_here in zip(shape, joined, strict=True) if size_here)
        return ids.reshape(-1, size).tolist()
    if "replica_groups={}" in attributes:
        return [list(range(devices))]
    raise ValueError(f"unknown groups: {attributes[:200]}")


def numbers(text: str, devices: int) -> np.ndarray:
    """The devices in the order of `[2,4]T(1,0)`."""
    found = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not found:
        return np.arange(devices)
    shape = [int(n) for n in found[1].split(",")]
    order = [int(n) for n in found[2].split(",")] if found[2] else range(len(shape))
    return np.arange(devices).reshape(shape).transpose(order).ravel()


def between_runs(text: str, runs: int) -> Iterator[tuple[str, int, str]]:
    """Kind, bytes and origin of the collectives that join devices of different runs."""
    program = hlo.parse(text)
    each = program.devices // runs  # the axis of runs comes first
    for computation in program.computations.values():
        for instruction in computation.instructions.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind in KINDS and any(
                len({device // each for device in group}) > 1
                for group in groups(instruction.attributes, program.devices)
            ):
                origin = re.search(r'op_name="([^"]*)"', instruction.attributes)
                yield (
                    kind,
                    hlo.size_bytes(instruction.type),
                    f"{instruction.type} {origin[1] if origin else instruction.name}",
                )


def share(leaf: jax.Array) -> float:
    """Of an array, what one device holds."""
    (size,) = {shard.data.size for shard in leaf.addressable_shards}
    return size / leaf.size


def train(sweep: ConfigDict, folder: Path, runs: int) -> dict[str, Any]:
    """Runs the sweep and looks at the arguments of its first train step and at the program."""
    seen: dict[str, Any] = {}
    make = Steps.train_step

    def train_step(self: Steps, count: int) -> Any:
        step = make(self, count)

        def one(*arguments: Any) -> Any:
            if not seen:
                trainable, state, values, frozen, batch, keys, _ = arguments
                seen["text"] = step.lower(*arguments).compile().as_text()
                seen["result"] = {
                    "runs": [leaf.shape[0] for leaf in trainable.values()],
                    "runs of a device": [
                        leaf.addressable_shards[0].data.shape[0] for leaf in trainable.values()
                    ],
                    "factors": {path: share(leaf) for path, leaf in trainable.items()},
                    "moments": [share(leaf) for leaf in jax.tree.leaves(state) if leaf.ndim > 1],
                    "values": [share(leaf) for leaf in jax.tree.leaves(values)] + [share(keys)],
                    "frozen": {path: share(leaf) for path, leaf in frozen.items()},
                    "tokens": share(batch.inputs.tokens),
                }
                seen["wanted"] = [leaf.sharding for leaf in jax.tree.leaves((trainable, state))]
            result = step(*arguments)
            seen["result"]["stays"] = all(
                leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
                for leaf, wanted in zip(jax.tree.leaves(result[:2]), seen["wanted"], strict=True)
            )
            return result

        return one

    Steps.train_step = train_step
    try:
        run_sweep(sweep, folder)
    finally:
        Steps.train_step = make
    crossing = list(between_runs(seen["text"], runs))
    kinds = [kind for kind in KINDS if re.search(rf"\b{kind}(-start)?\(", seen["text"])]
    return {**seen["result"], "crossing": crossing, "kinds": kinds}


def main(model: Path, data: Path, folder: Path) -> dict[str, Any]:
    """All meshes; and how many runs of a mesh are said to fit."""
    result, begin = {}, time.perf_counter()
    for name, sizes in MESHES.items():
        result[name] = train(config(model, data, sizes), folder / name, sizes["run"])
        print(name, f"{time.perf_counter() - begin:.1f} s", flush=True)
    sweep = config(model, data, sizes)
    try:
        result["fit"] = Memory(SharedBase("glue", points(sweep))).runs_that_fit()
    except Exception as error:
        result["fit"] = f"{type(error).__name__}: {error}"
    return result


if __name__ == "__main__":
    assert jax.device_count() == 8, jax.devices()
    model, data, folder, out = map(Path, sys.argv[1:])
    out.write_text(json.dumps(main(model, data, folder), indent=1))
