"""In which form the matrices of a pre-trained model are held: floating-point numbers, or packed.

`config.base_format` is "float", a name of `quantisation.registry.FORMATS`, or "stored": as the file has
them, packed where they are packed there. Names pack every linear layer but heads when the model is read,
one matrix at a time, and leave tables and norms; "stored" packs what the file packs.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lora_jax import surgery
from lora_jax.errors import FileError, InputError
from lora_jax.gguf.layouts import LAYOUTS
from lora_jax.low_rank.targets import ALL_LINEAR
from lora_jax.models.any_files import AnyFiles
from lora_jax.models.parts import FLOAT, STORED
from lora_jax.models.tensors import Plan, Source
from lora_jax.quantisation.formats import Format
from lora_jax.quantisation.quantise import chosen_layers, describe, replace
from lora_jax.quantisation.registry import FORMATS, format_of, name_of
from lora_jax.quantisation.weight import PackedWeight, arranged


def pack(
    model: nnx.Module,
    name: str,
    files: AnyFiles,
    planned: Plan,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> dict[str, PackedWeight]:
    """Gives the layers of a model in shapes their packed weights, in place.

    Args:
      model: from `nnx.eval_shape`.
      name: see `parts.BASE_FORMATS`.
      files: that hold the weights.
      planned: which tensors become which leaves.
      dtype: of the weights that they stand for, where the files do not say it of packed ones.

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
        try:
            weight_name, weight = describe(modules[path], format, path)
        except InputError as error:
            if name != STORED:
                raise InputError(
                    f"base_format={name!r} does not fit {files.folder}: {error}. base_format='int8' fits "
                    "every width"
                ) from error
            raise _unfit(files, planned, path, error) from error
        replace(modules[path], weight_name, weight)
        leaf = f"{path}/{weight_name}"
        tensors = planned.sources[leaf].names
        given = {files.unpacked_type(t) if files.format(t) == format else None for t in tensors}
        weight.dtype = (given.pop() if len(given) == 1 else None) or str(jnp.dtype(dtype))
        weights[leaf] = weight
    return weights


def _stored(files: AnyFiles, planned: Plan) -> dict[str, Format]:
    """The formats that a file has, by the path of the layer."""
    formats: dict[str, Format] = {}
    for path, source in planned.sources.items():
        kinds = {tensor: _kind(files, tensor) for tensor in source.names}
        found = [form for tensor in source.names if (form := files.format(tensor)) is not None]
        if not found:
            continue
        if len(set(kinds.values())) > 1:
            odd = next(tensor for tensor, kind in kinds.items() if kind != kinds[source.names[0]])
            raise files.error(
                odd, kinds[odd], f"{kinds[source.names[0]]}, as {source.names[0]}",
                "The layers of a stack are one array here, and this file mixes types (as Q4_K_M and dynamic "
                "four bits do): take one that does not (llama-quantize --pure), or read it into "
                "floating-point numbers and pack those: base_format='nf4', or 'float'",
            )  # fmt: skip
        formats[path.rpartition("/")[0]] = found[0]
    if not formats:
        raise InputError(
            f"{files.folder} has no packed tensor that this reads; base_format='stored' needs a GGUF file of "
            f"type {', '.join(LAYOUTS)}, or a folder that bitsandbytes has packed. Choose one of "
            f"{', '.join(FORMATS)} to pack the weights when they are read"
        )
    return formats


def _kind(files: AnyFiles, tensor: str) -> str:
    """What must be the same in all layers of a stack."""
    given = files.unpacked_type(tensor) if files.format(tensor) is not None else None
    return f"{files.kind(tensor)}, unpacked to {given}" if given else files.kind(tensor)


def _unfit(files: AnyFiles, planned: Plan, path: str, error: InputError) -> FileError:
    """The error for a layer whose packed form no layer here can have."""
    source = next(s for leaf, s in planned.sources.items() if leaf.rpartition("/")[0] == path)
    return files.error(
        source.names[0], f"{_kind(files, source.names[0])}, shape {files.shapes[source.names[0]]}",
        f"blocks that rows consist of ({error})", "Read it with base_format='float'",
    )  # fmt: skip


def packed_arrays(files: AnyFiles, source: Source, weight: PackedWeight) -> dict[str, np.ndarray]:
    """The arrays of a packed weight, from the tensors that it is made of.

    Args:
      files: that hold them.
      source: of the leaf.
      weight: in shapes.

    Raises:
      FileError: values that are not finite, in the file or in the type of the weight.
    """
    matrices = []
    for name in source.names:
        if files.format(name) == weight.format:
            matrices.append(files.arrays(name))
        else:
            values = files.read([name], np.float32)[name]
            rows = values if source.transposed or weight.table else values.T
            with np.errstate(over="ignore", invalid="ignore"):  # is found as infinity
                matrices.append(
                    weight.format.pack(np.ascontiguousarray(rows.reshape(weight.matrix)))
                )
        _check_finite(files, name, weight, matrices[-1])
    return arranged(weight, matrices)


def _check_finite(
    files: AnyFiles, name: str, weight: PackedWeight, arrays: Mapping[str, np.ndarray]
) -> None:
    """Raises FileError for a packed tensor whose values are not finite in the type of the weight."""
    if not weight.format.not_finite(arrays, weight.dtype):
        return
    if files.format(name) != weight.format:
        raise files.error(
            name, "values too large", f"values that {name_of(weight.format)} holds in {weight.dtype}",
            "Read it with base_format='float', or in a type of larger numbers (bfloat16, float32)",
        )  # fmt: skip
    found = f"values that are not finite, or too large for {weight.dtype}"
    raise files.error(name, found, "finite numbers")
