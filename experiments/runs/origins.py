"""Where adapters come from: what their folders say of their base and task, and the adapters a run is given.

The fingerprint of an adapter's base covers weights. The settings in config.json and the tokenizer change what
a model computes as well, so the notes of an adapter folder say them, and they are compared wherever one is
used. Folders of earlier versions do not say them: that is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from experiments.runs.settings import RunSettings
from lora_jax.adapter_files import digest
from lora_jax.adapters import Adapter, load_adapter
from lora_jax.data import tokenizers
from lora_jax.errors import InputError
from lora_jax.inputs import INIT_ADAPTER
from lora_jax.models.architectures import ModelConfig
from lora_jax.models.parts import FLOAT
from lora_jax.models.settings import computing
from lora_jax.run_folder import changes, plain

NOTE = "base"  # key of an adapter's notes
ADAPTER = "adapter"  # that a run evaluates, among its inputs
_SETTINGS, _TOKENIZER = "settings", "tokenizer"
Origin = Mapping[str, Any]  # the value of NOTE


def origin(config: ModelConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> Origin:
    """What the adapters of a model say of it besides its weights.

    Args:
      config: of the model.
      tokenizer: that made the examples, if any were made.
    """
    settings = plain(computing(config))
    of_tokenizer = {} if tokenizer is None else {_TOKENIZER: tokenizers.behaviour(tokenizer)}
    return {_SETTINGS: settings, **of_tokenizer}


def base_format(adapter: Adapter | None) -> str:
    """The form in which an adapter's base was held when it was trained, see `models.base_formats`."""
    note = adapter.notes.get(NOTE) if adapter else None
    settings = note.get(_SETTINGS) if isinstance(note, Mapping) else None
    found = settings.get("base_format") if isinstance(settings, Mapping) else None
    return found if isinstance(found, str) else FLOAT


def architecture(adapter: Adapter) -> str | None:
    """The model_type of an adapter's base; None if its notes do not say it."""
    note = adapter.notes.get(NOTE)
    settings = note.get(_SETTINGS) if isinstance(note, Mapping) else None
    found = settings.get("architecture") if isinstance(settings, Mapping) else None
    found = adapter.notes.get("architecture", found)
    return found if isinstance(found, str) else None


def check(adapter: Adapter, here: Origin, where: str) -> str:
    """Compares what an adapter says of its base with a model.

    Args:
      adapter: from `load_adapter`.
      here: of the model, from `origin`.
      where: name of the adapter, for messages.

    Returns:
      What the adapter does not say and so could not be compared, in words; "" if all was.

    Raises:
      InputError: the model has other settings, or another tokenizer.
    """
    there = adapter.notes.get(NOTE)
    there = there if isinstance(there, Mapping) else {}
    of_model = f"the model that its notes name ({str(adapter.notes.get('model', 'unknown'))[:80]})"
    settings = there.get(_SETTINGS)
    settings = settings if isinstance(settings, Mapping) else {}
    both = settings.keys() & here[_SETTINGS].keys()
    old, new = ({name: side[name] for name in both} for side in (settings, here[_SETTINGS]))
    if differences := changes(old, new, "there", "in the model here"):
        raise InputError(
            f"{where} was trained on a model with other settings ({differences}): with these the same "
            f"weights compute something else. Use the config.json of {of_model}"
        )
    tokenizer = there.get(_TOKENIZER, here.get(_TOKENIZER))
    if _TOKENIZER in here and tokenizer != here[_TOKENIZER]:
        raise InputError(
            f"{where} was trained with another tokenizer ({str(tokenizer)[:12]} there, "
            f"{here[_TOKENIZER][:12]} here): the same text becomes other tokens. Use the tokenizer files of "
            f"{of_model}"
        )
    if missing := [name for name in here if name not in there]:
        return (
            f"{where} does not say its base's {' and '.join(missing)}, as folders of earlier versions and "
            "converted ones: only the weights of the base are compared"
        )
    return ""


def given(settings: RunSettings, task: str, here: Origin) -> tuple[dict[str, str], dict[str, str]]:
    """Checks the adapters that a run is given.

    Args:
      settings: of the run.
      task: its name.
      here: of the run's model.

    Returns:
      Their digests, for the run's inputs, and what could not be compared, for its notes.

    Raises:
      FileNotFoundError, ValueError: no adapter, a broken one, or one of another base or task.
    """
    named = {INIT_ADAPTER: settings.train.init_adapter}
    if settings.config.eval_only:
        named[ADAPTER] = settings.adapter
    inputs, notes = {}, {}
    for name, path in named.items():
        if not path:
            continue
        adapter = load_adapter(path)
        if name == ADAPTER:
            _check_task(adapter, task, settings)
        inputs[name] = digest(adapter)
        if note := check(adapter, here, path):
            notes[name] = note
    return inputs, notes


def _check_task(adapter: Adapter, task: str, settings: RunSettings) -> None:
    """Raises InputError for an adapter that was trained on another task, unless the config says which."""
    there = adapter.notes.get("task")
    expected = settings.config.get("adapter_task") or task
    if isinstance(there, str) and there != expected:
        raise InputError(
            f"{settings.adapter} was trained on the task {there!r}, not on {expected!r}: its scores here are "
            f"those of another task's labels or texts. Where that is meant, set "
            f"config.adapter_task={there!r}; else name an adapter of {task!r}"
        )
