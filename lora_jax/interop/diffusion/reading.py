"""A style file as adapters of ours, one for each model that it adapts."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
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
from lora_jax.method import Method
from lora_jax.patterns import some
from lora_jax.tensor_files import FLOATING, NUMBERS, Tensors

FILE = "pytorch_lora_weights.safetensors"  # that diffusers writes into a folder
_METADATA = "lora_adapter_metadata"  # of diffusers from 0.35 on
_REMEDY = "Download it again, or have the program that made it write it as safetensors"
_TEXT_MODEL = "text_model."  # which CLIP's modules begin with, but not in transformers 5
Factors = dict[Side, np.ndarray]


def read(path: str | os.PathLike[str], models: Mapping[str, nnx.Module]) -> dict[str, Adapter]:
    """The adapters in a style file of diffusers, PEFT or kohya's scripts, in float32.

    Args:
      path: a safetensors file, or a folder with diffusers' pytorch_lora_weights.safetensors.
      models: the unadapted models, `unet` and `text_encoder`; of a file that adapts one only the other may
        be left out.

    Returns:
      An adapter for each model that the file adapts. `lora_jax.attach(models["unet"], adapters["unet"])` is
      the U-Net with the style.

    Raises:
      FileError: the file is broken, or a tensor is not of numbers.
      InputError: tensors that are no factors of LoRA, are of a model that is not given, or do not fit; the
        message names them.
    """
    file = Tensors(style_file(path), _REMEDY)
    found = places(file.shapes)
    file.check_types(FLOATING, [name for name, one in found.items() if one.side != "alpha"])
    file.check_types(NUMBERS)
    if absent := {one.part for one in found.values()} - models.keys():
        raise InputError(
            f"{file.path} adapts {' and '.join(sorted(absent))}, of which no model is given; give all models "
            "that it adapts"
        )
    values = file.read()
    alphas = _alphas(file)
    result = {}
    for part in (part for part in models if any(one.part == part for one in found.values())):
        known = modules(models[part])
        known |= {name.removeprefix(_TEXT_MODEL): module for name, module in known.items()}
        known |= with_underscores(known)
        factors: dict[str, Factors] = {}
        by_path: dict[str, Module] = {}
        for name, one in found.items():
            if one.part != part:
                continue
            module = known.get(one.module)
            if module is None:
                raise InputError(
                    f"{file.path}: {name} is of a module that the {part} has not; the style is of another "
                    "model"
                )
            by_path[module.path] = module
            own = factors.setdefault(module.path, {})
            if one.side in own:
                raise InputError(f"{file.path}: {name} is there twice, in two forms")
            own[one.side] = _numbers(file.path, name, values[name])
        result[part] = _adapter(models[part], by_path, factors, alphas.get(part, {}), file.path)
    return result


def style_file(path: str | os.PathLike[str]) -> Path:
    """The file that is meant by its name or by that of a folder of diffusers."""
    return Path(path) / FILE if Path(path).is_dir() else Path(path)


def parts(path: str | os.PathLike[str]) -> list[str]:
    """The models that a style file adapts, `unet` and `text_encoder`; raises as `read`."""
    found = {one.part for one in places(Tensors(style_file(path), _REMEDY).shapes).values()}
    return [part for part in KOHYA if part in found]


def _numbers(path: Path, name: str, value: Any) -> np.ndarray:
    result = np.asarray(value, np.float32)
    if not np.all(np.isfinite(result)):
        raise FileError(path, name, "values that are not finite", "numbers", _REMEDY)
    return result


def _alphas(file: Tensors) -> dict[str, dict[str, Any]]:
    """What the metadata of newer files of diffusers say, by part: r, lora_alpha and patterns."""
    text = file.metadata.get(_METADATA)
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise FileError(file.path, _METADATA, text[:60], "a JSON object", _REMEDY) from error
    result: dict[str, dict[str, Any]] = {}
    for key, value in found.items() if isinstance(found, dict) else ():
        part, _, name = key.partition(".")
        result.setdefault(part, {})[name] = value
    return result


def _adapter(
    model: nnx.Module,
    by_path: Mapping[str, Module],
    factors: Mapping[str, Factors],
    settings: Mapping[str, Any],
    path: Path,
) -> Adapter:
    if settings.get("use_dora"):
        raise InputError(f"{path} is of DoRA (use_dora), of which the magnitudes are not read")
    targets: dict[str, dict[str, Any]] = {}
    values: dict[str, np.ndarray] = {}
    for where, own in factors.items():
        module = by_path[where]
        if missing := {"down", "up"} - own.keys():
            raise InputError(
                f"{path}: {module.name} has no factor {some(sorted(missing))}; it is incomplete"
            )
        module.check(own["down"].shape, own["up"].shape, str(path))
        rank = own["down"].shape[0]
        targets[re.escape(where)] = {"rank": rank, "alpha": _alpha(own, module, settings, rank)}
        values[f"{where}/lora/a"] = module.down(own["down"])
        values[f"{where}/lora/b"] = module.up(own["up"])
    method = _method(targets)
    labels = method.labels(method.insert(model, jax.random.key(0)))
    return Adapter(
        method, {leaf: labels[leaf] for leaf in values}, values,
        fingerprint(base_parameters(model)), {"model": str(path.name)},
    )  # fmt: skip


def _alpha(own: Factors, module: Module, settings: Mapping[str, Any], rank: int) -> float:
    if "alpha" in own:
        return float(own["alpha"].reshape(()))
    if "lora_alpha" not in settings:
        return float(rank)
    patterns = settings.get("alpha_pattern") or {}
    for pattern, alpha in patterns.items():
        if re.fullmatch(rf"(.*\.)?{pattern}", module.name):
            return float(alpha)
    return float(settings["lora_alpha"])


def _method(targets: Mapping[str, Mapping[str, Any]]) -> Method:
    """One setting where all modules have the same, else each its own."""
    settings = {tuple(own.items()) for own in targets.values()}
    if len(settings) == 1:
        return methods.lora(list(targets), **dict(settings.pop()))
    return methods.lora({path: dict(own) for path, own in targets.items()})
