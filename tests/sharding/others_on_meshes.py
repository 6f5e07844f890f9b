"""Decoding, evaluation, donation and checkpoints on meshes of 8 devices and on one, as JSON.

JAX_DISABLE_MOST_OPTIMIZATIONS=1 XLA_FLAGS=--xla_force_host_platform_device_count=8 \
    python others_on_meshes.py OUT.json
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from train_on_meshes import METHODS, VOCABULARY, batches, gpt2, roberta

import lora_jax
from lora_jax import partition
from lora_jax.data.batches import evaluation_batches
from lora_jax.data.packing import TokenisedExamples
from lora_jax.decoding.beam import BeamSearch, beam_search
from lora_jax.decoding.predictions import decode_all
from lora_jax.models.attention import gpus, plain, splash
from lora_jax.models.attention.attend import on_each_device
from lora_jax.models.attention.scores import PLAIN
from lora_jax.models.attention.spans import of_segments
from lora_jax.sharding import axes
from lora_jax.sharding.mesh import make_mesh, shares
from lora_jax.sharding.placement import Placement, gather
from lora_jax.training import optimizer, step
from lora_jax.training.checkpoints import Checkpoints

ALL_AXES = {"data": 2, "fsdp": 2, "model": 2}


def one_device() -> jax.sharding.Mesh:
    return make_mesh({}, jax.devices()[:1])


def decode(mesh: jax.sharding.Mesh, folder: Path) -> dict[str, Any]:
    """Beam search as experiments.nlg does it: 7 prompts in batches of 3, shared out over 4 parts."""
    model = gpt2(nnx.Rngs(0))
    model.embeddings.token.embedding[...] *= 6  # so that texts differ
    structure, params = partition.all_frozen(model)
    placement = Placement(mesh, axes.of_model(model))
    settings = BeamSearch(tuple(range(9)), beams=3, no_repeat_ngram=2, max_tokens=8)

    def continued(params, tokens, lengths):
        return beam_search(partition.join(structure, {}, params), tokens, lengths, settings)

    search = placement.jit(continued, out_shardings=placement.replicated)
    random = np.random.default_rng(1)
    prompts = [random.integers(9, VOCABULARY, n).astype(np.int32) for n in (3, 9, 1, 7, 4, 4, 12)]
    found = decode_all(
        placement.by_rows(partial(search, placement.put(params))), prompts, batch_size=3,
        path=folder / f"{mesh.size}.jsonl", settings={},
    )  # fmt: skip
    return {"tokens": found.tokens, "scores": found.scores}


def evaluate(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Logits of 23 examples in order; the last batch is not full, and rows divide by nothing."""
    model = roberta(nnx.Rngs(0))
    structure, frozen = partition.all_frozen(model)
    placement = Placement(mesh, axes.of_model(model))
    random = np.random.default_rng(2)
    ids = [random.integers(1, VOCABULARY, n).astype(np.int32) for n in random.integers(4, 30, 23)]
    examples = TokenisedExamples(ids, [np.zeros_like(x) for x in ids], np.zeros(23, np.int32))
    packed = evaluation_batches(examples, 32, 32, 96, shares(mesh))
    predict = step.make_predict_step(structure, placement=placement)
    frozen = placement.put(frozen)
    result = np.full((23, 3), np.nan)
    for indices, batch in packed:
        logits = predict({}, frozen, placement.batch(batch))
        result[indices] = np.asarray(logits)[: len(indices)]
    return {
        "logits": result.tolist(),
        "rows": [len(batch.inputs.tokens) for _, batch in packed],
        "examples": [len(indices) for indices, _ in packed],
    }


