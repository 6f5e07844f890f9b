"""What the backward pass keeps for every token and layer, in widths of two bytes a value.

    python -m benchmarks.residuals [--models=roberta-large,gpt2-large,llama-3-8b] [--topology=h100:1]
        [--remat=none,full] [--methods=LoRA,full] [--base_dtype=bfloat16] [--output=FILE.json]

LoRA as in the paper (r = 8 on queries and values, r = 4 of GPT-2), LoRA on all linear layers, and full
fine-tuning, in bfloat16 with dropout where the model has it. By tracing alone: what `jax.vjp` keeps. With
--topology also by the compiler of that chip, which is there without one (see lora_jax.costs.topologies): the
temporary memory of a whole train step at 16 x 512 (RoBERTa), 8 x 512 (GPT-2) and 1 x 4,096 tokens (Llama),
the same in widths for every token and layer, and the peak: with weights, optimizer state and batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import nnx

import lora_jax
from benchmarks import abstract_steps, timing
from benchmarks.abstract_steps import Step
from lora_jax import partition
from lora_jax.costs import compiled, residuals, topologies
from lora_jax.data.batch import Batch, Inputs
from lora_jax.errors import InputError
from lora_jax.method import Method
from lora_jax.models import encoder, gpt2
from lora_jax.models.llama import Llama
from lora_jax.models.llama_sizes import SIZES as LLAMAS
from lora_jax.training import step

NAMES = ("roberta-large", "gpt2-large", "llama-3-8b")
METHODS = ("LoRA", "LoRA on all", "full")
_QV = {".*/attention/qkv": {"parts": ("q", "v"), "fused": ("q", "k", "v")}}


class Model(NamedTuple):
    """A model at a shape.

    Attributes:
      make: a model of some layers, and how it recomputes.
      depth: number of layers.
      width: of an activation.
      rows: of a batch.
      length: of a row.
      methods: by name.
      decodes: whether every token of the second half of a row is predicted.
    """

    make: Callable[[int, Any], nnx.Module]
    depth: int
    width: int
    rows: int
    length: int
    methods: dict[str, Method]
    decodes: bool


def _roberta(depth: int, remat: Any) -> nnx.Module:
    config = dataclasses.replace(
        encoder.SIZES["roberta-large"],
        num_hidden_layers=depth,
        compute_dtype="bfloat16",
        remat=remat,
    )
    return encoder.Classifier(config, 2, nnx.Rngs(0))


def _gpt2(depth: int, remat: Any) -> nnx.Module:
    config = dataclasses.replace(
        gpt2.SIZES["gpt2-large"], n_layer=depth, compute_dtype="bfloat16", remat=remat
    )
    return gpt2.GPT2(config, nnx.Rngs(0))


def _llama(depth: int, remat: Any) -> nnx.Module:
    config = dataclasses.replace(
        LLAMAS["llama-3-8b"], num_hidden_layers=depth, compute_dtype="bfloat16", remat=remat
    )
    return Llama(config, nnx.Rngs(0))


def _methods(targets: Any, rank: int, head: str | None = None) -> dict[str, Method]:
    return {
        "LoRA": lora_jax.lora(targets, rank=rank, head=head),
        "LoRA on all": lora_jax.lora("all-linear", rank=rank, head=head),
        "full": lora_jax.full() if head is None else lora_jax.full(head=head),
    }


MODELS = {
    "roberta-large": Model(
        _roberta, 24, 1024, 16, 512, _methods(".*/(query|value)", 8, "head/.*"), decodes=False
    ),
    "gpt2-large": Model(_gpt2, 36, 1280, 8, 512, _methods(_QV, 4), decodes=True),
    "llama-3-8b": Model(_llama, 32, 4096, 1, 4096, _methods(".*/(query|value)", 8), decodes=True),
}


def make(
    of: Model,
    method: Method,
    depth: int,
    rows: int,
    length: int,
    remat: str = "none",
    base_dtype: str | None = None,
) -> Step:
    """The step of a model of some layers on a batch of some size; a base of no type is float32."""
    model = nnx.eval_shape(lambda: of.make(depth, remat))
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    count = rows * length // 2 if of.decodes else rows
    numbers = jax.ShapeDtypeStruct((count,), jnp.int32)
    weights = jax.ShapeDtypeStruct((count,), jnp.float32)
    batch = Batch(Inputs(tokens, tokens, tokens, tokens), numbers, numbers, numbers, weights)
    loss = step.completion_loss(0.1) if of.decodes else step.classification_loss
    return abstract_steps.make(model, method, loss, batch, base_dtype)


def kept_bytes(made: Step) -> int:
    """Bytes of what the backward pass of a step keeps, with the leaves that it reads again."""
    trainable, _, *rest = made.arguments
    return partition.size_bytes(residuals.residuals(made.objective, trainable, *rest))


def widths(of: Model, method: Method) -> float:
    """What is kept for every token and layer, in widths of two bytes a value, by tracing."""

    def kept(depth: int, length: int) -> int:
        return kept_bytes(make(of, method, depth, 1, length))

    return residuals.per_token(kept) / (2 * of.width)


def needs(
    of: Model, method: Method, topology: str, remat: str, base_dtype: str | None
) -> compiled.Needs:
    """What a compiled train step needs."""
    made = make(of, method, of.depth, of.rows, of.length, remat, base_dtype)
    device = topologies.devices(topology)[0]
    there = jax.sharding.SingleDeviceSharding(device)
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there),
        made.arguments,
    )
    with topologies.tracing_for(device):
        return compiled.needs(made.train, arguments, topologies.check(topology))


def _check_lists() -> None:
    """Raises UsageError if a flag names what is not there."""
    lists = {"models": (_MODELS.value, NAMES), "methods": (_METHODS.value, METHODS)}
    lists["remat"] = (_REMAT.value, ("none", "full", "dots"))
    for flag, (given, known) in lists.items():
        if unknown := [name for name in given if name not in known]:
            raise app.UsageError(f"--{flag}: no {unknown[0]!r}; they are {', '.join(known)}")
    if _TOPOLOGY.value:
        try:
            topologies.check(_TOPOLOGY.value)
        except InputError as error:
            raise app.UsageError(f"--topology: {error}") from error


def main(_: list[str]) -> None:
    """Prints the table."""
    _check_lists()
    records: list[dict[str, Any]] = []
    rows = ["| model | method | widths kept, traced |", "|---|---|---|"]
    if _TOPOLOGY.value:
        rows = [
            f"| model | method | remat | widths kept, traced | temporaries on {_TOPOLOGY.value} | widths | "
            "peak | fits |",
            "|---|---|---|---|---|---|---|---|",
        ]
    for name in _MODELS.value:
        of = MODELS[name]
        for kind in _METHODS.value:
            method = of.methods[kind]
            traced = widths(of, method)
            record: dict[str, Any] = {"model": name, "method": kind, "widths": traced}
            if not _TOPOLOGY.value:
                records.append(record)
                rows.append(f"| {name} | {kind} | {traced:.2f} |")
                continue
            for remat in _REMAT.value:
                found = needs(of, method, _TOPOLOGY.value, remat, _BASE.value)
                records.append(
                    {
                        **record,
                        "remat": remat,
                        "bytes": found.temporaries,
                        "peak": found.peak,
                        "fits": found.fits,
                    }
                )
                per_token = found.temporaries / (of.rows * of.length * of.depth * 2 * of.width)
                rows.append(
                    f"| {name} | {kind} | {remat} | {traced:.2f} | {found.temporaries / 2**30:.2f} GiB | "
                    f"{per_token:.1f} | {found.peak / 2**30:.2f} GiB | {'yes' if found.fits else 'no'} |"
                )
    timing.report("Residuals", rows, {"rows": records}, _OUTPUT.value)


if __name__ == "__main__":
    _MODELS = flags.DEFINE_list("models", list(NAMES), f"Of {', '.join(NAMES)}.")
    _TOPOLOGY = flags.DEFINE_string("topology", "", "Also compile for this chip, such as h100:1.")
    _REMAT = flags.DEFINE_list(
        "remat", ["none"], "With --topology: what a stack recomputes: none, full or dots."
    )
    _METHODS = flags.DEFINE_list("methods", list(METHODS), f"Of {', '.join(METHODS)}.")
    _BASE = flags.DEFINE_enum(
        "base_dtype", "bfloat16", ["bfloat16", "float32"],
        "With --topology: type of frozen weights; the rest is float32.",
    )  # fmt: skip
    _OUTPUT = flags.DEFINE_string("output", "", "JSON file for the record.")
    app.run(main)
