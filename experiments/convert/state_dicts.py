"""Reads and writes state dict files of other programs: safetensors, or PyTorch files.

Only tensors are read from PyTorch files; code in them never runs. The library itself never unpickles:
this module belongs to the offline converter. PyTorch is optional, and imported only for its files.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save as to_safetensors

from lora_jax import files
from lora_jax.errors import FileError, InputError, MissingFileError, brief
from lora_jax.reading import AGAIN
from lora_jax.tensor_files import NUMBERS, Tensors, not_finite

if TYPE_CHECKING:
    from torch import Tensor


def torch_module() -> ModuleType:
    """Imports PyTorch, an optional dependency.

    Raises:
      ImportError: it is absent, or so old that a file can run code although only tensors are asked for.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "files other than safetensors need PyTorch: pip install torch, or use .safetensors"
        ) from error
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):
        raise ImportError(  # CVE-2025-32434: weights_only could be made to run code
            f"PyTorch {torch.__version__} can run code hidden in a checkpoint; it must be 2.6 or "
            "newer: pip install --upgrade torch"
        )
    return torch


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors file or a PyTorch file; code in the latter is never run.

    Raises:
      FileNotFoundError: there is no such file.
      ImportError: PyTorch is needed and missing.
      ValueError: the file is broken, or holds other things than tensors.
    """
    if not path.is_file():
        raise MissingFileError(f"checkpoint {path} does not exist")
    if path.suffix == ".safetensors":
        tensors = Tensors(path)
        tensors.check_types(NUMBERS)
        if factors := [name for name in tensors.types if "lora_" in name]:
            tensors.check_types(names=factors)
        return tensors.read()
    torch = torch_module()
    with path.open("rb") as file:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # PyTorch raises many kinds for bytes that it cannot read
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"{path} cannot be read as tensors ({reason}). It is broken, or holds objects that "
                "run code when loaded, which is refused"
            ) from error
    if isinstance(state, Mapping) and "model_state_dict" in state:  # the authors' GPT-2 files
        state = state["model_state_dict"]
    if not isinstance(state, Mapping):
        raise InputError(f"{path} holds a {type(state).__name__}, expected a state dict")
    if odd := [
        key
        for key, value in state.items()
        if not isinstance(value, torch.Tensor) or not isinstance(key, str)
    ]:
        raise InputError(f"{path} is not a state dict: {brief(odd[:3])} are not tensors with names")
    return {key: _array(path, key, value, torch) for key, value in state.items()}


def _array(path: Path, key: str, value: Tensor, torch: ModuleType) -> np.ndarray:
    """A tensor of a file in host memory; raises FileError for one that no weight is."""

    def error(found: str, expected: str) -> FileError:
        return FileError(path, f"tensor {key}", found, expected, AGAIN)

    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise error(f"a tensor of layout {value.layout}", "plain numbers")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise error(f"shape {tuple(value.shape)}, with fewer numbers", "as many as the shape says")
    if value.is_complex() or (value.element_size() < 2 and value.is_floating_point()):
        raise error(f"type {value.dtype}", "floating-point numbers of 16 bits or more")
    if "lora_" in key and not value.is_floating_point():
        raise error(f"type {value.dtype}", "floating-point numbers")
    # numpy has no bfloat16; float32 holds it exactly
    array = (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()
    if value.is_floating_point() and (odd := not_finite(array)):
        raise error(f"{odd:,} of {array.size:,} values that are not finite", "finite numbers")
    return array


def check_new(path: Path) -> None:
    """Raises InputError if no state dict can be written there: another suffix, or the file exists."""
    if path.suffix not in (".safetensors", ".bin", ".pt"):
        raise InputError(f"{path} must end in .safetensors, .bin or .pt")
    files.check_output(path)
    if path.exists():
        raise InputError(f"{path} exists already; choose another file")


def write(path: Path, state: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a state dict, whole or not at all, in the format of the suffix.

    Args:
      path: .safetensors, or .bin and .pt through PyTorch; the file must not exist yet.
      state: key to array; types that numpy does not share with PyTorch (bfloat16) become float32 in
        PyTorch's files.
      metadata: texts to store in a safetensors file; the other formats have no place for them.

    Raises:
      ImportError: PyTorch is needed and missing.
      ValueError: the suffix is another one, or the file exists.
    """
    check_new(path)
    if path.suffix == ".safetensors":
        content = to_safetensors(dict(state), {"format": "pt", **metadata})
    else:
        torch, buffer = torch_module(), io.BytesIO()
        plain = {k: v if v.dtype.kind == "f" else v.astype(np.float32) for k, v in state.items()}
        torch.save({k: torch.tensor(v) for k, v in plain.items()}, buffer)
        content = buffer.getvalue()
    files.make_folder(path.parent)
    files.write_bytes(path, content)