def donate_and_save(folder: Path) -> dict[str, Any]:
    """Trains on fsdp=8, saves, and restores onto other meshes."""
    method = METHODS["gpt2"]["lora"]
    model = method.insert(gpt2(nnx.Rngs(0)), jax.random.key(1))
    labels = method.labels(model)
    structure, trainable, frozen = lora_jax.split(model, labels)
    host = {path: np.array(value) for path, value in trainable.items()}  # memory of our own
    before = {path: value.copy() for path, value in host.items()}
    start = {path: np.array(value) for path, value in trainable.items()}
    tx = optimizer.adamw({p: labels[p] for p in trainable}, 1e-2, accumulate=2)
    placement = Placement(make_mesh({"fsdp": 8}), axes.of_model(model))
    train_step = step.make_train_step(structure, step.completion_loss(), tx, placement, trainable)
    placed, fixed = placement.put(host), placement.put(frozen)
    again = placement.put(trainable)  # jax arrays, which may share their memory
    state = placement.initial_state(tx.init, placed)
    key = placement.replicate(jax.random.key(2))
    for batch in batches("gpt2", method):
        placed, state, _, _ = train_step(placed, state, fixed, placement.batch(batch), key)
    train_step(again, placement.initial_state(tx.init, again), fixed, placement.batch(batch), key)
    kept = all((host[p] == before[p]).all() for p in host)
    kept_jax = all((np.asarray(trainable[p]) == start[p]).all() for p in host)
    moved = max(float(np.abs(gather(placed)[p] - before[p]).max()) for p in host)
    saved = {"trainable": placed, "state": state}
    checkpoints = Checkpoints(folder)
    checkpoints.save(4, saved, {"step": 4})
    checkpoints.close()
    result = {"kept": kept, "kept_jax": kept_jax, "moved": moved, "restored": {}}
    meshes = {"fsdp": make_mesh({"fsdp": 8}), "data x model": make_mesh({"data": 2, "model": 4})}
    for name, mesh in {**meshes, "one": one_device()}.items():
        other = Placement(mesh, placement.axes)
        fresh = other.put(start)
        like = {"trainable": fresh, "state": other.initial_state(tx.init, fresh)}
        checkpoints = Checkpoints(folder)
        found, record = checkpoints.restore(like)
        checkpoints.close()
        pairs = list(zip(*map(jax.tree.leaves, (gather(saved), found, like)), strict=True))
        wide = [(a, new) for a, new, _ in pairs if a.ndim > 1]
        result["restored"][name] = {
            "record": record,
            "equal": all(a.tobytes() == np.asarray(new).tobytes() for a, new, _ in pairs),
            "shardings": all(
                new.sharding.is_equivalent_to(wanted.sharding, wanted.ndim)
                for _, new, wanted in pairs
            ),
            "devices": sorted({len(new.sharding.device_set) for _, new, _ in pairs}),
            "share": sum(new.addressable_shards[0].data.nbytes for _, new in wide)
            / sum(a.nbytes for a, _ in wide),
            "leaves": len(pairs),
        }
    return result


def attend(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Results and gradients of each form of attention, of 4 rows with 4 heads that share 2 of keys."""
    random = np.random.default_rng(2)
    direction, q, k, v = (
        random.normal(size=(4, 256, heads, 8)).astype(np.float32) for heads in (4, 4, 2, 2)
    )
    numbers = np.sort(random.integers(0, 5, (4, 256)), axis=1).astype(np.int32)
    forms = {
        "xla": partial(plain.attend, rate=0.2, key=jax.random.key(0), scores=PLAIN),
        "splash": per_device(partial(splash.attend, scores=PLAIN, interpret=True)),
        "triton": per_device(partial(gpus.triton, scores=PLAIN, interpret=True)),
    }
    placement, found = Placement(mesh, {}), {}
    for name, form in forms.items():

        def step(q, k, v, direction, numbers, form=form):
            spans = of_segments(numbers, causal=True)
            mixed, backward = jax.vjp(lambda *of: form(*of, spans), q, k, v)
            return mixed, backward(direction)

        results = placement.jit(step, out_shardings=placement.replicated)(
            q, k, v, direction, numbers
        )
        found[name] = [
            np.asarray(x, np.float64).ravel()[::37].tolist() for x in jax.tree.leaves(results)
        ]
    return found


def per_device(form: Any) -> Any:
    return partial(on_each_device, form)


def main() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        meshes = (make_mesh(ALL_AXES), one_device())
        slow = bool(os.environ.get("LORA_JAX_SLOW"))
        return {
            "decode": [decode(mesh, folder) for mesh in meshes if slow],
            "evaluate": [evaluate(make_mesh(ALL_AXES)), evaluate(one_device())],
            "attend": [attend(make_mesh(ALL_AXES)), attend(one_device())],
            "state": donate_and_save(folder / "checkpoints"),
        }


if __name__ == "__main__":
    assert jax.device_count() == 8, jax.devices()
    found = main()
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1))
