"""Parameter counts of published decoders, and of LoRA on them: from shapes, nothing is allocated."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from lora_jax import methods, partition
from lora_jax.errors import InputError
from lora_jax.method import Method
from lora_jax.models.decoder import Decoder
from lora_jax.models.gpt2 import GPT2
from lora_jax.models.gpt2 import SIZES as GPT2_SIZES
from lora_jax.models.llama import Llama
from lora_jax.models.llama_sizes import SIZES as LLAMA_SIZES

DECODERS = (*GPT2_SIZES, *LLAMA_SIZES)
_QKV = r".*/attention/qkv"
# By column: the matrices of a layer that are adapted, and the same in GPT-2 with its fused projection.
_FUSED = {"parts": ("q", "k", "v"), "fused": ("q", "k", "v")}
_OTHERS: dict[str, dict[str, Any]] = {r".*/attention/output": {}}
_TARGETS: Mapping[str, tuple[str, Mapping[str, Mapping[str, Any]]]] = {
    "q, v": (r".*/attention/(query|value)", {_QKV: {**_FUSED, "parts": ("q", "v")}}),
    "attention": (r".*/attention/(query|key|value|output)", {_QKV: _FUSED, **_OTHERS}),
    "all matrices": (
        r".*/(query|key|value|attention/output|gate|up|down)",
        {_QKV: _FUSED, **_OTHERS, r".*/(up|down)": {}},
    ),
}


@dataclasses.dataclass(frozen=True)
class DecoderCount:
    """Counts of one model.

    Attributes:
      model: name.
      total: values of the model.
      lora: trained values by what is adapted.
    """

    model: str
    total: int
    lora: dict[str, int]


def choose(names: Sequence[str]) -> list[str]:
    """The models that were asked for, each once; "all" for all.

    Raises:
      InputError: a name that is not known.
    """
    if unknown := [name for name in names if name not in (*DECODERS, "all")]:
        raise InputError(f"unknown models {unknown}; known are all, {', '.join(DECODERS)}")
    return list(DECODERS) if "all" in names else list(dict.fromkeys(names))


@functools.cache
def abstract(name: str) -> Decoder:
    """A model with shapes in place of its weights."""
    if name in GPT2_SIZES:
        made: Decoder = nnx.eval_shape(lambda: GPT2(GPT2_SIZES[name], nnx.Rngs(0)))
        return made
    made = nnx.eval_shape(lambda: Llama(LLAMA_SIZES[name], nnx.Rngs(0)))
    return made


def count(name: str, rank: int) -> DecoderCount:
    """Counts a model, and LoRA of a rank on it.

    Raises:
      InputError: the rank is larger than a matrix allows.
    """
    model = abstract(name)
    total = partition.count(partition.parameters(model))
    return DecoderCount(
        name, total, {column: _trained(model, _method(name, column, rank)) for column in _TARGETS}
    )


def _method(name: str, column: str, rank: int) -> Method:
    """LoRA as the paper has it: a factor pair for each projection, fused or not."""
    ours, fused = _TARGETS[column]
    return methods.lora(fused if name in GPT2_SIZES else ours, rank=rank)


def _trained(model: Decoder, method: Method) -> int:
    adapted = nnx.eval_shape(lambda model: method.insert(model, jax.random.key(0)), model)
    return method.summary(adapted).counts()["trainable"]


def rows(counts: Sequence[DecoderCount], rank: int) -> list[tuple[str, ...]]:
    """A table's rows: model, values, size in bfloat16, and trained values with their share."""
    names = [f"r = {rank}: {column}" for column in _TARGETS]
    result: list[tuple[str, ...]] = [("model", "values", "bfloat16", *names)]
    for found in counts:
        shares = (f"{n:,} ({n / found.total:.2%})" for n in found.lora.values())
        result.append(
            (found.model, f"{found.total:,}", f"{2 * found.total / 2**30:.1f} GiB", *shares)
        )
    return result
