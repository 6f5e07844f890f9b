"""The models of a folder of diffusers, each in a folder of its own with config.json and safetensors."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save

from lora_jax import partition
from lora_jax.errors import FileError, InputError, MissingFileError, SettingError
from lora_jax.files import make_folder, to_json, write_bytes, write_pieces
from lora_jax.models import config_json
from lora_jax.models.diffusion.components import COMPONENTS, AnyModel, Component, Model
from lora_jax.models.diffusion.layers import in_shapes
from lora_jax.models.model_files import ModelFiles
from lora_jax.models.plain import check_plain
from lora_jax.models.tensors import plan, to_published
from lora_jax.reading import Record, read_object

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".msgpack")
_CONVERT = (
    "Only safetensors are read; convert other files with diffusers, where you trust them: "
    "DiffusionPipeline.from_pretrained(folder).save_pretrained(new, safe_serialization=True)"
)


def read_config(folder: str | os.PathLike[str], component: Component[Any], **overrides: Any) -> Any:
    """A model's sizes and settings from its config.json.

    Args:
      folder: of the model itself.
      component: which model it must be of.
      overrides: fields that replace those of the file (`compute_dtype`, `remat`, `attention`).

    Raises:
      FileNotFoundError: no config.json.
      ValueError: a model of another class, a setting that is not implemented, a value out of its range, or
        an override that is no field.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise MissingFileError(
            f"{path} is missing: the folder of a {component.class_name} needs it. Name the folder that "
            f"holds model_index.json, or that of the model alone"
        )
    record = read_object(path)
    _check_class(record, component)
    config_json.check_fixed(record, component.keys)
    try:
        config = component.config(**config_json.fields(record, component.keys))
    except InputError as error:
        if isinstance(error, FileError):
            raise
        raise SettingError(path, "", error) from error
    known = [field.name for field in dataclasses.fields(component.config)]
    if unknown := sorted(overrides.keys() - set(known)):
        raise InputError(
            f"{', '.join(unknown)}: no such field; a {component.class_name} has {', '.join(known)}"
        )
    return dataclasses.replace(config, **overrides)


def _check_class(record: Record, component: Component[Any]) -> None:
    """Raises FileError if config.json says that the model is of another class."""
    key = component.class_key
    found = record.values.get(key, component.class_name)
    if found not in (component.class_name, [component.class_name]):
        raise record.error(
            key, repr(found)[:80], f"{component.class_name}; others are not implemented"
        )


def load(
    folder: str | os.PathLike[str],
    component: Component[Model],
    dtype: jax.typing.DTypeLike = jnp.float32,
    *,
    variant: str | None = None,
    **overrides: Any,
) -> Model:
    """The model of a folder; all names, types and shapes are checked before a value is read.

    Args:
      folder: of the model itself, such as `unet` in that of a pipeline.
      component: which model it must be: `UNET`, `VAE` or `TEXT_ENCODER`.
      dtype: of the parameters.
      variant: in the names of the files, such as "fp16"; None: the files without one, or the only one.
      overrides: fields of the configuration, see `read_config`.

    Raises:
      FileNotFoundError, ValueError: files missing or broken, or in other formats than safetensors; tensors
        missing, extra, misshapen, of integers, or not finite.
    """
    folder = Path(folder)
    config = read_config(folder, component, **overrides)
    model = in_shapes(component.make, config)
    shapes = {path: leaf.shape for path, leaf in partition.parameters(model).items()}
    files = ModelFiles(folder, *_weights(folder, component.stem, variant))
    where = f"{folder} ({component.class_name})"
    planned = plan(files.shapes, component.layout(shapes), shapes, 0, where)
    if packed := [name for name in planned.names() if files.format(name)]:
        raise files.error(packed[0], "a packed matrix", "floating-point numbers", _CONVERT)
    files.check_types(planned.names())
    leaves = {
        path: source.leaf(files.read(source.names, dtype))
        for path, source in planned.sources.items()
    }
    structure, _ = partition.all_frozen(model)
    joined = partition.join(structure, {}, leaves)
    return joined  # type: ignore[return-value]


def _weights(folder: Path, stem: str, variant: str | None) -> tuple[str, str]:
    """Names of the file and of the index of a variant.

    Raises:
      MissingFileError, InputError: there is none, or it is not clear which one is meant.
    """
    there = sorted(path.name for path in folder.iterdir())
    pattern = rf"{re.escape(stem)}(?:\.(?P<a>\w+))?\.safetensors(\.index(?:\.(?P<b>\w+))?\.json)?"
    found: dict[str, list[str]] = {}
    for name in there:
        if match := re.fullmatch(pattern, name):
            found.setdefault(match["a"] or match["b"] or "", []).append(name)
    if variant is None and "" not in found and len(found) > 1:
        raise InputError(
            f"{folder} holds weights in {len(found)} variants; name one of them by variant: "
            f"{', '.join(map(repr, found))}"
        )
    chosen = variant or ("" if "" in found or not found else next(iter(found)))
    if chosen not in found:
        pickled = [name for name in there if name.endswith(_PICKLED)]
        held = ", ".join(pickled or there) or "nothing"
        wanted = f"{stem}{f'.{chosen}' if chosen else ''}.safetensors"
        raise MissingFileError(f"{folder / wanted} is missing. The folder holds {held}. {_CONVERT}")
    ends = [name for name in found[chosen] if name.endswith(".json")]
    middle = f".{chosen}" if chosen else ""
    return f"{stem}{middle}.safetensors", (ends or [f"{stem}.safetensors.index{middle}.json"])[0]


def tensors(model: nnx.Module, component: Component[Any]) -> dict[str, np.ndarray]:
    """The tensors of a model by the names that published files have.

    Raises:
      ValueError: a method inserted something, or layers are packed.
    """
    check_plain(model)
    params = partition.parameters(model)
    shapes = {path: leaf.shape for path, leaf in params.items()}
    return to_published(params, component.layout(shapes))


def save_model(folder: str | os.PathLike[str], model: AnyModel) -> None:
    """Writes config.json and safetensors, which `load` and `from_pretrained` of diffusers read.

    Args:
      folder: of the model itself; is made if it is not there.
      model: whose parameters are written in the type that they have.

    Raises:
      ValueError: a method inserted something, or layers are packed.
    """
    component = next(c for c in COMPONENTS.values() if isinstance(model, c.make))  # type: ignore[arg-type]
    values, folder = tensors(model, component), Path(folder)
    config = (to_json(component.published(model.config)) + "\n").encode()
    make_folder(folder)
    old = folder / "config.json"

    def weights() -> Iterator[bytes]:
        yield save(values, {"format": "pt"})
        old.unlink(missing_ok=True)  # the settings of others shall not stand by these weights

    write_pieces(folder / f"{component.stem}.safetensors", weights())
    write_bytes(old, config)
