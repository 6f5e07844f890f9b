"""The two files of an adapter folder, and how they belong together.

    FOLDER/adapter.safetensors   trained leaves by path, and statistics that moved (see `state`)
    FOLDER/adapter.json          method, group of each leaf, fingerprint of the base, free notes

Each file holds the SHA-256 of the other: adapter.json that of the whole file of tensors, and the header of
the tensors that of the description without its notes, which anybody may edit. Folders of earlier versions
have neither, and load. Only safetensors and JSON are read; nothing is unpickled.

A new adapter takes the place of an old one in one step. Its tensors are written beside the old ones, to
adapter.safetensors.next; then adapter.json is replaced, which says by its digest which tensors are meant;
then the new tensors get their name. So a program that is killed leaves the old adapter or the new one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as to_safetensors

from lora_jax import adapter_description as descriptions
from lora_jax.adapter_description import AGAIN, FORMAT, OF_DESCRIPTION, OF_TENSORS
from lora_jax.arguments import BY_PATH, FOLDER, LABELS, NOTES, TEXT, takes
from lora_jax.digests import of_arrays, of_file, of_texts
from lora_jax.errors import FileError, InputError, MissingFileError
from lora_jax.files import make_folder, to_json, write_bytes
from lora_jax.method import METHOD, Method
from lora_jax.not_adapters import what_else
from lora_jax.partition import Labels
from lora_jax.reading import Record, named
from lora_jax.sharding.hosts import barrier, is_main
from lora_jax.sharding.placement import gather
from lora_jax.tensor_files import FLOATING, NUMBERS, Tensors, not_finite

WEIGHTS = "adapter.safetensors"
NEXT = "adapter.safetensors.next"  # what WEIGHTS becomes, as soon as DESCRIPTION is that of a new adapter
DESCRIPTION = "adapter.json"
UNKNOWN_BASE = ""  # instead of a fingerprint: a converted adapter whose base was not at hand
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A loaded adapter folder.

    Attributes:
      method: the method that trained it.
      groups: path to group, of the leaves in `values`.
      values: path to array (numpy, host memory).
      base: fingerprint of the base it was trained on, or UNKNOWN_BASE.
      notes: whatever the run stored beside (task, model name, scores).
      state: path to array of the statistics that are not the base's any more, see `state`.
    """

    method: Method
    groups: Labels
    values: Arrays
    base: str
    notes: dict[str, Any]
    state: Arrays = dataclasses.field(default_factory=dict)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes it as an adapter folder, see `save_adapter`."""
        return save_adapter(
            folder, self.values, self.groups, self.method, self.base, self.notes, state=self.state
        )


@takes(folder=FOLDER, trainable=BY_PATH, labels=LABELS, method=METHOD, base=TEXT, notes=NOTES)
def save_adapter(
    folder: str | os.PathLike[str],
    trainable: Mapping[str, Any],
    labels: Mapping[str, str],
    method: Method,
    base: str,
    notes: Mapping[str, Any] | None = None,
    *,
    state: Mapping[str, Any] | None = None,
) -> Path:
    """Writes an adapter folder, never half: one that is there already stays until the new one is whole.

    Of several processes all must call it: they give their parts, and the first one writes.

    Args:
      folder: created if needed.
      trainable: the trained leaves by path.
      labels: group of every leaf; those of `trainable` are stored.
      method: stored as its constructor and arguments.
      base: `fingerprint` of the base parameters before training, or UNKNOWN_BASE.
      notes: further JSON values to keep; NaN and infinity become null.
      state: statistics by path that training moved; loading puts them back.

    Raises:
      ValueError: a leaf has no label, is of no floating-point type or not finite, or notes are no JSON.
      OSError: it cannot be written.
    """
    folder, state = Path(folder), dict(state or {})
    whole = gather({**trainable, **state})
    tensors = {path: np.asarray(value, order="C") for path, value in sorted(whole.items())}
    trained = {path: value for path, value in tensors.items() if path not in state}
    if unlabelled := sorted(trained.keys() - labels.keys()):
        raise InputError(f"no group in `labels` for {unlabelled[:5]}; give the labels of the model")
    for path, value in tensors.items():
        check_values(path, value, is_state=path in state, where=f"{folder} is not written")
    description: dict[str, Any] = {
        "format": FORMAT,
        "method": method.to_json(),
        "groups": {path: labels[path] for path in trained},
        "base": base,
        "notes": dict(notes or {}),
    }
    if state:
        description["state"] = sorted(state)
    of_description = descriptions.digest(descriptions.as_read(description, folder / DESCRIPTION))
    content = to_safetensors(tensors, {OF_DESCRIPTION: of_description})
    of_tensors = hashlib.sha256(content).hexdigest()
    make_folder(folder)
    _settle(folder)
    write_bytes(folder / NEXT, content)
    try:
        text = to_json({**description, OF_TENSORS: of_tensors}) + "\n"
        write_bytes(folder / DESCRIPTION, text.encode())
    finally:
        _settle(folder, of_tensors)
    barrier("adapter written")
    return folder


def check_values(path: str, value: np.ndarray, *, is_state: bool, where: str) -> None:
    """Raises InputError for values that no adapter has.

    Args:
      path: of the leaf.
      value: trained numbers are finite floating-point numbers; a statistic may have another type, and be
        infinite (as the least value so far of none).
      is_state: whether it is a statistic.
      where: what is wrong then, for the message.
    """
    floating = str(value.dtype) in ("float64", "float32", "float16", "bfloat16")
    if not floating and not is_state:
        raise InputError(
            f"{where}: {path} has type {value.dtype}; trained leaves are floating-point numbers"
        )
    odd = 0
    if floating:
        odd = int(np.count_nonzero(np.isnan(value))) if is_state else not_finite(value)
    if odd:
        raise InputError(
            f"{where}: {odd:,} of {value.size:,} values of {path} are not finite numbers. The training "
            "diverged: lower the learning rate, or take an earlier adapter"
        )


def adapter_folder(path: Path) -> Path:
    """The adapter of a run's folder, or the folder itself."""
    return path / "adapter" if (path / "adapter").is_dir() else path


