"""Finding the matrices that bitsandbytes has packed among the tensors of a folder, and checking them.

Four bits: `x.weight`, `x.weight.absmax`, `.quant_map`, with double quantisation `.nested_absmax` and
`.nested_quant_map`, and `.quant_state.bitsandbytes__nf4`, JSON in bytes. LLM.int8: `x.weight`, `x.SCB`,
`x.weight_format`. Names, types, shapes, settings and maps are checked here, before a weight is read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from lora_jax.errors import InputError
from lora_jax.models import config_json
from lora_jax.models.packed_matrices import FourBitMatrix, Int8Matrix, PackedMatrix
from lora_jax.models.packed_parts import REMEDY, Parts
from lora_jax.models.quantization_json import quantised_bits
from lora_jax.quantisation.formats import BLOCKS
from lora_jax.quantisation.four_bits import BOOKS, MAP, NESTED, FourBits
from lora_jax.quantisation.int8 import Int8
from lora_jax.reading import Record, as_object, parse_json
from lora_jax.tensor_files import Tensors

_STATE = ".quant_state."
_KINDS = tuple(f"bitsandbytes__{code}" for code in BOOKS)
_OF_FOUR_BITS = re.compile(
    r"(.+)\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+)"
)
_OF_INT8 = re.compile(r"(.+)\.(SCB|weight_format)")
_KEYS = {"quant_type", "blocksize", "dtype", "shape"}
_NESTED_KEYS = {"nested_blocksize", "nested_dtype", "nested_offset"}
_DTYPES = ("float32", "float16", "bfloat16")
_MOST_STATE = 2**16  # bytes of the JSON of a matrix
_ROW = 0  # weight_format: rows as they are
Found = tuple[dict[str, PackedMatrix], set[str]]


def find(files: Mapping[str, Tensors]) -> Found:
    """The packed matrices by the name of their weight, and the names of the tensors beside the weights.

    Args:
      files: of every tensor.

    Raises:
      FileError: a part is missing, or of another type or shape than the others ask for; a setting or a
        map that is not implemented.
    """
    four: dict[str, set[str]] = {}
    eight: dict[str, set[str]] = {}
    beside = set()
    for name in sorted(files):
        if match := _OF_FOUR_BITS.fullmatch(name):
            four.setdefault(match[1], set()).add(match[2])
            beside.add(name)
        elif match := _OF_INT8.fullmatch(name):
            eight.setdefault(f"{match[1]}.weight", set()).add(match[2])
            beside.add(name)
    small = _small(files, beside)
    matrices: dict[str, PackedMatrix] = {}
    for weight, parts in four.items():
        matrices[weight] = _four_bits(Parts(files, small, weight), parts)
    for weight in eight:
        matrices[weight] = _int8(Parts(files, small, weight))
    return matrices, beside


def check_config(folder: Path, bits: Collection[int]) -> None:
    """Raises FileError if config.json says that other matrices are packed than there are.

    Args:
      folder: of the model.
      bits: of the packed matrices in its files.
    """
    if not (folder / "config.json").is_file():
        return
    record = config_json.read(folder)
    said = quantised_bits(record)
    if said is not None and set(bits) != {said}:
        there = " and ".join(f"{n} bits" for n in sorted(bits)) or "none"
        raise record.error(
            "quantization_config",
            f"{said} bits",
            f"what bitsandbytes has packed in the files: {there}",
        )


def _small(files: Mapping[str, Tensors], names: set[str]) -> dict[str, np.ndarray]:
    """The values of states, maps and marks, each file opened once."""
    wanted = {
        name
        for name in names
        if not name.endswith(("absmax", "SCB"))
        and np.prod(files[name].shapes[name], dtype=float) <= _MOST_STATE
    }
    by_file: dict[Tensors, set[str]] = {}
    for name in wanted:
        by_file.setdefault(files[name], set()).add(name)
    return {name: value for file, some in by_file.items() for name, value in file.items(names=some)}


def _four_bits(parts: Parts, there: set[str]) -> FourBitMatrix:
    """The matrix of four bits that some parts beside its weight belong to."""
    weight = parts.weight
    states = sorted(part for part in there if part.startswith("quant_state."))
    if not states:
        parts.check(f"{weight}{_STATE}{_KINDS[0]}", "U8", 0)
    key, *others = (state.removeprefix("quant_state.") for state in states)
    if others or key not in _KINDS:
        odd = f"{weight}{_STATE}{others[0] if others else key}"
        raise parts.error(odd, "this state", f"one of {', '.join(_KINDS)}, and one for a weight")
    state = _state(parts, f"{weight}{_STATE}{key}")
    double = "nested_absmax" in there or "nested_quant_map" in there
    form, shape = _settings(state, key.removeprefix("bitsandbytes__"), double)
    count = shape[0] * shape[1]
    blocks = -(-count // form.block)
    storage = (
        f", as quant_state has shape {list(shape)}; quant_storage other than uint8 is not read"
    )
    parts.check(weight, "U8", -(-count // 2), storage)
    scales = f", as quant_state has shape {list(shape)} and blocksize {form.block}"
    parts.check(f"{weight}.absmax", "U8" if double else "F32", blocks, scales)
    parts.check_map(f"{weight}.quant_map", BOOKS[form.code])
    if double:
        nested = f"{weight}.nested_absmax"
        parts.check(nested, "F32", -(-blocks // NESTED), scales)
        parts.check_map(f"{weight}.nested_quant_map", MAP)
    return FourBitMatrix(
        name=weight, files=parts.files, rows=shape[0], inputs=shape[1], format=form,
        dtype=state.get("dtype", str), offset=state.get("nested_offset", float, 0.0),
    )  # fmt: skip


def _state(parts: Parts, name: str) -> Record:
    """The settings of a matrix: JSON in a tensor of bytes."""
    file = parts.files[name]
    shape = file.shapes[name]
    if file.types[name] != "U8" or len(shape) != 1 or shape[0] > _MOST_STATE:
        found = f"type {file.types[name]}, shape {shape}"
        raise parts.error(name, found, f"JSON in at most {_MOST_STATE:,} bytes (U8)")
    place = Path(f"{file.path}, tensor {name}")
    try:
        text = parts.small(name).tobytes().decode()
    except UnicodeDecodeError as error:
        raise parts.error(name, "bytes that are not UTF-8", "JSON") from error
    return as_object(parse_json(text, place, REMEDY), place, REMEDY)


def _settings(state: Record, code: str, double: bool) -> tuple[FourBits, tuple[int, int]]:
    """The packed form and the shape that a state has."""
    known = _KEYS | (_NESTED_KEYS if double else set())
    if unknown := sorted(state.values.keys() - known):
        hint = "" if double else ", as there is no nested_absmax"
        raise state.error(unknown[0], "this key", f"{', '.join(sorted(known))} only{hint}")
    if (kind := state.get("quant_type", str)) != code:
        raise state.error("quant_type", repr(kind), f"{code!r}, as the tensor's name says")
    if (dtype := state.get("dtype", str)) not in _DTYPES:
        raise state.error("dtype", repr(dtype), f"one of {', '.join(_DTYPES)}")
    if double:
        if (nested := state.integer("nested_blocksize")) != NESTED:
            raise state.error("nested_blocksize", str(nested), f"{NESTED}")
        if (dtype := state.get("nested_dtype", str)) != "float32":
            raise state.error("nested_dtype", repr(dtype), "'float32'")
        if abs(offset := state.get("nested_offset", float)) > float(np.finfo(np.float32).max):
            raise state.error("nested_offset", repr(offset), "a number of float32")
    shape = state.get("shape", list)
    if len(shape) != 2 or any(type(n) is not int or not 0 < n < 2**31 for n in shape):
        raise state.error("shape", repr(shape)[:80], "outputs and inputs of a matrix")
    block = state.integer("blocksize")
    try:
        return FourBits("fp4" if code == "fp4" else "nf4", block, double), (shape[0], shape[1])
    except InputError as error:
        sizes = f"one of {', '.join(map(str, BLOCKS))}"
        raise state.error("blocksize", str(block), sizes) from error


def _int8(parts: Parts) -> Int8Matrix:
    """The matrix of LLM.int8 that some parts beside its weight belong to."""
    weight = parts.weight
    stem, files = weight.removesuffix("weight"), parts.files
    shape = files[weight].shapes[weight] if weight in files else ()
    parts.check(weight, "I8", int(np.prod(shape, dtype=object)))
    if len(shape) != 2 or 0 in shape:
        raise parts.error(weight, f"shape {shape}", "outputs and inputs of a matrix")
    parts.check(f"{stem}SCB", "F32", shape[0], f", as {weight} has shape {shape}")
    mark = f"{stem}weight_format"
    if mark in files:  # old versions have none
        parts.check(mark, "U8", 1)
        if (number := int(parts.small(mark)[0])) != _ROW:
            raise parts.error(
                mark, f"{number}", f"{_ROW}, rows as they are: others are of one kind of GPU"
            )
    return Int8Matrix(name=weight, files=files, rows=shape[0], inputs=shape[1], format=Int8())
