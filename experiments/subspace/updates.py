"""Reads the adapters of an analysis: their factors by adapter and weight, under short names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

from ml_collections import ConfigDict

from lora_jax.adapters import UNKNOWN_BASE, Adapter, load_adapter
from lora_jax.analysis import factor_pairs
from lora_jax.analysis.factor_pairs import FactorPair
from lora_jax.errors import InputError, brief
from lora_jax.expressions import Expression
from lora_jax.ranges import Text, check

Pairs = Mapping[str, FactorPair]  # by weight


@dataclasses.dataclass(frozen=True)
class Updates:
    """The updates to analyse.

    Attributes:
      adapters: the loaded adapters by name, in the order of tables and figures.
      short_names: path of an adapted layer (and part) to the name of its weight, such as `query`.
      pairs: factors by adapter, then by weight.
    """

    adapters: Mapping[str, Adapter]
    short_names: Mapping[str, str]
    pairs: Mapping[str, Pairs]

    def select(self, name: str) -> Pairs:
        """The factors of adapter `NAME` by weight, or those of `NAME:WEIGHT` under an empty name.

        Raises:
          ValueError: there is no such adapter, or it has no such weight.
        """
        adapter, _, weight = name.partition(":")
        if adapter not in self.pairs:
            raise InputError(
                f"comparisons: no adapter {adapter!r}; config.adapters has {list(self.pairs)}"
            )
        pairs = self.pairs[adapter]
        if not weight:
            return pairs
        if weight not in pairs:
            raise InputError(
                f"comparisons: {name!r} is not one of the weights {list(pairs)} of {adapter}"
            )
        return {"": pairs[weight]}


def check_comparisons(updates: Updates, comparisons: Iterable[tuple[str, str]]) -> None:
    """Checks all comparisons before any is made.

    Raises:
      ValueError: a name is unknown, or two adapters are of different bases.
    """
    for first, second in comparisons:
        factor_pairs.shared(updates.select(first), updates.select(second), f"{first} / {second}")
        names = [text.partition(":")[0] for text in (first, second)]
        one, other = (updates.adapters[name].base for name in names)
        if one != other and UNKNOWN_BASE not in (one, other):
            raise InputError(
                f"comparisons: the adapters {names[0]!r} and {names[1]!r} are of different bases "
                f"(fingerprints {one[:12]} and {other[:12]}), so that their directions lie in different "
                "models; leave the pair out of config.comparisons"
            )


def read(config: ConfigDict) -> Updates:
    """Reads the adapters of a config, with the weights that `config.weights` matches.

    Raises:
      FileNotFoundError, ValueError: no adapter is named, a folder is missing or broken, or no weight of
        an adapter matches.
    """
    if not config.adapters:
        raise InputError(
            "config.adapters is empty: configs/subspace/folders.py:NAME=FOLDER,NAME=FOLDER names them"
        )
    if not isinstance(config.adapters, ConfigDict | Mapping):
        raise InputError(f"config.adapters must be folders by name, got {brief(config.adapters)}")
    for name, folder in config.adapters.items():
        check(f"config.adapters.{name}", folder, Text())
    folders = sorted(config.adapters.items(), key=lambda item: _number_aware(item[0]))
    adapters = {name: load_adapter(folder) for name, folder in folders}
    pairs_by_path = {
        name: _matching(adapter, config.weights, name) for name, adapter in adapters.items()
    }
    names = short_names(path for pairs in pairs_by_path.values() for path in pairs)
    return Updates(
        adapters,
        names,
        {
            name: {names[path]: pair for path, pair in pairs.items()}
            for name, pairs in pairs_by_path.items()
        },
    )


def _number_aware(name: str) -> list[str | int]:
    """A sort key that puts r8 before r64."""
    return [int(p) if i % 2 else p for i, p in enumerate(re.split(r"([0-9]{1,9})", name))]


def _matching(adapter: Adapter, pattern: str, name: str) -> Pairs:
    pairs = factor_pairs.from_adapter(adapter)
    matching = {path: pairs[path] for path in Expression(pattern, "config.weights").among(pairs)}
    if not matching:
        raise InputError(
            f"config.weights {pattern!r} matches no adapted layer of {name}: {list(pairs)}"
        )
    return matching


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """The shortest ends of paths that differ: `query`, or `first/block/attention/query`."""
    paths = list(dict.fromkeys(paths))

    def end(path: str, parts: int) -> str:
        return "/".join(path.split("/")[-parts:])

    names = {}
    for path in paths:
        lengths = range(1, path.count("/") + 2)
        unique = (n for n in lengths if sum(end(p, n) == end(path, n) for p in paths) == 1)
        names[path] = end(path, next(unique, len(lengths)))  # or the whole path
    return names
