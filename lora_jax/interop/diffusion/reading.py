"""A style file as adapters of ours, one for each model that it adapts."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from lora_jax import methods
from lora_jax.adapter_files import Adapter
from lora_jax.errors import FileError, InputError
from lora_jax.fingerprints import base_parameters, fingerprint
from lora_jax.interop.diffusion.keys import KOHYA, Side, places
from lora_jax.interop.diffusion.modules import Module, modules, with_underscores
from lora_jax.interop.peft.config import PeftConfig, read_lora
from lora_jax.low_rank.contraction import scale
from lora_jax.method import Method
from lora_jax.patterns import some
from lora_jax.reading import parse_json
from lora_jax.tensor_files import FLOATING, NUMBERS, Tensors

FILE = "pytorch_lora_weights.safetensors"  # that diffusers writes into a folder
_METADATA = "lora_adapter_metadata"  # of diffusers from 0.35 on
_REMEDY = "Download it again, or have the program that made it write it as safetensors"
_TEXT_MODEL = "text_model."  # which CLIP's modules begin with, but not in transformers 5
Factors = dict[Side, np.ndarray]


class Style:
    """A style file of diffusers, PEFT or kohya's scripts.

    Attributes:
      path: of the file.
      parts: the models that it adapts, `unet` and `text_encoder`.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Reads the header.

        Args:
          path: a safetensors file, or a folder with diffusers' pytorch_lora_weights.safetensors.

        Raises:
          MissingFileError, FileError: no such file, a broken one, or a tensor is not of numbers.
          InputError: tensors that are no factors of LoRA; the message names them.
        """
        self.path = Path(path) / FILE if Path(path).is_dir() else Path(path)
        self._file = Tensors(self.path, _REMEDY)
        self._places = places(self._file.shapes, self.path)
        factors = [name for name, one in self._places.items() if one.side != "alpha"]
        self._file.check_types(FLOATING, factors)
        self._file.check_types(NUMBERS)
        found = {one.part for one in self._places.values()}
        self.parts = [part for part in KOHYA if part in found]

    def adapters(
        self, models: Mapping[str, nnx.Module], ignore: Sequence[str] = ()
    ) -> dict[str, Adapter]:
        """The adapters in it, in float32, see `read`."""
        if absent := [part for part in self.parts if part not in models]:
            raise InputError(
                f"{self.path} adapts {' and '.join(absent)}, of which no model is given; give all models "
                "that it adapts"
            )
        values, settings = self._file.read(), _settings(self._file, ignore)
        result = {}
        for part in self.parts:
            factors: dict[str, Factors] = {}
            known, by_path = _known(models[part]), dict[str, Module]()
            for name, one in self._places.items():
                if one.part != part:
                    continue
                if one.module not in known:
                    raise InputError(
                        f"{self.path}: {name} is of a module that the {part} has not; the style is of "
                        "another model"
                    )
                module = known[one.module]
                by_path[module.path] = module
                own = factors.setdefault(module.path, {})
                if one.side in own:
                    raise InputError(f"{self.path}: {name} is there twice, in two forms")
                own[one.side] = self._float32(name, values[name])
            result[part] = _adapter(models[part], by_path, factors, settings.get(part), self.path)
        return result

    def _float32(self, name: str, value: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            result = np.asarray(value, np.float32)
        if not np.all(np.isfinite(result)):
            raise self._file.error(name, "values beyond float32", "smaller ones")
        return result


def read(
    path: str | os.PathLike[str], models: Mapping[str, nnx.Module], ignore: Sequence[str] = ()
) -> dict[str, Adapter]:
    """The adapters in a style file of diffusers, PEFT or kohya's scripts, in float32.

    Args:
      path: a safetensors file, or a folder with diffusers' pytorch_lora_weights.safetensors.
      models: the unadapted models, `unet` and `text_encoder`; of a file that adapts one only the other may
        be left out.
      ignore: keys of the metadata that may be there although they are not known; regular expressions.

    Returns:
      An adapter for each model that the file adapts. `lora_jax.attach(models["unet"], adapters["unet"])` is
      the U-Net with the style.

    Raises:
      FileError: the file is broken, or a tensor is not of numbers.
      InputError: tensors that are no factors of LoRA, are of a model that is not given, or do not fit; the
        message names them.
    """
    return Style(path).adapters(models, ignore)


def _known(model: nnx.Module) -> dict[str, Module]:
    """The modules of a model by all names that files have for them."""
    known = modules(model)
    known |= {name.removeprefix(_TEXT_MODEL): module for name, module in known.items()}
    return known | with_underscores(known)


def _settings(file: Tensors, ignore: Sequence[str]) -> dict[str, PeftConfig]:
    """What the metadata of newer files of diffusers say, by part: PEFT's r, lora_alpha and so on."""
    text = file.metadata.get(_METADATA)
    if text is None:
        return {}
    where = f"{file.path}, {_METADATA}"
    found = parse_json(text, where, _REMEDY)
    if not isinstance(found, dict):
        raise FileError(file.path, _METADATA, text[:60], "a JSON object", _REMEDY)
    by_part: dict[str, dict[str, Any]] = {}
    for key, value in found.items():
        part, _, name = key.partition(".")
        by_part.setdefault(part, {})[name] = value
    try:
        result = {part: read_lora(values, ignore) for part, values in by_part.items()}
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    for config in result.values():
        if config.get("use_dora", False):
            raise InputError(f"{where}: use_dora: DoRA's magnitudes are not read")
        if config.initial:
            raise InputError(
                f"{where}: init_lora_weights={config.initial!r} changed the base's weights; save it in PEFT "
                "as a plain adapter (path_initial_model_for_weight_conversion)"
            )
    return result


