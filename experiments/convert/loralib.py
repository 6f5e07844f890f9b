"""Converts loralib's state dict files to adapter folders and back."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.convert import state_dicts
from experiments.convert.outputs import check_adapter_folder
from experiments.runs import bases, origins
from experiments.runs.origins import NOTE, origin
from lora_jax import adapters, locking, partition
from lora_jax.digests import of_file
from lora_jax.errors import InputError
from lora_jax.interop import loralib, loralib_export, loralib_names
from lora_jax.metrics.files import half_of_pair
from lora_jax.models import architectures, hub
from lora_jax.models.decoder import Decoder
from lora_jax.models.encoder import Classifier


def from_loralib(
    checkpoint: Path,
    output: Path,
    *,
    alpha: float | None,
    model: str | None = None,
    dropout: float = 0.0,
    parts: Sequence[str] = ("q", "v"),
    ignore_base: bool = False,
) -> Path:
    """Converts a checkpoint to an adapter folder, and returns the folder.

    Args:
      checkpoint: the state dict file.
      output: the folder to write.
      alpha: `lora_alpha` of the run.
      model: folder or hub name of the base; None writes an adapter of an unknown base.
      dropout: `lora_dropout` of the run.
      parts: the adapted parts of GPT-2's `c_attn`.
      ignore_base: leave out base weights instead of refusing the file.

    Raises:
      FileNotFoundError, ImportError, ValueError: the input is bad; nothing is written then.
    """
    check_adapter_folder(output)
    with locking.exclusive(output):
        return _from_loralib(
            checkpoint, output, alpha=alpha, model=model, dropout=dropout, parts=parts,
            ignore_base=ignore_base,
        )  # fmt: skip


def _from_loralib(
    checkpoint: Path,
    output: Path,
    *,
    alpha: float | None,
    model: str | None,
    dropout: float,
    parts: Sequence[str],
    ignore_base: bool,
) -> Path:
    state = state_dicts.read(checkpoint)
    notes: dict[str, Any] = {
        "source": "loralib",
        "checkpoint": checkpoint.name,
        "sha256": of_file(checkpoint),
    }
    convert = functools.partial(
        loralib.from_state_dict,
        state,
        alpha=alpha,
        dropout=dropout,
        parts=parts,
        ignore_base=ignore_base,
    )
    if model is None:
        base = adapters.UNKNOWN_BASE
        with _errors_naming(checkpoint):
            converted = convert()
    else:
        notes["model"] = model
        with _errors_naming(checkpoint):
            architecture = loralib_names.find(map(loralib_names.plain_name, state)).name
        folder = hub.find(model)
        converted, base = _convert_for_base(checkpoint, architecture, folder, convert)
        notes[NOTE] = origin(architectures.read_config(folder))
    notes["architecture"] = converted.architecture
    return adapters.save_adapter(
        output, converted.values, converted.groups, converted.method, base, notes
    )


def _convert_for_base(
    checkpoint: Path,
    architecture: loralib_names.Name,
    folder: Path,
    convert: functools.partial[loralib.Converted],
) -> tuple[loralib.Converted, str]:
    """Converts, checks by inserting into the base that everything fits, and fingerprints the base."""
    model: Decoder | Classifier
    if architecture == "gpt2":
        decoder = hub.read_decoder_config(folder)
        _check_base(checkpoint, architecture, folder, decoder.architecture)
        with _errors_naming(checkpoint):
            converted = convert(layers=decoder.depth)
        model = hub.load_decoder(folder, decoder)
    else:
        encoder = hub.read_config(folder)
        _check_base(checkpoint, architecture, folder, encoder.architecture)
        with _errors_naming(checkpoint):
            converted = convert(layers=encoder.num_hidden_layers)
        outputs = bases.head_outputs(converted.values)
        model = hub.load_classifier(folder, encoder, outputs, jax.random.key(0))
    base = adapters.fingerprint(adapters.base_parameters(model, hub.HEAD))
    with _errors_naming(checkpoint):
        adapted = converted.method.insert(model, jax.random.key(0))
        _, trainable, _ = partition.split(adapted, converted.method.labels(adapted))
        adapter = adapters.Adapter(converted.method, converted.groups, converted.values, base, {})
        adapters.apply_adapter(adapter, trainable, base, str(folder))
    return converted, base


def _check_base(checkpoint: Path, wanted: str, folder: Path, found: str) -> None:
    if found != wanted:
        raise InputError(f"{checkpoint} is of {wanted}, but {folder} holds a {found} model")


@contextlib.contextmanager
def _errors_naming(path: Path) -> Iterator[None]:
    """Puts a file's name in front of the errors about its content."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def to_loralib(
    adapter: Path, output: Path, *, architecture: str | None = None, prefix: str = ""
) -> dict[str, loralib_export.LayerSettings]:
    """Writes an adapter as a loralib state dict: .safetensors, or .bin and .pt through PyTorch.

    Args:
      adapter: an adapter folder, or a run folder with one.
      output: the file to write.
      architecture: `roberta`, `bert`, `deberta-v2` or `gpt2`; needed for an encoder without a head that
        this module did not convert, and for DeBERTa where the adapter does not say its base's settings.
      prefix: text before every key; the authors' GPT-2 code reads keys that begin with `module.`.

    Returns:
      The arguments of the loralib layers that take the factors (`loralib_export.layer_settings`); a
      safetensors file holds them as metadata too.

    Raises:
      FileNotFoundError, ImportError, ValueError: the input is bad; nothing is written then.
    """
    state_dicts.check_new(output)
    if half_of_pair(prefix):
        raise InputError(f"prefix {prefix!a} has half of a surrogate pair, which no file can hold")
    loaded = adapters.load_adapter(adapter)
    architecture = architecture or origins.architecture(loaded)
    with _errors_naming(adapter):
        state = loralib_export.to_state_dict(loaded.values, architecture, prefix)
        settings = loralib_export.layer_settings(loaded.method, loaded.values, architecture)
    state_dicts.write(output, state, {"loralib": json.dumps(settings)})
    return settings
