"""What a run was made from besides its settings: digests of its data, its tokenizer and its weights.

A folder keeps them in inputs.json. A run is resumed, and a finished one is read back, only where they are
the same; folders of earlier versions have no such file and are taken as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lora_jax.errors import InputError
from lora_jax.files import to_json, write_text
from lora_jax.reading import read_object
from lora_jax.run_folder import SETTINGS

FILE = "inputs.json"
Inputs = Mapping[str, str]  # digests by what they are of, such as "training data"


def check(folder: Path, inputs: Inputs, remedy: str) -> None:
    """Raises InputError if the run of a folder was made from other inputs.

    Args:
      folder: of the run; it need not exist, and is nobody's before it is claimed.
      inputs: of now.
      remedy: end of the message.
    """
    if not ((folder / FILE).exists() and (folder / SETTINGS).exists()):
        return
    record = read_object(folder / FILE)
    there = {name: record.get(name, str) for name in record.values}
    differing = [name for name in sorted({*there, *inputs}) if there.get(name) != inputs.get(name)]
    if differing:
        texts = [
            f"{name} ({_short(there, name)} there, {_short(inputs, name)} now)"
            for name in differing
        ]
        raise InputError(f"{folder} holds a run on other inputs: {', '.join(texts)}. {remedy}")


def write(folder: Path, inputs: Inputs) -> None:
    """Writes what a run is made from into its folder, unless it says so already."""
    path, text = folder / FILE, to_json(inputs) + "\n"
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)


def _short(digests: Inputs, name: str) -> str:
    return digests[name][:12] if name in digests else "nothing"
