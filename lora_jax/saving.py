"""One line to save an adapted model as an adapter folder, and one to load it onto its base.

    lora_jax.save("runs/mine", adapted, method, base)
    adapted = lora_jax.load("runs/mine", base)

How the model was trained does not matter: what is saved is the difference between it and its base.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from lora_jax import partition, surgery
from lora_jax.adapters import adapter_folder, attach, load_adapter, save_adapter
from lora_jax.arguments import FOLDER, MODEL, NOTES, Model, takes
from lora_jax.errors import InputError
from lora_jax.expressions import Expression
from lora_jax.fingerprints import base_parameters, fingerprint, rounded
from lora_jax.method import METHOD, Method
from lora_jax.partition import FROZEN, Labels
from lora_jax.quantisation.described import noted, packing
from lora_jax.quantisation.weight import value_counts
from lora_jax.sharding.placement import gather
from lora_jax.state import differing, fixed, same_bits, seeded, values

# Attributes of inserted modules that are of training only: the layer computes the same without them.
_OF_TRAINING = ("deterministic", "dropout", "enabled")


@takes(folder=FOLDER, adapted=MODEL, method=METHOD, base=MODEL, notes=NOTES)
def save(
    folder: str | os.PathLike[str],
    adapted: nnx.Module,
    method: Method,
    base: nnx.Module,
    notes: Mapping[str, Any] | None = None,
) -> Path:
    """Writes an adapter folder: what the method trained, and the statistics that moved.

    Args:
      folder: created if needed.
      adapted: the trained model.
      method: that was inserted into it; it names the head, too.
      base: the model as it was before `method.insert`, perhaps with another (fresh) head.
      notes: further JSON values to keep.

    Raises:
      ValueError: the base is adapted, nothing is inserted into `adapted` or nothing in it was trained,
        the method is not the one in it, or it was made from another base.
    """
    if (path := surgery.changed_module(base)) is not None:
        raise InputError(
            f"the base is adapted already ({path or 'the model'} is changed by a method); give the "
            "model as it was before `insert`: save(folder, adapted, method, base)"
        )
    if adapted is base:
        raise InputError(
            "the adapted model and the base are one object; train the model that method.insert(base, "
            "key) returns, and keep the base as it was"
        )
    fresh = method.insert(base, jax.random.key(0))
    inserts = surgery.changed_module(fresh) is not None
    if inserts and surgery.changed_module(adapted) is None:
        raise InputError(
            f"nothing is inserted into the adapted model; the method {method.name} belongs to what "
            "method.insert(base, key) returns"
        )
    labels = _labels(adapted, fresh, method)
    _, trainable, frozen = partition.split(adapted, labels)
    _, start, frozen_start = partition.split(fresh, labels)
    _check_base(frozen, frozen_start, labels, value_counts(fresh))
    if not inserts and _equal(trainable, start):
        raise InputError(
            "nothing was trained: every leaf that the method trains is still the base's, bit for bit. "
            "If the base itself was trained, load it again"
        )
    before, after = values(fresh, "statistic"), values(adapted, "statistic")
    if odd := sorted(p for p, v in after.items() if p not in before or before[p].shape != v.shape):
        raise InputError(
            f"the adapted model has state that no folder can put back onto its base, because that lacks it "
            f"or has it in another shape: {odd[:5]}. Call the base once before method.insert, so that it "
            "has all its state"
        )
    mark = fingerprint(base_parameters(base, method.head))
    moved = differing(gather(after), gather(before))
    notes = noted(packing(base)) | dict(notes or {})
    kept = moved | fixed(adapted, seeded(fresh))
    return save_adapter(folder, trainable, labels, method, mark, notes, state=kept)


@takes(folder=FOLDER, base=MODEL)
def load(folder: str | os.PathLike[str], base: Model) -> Model:
    """Returns the adapted model of a folder; `base` is left as it is, and its arrays are shared.

    Args:
      folder: an adapter's, or a run's.
      base: the model that the adapter was trained on, as it was before `method.insert`; its head, if
        the method has one, may be a fresh one of the same shape.

    Raises:
      FileNotFoundError: no adapter in the folder.
      ValueError: a broken file, another base, or leaves that do not fit; see `attach`.
    """
    folder = adapter_folder(Path(folder))
    return attach(base, load_adapter(folder), where=str(folder))


def _labels(adapted: nnx.Module, fresh: nnx.Module, method: Method) -> Labels:
    """The labels of an adapted model, if the method is the one that was inserted."""
    here, expected = partition.parameters(adapted), partition.parameters(fresh)
    odd = sorted(here.keys() ^ expected.keys())
    both = sorted(here.keys() & expected.keys())
    of_head = set() if method.head is None else set(Expression(method.head, "'head'").among(both))
    for path in both:
        if path not in of_head and here[path].shape != expected[path].shape:
            odd.append(f"{path} {here[path].shape}, not {expected[path].shape}")
    ours, theirs = _settings(adapted), _settings(fresh)
    odd += [
        f"{path} {ours.get(path)}, not {theirs[path]}"
        for path in theirs
        if path not in odd and ours.get(path) != theirs[path]
    ]
    if odd:
        raise InputError(
            f"the method {method} is not the one in the adapted model, or the base is another model: "
            f"they differ at {odd[:5]}"
        )
    return method.labels(fresh)


def _settings(model: nnx.Module) -> dict[str, dict[str, Any]]:
    """What inserted modules compute with besides their Variables, by path."""
    return {
        "/".join(map(str, path)): {
            name: value
            for name, value in vars(module).items()
            if isinstance(value, bool | int | float | str | tuple)
            and name not in _OF_TRAINING
            and not name.startswith("_")
        }
        for path, module in nnx.iter_modules(model)
        if isinstance(module, surgery.Inserted)
    }


def _check_base(
    frozen: Mapping[str, Any], start: Mapping[str, Any], labels: Labels, packed: Collection[str]
) -> None:
    """Raises ValueError if frozen parameters are not those of the base, up to their type if not packed."""
    for path, value in frozen.items():
        if labels.get(path) != FROZEN or value is start[path]:
            continue
        both = gather(value), gather(start[path])
        ours, theirs = both if path in packed else map(rounded, both)
        if not same_bits(ours, theirs):
            raise InputError(
                f"the adapted model was not made from this base, or writes its own parameters, which an "
                f"adapter does not hold (nnx.SpectralNorm does): its frozen {path} has other values"
            )


def _equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(
        value is other[path] or np.array_equal(gather(value), gather(other[path]))
        for path, value in one.items()
    )
