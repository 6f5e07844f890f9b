"""In which form the matrices of a pre-trained model are held: floating-point numbers, or packed.

`config.base_format` is "float", a name of `quantisation.registry.FORMATS`, or "stored": as the file has
them, packed where they are packed there. Names pack every linear layer but heads when the model is read,
one matrix at a time, and leave tables and norms; "stored" packs what the file packs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from flax import nnx

from lora_jax import surgery
from lora_jax.errors import InputError
from lora_jax.low_rank.targets import ALL_LINEAR
from lora_jax.models.gguf_files import GgufFiles
from lora_jax.models.model_files import AnyFiles
from lora_jax.models.parts import FLOAT, STORED
from lora_jax.models.tensors import Plan, Source
from lora_jax.quantisation.formats import Format
from lora_jax.quantisation.ggml import KINDS, Ggml
from lora_jax.quantisation.quantise import chosen_layers, describe, replace
from lora_jax.quantisation.registry import FORMATS, format_of
from lora_jax.quantisation.weight import PackedWeight, arranged


def pack(model: nnx.Module, name: str, files: AnyFiles, planned: Plan) -> dict[str, PackedWeight]:
    """Gives the layers of a model in shapes their packed weights, in place.

    Args:
      model: from `nnx.eval_shape`.
      name: see `parts.BASE_FORMATS`.
      files: that hold the weights.
      planned: which tensors become which leaves.

    Returns:
      The packed weights, of shapes, by the path of the leaf whose place they take.

    Raises:
      InputError, FileError: blocks do not divide a layer's inputs; or, of "stored", nothing is packed in
        the file, or the layers of a stack are packed in different ways.
    """
    if name == FLOAT:
        return {}
    modules = surgery.pretrained_modules(model)
    formats: Mapping[str, Format]
    if name == STORED:
        formats = _stored(files, planned)
    else:
        formats = dict.fromkeys(chosen_layers(modules, ALL_LINEAR), format_of(name))
    weights = {}
    for path, format in formats.items():
        weight_name, weight = describe(modules[path], format, path)
        replace(modules[path], weight_name, weight)
        weights[f"{path}/{weight_name}"] = weight
    return weights


def _stored(files: AnyFiles, planned: Plan) -> dict[str, Format]:
    """The formats that a file has, by the path of the layer."""
    if not isinstance(files, GgufFiles):
        raise InputError(
            f"{files.folder}: base_format='stored' is for GGUF files, which have packed weights; choose one "
            f"of {', '.join(FORMATS)} to pack the weights of this folder"
        )
    formats: dict[str, Format] = {}
    for path, source in planned.sources.items():
        kinds = {tensor: files.kind(tensor) for tensor in source.names}
        found = sorted(set(kinds.values()) & KINDS.keys())
        if not found:
            continue
        if len(set(kinds.values())) > 1:
            odd = next(tensor for tensor, kind in kinds.items() if kind != kinds[source.names[0]])
            raise files.error(
                odd, f"type {kinds[odd]}", f"{kinds[source.names[0]]}, as {source.names[0]}",
                "The layers of a stack are one array here, and this file mixes types (as Q4_K_M does): take "
                "one that does not (llama-quantize --pure), or read it into floating-point numbers and pack "
                "those: base_format='nf4', or 'float'",
            )  # fmt: skip
        formats[path.rpartition("/")[0]] = Ggml(found[0])
    if not formats:
        raise InputError(
            f"{files.folder} has no packed tensor that this reads; base_format='stored' needs a file of type "
            f"{', '.join(KINDS)}"
        )
    return formats


def packed_arrays(files: AnyFiles, source: Source, weight: PackedWeight) -> dict[str, np.ndarray]:
    """The arrays of a packed weight, from the tensors that it is made of.

    Args:
      files: that hold them.
      source: of the leaf.
      weight: in shapes.
    """
    matrices = []
    for name in source.names:
        form = weight.format
        if (
            isinstance(files, GgufFiles)
            and isinstance(form, Ggml)
            and files.kind(name) == form.kind
        ):
            matrices.append(form.from_blocks(files.packed(name)))
            continue
        values = files.read([name], np.float32)[name]
        rows = values if source.transposed or weight.table else values.T
        matrices.append(form.pack(np.ascontiguousarray(rows.reshape(weight.matrix))))
    return arranged(weight, matrices)