def _adapter(
    model: nnx.Module,
    by_path: Mapping[str, Module],
    factors: Mapping[str, Factors],
    settings: PeftConfig | None,
    path: Path,
) -> Adapter:
    targets: dict[str, dict[str, Any]] = {}
    values: dict[str, np.ndarray] = {}
    for where, own in factors.items():
        module = by_path[where]
        if missing := {"down", "up"} - own.keys():
            raise InputError(
                f"{path}: {module.name} has no factor {some(sorted(missing))}; it is incomplete"
            )
        module.check(own["down"].shape, own["up"].shape, str(path))
        a, b = _within_limit(module.down(own["down"]), module.up(own["up"]))
        rank, of_file = a.shape[-1], len(own["down"])
        alpha = _alpha(own, module, settings, path) * (rank / of_file)
        targets[re.escape(where)] = {"rank": rank, "alpha": alpha}
        values[f"{where}/lora/a"], values[f"{where}/lora/b"] = a, b
    method = _method(targets)
    labels = method.labels(method.insert(model, jax.random.key(0)))
    return Adapter(
        method, {leaf: labels[leaf] for leaf in values}, values,
        fingerprint(base_parameters(model)), {"model": str(path.name)},
    )  # fmt: skip


def _alpha(own: Factors, module: Module, settings: PeftConfig | None, path: Path) -> float:
    """The alpha of alpha / rank."""
    rank = len(own["down"])
    stored = own.get("alpha", np.float32(rank))
    if stored.size != 1:
        raise InputError(
            f"{path}: alpha of {module.name} has the shape {stored.shape}, expected one number"
        )
    alpha = float(stored.reshape(()))
    if settings is not None and "alpha" not in own:
        alpha = rank * scale(rank, settings.alpha(module.name), settings.scaling)  # type: ignore[arg-type]
    if alpha <= 0:
        raise InputError(f"{path}: alpha of {module.name} is {alpha:g}, expected a number above 0")
    return alpha


def _within_limit(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors of the same product whose rank is no larger than the matrix: LoRA here has no others."""
    inputs, outputs = a[..., 0].size, b.shape[-1]
    if a.shape[-1] <= (rank := min(inputs, outputs)):
        return a, b
    product, unit = a.reshape(inputs, -1) @ b.reshape(-1, outputs), np.eye(rank, dtype=np.float32)
    new = (unit, product) if inputs < outputs else (product, unit)
    return new[0].reshape(*a.shape[:-1], rank), new[1].reshape(*b.shape[:-2], rank, outputs)


def _method(targets: Mapping[str, Mapping[str, Any]]) -> Method:
    """One setting where all modules have the same, else each its own."""
    settings = {tuple(own.items()) for own in targets.values()}
    if len(settings) == 1:
        return methods.lora(list(targets), **dict(settings.pop()))
    return methods.lora({path: dict(own) for path, own in targets.items()})
