"""Trains small models on meshes of 8 devices and on one, and writes how far they differ as JSON.

    JAX_DISABLE_MOST_OPTIMIZATIONS=1 XLA_FLAGS=--xla_force_host_platform_device_count=8 \
        python train_on_meshes.py roberta gpt2 OUT.json

A program of its own: the number of host devices is fixed when JAX starts.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

import lora_jax
from lora_jax.data.batch import Batch
from lora_jax.data.completions import TokenisedPairs
from lora_jax.data.packing import TokenisedExamples
from lora_jax.data.special_tokens import in_examples, in_pairs, special_ids
from lora_jax.models.deberta import DebertaClassifier
from lora_jax.models.deberta_config import DebertaConfig
from lora_jax.models.encoder import Classifier, EncoderConfig
from lora_jax.models.gpt2 import GPT2, GPT2Config
from lora_jax.models.llama import Llama
from lora_jax.models.llama_config import LlamaConfig
from lora_jax.sharding import axes
from lora_jax.sharding.mesh import make_mesh
from lora_jax.sharding.placement import Placement, gather
from lora_jax.training import optimizer, step

STEPS = 4
MESHES = {
    "data": {"data": 8},
    "fsdp": {"fsdp": 8},
    "model": {"model": 4, "data": 2},
    "data x fsdp": {"data": 2, "fsdp": 4},
    "data x model": {"data": 4, "model": 2},
    "fsdp x model": {"fsdp": 2, "model": 4},
    "data x fsdp x model": {"data": 2, "fsdp": 2, "model": 2},
}
EVERYWHERE = ("lora", "lora over nf4")  # methods that train on every mesh
ALL_AXES = "data x fsdp x model"  # the mesh of the other methods
SLOW = bool(os.environ.get("LORA_JAX_SLOW"))
if not SLOW:  # the mesh that splits every axis in two
    MESHES = {ALL_AXES: MESHES[ALL_AXES]}
# By default LoRA, in one form for each model, and what trains a whole model with a tied table; the rest are
# modules whose sharding those show, and other blocks of packed bases.
DEFAULT = {
    "roberta": ("lora everywhere",),
    "deberta": ("lora",),
    "gpt2": ("lora + prefix_embed", "full"),
    "llama": ("dora over nf4",),
}
QV = {".*/attention/qkv": {"parts": ("q", "v"), "fused": ("q", "k", "v"), "dropout": 0.1}}
METHODS = {
    "roberta": {
        "lora": lora_jax.lora(
            ".*/attention/(query|value)", rank=2, alpha=8.0, dropout=0.1, head="head/.*"
        ),
        "lora everywhere": lora_jax.lora(
            [".*/attention/(query|key|value|output)", ".*/(up|down)", ".*/word"], rank=2, alpha=8.0,
            head="head/.*", bias="all",
        ),
        "adapter_h": lora_jax.adapter_h(4, head="head/.*"),
        "prefix_layer + top": lora_jax.prefix_layer(1, 1) + lora_jax.top_layers(1, head="head/.*"),
        "full": lora_jax.full(head="head/.*"),
    },
    "deberta": {
        "lora": lora_jax.lora(
            ".*/attention/(query|value)", rank=2, alpha=8.0, dropout=0.1, head="head/.*"
        ),
        "full": lora_jax.full(head="head/.*"),
    },
    "gpt2": {
        "lora": lora_jax.lora(QV, rank=2, alpha=8.0),
        "lora + prefix_embed": lora_jax.lora(QV, rank=2, alpha=8.0) + lora_jax.prefix_embed(1, 1),
        "adapter_l": lora_jax.adapter_l(4),
        "bitfit": lora_jax.bitfit(),
        "full": lora_jax.full(),
        "lora over q4_1": lora_jax.lora(QV, rank=2, alpha=8.0),
    },
    "llama": {
        "lora over nf4": lora_jax.lora("all-linear", rank=2, alpha=8.0),
        "dora over nf4": lora_jax.lora("all-linear", rank=2, alpha=8.0, magnitude=True),
        "dora over q8_0": lora_jax.lora("all-linear", rank=2, alpha=8.0, magnitude=True),
    },
}  # fmt: skip
ENCODERS = ("roberta", "deberta")
VOCABULARY = 97  # odd, as the published ones


def roberta(rngs: nnx.Rngs) -> Classifier:
    sizes = EncoderConfig(
        "roberta",
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=34,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        position_offset=2,
        remat="dots",
    )
    return Classifier(sizes, 3, rngs)


def deberta(rngs: nnx.Rngs) -> DebertaClassifier:
    """As v2-xxlarge: positions by the layers' own projections, and a convolution."""
    sizes = DebertaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=32, relative_attention=True, position_buckets=8,
        pos_att_type=("p2c", "c2p"), share_att_key=True, norm_rel_ebd="layer_norm",
        position_biased_input=False, conv_kernel_size=3, conv_act="gelu", initializer_range=0.1,
        remat="dots",
    )  # fmt: skip
    return DebertaClassifier(sizes, 3, rngs)


def gpt2(rngs: nnx.Rngs) -> GPT2:
    sizes = GPT2Config(
        32, 2, 4, vocab_size=VOCABULARY, n_positions=32, attn_pdrop=0.1, resid_pdrop=0.1,
        embd_pdrop=0.1, remat="full",
    )  # fmt: skip
    return GPT2(sizes, rngs)


