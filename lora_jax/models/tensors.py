"""Names and layouts of Hugging Face's tensors: reading files, and both directions of the renaming."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from lora_jax.data.text_files import read_json

_LEAF = {"kernel": "weight", "scale": "weight", "bias": "bias"}


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an architecture's published tensors relate to our leaves.

    Attributes:
      prefix: of the published names; files without it are read too.
      names: our module or leaf path -> published name below the prefix; {} is the layer.
      unused: regular expression of published tensors that we do not need.
      transposed: kernels are stored (out, in), as PyTorch's Linear has them.
      fused: our modules whose outputs (parts, width) are one axis there.
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
        return f"{self.names[module]}.{_LEAF[leaf]}", leaf == "kernel" and self.transposed

    def published_shape(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape there of one layer's leaf, before kernels are transposed."""
        fused = path.rpartition("/")[0] in self.fused
        return (*shape[:-2], shape[-2] * shape[-1]) if fused else shape


def _encoder(prefix: str, unused: str) -> Layout:
    names = {
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
    return Layout(prefix, names, unused)


# Unused parts: language-model and other task heads, RoBERTa's untrained pooler, GPT-2's tied output
# embedding, and buffers of old versions.
LAYOUTS = {
    "bert": _encoder("bert.", r"cls\..*|classifier\..*|embeddings\.position_ids"),
    "roberta": _encoder(
        "roberta.", r"lm_head\..*|classifier\..*|pooler\..*|embeddings\.position_ids"
    ),
    "gpt2": Layout(
        "transformer.",
        {
            "embeddings/token/embedding": "wte.weight",
            "embeddings/position/embedding": "wpe.weight",
            "layers/block/attention/norm": "h.{}.ln_1",
            "layers/block/attention/qkv": "h.{}.attn.c_attn",
            "layers/block/attention/output": "h.{}.attn.c_proj",
            "layers/block/feed_forward/norm": "h.{}.ln_2",
            "layers/block/feed_forward/up": "h.{}.mlp.c_fc",
            "layers/block/feed_forward/down": "h.{}.mlp.c_proj",
            "norm": "ln_f",
        },
        r"lm_head\.weight|h\.\d+\.attn\.(bias|masked_bias)",
        transposed=False,  # GPT-2's Conv1D stores (in, out)
        fused=("layers/block/attention/qkv",),
    ),
}


def read_tensors(folder: Path) -> dict[str, jax.Array]:
    """All tensors of a folder's model.safetensors, or of the shards its index names."""
    index = folder / "model.safetensors.index.json"
    sharded = index.is_file()
    files = (
        sorted(set(read_json(index)["weight_map"].values())) if sharded else ["model.safetensors"]
    )
    tensors: dict[str, jax.Array] = {}
    for name in files:
        path = folder / name
        if not path.is_file():
            found = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
            raise FileNotFoundError(
                f"{path} is missing (the folder holds {found}). Weights are read from safetensors "
                "only; convert others with transformers: model.save_pretrained(folder)"
            )
        try:
            with safe_open(path, framework="flax") as file:
                tensors.update({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(
                f"{path} cannot be read ({error}); it is truncated or not safetensors: fetch it again"
            ) from error
    return tensors


def from_published(
    tensors: Mapping[str, jax.Array],
    layout: Layout,
    wanted: Iterable[str],
    shapes: Mapping[str, Any],
    depth: int,
    where: str,
) -> dict[str, jax.Array]:
    """Our leaves from published tensors: stacked over layers, kernels (in, out).

    Args:
      tensors: by published name.
      layout: of the architecture.
      wanted: paths of the leaves to make.
      shapes: by path, at least of the wanted ones.
      depth: number of layers.
      where: folder and architecture, for messages.

    Raises:
      ValueError: tensors are missing, extra or misshapen; all are named.
    """
    plain = {_modern(name.removeprefix(layout.prefix)): value for name, value in tensors.items()}
    used, missing, misshapen = set(), [], []
    result = {}
    for path in sorted(wanted):
        template, transpose = layout.source(path)
        stacked = "{}" in template
        names = [template.format(layer) for layer in (range(depth) if stacked else [0])]
        lost = [name for name in names if name not in plain]
        missing += lost
        if lost:
            continue
        used.update(names)
        parts = [plain[name].T if transpose else plain[name] for name in names]
        own = shapes[path].shape[1:] if stacked else shapes[path].shape
        expected = layout.published_shape(path, own)
        bad = [(n, p.shape) for n, p in zip(names, parts, strict=True) if p.shape != expected]
        misshapen += [f"{n} is {s}, config.json asks for {expected}" for n, s in bad]
        if not bad:
            parts = [part.reshape(own) for part in parts]
            result[path] = jnp.stack(parts) if stacked else parts[0]
    extra = [n for n in plain if n not in used and not re.fullmatch(layout.unused, n)]
    problems = [
        f"{len(found)} {kind}: {', '.join(sorted(found)[:5])}{' ...' if len(found) > 5 else ''}"
        for kind, found in (("missing", missing), ("extra", extra), ("misshapen", misshapen))
        if found
    ]
    if problems:
        raise ValueError(
            f"the tensors of {where} do not fit its config.json: " + "; ".join(problems)
        )
    return result


def to_published(params: Mapping[str, Any], layout: Layout) -> dict[str, np.ndarray]:
    """The inverse of `from_published`: published tensors from our leaves."""
    result = {}
    for path, value in params.items():
        template, transpose = layout.source(path)
        stacked = "{}" in template
        parts = np.asarray(value) if stacked else np.asarray(value)[None]
        for layer, own in enumerate(parts):
            name = layout.prefix + template.format(layer)
            part = own.reshape(layout.published_shape(path, own.shape))
            result[name] = np.ascontiguousarray(part.T if transpose else part)
    return result


def _modern(name: str) -> str:
    """TensorFlow-era names of the original BERT files."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )
