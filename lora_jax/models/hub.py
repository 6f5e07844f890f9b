"""Weights and configuration of a pre-trained model, from Hugging Face files.

A model is named by a folder, by a GGUF file, by `package:NAME` for either inside an installed Python
package, or by its hub name. Weights are safetensors, one file or shards, or those of the GGUF file. Every
tensor must be used, known to be unneeded, or it is an error that names it. Its tokenizer:
`lora_jax.data.tokenizers`; the way back into such a folder: `lora_jax.models.saving`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Key

from lora_jax import digests, partition
from lora_jax.errors import InputError
from lora_jax.gguf.container import SUFFIX
from lora_jax.models import architectures, base_formats, config_json
from lora_jax.models.any_files import AnyFiles
from lora_jax.models.architectures import ARCHITECTURES, AnyConfig, AnyDecoderConfig
from lora_jax.models.decoder import Decoder
from lora_jax.models.decoder_classifier import DecoderClassifier
from lora_jax.models.encoder import Classifier, EncoderConfig
from lora_jax.models.model_files import open_files
from lora_jax.models.parts import FLOAT
from lora_jax.models.places import find as find
from lora_jax.models.saving import save_classifier as save_classifier
from lora_jax.models.saving import save_decoder as save_decoder
from lora_jax.models.saving import save_encoder as save_encoder
from lora_jax.models.tensors import Plan, plan
from lora_jax.quantisation.weight import PackedWeight

HEAD = r"head/.*"


def digest(folder: Path) -> str:
    """What tells a model from others: a digest of config.json and the weights' files, or of the GGUF."""
    if folder.suffix == SUFFIX:
        return digests.of_files([folder])
    return digests.of_files([folder / "config.json", *folder.glob("*.safetensors")])


def read_config(folder: Path, **overrides: Any) -> EncoderConfig:
    """An encoder's configuration from config.json; `overrides` replace fields (unroll, dropout).

    Raises:
      FileNotFoundError: no config.json.
      ValueError: an architecture or setting that is not implemented.
    """
    config = architectures.read_config(folder, Classifier, **overrides)
    assert isinstance(config, EncoderConfig)
    return config


def read_decoder_config(folder: Path, **overrides: Any) -> AnyDecoderConfig:
    """A decoder's configuration from config.json; `overrides` replace fields.

    Raises:
      FileNotFoundError: no config.json.
      ValueError: an architecture or setting that is not implemented.
    """
    config = architectures.read_config(folder, Decoder, **overrides)
    assert isinstance(config, AnyDecoderConfig)
    return config


def check(folder: Path, config: AnyConfig) -> tuple[str, ...]:
    """Checks the weights of a folder by the headers of the files, without reading a value.

    Whether they can be packed as `config.base_format` says is checked too.

    Args:
      folder: from `find`.
      config: as for `load`.

    Returns:
      The names of the tensors of heads, which `load` does not use.

    Raises:
      FileNotFoundError, ValueError: as `load`, but for values that are not finite.
    """
    files = open_files(folder)
    planned = _planned(files, config, _shapes(config, 2))
    _packed(config, files, planned)
    return planned.heads


def unused_heads(names: Sequence[str]) -> str:
    """What a run says of heads that it does not use, see `check`; "" if there are none."""
    if not names:
        return ""
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return (
        f"the head in the model folder is not used ({', '.join(names[:6])}{more}): a classifier starts "
        "with a new one. If it is the head of a classifier, hub.load_classifier(..., head='published') takes "
        "it in Python"
    )


def load(
    folder: Path,
    config: AnyConfig,
    num_outputs: int,
    key: Key[Array, ""],
    dtype: jax.typing.DTypeLike = jnp.float32,
    head: Literal["fresh", "published"] = "fresh",
) -> Classifier | Decoder:
    """A pre-trained model of any architecture; an encoder gets a fresh head.

    All names, types and shapes are checked before anything is read or made.

    Args:
      folder: from `find`.
      config: from `read_config`, `read_decoder_config` or `architectures.read_config`.
      num_outputs: classes, or 1 for regression; a decoder has no use for it.
      key: for the head's initial values (float32).
      dtype: type of the pre-trained weights.
      head: "published" takes the classifier's head from the folder, where it must be the
        architecture's and have `num_outputs` outputs.

    Raises:
      FileNotFoundError, ValueError: files missing or broken; tensors missing, extra, misshapen, of
        integers, or not finite.
    """
    if head not in ("fresh", "published"):
        raise InputError(f"head must be 'fresh' or 'published', got {head!r}")
    if head == "published":
        config_json.check_classifier(folder)
    architecture = ARCHITECTURES[config.architecture]
    shapes, files = _shapes(config, num_outputs), open_files(folder)
    planned = _planned(files, config, shapes, with_head=head == "published")
    empty = abstract(config, num_outputs)
    packed = base_formats.pack(empty, config.base_format, files, planned, dtype)
    new = {} if head == "published" else new_head(config, num_outputs, key)
    read = _values(files, planned, dtype, packed)
    structure, _ = partition.all_frozen(empty)
    model = partition.join(structure, new, read)
    assert isinstance(model, architecture.model)
    return model


