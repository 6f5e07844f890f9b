"""Does the device compute what it should: gradients in bfloat16, and steps on meshes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks.accelerator_parts import random_leaves
from benchmarks.accelerator_parts.attention_kernels import difference
from benchmarks.accelerator_parts.setting import Setting
from benchmarks.accelerator_parts.workloads import Try, Workload, workload
from lora_jax import partition
from lora_jax.data.batch import Batch
from lora_jax.models.llama_config import LlamaConfig
from lora_jax.sharding import axes
from lora_jax.sharding.mesh import make_mesh
from lora_jax.sharding.placement import Placement
from lora_jax.training import step

_LAYERS = 4
_WIDE: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8}


def _workload(setting: Setting) -> Workload:
    """LoRA on all layers of a Llama that is small enough for float32 at the highest precision."""
    of = workload("llama-3-8b lora", small=True)
    if setting.small:
        return of
    assert isinstance(of.config, LlamaConfig)
    config = dataclasses.replace(
        of.config, num_hidden_layers=_LAYERS, num_key_value_heads=4, vocab_size=2048, **_WIDE
    )
    return dataclasses.replace(of, config=config, length=256, tries=(Try(8),))


def _parts(of: Workload, **settings: Any) -> tuple[Any, ...]:
    """Model with the method in shapes, structure, trainable and frozen leaves in float32."""
    model = of.model(of.tries[0], **settings)
    adapted = nnx.eval_shape(lambda m: of.method.insert(m, jax.random.key(0)), model)
    structure, *shapes = partition.split(adapted, of.method.labels(adapted))
    trainable, frozen = (random_leaves.leaves(part, seed) for seed, part in enumerate(shapes))
    return adapted, structure, trainable, frozen


def gradients(setting: Setting) -> None:
    """LoRA's gradients over a bfloat16 base and in that type, against float32 from the same weights."""
    of = _workload(setting)
    batch: Batch = of.batch(of.tries[0])
    _, structure, trainable, frozen = _parts(of)
    key = jax.random.key(0)
    narrow = {path: leaf.astype(jnp.bfloat16) for path, leaf in frozen.items()}
    objective = step.make_objective(structure, of.loss())
    value, found = jax.jit(jax.value_and_grad(objective))(trainable, narrow, batch, key)
    settings = {"compute_dtype": "float32", "attention": "xla"}
    _, wide_structure, _, _ = _parts(of, **settings)
    wide = {path: leaf.astype(jnp.float32) for path, leaf in narrow.items()}
    objective = step.make_objective(wide_structure, of.loss())
    with jax.default_matmul_precision("highest"):
        right, expected = jax.jit(jax.value_and_grad(objective))(trainable, wide, batch, key)
    errors = {path: difference(found[path], expected[path]) for path in expected}
    # A rounding to bfloat16 changes a value by up to 2^-9 of it. On its way through a layer, forward and
    # back, an activation is rounded about 32 times; errors that do not depend on one another add as the
    # root of their number, and twice that is tolerated.
    depth = of.config.depth
    tolerance = 2 * math.sqrt(32 * depth) * 2.0**-9
    worst = max(errors, key=lambda path: errors[path])
    setting.report(
        method=str(of.method), losses={"bfloat16": float(value), "float32": float(right)},
        worst={"path": worst, "error": errors[worst]}, tolerance=tolerance,
    )  # fmt: skip
    if not errors[worst] <= tolerance:
        raise AssertionError(f"gradients of {worst} differ by {errors[worst]:.4f} of their size")


def meshes(setting: Setting) -> None:
    """A step on meshes of one device and of all, with everything placed, against the step without a mesh."""
    of = _workload(setting)
    count = jax.device_count()
    rows = of.tries[0].rows * count
    batch: Any = of.batch(Try(rows))
    settings = {"compute_dtype": "float32", "attention": "xla"}
    adapted, structure, trainable, frozen = _parts(of, **settings)
    tx, key = optax.sgd(1.0), jax.random.key(0)  # so that new leaves differ as gradients do

    def stepped(placement: Placement | None) -> tuple[Any, float]:
        mine = jax.tree.map(jnp.copy, trainable)  # they are donated
        train = step.make_train_step(structure, of.loss(), tx, placement, mine)
        if placement is None:
            after, _, _, metrics = train(mine, tx.init(mine), frozen, batch, key)
        else:
            mine = placement.put(mine)
            state = placement.initial_state(tx.init, mine)
            after, _, _, metrics = train(
                mine, state, placement.put(frozen), placement.batch(batch), placement.replicate(key)
            )
        return jax.device_get(after), float(metrics["loss"])

    # Sums in another order, in float32: 2^-24 for each of some hundred roundings.
    tolerance, found = 1e-5, {}
    with jax.default_matmul_precision("highest"):
        expected, right = stepped(None)
        one = [("data", 1), ("fsdp", 1), ("model", 1)]
        for axis, size in dict.fromkeys([*one, ("data", count), ("fsdp", count)]):
            mesh = make_mesh({axis: size}, jax.devices()[:size])
            after, loss = stepped(Placement(mesh, axes.of_model(adapted)))
            moved = {path: difference(after[path], expected[path]) for path in expected}
            found[f"{axis}={size}"] = {"loss": loss, "error": max(moved.values())}
            setting.report(loss=right, tolerance=tolerance, of_meshes=found)
    if wrong := [mesh for mesh, of_mesh in found.items() if not of_mesh["error"] <= tolerance]:
        raise AssertionError(f"the step differs on the meshes {', '.join(wrong)}; see of_meshes")
