"""The base of adapters with heads: an encoder with a head as wide as the widest, its own if it has one."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp

from lora_jax import partition
from lora_jax.data.labels import Labels
from lora_jax.errors import FileError, InputError
from lora_jax.models import config_json, hub
from lora_jax.models.encoder import Classifier, EncoderConfig


def numbered(outputs: int) -> Labels:
    """Classes without names, called as transformers does; numbers where there is one output."""
    return Labels(classes=tuple(f"LABEL_{i}" for i in range(outputs)) if outputs > 1 else ())


def classifier(folder: Path, config: EncoderConfig, width: int) -> tuple[Classifier, Labels | None]:
    """A classifier with a head of at least some width, and what the folder's own head is for.

    Args:
      folder: of the model.
      config: of the model.
      width: outputs that adapters need.

    Returns:
      The classifier, with the folder's own head in the first outputs, and its labels; a new head and None
      for a model without one.

    Raises:
      InputError: the model cannot be read, or its labels are no names.
    """
    try:
        config_json.check_classifier(folder)
    except FileError:
        return hub.load_classifier(folder, config, width, jax.random.key(0)), None
    labels = _labels(folder)
    count = labels.num_outputs
    published = hub.load_classifier(folder, config, count, jax.random.key(0), head="published")
    wide = hub.load_classifier(folder, config, max(width, count), jax.random.key(0))
    structure, params = partition.all_frozen(wide)
    for path, leaf in partition.parameters(published.head).items():
        place = params[f"head/{path}"]
        missing = [(0, new - old) for old, new in zip(leaf.shape, place.shape, strict=True)]
        params[f"head/{path}"] = jnp.pad(leaf, missing)
    model = partition.join(structure, {}, params)
    assert isinstance(model, Classifier)
    return model, labels


def _labels(folder: Path) -> Labels:
    """The classes that config.json names; transformers takes two where it names none."""
    record = config_json.read(folder)
    if "id2label" not in record.values:
        return numbered(2)
    names = record.text_by_name("id2label")
    ordered = [names.get(str(i)) for i in range(len(names))]
    if not names or None in ordered:
        raise InputError(f"{record.path}, id2label: the classes must be numbered from 0 on")
    return Labels(classes=tuple(map(str, ordered))) if len(names) > 1 else numbered(1)
