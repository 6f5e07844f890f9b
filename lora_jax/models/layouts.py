"""How published tensors of Hugging Face relate to our leaves: names, transposition, fused axes.

A new architecture is a layout here, an entry in `architectures`, and a model file.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

_PUBLISHED_LEAF = {"kernel": "weight", "scale": "weight", "bias": "bias"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How an architecture's published tensors relate to our leaves.

    Attributes:
      prefix: of the published names; files without it are read too.
      names: published name below the prefix, by our module or leaf path; {} stands for the layer.
      heads: regular expression of published tensors of heads, which are not used.
      buffers: regular expression of other tensors that are not needed.
      head: published names of a head, by our module path: the whole name, without the prefix.
      tied: published names of tensors that must be equal to another one, which is used.
      needed: why a model without certain tensors is refused, by the beginning of their names.
      transposed: kernels are stored (out, in), as PyTorch's Linear has them, or (out, in, height, width);
        those of heads always are.
      fused: our modules whose outputs (parts, width) are one axis in the published tensor.
      older: parts of names that old files have, with what stands in their place today.
    """

    prefix: str
    names: Mapping[str, str]
    heads: str
    buffers: str
    head: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
    needed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    transposed: bool = True
    fused: tuple[str, ...] = ()
    older: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def source(self, path: str) -> tuple[str, bool]:
        """Published name (or template) of one of our leaves, and whether it is transposed."""
        if path in self.names:
            return self.names[path], False
        module, _, leaf = path.rpartition("/")
        name = f"{self.head.get(module) or self.names[module]}.{_PUBLISHED_LEAF[leaf]}"
        return name, leaf == "kernel" and (self.transposed or module in self.head)

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
_DEBERTA = {
    **{
        path: name
        for path, name in _ENCODER.items()
        if not re.search(r"attention/(query|key|value)$|^pooler$", path)
    },
    "encoder/embeddings/projection": "embeddings.embed_proj",
    "encoder/relative/embedding": "encoder.rel_embeddings.weight",
    "encoder/norm": "encoder.LayerNorm",
    "encoder/convolution/conv": "encoder.conv.conv",
    "encoder/convolution/norm": "encoder.conv.LayerNorm",
    "encoder/layers/block/attention/query": "encoder.layer.{}.attention.self.query_proj",
    "encoder/layers/block/attention/key": "encoder.layer.{}.attention.self.key_proj",
    "encoder/layers/block/attention/value": "encoder.layer.{}.attention.self.value_proj",
    # Of models whose positions have projections of their own.
    "encoder/layers/block/attention/position_key": "encoder.layer.{}.attention.self.pos_key_proj",
    "encoder/layers/block/attention/position_query": "encoder.layer.{}.attention.self.pos_query_proj",
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

# Of the Llama families. Gemma has four norms in a layer, and gives Llama's second name to another one.
_LLAMA = {
    "embeddings/token/embedding": "embed_tokens.weight",
    "layers/block/attention/norm": "layers.{}.input_layernorm",
    "layers/block/attention/query": "layers.{}.self_attn.q_proj",
    "layers/block/attention/key": "layers.{}.self_attn.k_proj",
    "layers/block/attention/value": "layers.{}.self_attn.v_proj",
    "layers/block/attention/output": "layers.{}.self_attn.o_proj",
    "layers/block/attention/query_norm": "layers.{}.self_attn.q_norm",
    "layers/block/attention/key_norm": "layers.{}.self_attn.k_norm",
    "layers/block/feed_forward/norm": "layers.{}.post_attention_layernorm",
    "layers/block/feed_forward/gate": "layers.{}.mlp.gate_proj",
    "layers/block/feed_forward/up": "layers.{}.mlp.up_proj",
    "layers/block/feed_forward/down": "layers.{}.mlp.down_proj",
    "norm": "norm",
}
_GEMMA = {
    **_LLAMA,
    "layers/block/attention/post_norm": "layers.{}.post_attention_layernorm",
    "layers/block/feed_forward/norm": "layers.{}.pre_feedforward_layernorm",
    "layers/block/feed_forward/post_norm": "layers.{}.post_feedforward_layernorm",
}

_SCORE = {"head/score": "score"}  # of a decoder in a classifier

_BUFFERS = r"embeddings\.(position_ids|token_type_ids)"  # of old and of some new versions
_NO_POOLER = (
    "BERT's classifier stands on the pre-trained pooler, and this folder has none (it is of a masked "
    "language model, for example). transformers would make a random one; here it would be frozen at "
    "random values. If that is wanted, write it into the base: "
    "transformers.BertModel.from_pretrained(folder).save_pretrained(new)"
)

_ROBERTA = Layout(
    prefix="roberta.",
    names=_ENCODER,
    heads=r"lm_head\..*|classifier\..*|qa_outputs\..*|pooler\..*",
    buffers=_BUFFERS,
    head={"head/dense": "classifier.dense", "head/output": "classifier.out_proj"},
)

LAYOUTS: Mapping[str, Layout] = {
    "bert": Layout(
        prefix="bert.",
        names=_ENCODER,
        heads=r"cls\..*|classifier\..*|qa_outputs\..*",
        buffers=_BUFFERS,
        head={"head/output": "classifier"},
        needed={"pooler.": _NO_POOLER},
    ),
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert"), _ROBERTA),
    "deberta-v2": Layout(
        prefix="deberta.",
        names=_DEBERTA,
        heads=r"(cls|lm_predictions|mask_predictions|classifier|pooler|qa_outputs)\..*",
        # transformers leaves out a table of positions, too, where config.json says that there is none.
        buffers=rf"{_BUFFERS}|embeddings\.position_embeddings\.weight",
        head={"head/dense": "pooler.dense", "head/output": "classifier"},
    ),
    "gpt2": Layout(
        prefix="transformer.",
        names=_GPT2,
        heads=r"score\..*|classifier\..*|multiple_choice_head\..*|qa_outputs\..*",
        buffers=r"h\.[0-9]+\.attn\.(bias|masked_bias)",
        head=_SCORE,
        tied={"lm_head.weight": "wte.weight"},
        transposed=False,  # GPT-2's Conv1D stores (in, out)
        fused=("layers/block/attention/qkv",),
    ),
    **{
        name: Layout(
            prefix="model.",
            names=names,
            heads=r"score\..*|qa_outputs\..*",
            buffers=r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",  # of old versions
            head={"lm_head": "lm_head", **_SCORE},
            tied={"lm_head.weight": "embed_tokens.weight"},
        )
        for names, families in (
            (_LLAMA, ("llama", "mistral", "qwen2", "qwen3")),
            (_GEMMA, ("gemma2", "gemma3_text")),
        )
        for name in families
    },
}
