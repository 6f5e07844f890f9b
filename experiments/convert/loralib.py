"""loralib's state dicts to adapter folders and back."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.convert import state_dicts
from lora_jax import adapters, partition
from lora_jax.interop import loralib, loralib_export, loralib_names
from lora_jax.models import hub
from lora_jax.models.decoder import Decoder
from lora_jax.models.encoder import Classifier


def from_loralib(
    checkpoint: Path, output: Path, *, alpha: float | None, model: str | None = None, **options: Any
) -> Path:
    """Converts a checkpoint into an adapter folder.

    Args:
      checkpoint: the state dict.
      output: the new folder.
      alpha: of the run.
      model: folder or hub name of the base; None writes an adapter of unknown base.
      **options: of `loralib.from_state_dict`.

    Raises:
      FileNotFoundError, ImportError, ValueError: bad input; nothing is written then.
    """
    if (output / adapters.DESCRIPTION).exists():
        raise ValueError(f"{output} holds an adapter already; choose another --output")
    state = state_dicts.read(checkpoint)
    notes = {"source": "loralib", "checkpoint": checkpoint.name, "sha256": _hash(checkpoint)}
    base = adapters.UNKNOWN_BASE
    if model is None:
        with _named(checkpoint):
            found = loralib.from_state_dict(state, alpha=alpha, **options)
    else:
        notes["model"] = model
        found, base = _onto_base(checkpoint, state, hub.find(model), alpha=alpha, **options)
    notes["architecture"] = found.architecture
    return adapters.save_adapter(output, found.values, found.groups, found.method, base, notes)


def _onto_base(
    checkpoint: Path, state: Mapping[str, np.ndarray], folder: Path, **options: Any
) -> tuple[loralib.Converted, str]:
    """Converts, inserts into the base to see that all fits, and returns the base's fingerprint."""
    with _named(checkpoint):
        expected = loralib_names.find(map(loralib_names.plain_name, state)).name
    model: Decoder | Classifier
    if expected == "gpt2":
        decoder = hub.read_decoder_config(folder)
        with _named(checkpoint):
            found = loralib.from_state_dict(state, layers=decoder.n_layer, **options)
        model = hub.load_decoder(folder, decoder)
    else:
        encoder = hub.read_config(folder)
        if encoder.architecture != expected:
            raise ValueError(
                f"{checkpoint} is of {expected}, but {folder} holds a {encoder.architecture} model"
            )
        with _named(checkpoint):
            found = loralib.from_state_dict(state, layers=encoder.num_hidden_layers, **options)
        bias = found.values.get("head/output/bias")
        outputs = 2 if bias is None else len(bias)
        model = hub.load_classifier(folder, encoder, outputs, jax.random.key(0))
    base = adapters.fingerprint(adapters.base_parameters(model, hub.HEAD))
    with _named(checkpoint):
        adapted = found.method.insert(model, jax.random.key(0))
        _, trainable, _ = partition.split(adapted, found.method.labels(adapted))
        adapter = adapters.Adapter(found.method, found.groups, found.values, base, {})
        adapters.apply_adapter(adapter, trainable, base, str(folder))
    return found, base


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Puts a file's name in front of the errors about its content."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_loralib(
    adapter: Path, output: Path, *, architecture: str | None = None, prefix: str = ""
) -> dict[str, dict[str, Any]]:
    """Writes an adapter as a loralib state dict: .safetensors, or .bin and .pt through PyTorch.

    Args:
      adapter: an adapter folder, or a run folder with one.
      output: the new file.
      architecture: needed for an encoder without head that this module did not convert.
      prefix: before every key; the authors' GPT-2 code reads keys that begin with `module.`.

    Returns:
      The settings of the loralib layers that take it (`loralib_export.layer_settings`); a
      safetensors file holds them as metadata too.

    Raises:
      FileNotFoundError, ImportError, ValueError: bad input; nothing is written then.
    """
    loaded = adapters.load_adapter(adapters.adapter_folder(adapter))
    architecture = architecture or loaded.notes.get("architecture")
    with _named(adapter):
        state = loralib_export.to_state_dict(loaded.values, architecture, prefix)
        settings = loralib_export.layer_settings(loaded.method, loaded.values, architecture)
    state_dicts.write(output, state, {"loralib": json.dumps(settings)})
    return settings
