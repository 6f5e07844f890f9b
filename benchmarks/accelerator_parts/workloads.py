"""The models, methods and batches of the parts that train, in full size and tiny."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
from flax import nnx

import lora_jax
from benchmarks import random_batches
from lora_jax.data.batch import Batch
from lora_jax.method import Method
from lora_jax.models import encoder, gpt2
from lora_jax.models.architectures import ARCHITECTURES, AnyConfig
from lora_jax.models.attention.attend import Kernel
from lora_jax.models.llama_sizes import SIZES as LLAMAS
from lora_jax.models.parts import FLOAT
from lora_jax.models.stack import Remat
from lora_jax.quantisation.quantise import quantise
from lora_jax.training import step

DTYPE = "bfloat16"
_HEAD = "head/.*"
_QV = {".*/attention/qkv": {"rank": 4, "parts": ("q", "v"), "fused": ("q", "k", "v")}}
_TINY: dict[str, Any] = {"vocab_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY_LLAMA: dict[str, Any] = {
    **_TINY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_key_value_heads": 1,
}


class Try(NamedTuple):
    """Rows of a batch, what the backward pass recomputes, and by whom attention is computed."""

    rows: int
    remat: Remat = "none"
    attention: Kernel = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """What is trained, and on how much.

    Attributes:
      config: of the model.
      method: to train it.
      length: tokens of a row.
      tries: the first of these that fits the device's memory, and runs, is measured.
      base_format: of the frozen matrices.
      anchor: what others have published of such a step.
    """

    config: AnyConfig
    method: Method
    length: int
    tries: tuple[Try, ...]
    base_format: str = FLOAT
    anchor: str = ""

    @property
    def classifies(self) -> bool:
        """Whether the model is an encoder with a head."""
        return isinstance(self.config, encoder.EncoderConfig)

    def model(self, of: Try, **settings: Any) -> nnx.Module:
        """The model in shapes, in the type of computation and with other settings if given."""
        fields: dict[str, Any] = {
            "compute_dtype": DTYPE,
            "remat": of.remat,
            "attention": of.attention,
        }
        config: Any = dataclasses.replace(self.config, **fields | settings)
        made = nnx.eval_shape(
            lambda: ARCHITECTURES[config.architecture].make(config, 2, nnx.Rngs(0))
        )
        return made if self.base_format == FLOAT else quantise(made, format=self.base_format)

    def batch(self, of: Try, seed: int = 0) -> Batch:
        """Random tokens in full rows."""
        make = random_batches.classification if self.classifies else random_batches.completion
        return make(of.rows, self.length, self.config.vocab_size, seed)

    def loss(self) -> step.Loss:
        """Of the model and a batch."""
        return step.classification_loss if self.classifies else step.completion_loss()


def key() -> Any:
    """Of dropout."""
    return jax.random.key(0)


_SETS: dict[str, Workload] = {
    "roberta-large lora": Workload(
        config=encoder.SIZES["roberta-large"], length=512, tries=(Try(16), Try(16, "full"), Try(4)),
        method=lora_jax.lora(".*/attention/(query|value)", rank=8, alpha=16, head=_HEAD),
    ),
    "roberta-large full": Workload(
        config=encoder.SIZES["roberta-large"], length=512, tries=(Try(16), Try(16, "full"), Try(4)),
        method=lora_jax.full(head=_HEAD),
    ),
    "gpt2-medium lora": Workload(
        config=gpt2.SIZES["gpt2-medium"], length=512, tries=(Try(8), Try(8, "full"), Try(2)),
        method=lora_jax.lora(_QV, alpha=32),
    ),
    "gpt2-medium full": Workload(
        config=gpt2.SIZES["gpt2-medium"], length=512, tries=(Try(8), Try(8, "full"), Try(2)),
        method=lora_jax.full(),
    ),
    "llama-3-8b lora": Workload(
        config=LLAMAS["llama-3-8b"], length=4096,
        tries=(Try(2), Try(1), Try(2, "full"), Try(1, "full"), Try(1, "full", "xla")),
        method=lora_jax.lora("all-linear", rank=16, alpha=32),
        anchor=(
            "12,473 tokens/s on one H100, 40.6% MFU with 32.2 GFLOP a token: NVIDIA NeMo AutoModel, its "
            "performance summary, bfloat16, LoRA r=16 on all linear layers with dropout 0.1, micro batches "
            "of 2 x 4,096"
        ),
    ),
    "llama-3-8b full": Workload(
        config=LLAMAS["llama-3-8b"], length=4096, tries=(Try(1), Try(1, "full"), Try(1, "full", "xla")),
        method=lora_jax.full(),
    ),
    "llama-2-7b qlora": Workload(
        config=LLAMAS["llama-2-7b"], length=2048, tries=(Try(1), Try(1, "full"), Try(1, "full", "xla")),
        method=lora_jax.lora("all-linear", rank=64, alpha=16), base_format="nf4",
        anchor=(
            "2,413 tokens/s and 7.4 GiB on one RTX 4090 (torchtune's README: Llama-3.1-8B, QLoRA, 2 x "
            "2,048); 2,341 tokens/s and 13.9 GiB on one A100 (Qwen's README: 7B, QLoRA, 1 x 2,048)"
        ),
    ),
    "roberta-large runs": Workload(
        config=encoder.SIZES["roberta-large"], length=128, tries=(Try(16), Try(16, "full"), Try(4)),
        method=lora_jax.lora(".*/attention/(query|value)", rank=8, alpha=16, head=_HEAD),
        anchor=(
            "LoRAFusion (2510.00206): 1.47x on average over Megatron-LM one by one, 4 adapters on one "
            "Llama-3.1-8B, H100"
        ),
    ),
}  # fmt: skip


def workload(name: str, small: bool) -> Workload:
    """The workload of a name; small ones have the same method on a tiny model of the same kind."""
    of = _SETS[name]
    if not small:
        return of
    if isinstance(of.config, gpt2.GPT2Config):
        sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 128}
    elif of.classifies:
        sizes = {**_TINY, "hidden_size": 32, "intermediate_size": 64}
    else:
        sizes = TINY_LLAMA
    tries = tuple(one._replace(rows=2) for one in of.tries)
    config: Any = dataclasses.replace(of.config, **sizes)
    return dataclasses.replace(of, config=config, length=16, tries=tries)
