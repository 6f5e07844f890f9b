"""Adapters combined and reduced: folders in, a folder out, and how far it is from the exact sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.runs import text_tables
from experiments.runs.folder import check_place
from lora_jax import combination
from lora_jax.adapters import Adapter, load_adapter
from lora_jax.errors import InputError


def named(texts: Sequence[str]) -> dict[str, Adapter]:
    """Adapters by name from texts NAME=DIR, or DIR, which is its own name.

    Raises:
      InputError: two have one name, or a folder is no adapter.
    """
    result: dict[str, Adapter] = {}
    for text in texts:
        name, separator, folder = text.partition("=")
        if not separator or Path(text).is_dir():
            name, folder = text, text
        if name in result:
            raise InputError(
                f"two adapters are called {name!r}; write --adapters=NAME=DIR,NAME=DIR"
            )
        result[name] = load_adapter(folder)
    return result


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
    return {name: _number(name, value) for name, value in pairs}


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(
            f"--weights: the weight of {name!r} is {text!r}, expected a number"
        ) from None


def combined(
    adapters: Mapping[str, Adapter], by_name: Mapping[str, float], output: Path, **settings: Any
) -> list[str]:
    """Writes the combination of some adapters; what it is, in lines."""
    _check_output(output)
    result = combination.combine(adapters, by_name, **settings)
    return [*_written(result, output), _distances(adapters, by_name, result)]


def reduced(adapter: Adapter, output: Path, **settings: Any) -> list[str]:
    """Writes an adapter of a smaller rank; what it is, in lines."""
    _check_output(output)
    result = combination.reduce(adapter, **settings)
    return [*_written(result, output), _distances({"adapter": adapter}, {}, result)]


def _check_output(output: Path) -> None:
    check_place(output)
    if output.exists():
        raise InputError(f"{output} is there already; name another folder")


def _written(result: Adapter, output: Path) -> list[str]:
    result.save(output)
    return [f"adapter: {output} ({result.method})"]


def _distances(
    adapters: Mapping[str, Adapter], by_name: Mapping[str, float], result: Adapter
) -> str:
    """A table of the distance from the exact weighted sum, relative to its norm."""
    found = combination.distances(adapters, by_name, result)
    rows = [(name, f"{d.mean():.4g}", f"{d.max():.4g}") for name, d in found.items()]
    head = ("update", "distance from the exact sum, mean over layers", "largest")
    return text_tables.pipe_table(head, rows)