def unmeasured(notes: Mapping[str, Any]) -> dict[str, Any]:
    """The notes of an adapter without what was measured of its values, for one with other values."""
    return {key: value for key, value in notes.items() if key not in ("metrics", "epoch", "seed")}


@takes(folder=FOLDER)
def load_adapter(folder: str | os.PathLike[str]) -> Adapter:
    """Reads an adapter folder, or that of a run, which has one.

    Raises:
      FileNotFoundError: the folder or one of its files is missing.
      ValueError: a file is broken, of another format or another program's, or the two files do not
        belong together.
      OSError: a file cannot be read.
    """
    folder = adapter_folder(Path(folder))
    if not (folder / DESCRIPTION).is_file() and (other := what_else(folder)):
        raise InputError(other)
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file() and not (name == WEIGHTS and (folder / NEXT).is_file()):
            raise MissingFileError(
                f"{folder / name} is missing; an adapter folder holds {DESCRIPTION} and {WEIGHTS} "
                "(the folder `adapter` of a run)"
            )
    record = descriptions.read(folder / DESCRIPTION)
    path = _weights(folder, record)
    if path is None:  # a training may have replaced the adapter meanwhile
        record = descriptions.read(folder / DESCRIPTION)
        path = _weights(folder, record)
    if path is None:
        raise FileError(
            folder / WEIGHTS, "", "other bytes than when the adapter was saved",
            f"the file that {folder / DESCRIPTION} belongs to; this one is truncated, or of another adapter",
            AGAIN,
        )  # fmt: skip
    method, tensors = descriptions.method_of(record), Tensors(path, AGAIN)
    descriptions.check_together(tensors, record)
    groups, state = record.text_by_name("groups"), record.strings("state", [])
    named_leaves = [*groups, *state]
    if odd := sorted(set(tensors.types) ^ set(named_leaves)):
        raise InputError(f"{folder}: {WEIGHTS} and {DESCRIPTION} disagree about {odd[:5]}. {AGAIN}")
    if len(named_leaves) > len(tensors.types):
        raise record.error("state", "a leaf that `groups` or `state` has already", "other leaves")
    tensors.check_types(NUMBERS)
    if groups:
        tensors.check_types(FLOATING, groups)
    values = dict(tensors.items())
    for name, value in values.items():
        check_values(name, value, is_state=name not in groups, where=str(path))
    return Adapter(
        method, groups, {name: v for name, v in values.items() if name in groups},
        record.get("base", str), record.get("notes", dict), {name: values[name] for name in state},
    )  # fmt: skip


def digest(adapter: Adapter) -> str:
    """What tells an adapter from others: method, base and all values; not its notes, which may be edited."""
    description = [adapter.method.to_json(), adapter.base, sorted(adapter.groups.items())]
    arrays = of_arrays({"values": adapter.values, "state": adapter.state})
    return of_texts([to_json(description, indent=None), arrays])


def _weights(folder: Path, record: Record) -> Path | None:
    """The file of the tensors that a description means; None if it is not there."""
    digest = record.get(OF_TENSORS, str, None)
    if digest is None:  # of an earlier version
        return folder / WEIGHTS
    files = (folder / WEIGHTS, folder / NEXT)
    return next((path for path in files if _sha256(path) == digest), None)


def _settle(folder: Path, digest: str | None = None) -> None:
    """Ends a `save_adapter` that was stopped: its tensors get their name, or go.

    Args:
      folder: of the adapter; only the first process writes.
      digest: of NEXT, if it is known.
    """
    path = folder / NEXT
    if not is_main() or not path.is_file():
        return
    try:
        meant = descriptions.read(folder / DESCRIPTION).get(OF_TENSORS, str, None)
    except InputError:
        meant = None
    if meant is not None and meant == (digest or _sha256(path)):
        path.replace(folder / WEIGHTS)
    else:
        path.unlink()


def _sha256(path: Path) -> str | None:
    """Digest of a file; None if there is none."""
    try:
        return of_file(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise named(error, path) from error
