"""How published tensors of Hugging Face relate to our leaves: names, transposition, fused axes.

A new architecture is a layout here, an entry in `architectures`, and a model file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

_PUBLISHED_LEAF = {"kernel": "weight", "scale": "weight", "bias": "bias"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How an architecture's published tensors relate to our leaves.

    Attributes:
      prefix: of the published names; files without it are read too.
      names: published name below the prefix, by our module or leaf path; {} stands for the layer.
      unused: regular expression of published tensors that we do not need.
      transposed: kernels are stored (out, in), as PyTorch's Linear has them.
      fused: our modules whose outputs (parts, width) are one axis in the published tensor.
    """

    prefix: str
    names: Mapping[str, str]
    unused: str
    transposed: bool = True
    fused: tuple[str, ...] = ()

    def source(self, path: str) -> tuple[str, bool]:
        """Published name (or template) of one of our leaves, and whether it is transposed."""
        if path in self.names:
            return self.names[path], False
        module, _, leaf = path.rpartition("/")
        name = f"{self.names[module]}.{_PUBLISHED_LEAF[leaf]}"
        return name, leaf == "kernel" and self.transposed

    def published_shape(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Published shape of one layer's leaf with our `shape`, before kernels are transposed."""
        fused = path.rpartition("/")[0] in self.fused
        return (*shape[:-2], shape[-2] * shape[-1]) if fused else shape


_ENCODER = {
    "encoder/embeddings/word/embedding": "embeddings.word_embeddings.weight",
    "encoder/embeddings/position/embedding": "embeddings.position_embeddings.weight",
    "encoder/embeddings/token_type/embedding": "embeddings.token_type_embeddings.weight",
    "encoder/embeddings/norm": "embeddings.LayerNorm",
    "encoder/layers/block/attention/query": "encoder.layer.{}.attention.self.query",
    "encoder/layers/block/attention/key": "encoder.layer.{}.attention.self.key",
    "encoder/layers/block/attention/value": "encoder.layer.{}.attention.self.value",
    "encoder/layers/block/attention/output": "encoder.layer.{}.attention.output.dense",
    "encoder/layers/block/attention/norm": "encoder.layer.{}.attention.output.LayerNorm",
    "encoder/layers/block/feed_forward/up": "encoder.layer.{}.intermediate.dense",
    "encoder/layers/block/feed_forward/down": "encoder.layer.{}.output.dense",
    "encoder/layers/block/feed_forward/norm": "encoder.layer.{}.output.LayerNorm",
    "pooler": "pooler.dense",
}
_GPT2 = {
    "embeddings/token/embedding": "wte.weight",
    "embeddings/position/embedding": "wpe.weight",
    "layers/block/attention/norm": "h.{}.ln_1",
    "layers/block/attention/qkv": "h.{}.attn.c_attn",
    "layers/block/attention/output": "h.{}.attn.c_proj",
    "layers/block/feed_forward/norm": "h.{}.ln_2",
    "layers/block/feed_forward/up": "h.{}.mlp.c_fc",
    "layers/block/feed_forward/down": "h.{}.mlp.c_proj",
    "norm": "ln_f",
}

# Unused are heads of language models and other tasks, RoBERTa's untrained pooler, GPT-2's tied output
# embedding, and buffers of old versions.
LAYOUTS: Mapping[str, Layout] = {
    "bert": Layout(
        prefix="bert.",
        names=_ENCODER,
        unused=r"cls\..*|classifier\..*|embeddings\.position_ids",
    ),
    "roberta": Layout(
        prefix="roberta.",
        names=_ENCODER,
        unused=r"lm_head\..*|classifier\..*|pooler\..*|embeddings\.position_ids",
    ),
    "gpt2": Layout(
        prefix="transformer.",
        names=_GPT2,
        unused=r"lm_head\.weight|h\.\d+\.attn\.(bias|masked_bias)",
        transposed=False,  # GPT-2's Conv1D stores (in, out)
        fused=("layers/block/attention/qkv",),
    ),
}
