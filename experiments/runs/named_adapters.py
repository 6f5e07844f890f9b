"""Several adapters on a command line: their names and their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lora_jax.adapters import Adapter, load_adapter
from lora_jax.errors import InputError


def named(texts: Sequence[str]) -> dict[str, Adapter]:
    """Adapters by name from texts NAME=DIR, or DIR, which is its own name; of adapters or of runs.

    Args:
      texts: what stood between the commas of a flag; folders with commas in their names, as those of sweeps,
        are put together again.

    Raises:
      InputError: two have one name, or a folder is no adapter.
    """
    result: dict[str, Adapter] = {}
    for text in _whole(texts):
        name, separator, folder = text.partition("=")
        if not separator or Path(text).is_dir():
            name, folder = text, text
        if name in result:
            raise InputError(
                f"two adapters are called {name!r}; write --adapters=NAME=DIR,NAME=DIR"
            )
        result[name] = load_adapter(folder)
    return result


def _whole(texts: Sequence[str]) -> list[str]:
    """The texts, with those joined by commas that only together name a folder."""
    result, rest = [], list(texts)
    while rest:
        joined = (",".join(rest[:count]) for count in range(1, len(rest) + 1))
        found = next((text for text in joined if _is_folder(text)), rest[0])
        result.append(found)
        rest = rest[found.count(",") + 1 :]
    return result


def _is_folder(text: str) -> bool:
    return Path(text).is_dir() or Path(text.partition("=")[2] or ".none").is_dir()


def weights(texts: Sequence[str], adapters: Mapping[str, Adapter]) -> dict[str, float]:
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
        return float(text)
    except ValueError:
        raise InputError(
            f"--weights: the weight of {name!r} is {text!r}, expected a number"
        ) from None
