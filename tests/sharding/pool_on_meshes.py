"""A program: pools on meshes of eight devices. See test_pool_on_meshes.py."""

import json
import os
import sys

import jax
import numpy as np
from flax import nnx

import lora_jax
from lora_jax import partition
from lora_jax.data.packing import lay_out
from lora_jax.decoding.sampling import Sampling, sample
from lora_jax.models.encoder import Classifier, EncoderConfig
from lora_jax.models.llama import Llama
from lora_jax.models.llama_config import LlamaConfig
from lora_jax.pool import AdapterPool, packed_slots, route
from lora_jax.sharding.mesh import make_mesh
from tests import pool_adapters, random_models

MESHES = {
    "data": {"data": 8, "fsdp": 1, "model": 1},
    "fsdp": {"data": 1, "fsdp": 8, "model": 1},
    "mixed": {"data": 2, "fsdp": 2, "model": 2},
}
if not os.environ.get("LORA_JAX_SLOW"):
    del MESHES["data"], MESHES["fsdp"]
NAMES = [
    "t0",
    "t2",
    None,
    "t1",
    "t1",
    "t0",
    "t2",
    "t1",
    "t0",
    None,
    "t2",
    "t0",
    "t1",
    "t1",
    "t2",
    "t0",
]


def encoder():
    config = EncoderConfig(
        "bert", vocab_size=48, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=16, type_vocab_size=1,
    )  # fmt: skip
    return random_models.from_shapes(lambda: Classifier(config, 3, nnx.Rngs(0)), scale=0.15)


def decoder():
    config = LlamaConfig(
        vocab_size=48, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return random_models.from_shapes(lambda: Llama(config, nnx.Rngs(0)), scale=0.2)


def pool_of(base, method, mesh):
    pool = AdapterPool(base, [method], capacity=3, mesh=mesh)
    for seed in range(3):
        pool.add(f"t{seed}", pool_adapters.adapter(base, method, seed, 0.15))
    return pool


def classified(base, mesh, groups, form="auto"):
    pool = pool_of(base, lora_jax.lora("all-linear", rank=3, head="head/.*"), mesh)
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 48, n).astype(np.int32) for n in rng.integers(1, 9, 16)]
    inputs, places = lay_out(ids, (8, 16))
    rows, columns = np.array(places, np.int32).T

    def run(slots, frozen, numbers):
        model = pool.model(slots, frozen)
        each = packed_slots(inputs.segments, rows, columns, numbers)
        route(model, each, numbers, form=form, groups=groups)
        return model(inputs, rows, columns)

    program = jax.jit(run) if pool.placement is None else pool.placement.jit(run)
    return np.asarray(program(*pool.ready(NAMES))), pool


def continued(base, mesh, form="auto"):
    pool = pool_of(base, lora_jax.lora("all-linear", rank=3), mesh)
    rng = np.random.default_rng(1)
    prompts = rng.integers(0, 48, (16, 6)).astype(np.int32)
    lengths = rng.integers(1, 7, 16).astype(np.int32)

    def run(model, prompts, lengths):
        return sample(model, prompts, lengths, Sampling((48,), max_tokens=6), jax.random.key(0))

    answer = pool.compiled(run, looped=True, form=form)
    return np.asarray(answer(NAMES, prompts, lengths).tokens)


def main(out):
    result = {}
    models = encoder(), decoder()
    (logits, _), tokens = classified(models[0], None, 1), continued(models[1], None)
    for name, sizes in MESHES.items():
        mesh = make_mesh(sizes)
        found, pool = classified(models[0], mesh, sizes["data"] * sizes["fsdp"])
        first = pool.slots["encoder/layers/block/attention/query/lora/a"]
        result[name] = {
            "difference": float(np.abs(found - logits).max()),
            "largest": float(np.abs(logits).max()),
            "tokens": bool((continued(models[1], mesh) == tokens).all()),
            "split": [None if axis is None else str(axis) for axis in first.sharding.spec],
            "frozen": partition.size_bytes(pool.frozen),
        }
    # On the last mesh, which splits every axis.
    beside, _ = classified(models[0], mesh, 4, "beside")
    result["beside"] = {
        "difference": float(np.abs(beside - logits).max()),
        "largest": float(np.abs(logits).max()),
        "tokens": bool((continued(models[1], mesh, "beside") == tokens).all()),
    }
    with open(out, "w", encoding="utf-8") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main(sys.argv[1])