def llama(rngs: nnx.Rngs) -> Llama:
    """With a tied table, and pairs of query heads that share keys."""
    sizes = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=32,
        tie_word_embeddings=True, initializer_range=0.1, remat="full",
    )  # fmt: skip
    return Llama(sizes, rngs)


def batches(name: str, method: lora_jax.Method) -> list[Batch]:
    """Batches of 7 rows, which divide by nothing; with the method's special tokens."""
    special = special_ids(method.special_tokens, VOCABULARY)
    random = np.random.default_rng(0)
    result = []
    for _ in range(STEPS):
        lengths = random.integers(4, 20, 11)
        ids = [random.integers(1, VOCABULARY, n).astype(np.int32) for n in lengths]
        if name in ENCODERS:
            labels = random.integers(0, 3, len(ids)).astype(np.int32)
            types = [np.zeros_like(row) for row in ids]
            examples = in_examples(TokenisedExamples(ids, types, labels), special)
        else:
            pairs = TokenisedPairs(ids, np.array([2] * len(ids), np.int32), 0)
            examples = in_pairs(pairs, special)
        indices = range(len(ids))
        result.append(examples.pack(indices, (7, 32), 201))
    return result


def train(name: str, method: lora_jax.Method, mesh: jax.sharding.Mesh, form: str = "") -> dict:
    """Losses, trained leaves and predictions, over a base that is packed in a form, if one is named."""
    make = {"roberta": roberta, "deberta": deberta, "gpt2": gpt2, "llama": llama}[name]
    base = make(nnx.Rngs(0))
    if form:
        base = lora_jax.quantise(base, format=form)
    model = method.insert(base, jax.random.key(1))
    labels = method.labels(model)
    structure, trainable, frozen = lora_jax.split(model, labels)
    placement = Placement(mesh, axes.of_model(model))
    # Adam divides a gradient by its own size, and so shows the rounding of one that is nearly zero: with its
    # usual eps one of the 8,192 values of `down` of gpt2, all of it trained, differed by 2.7e-4 and one of
    # deberta by 1.5e-4 (on one processor of several), with this one no value of gpt2 by more than 1e-6.
    eps = 1e-4 if any(method is METHODS[one]["full"] for one in ("gpt2", "deberta")) else 1e-8
    tx = optimizer.adamw(
        {p: labels[p] for p in trainable},
        1e-2,
        weight_decay=0.1,
        max_grad_norm=1.0,
        accumulate=2,
        eps=eps,
    )
    loss = step.classification_loss if name in ENCODERS else step.completion_loss(0.1, chunk=64)
    train_step = step.make_train_step(structure, loss, tx, placement, trainable)
    placed, frozen = placement.put(trainable), placement.put(frozen)
    wanted = [leaf.sharding for leaf in jax.tree.leaves(placed)]
    state = placement.initial_state(tx.init, placed)
    losses, norms = [], []
    for number, batch in enumerate(batches(name, method)):
        key = placement.replicate(jax.random.fold_in(jax.random.key(2), number))
        placed, state, _, metrics = train_step(placed, state, frozen, placement.batch(batch), key)
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
    predict = step.make_predict_step(structure, placement=placement)
    outputs = predict(placed, frozen, placement.batch(batch))
    return {
        "losses": losses,
        "norms": norms,
        "trained": gather(placed),
        "outputs": np.asarray(outputs),
        "start": {path: np.asarray(value) for path, value in trainable.items()},
        "stays": all(
            leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
            for leaf, sharding in zip(jax.tree.leaves(placed), wanted, strict=True)
        ),
        "programs": train_step._cache_size(),
        "bytes": sum(leaf.addressable_shards[0].data.nbytes for leaf in frozen.values()),
        "state_bytes": sum(
            leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state)
        ),
    }


def far(one: Any, two: Any) -> float:
    """The largest difference."""
    return float(np.max(np.abs(np.asarray(one) - np.asarray(two))))


def compare(name: str) -> dict:
    """Differences of every mesh and method from one device."""
    result, begin = {}, time.perf_counter()
    for method_name, method in METHODS[name].items():
        if not SLOW and method_name not in DEFAULT[name]:
            continue
        form = method_name.partition(" over ")[2]
        one = train(name, method, make_mesh({}, jax.devices()[:1]), form)
        moved = {p: far(one["trained"][p], one["start"][p]) for p in one["trained"]}
        rows = {}
        for mesh_name in MESHES if method_name in EVERYWHERE else (ALL_AXES,):
            sizes = MESHES[mesh_name]
            other = train(name, method, make_mesh(sizes), form)
            print(method_name, mesh_name, f"{time.perf_counter() - begin:.1f} s", flush=True)
            rows[mesh_name] = {
                "loss": far(other["losses"], one["losses"]),
                "norm": far(other["norms"], one["norms"]),
                "trained": max(far(other["trained"][p], one["trained"][p]) for p in one["trained"]),
                "outputs": far(other["outputs"], one["outputs"]),
                "stays": other["stays"],
                "programs": other["programs"],
                "bytes": other["bytes"] / one["bytes"] if one["bytes"] else 0.0,
                "state_bytes": other["state_bytes"] / one["state_bytes"],
            }
        result[method_name] = {"moved": moved, "losses": one["losses"], "meshes": rows}
    return result


if __name__ == "__main__":
    assert jax.device_count() == 8, jax.devices()
    *models, out = sys.argv[1:]
    Path(out).write_text(json.dumps({model: compare(model) for model in models}, indent=1))
