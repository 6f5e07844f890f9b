"""Converts adapter folders of PEFT to ours and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save as to_safetensors

from experiments.convert import state_dicts
from experiments.convert.outputs import check_adapter_folder, check_new_folder
from experiments.convert.sources import outputs_of
from experiments.runs.origins import NOTE, base_format, origin
from lora_jax import adapters, files, locking, partition
from lora_jax.digests import of_file
from lora_jax.errors import InputError, MissingFileError
from lora_jax.interop import peft
from lora_jax.interop.peft.names import Leaf
from lora_jax.interop.peft.tensors import PREFIX
from lora_jax.models import architectures, hub
from lora_jax.models.architectures import AnyConfig
from lora_jax.models.encoder import EncoderConfig
from lora_jax.models.parts import FLOAT
from lora_jax.quantisation.layers import quantised_layers
from lora_jax.quantisation.quantise import dequantise
from lora_jax.reading import read_object

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_HEADS = ("classifier.weight", "classifier.out_proj.weight", "score.weight")


def from_peft(
    adapter: str,
    output: Path,
    *,
    model: str | None = None,
    subfolder: str = "",
    ignore: Sequence[str] = (),
) -> Path:
    """Converts an adapter folder of PEFT to one of ours, and returns that.

    Args:
      adapter: the folder, or its name on the hub.
      output: the folder to write.
      model: folder or hub name of the base; None for the one that the adapter names.
      subfolder: of a second adapter, which PEFT saves in a folder of its name.
      ignore: regular expressions for unknown keys and names of tensors that may be left out.

    Raises:
      FileNotFoundError, ImportError, ValueError: the input is bad; nothing is written then.
    """
    check_adapter_folder(output)
    with locking.exclusive(output):
        return _from_peft(_folder(adapter, subfolder), output, model, ignore)


def _folder(adapter: str, subfolder: str) -> Path:
    """The folder with the files."""
    found = hub.find(adapter)
    inside = sorted(path.parent.name for path in found.glob(f"*/{peft.CONFIG}"))
    folder = found / subfolder if subfolder else found
    if not (folder / peft.CONFIG).is_file():
        others = (
            f". It has adapters in {', '.join(inside)}: name one, --subfolder=NAME"
            if inside
            else ""
        )
        raise MissingFileError(
            f"{folder} holds no {peft.CONFIG}, so it is no adapter of PEFT{others}"
        )
    return folder


def _from_peft(folder: Path, output: Path, model: str | None, ignore: Sequence[str]) -> Path:
    config = read_object(folder / peft.CONFIG).values
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise MissingFileError(f"{folder} holds neither {' nor '.join(WEIGHTS)}")
    with _errors_naming(folder):
        peft.read_config(config, ignore)  # before a model is read
    tensors = state_dicts.read(weights)
    name = model or config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise InputError(f"{folder} does not say what its base is: name it, --model=NAME")
    place = hub.find(name)
    plain = [key.removeprefix(PREFIX) for key in tensors]
    base = Base(
        place, _head_outputs(tensors), decoder_head=any(n.startswith("score.") for n in plain)
    )
    with _errors_naming(folder):
        names = base.names(bare=peft.is_bare(base.config.architecture, plain))
        converted = peft.from_tensors(config, tensors, names, base.leaf, ignore)
        fingerprint = base.fingerprint()
        notes = {
            "source": "peft", "sha256": of_file(weights), "model": name,
            NOTE: origin(base.config), peft.NOTE: converted.note,
        }  # fmt: skip
        adapter = adapters.Adapter(
            converted.method,
            converted.groups,
            converted.values,
            fingerprint,
            notes,
            converted.state,
        )
        adapters.attach(base.model, adapter, hub.HEAD)
    return adapter.save(output)


def _head_outputs(tensors: Mapping[str, np.ndarray]) -> int:
    found = [len(v) for n, v in tensors.items() if n.removeprefix(PREFIX) in _HEADS]
    return found[0] if found else 2


class Base:
    """A base model, the names of its parameters, and their values."""

    def __init__(self, folder: Path, outputs: int, *, decoder_head: bool, form: str = FLOAT):
        """Reads the model.

        Args:
          folder: from `hub.find`.
          outputs: of its head.
          decoder_head: whether a decoder has a head for classification.
          form: that its matrices are held in, see `models.base_formats`.
        """
        self.config: AnyConfig = architectures.read_config(folder, base_format=form)
        self.model: nnx.Module
        key = jax.random.key(0)
        if decoder_head and not isinstance(self.config, EncoderConfig):
            self.model = hub.load_decoder_classifier(folder, self.config, outputs, key)
        else:
            self.model = hub.load(folder, self.config, outputs, key)
        packed = bool(quantised_layers(self.model))
        self._params = partition.parameters(
            dequantise(self.model, jnp.float32) if packed else self.model
        )

    def names(self, *, bare: bool) -> peft.Names:
        """Names in transformers, of a model without a head around it or with one."""
        shapes = {path: tuple(leaf.shape) for path, leaf in self._params.items()}
        return peft.names(self.config.architecture, self.config.depth, shapes, bare=bare)

    def leaf(self, leaf: Leaf) -> np.ndarray:
        """The values of a parameter, or of one layer of it."""
        value = self._params[leaf.path]
        return np.asarray(value if leaf.layer is None else value[leaf.layer])

    def fingerprint(self) -> str:
        """Of the base, without a head."""
        return adapters.fingerprint(adapters.base_parameters(self.model, hub.HEAD))


@contextmanager
def _errors_naming(path: Path) -> Iterator[None]:
    """Puts a folder's name in front of the errors about its content."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class AsPeft:
    """One of our adapters in PEFT's form.

    Attributes:
      config: the content of adapter_config.json.
      tensors: by name.
      base: settings of the base.
    """

    config: dict[str, Any]
    tensors: dict[str, np.ndarray]
    base: AnyConfig

    def write(self, output: Path) -> None:
        """Writes the folder, whole or not at all."""
        files.make_folder(output.parent)
        with files.replaced_folder(output) as new:
            text = json.dumps(self.config, indent=2, sort_keys=True)
            files.write_bytes(new / peft.CONFIG, text.encode())
            files.write_bytes(new / WEIGHTS[0], to_safetensors(self.tensors, {"format": "pt"}))


