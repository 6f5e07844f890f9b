"""What a run was made from besides its settings: digests of data, tokenizer, weights and of its adapter.

A folder keeps them in inputs.json, in the records of its checkpoints and, at the end, in result.json: each of
them is compared where it is, so that none can be deleted to make a run claim other data. A run is resumed,
and a finished one is read back, only where they are the same. Folders of earlier versions have fewer of
them, or none, and are taken as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from lora_jax.errors import InputError
from lora_jax.files import to_json, write_text
from lora_jax.reading import AGAIN, read_object
from lora_jax.run_folder import CHECKPOINTS, MADE_ANEW, RESULT, SETTINGS

FILE = "inputs.json"
KEY = "inputs"  # in the records of checkpoints and in result.json
Inputs = Mapping[str, str]  # digests by what they are of, such as "training data"

INIT_ADAPTER = "init_adapter"
OWN_TOKENIZER = "tokenizer made here"
START = "key of the initial values"
SUBSETS = "decoded subsets"
# Folders of earlier versions lack these: they are compared where both sides have them.
_LATER = (INIT_ADAPTER, OWN_TOKENIZER, START, SUBSETS)


def check(folder: Path, inputs: Inputs, remedy: str) -> None:
    """Raises InputError if the run of a folder was made from other inputs.

    Args:
      folder: of the run; it need not exist, and is nobody's before it is claimed.
      inputs: of now.
      remedy: end of the message.
    """
    for there in _said(folder):
        if differing := [n for n in sorted({*there, *inputs}) if _differs(n, there, inputs)]:
            texts = [
                f"{name} ({_short(there, name)} there, {_short(inputs, name)} now)"
                for name in differing
            ]
            raise InputError(f"{folder} holds a run on other inputs: {', '.join(texts)}. {remedy}")


def _differs(name: str, there: Inputs, now: Inputs) -> bool:
    if name in _LATER and not (name in there and name in now):
        return False
    return there.get(name) != now.get(name)


def _said(folder: Path) -> Iterator[Inputs]:
    """What the files of a folder say that its run was made from."""
    for name, remedy in ((FILE, AGAIN), (RESULT, MADE_ANEW)):
        path = folder / name
        if path.exists() and (name == RESULT or (folder / SETTINGS).exists()):
            record = read_object(path, remedy)
            if name == FILE:
                yield {of: record.get(of, str) for of in record.values}
            elif KEY in record.values:
                yield record.text_by_name(KEY)
    for place in (folder, *sorted(folder.glob("seed_*"))):
        for path in sorted(place.glob(f"{CHECKPOINTS}/*/record/metadata")):
            with contextlib.suppress(
                InputError, OSError
            ):  # a damaged one, which no run goes on from
                yield read_object(path).text_by_name(KEY)


def write(folder: Path, inputs: Inputs) -> None:
    """Writes what a run is made from into its folder, unless it says so already."""
    path, text = folder / FILE, to_json(inputs) + "\n"
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)


def _short(digests: Inputs, name: str) -> str:
    return digests[name][:12] if name in digests else "nothing"