def read_base(
    folder: Path,
    config: AnyConfig,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> partition.Params:
    """The pre-trained leaves by path, without a model around them; see `load`."""
    files = open_files(folder)
    planned = _planned(files, config, _shapes(config, 2))
    return _values(files, planned, dtype, _packed(config, files, planned))


def leaf_reader(
    folder: Path, config: AnyConfig, dtype: jax.typing.DTypeLike = jnp.float32
) -> Callable[[str], Array]:
    """A function that reads single pre-trained leaves by path, in floating-point numbers; see `load`."""
    files = open_files(folder)
    planned = _planned(files, config, _shapes(config, 2))

    def read(path: str) -> Array:
        source = planned.sources[path]
        return source.leaf(files.read(source.names, dtype))

    return read


@functools.lru_cache(maxsize=8)
def _shapes(config: AnyConfig, num_outputs: int) -> Mapping[str, tuple[int, ...]]:
    """The shapes of all leaves by path; nothing is allocated."""
    model = abstract(config, num_outputs)
    return {path: leaf.shape for path, leaf in partition.parameters(model).items()}


def _packed(config: AnyConfig, files: AnyFiles, planned: Plan) -> dict[str, PackedWeight]:
    """The packed weights in shapes, see `base_formats.pack`; without any no model is made for them."""
    if config.base_format == FLOAT:
        return {}
    return base_formats.pack(abstract(config, 2), config.base_format, files, planned)


def abstract(config: AnyConfig, num_outputs: int) -> nnx.Module:
    """The model in shapes, without a packed weight; nothing is read.

    Args:
      config: of the model.
      num_outputs: of a classifier's head.
    """
    make = ARCHITECTURES[config.architecture].make
    model: nnx.Module = nnx.eval_shape(lambda: make(config, num_outputs, nnx.Rngs(0)))
    return model


def _planned(
    files: AnyFiles,
    config: AnyConfig,
    shapes: Mapping[str, tuple[int, ...]],
    with_head: bool = False,
) -> Plan:
    """Checks names, shapes and types of the tensors, see `tensors.plan`."""
    planned = plan(
        files.shapes,
        ARCHITECTURES[config.architecture].layout,
        {p: shape for p, shape in shapes.items() if with_head or not re.fullmatch(HEAD, p)},
        config.depth,
        f"{files.folder} ({config.architecture}, {config.depth} layers)",
    )
    files.check_types(planned.names())
    return planned


def _values(
    files: AnyFiles,
    planned: Plan,
    dtype: jax.typing.DTypeLike,
    packed: Mapping[str, PackedWeight],
) -> partition.Params:
    """Reads the leaves, one after the other: those of a head in float32, packed ones as they are, others in
    `dtype`.
    """
    for name, other in planned.tied.items():
        values = files.read([name, other], dtype)
        if not np.array_equal(values[name], values[other]):
            raise files.error(
                name, "other values", f"those of {other}",
                "A model with its own output embedding is not implemented",
            )  # fmt: skip
    leaves: partition.Params = {}
    for path, source in planned.sources.items():
        if path in packed:
            arrays = base_formats.packed_arrays(files, source, packed[path])
            leaves |= {f"{path}/{name}": jnp.asarray(array) for name, array in arrays.items()}
        else:
            kind = jnp.float32 if re.fullmatch(HEAD, path) else dtype
            leaves[path] = source.leaf(files.read(source.names, kind))
    return leaves


def load_classifier(
    folder: Path,
    config: EncoderConfig,
    num_outputs: int,
    key: Key[Array, ""],
    dtype: jax.typing.DTypeLike = jnp.float32,
    head: Literal["fresh", "published"] = "fresh",
) -> Classifier:
    """A classifier with pre-trained encoder and a fresh or its published head; see `load`."""
    model = load(folder, config, num_outputs, key, dtype, head)
    assert isinstance(model, Classifier)
    return model


def load_decoder(
    folder: Path, config: AnyDecoderConfig, dtype: jax.typing.DTypeLike = jnp.float32
) -> Decoder:
    """A pre-trained decoder; see `load`."""
    model = load(folder, config, 0, jax.random.key(0), dtype)
    assert isinstance(model, Decoder)
    return model


def load_decoder_classifier(
    folder: Path,
    config: AnyDecoderConfig,
    num_outputs: int,
    key: Key[Array, ""],
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> DecoderClassifier:
    """A classifier with a pre-trained decoder and a fresh head; see `load`."""
    decoder = load_decoder(folder, config, dtype)
    return DecoderClassifier(decoder, num_outputs, nnx.Rngs(params=key))


def new_head(config: AnyConfig, num_outputs: int, key: Key[Array, ""]) -> partition.Params:
    """The head's initial values that `load` gives with this key, by path; {} of a decoder."""
    values: partition.Params = _new_head(config, num_outputs)(key)
    return values


@functools.lru_cache(maxsize=8)
def _new_head(config: AnyConfig, num_outputs: int) -> Callable[[Key[Array, ""]], partition.Params]:
    """The program behind `new_head`: every run of a process asks for it, with keys of its own."""
    make = ARCHITECTURES[config.architecture].make
    return jax.jit(lambda key: head_values(make(config, num_outputs, nnx.Rngs(params=key))))


def head_values(model: nnx.Module) -> partition.Params:
    """The values of a classifier's head by path; inside a program the other ones are never computed."""
    params = partition.parameters(model)
    return {path: value for path, value in params.items() if re.fullmatch(HEAD, path)}