def to_peft(adapter: Path, output: Path, *, model: str | None = None) -> dict[str, Any]:
    """Writes an adapter as a folder of PEFT, and returns its settings.

    Args:
      adapter: an adapter folder, or a run folder with one.
      output: the folder to write, which is not there yet or empty.
      model: folder or hub name of the base; None for the one that the adapter names.

    Raises:
      FileNotFoundError, ValueError: the input is bad; nothing is written then.
    """
    check_new_folder(output)
    made = as_peft(adapter, model=model)
    made.write(output)
    return made.config


def as_peft(adapter: Path, *, model: str | None = None, plain: bool = False) -> AsPeft:
    """An adapter in PEFT's form.

    Args:
      adapter: an adapter folder, or a run folder with one.
      model: folder or hub name of the base; None for the one that the adapter names.
      plain: always with the settings of a plain LoRA; else one that came from PEFT and was not changed has
        the settings that PEFT stored.

    Raises:
      FileNotFoundError, ValueError: the input is bad, or PEFT has no place for some of it.
    """
    loaded = adapters.load_adapter(adapter)
    name = model or loaded.notes.get("model")
    if not isinstance(name, str):
        raise InputError(f"{adapter} does not say what its base was: name it, --model=NAME")
    outputs = outputs_of(loaded)
    base = Base(
        hub.find(name), outputs or 2, decoder_head="head/score/kernel" in loaded.values,
        form=base_format(loaded),
    )  # fmt: skip
    with _errors_naming(adapter):
        inserted = peft.inserted_of(adapters.attach(base.model, loaded, hub.HEAD), loaded.method)
        note = loaded.notes.get(peft.NOTE)
        encoder = isinstance(base.config, EncoderConfig)
        bare = (
            note.get("prefix") == "" if isinstance(note, Mapping) else encoder and outputs is None
        )
        if plain:
            notes = {key: v for key, v in loaded.notes.items() if key != peft.NOTE}
            loaded = dataclasses.replace(loaded, notes=notes)
        config, tensors = peft.to_tensors(
            loaded, base.names(bare=bare), base.leaf, name, inserted=inserted, only_lora=plain
        )
    return AsPeft(config=config, tensors=tensors, base=base.config)
