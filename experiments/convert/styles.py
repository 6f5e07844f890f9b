"""Converts styles of Stable Diffusion, the files of diffusers and kohya's scripts, to ours and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from flax import nnx

from experiments.convert.outputs import check_new_folder
from experiments.runs.folder import check_place
from lora_jax.adapters import DESCRIPTION, Adapter, load_adapter
from lora_jax.digests import of_file
from lora_jax.errors import InputError, MissingFileError
from lora_jax.files import check_output, replaced_folder
from lora_jax.interop import diffusion
from lora_jax.models.diffusion import components, files
from lora_jax.run_files import ADAPTER

MODELS = (components.UNET.name, components.TEXT_ENCODER.name)
FORMS = ("diffusers", "kohya")


def models_of(folder: Path, names: Iterable[str] = MODELS) -> dict[str, nnx.Module]:
    """The models of Stable Diffusion that styles adapt.

    Args:
      folder: as diffusers saves a pipeline.
      names: of the models, see `MODELS`.

    Raises:
      MissingFileError, FileError: a model is missing or broken.
    """
    return {name: files.load(folder / name, components.COMPONENTS[name]) for name in names}


def from_style(
    path: Path, output: Path, model: str, ignore: Sequence[str] = ()
) -> dict[str, Adapter]:
    """Writes the adapters of a style file, each into the folder of its model's name.

    Args:
      path: the file, or a folder with diffusers' pytorch_lora_weights.safetensors.
      output: new folder.
      model: folder of Stable Diffusion.
      ignore: unknown keys of the metadata, see `diffusion.read`.

    Returns:
      The adapters by the name of their model.

    Raises:
      FileNotFoundError, ValueError: the input is bad; nothing is written then.
    """
    check_new_folder(output)
    style = diffusion.Style(path)
    digest = of_file(style.path)
    adapters = style.adapters(models_of(Path(model), style.parts), ignore)
    with replaced_folder(output) as folder:
        for name, adapter in adapters.items():
            notes = {"source": style.path.name, "sha256": digest, "model": model}
            dataclasses.replace(adapter, notes=notes).save(folder / name)
    return adapters


def to_style(folder: Path, output: Path, model: str, *, form: str, dtype: str) -> list[str]:
    """Writes a style file from adapters of ours.

    Args:
      folder: an adapter of the U-Net, or a run of experiments.diffusion with one; or a folder that has `unet`
        and `text_encoder` as `from_style` leaves it.
      output: the file, `.safetensors`.
      model: folder of Stable Diffusion.
      form: one of `FORMS`.
      dtype: of the factors: float32, float16 or bfloat16.

    Returns:
      Names of the models that it adapts.

    Raises:
      FileNotFoundError, ValueError: the input is bad; nothing is written then.
    """
    if output.suffix != ".safetensors":
        raise InputError(f"--output={output}: the name must end in .safetensors")
    check_place(output.parent)
    check_output(output, flag="--output")
    adapters = adapters_of(folder)
    diffusion.write(output, adapters, models_of(Path(model), adapters), form=form, dtype=dtype)  # type: ignore[arg-type]
    return list(adapters)


def adapters_of(folder: Path) -> dict[str, Adapter]:
    """The adapters in a folder by the name of their model, see `to_style`.

    Raises:
      MissingFileError: there is none.
    """
    for single in (folder, folder / ADAPTER):
        if (single / DESCRIPTION).is_file():
            return {components.UNET.name: load_adapter(single)}
    found = {
        name: load_adapter(folder / name)
        for name in MODELS
        if (folder / name / DESCRIPTION).is_file()
    }
    if not found:
        raise MissingFileError(
            f"{folder} holds no adapter of Stable Diffusion: neither {DESCRIPTION} nor {ADAPTER}/, and no "
            f"folder {' or '.join(MODELS)} with one"
        )
    return found
