"""Several adapters on a command line: their names and their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from lora_jax.adapters import Adapter, load_adapter
from lora_jax.errors import InputError


def named(texts: Sequence[str]) -> dict[str, Adapter]:
    """Adapters by name, of adapters' folders or of runs; see `places`.

    Raises:
      InputError: two have one name, or a folder is no adapter.
    """
    return {name: load_adapter(place) for name, place in places(texts).items()}


def places(texts: Sequence[str]) -> dict[str, str]:
    """Folders or files by name from texts NAME=PLACE, or PLACE, which is its own name.

    Args:
      texts: what stood between the commas of a flag; places with commas in their names, as those of sweeps,
        are put together again.

    Raises:
      InputError: two have one name.
    """
    result: dict[str, str] = {}
    for text in _whole(texts):
        name, separator, place = text.partition("=")
        if not separator or Path(text).exists():
            name, place = text, text
        if name in result:
            raise InputError(
                f"two adapters are called {name!r}; write --adapters=NAME=DIR,NAME=DIR"
            )
        result[name] = place
    return result


def _whole(texts: Sequence[str]) -> list[str]:
    """The texts, with those joined by commas that only together name a place."""
    result, rest = [], list(texts)
    while rest:
        joined = (",".join(rest[:count]) for count in range(1, len(rest) + 1))
        found = next((text for text in joined if _is_there(text)), rest[0])
        result.append(found)
        rest = rest[found.count(",") + 1 :]
    return result


def _is_there(text: str) -> bool:
    return Path(text).exists() or Path(text.partition("=")[2] or ".none").exists()


def weights(texts: Sequence[str], adapters: Mapping[str, object]) -> dict[str, float]:
    """Weights by name from texts NAME=NUMBER, or from as many numbers as there are adapters.

    Raises:
      InputError: a text is none of these.
    """
    plain = [text for text in texts if "=" not in text]
    if plain and (len(plain) != len(texts) or len(plain) != len(adapters)):
        raise InputError(
            f"--weights={','.join(texts)}: give one number for each of the {len(adapters)} adapters, or "
            "NAME=NUMBER"
        )
    pairs = zip(adapters, plain, strict=True) if plain else (text.split("=", 1) for text in texts)
    result: dict[str, float] = {}
    for name, value in pairs:
        if name in result:
            raise InputError(f"--weights={','.join(texts)} gives {name!r} two weights")
        result[name] = _number(name, value)
    return result


def _number(name: str, text: str) -> float:
    try:
        if math.isfinite(number := float(text)):
            return number
    except ValueError:
        pass
    raise InputError(f"--weights: the weight of {name!r} is {text!r}, expected a number")
