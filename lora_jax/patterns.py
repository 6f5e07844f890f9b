"""Patterns of paths: regular expressions in order, of which the first that matches counts.

Methods name layers by them, labels name leaves. A pattern that can have no effect is an error: one that
matches nothing, or one whose matches all belong to earlier patterns.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from lora_jax.errors import InputError, InputTypeError, brief
from lora_jax.expressions import Expression


def nearest(pattern: str, paths: Sequence[str], count: int = 5) -> list[str]:
    """The paths most like a pattern that matched none of them, for an error message.

    Every word of the pattern is compared with the components of a path; long paths come first among
    equals, because they name layers and not containers.
    """
    words = [word for word in re.split(r"\W+", pattern) if word] or [pattern]

    @functools.cache  # the same names come again and again
    def best(part: str) -> list[float]:
        return [difflib.SequenceMatcher(None, word, part).ratio() for word in words]

    def likeness(path: str) -> float:
        of_parts = [best(part) for part in path.split("/")]
        return sum(max(ratios[i] for ratios in of_parts) for i in range(len(words)))

    named = filter(None, paths)  # the model itself has no name
    return sorted(named, key=lambda path: (-likeness(path), -len(path)))[:count]


def no_match_error(
    kind: str, pattern: str, paths: Sequence[str], *, names: bool = False
) -> InputError:
    """The error for a rule that matches nothing: it shows the nearest paths.

    Args:
      kind: of the rule.
      pattern: of the rule.
      paths: of the model.
      names: whether the rule may be a plain name, as in `matching`.
    """
    lines = "\n  ".join(nearest(shown(pattern), paths)) or "(the model has none)"
    or_name = ", or its last names without any special character" if names else ""
    return InputError(
        f"the {kind} rule {shown(pattern)!r} matches no path. Patterns are regular expressions for "
        f"the whole path{or_name}. Nearest paths:\n  {lines}"
    )


def shown(pattern: str, length: int = 200) -> str:
    """A pattern as errors show it: the beginning of one that a program wrote."""
    return pattern if len(pattern) <= length else f"{pattern[:length]}..."


def matching(pattern: str, paths: Sequence[str], kind: str) -> list[str]:
    """The paths that a pattern names, in their order.

    A pattern without special characters of regular expressions is a path: itself if it is one of
    `paths`, else the end of paths. So `query` and `attention/query` name `layers/0/attention/query`.

    Args:
      pattern: a regular expression for whole paths, or such a name.
      paths: to choose from.
      kind: what the pattern is for, for the message.

    Raises:
      ValueError: it is no regular expression, or matches no path.
    """
    found = paths_of(pattern, paths, kind)
    if not found:
        raise no_match_error(kind, pattern, paths, names=True)
    return found


def paths_of(pattern: str, paths: Sequence[str], kind: str) -> list[str]:
    """The same, possibly none."""
    if _SPECIAL.search(pattern):
        return Expression(pattern, kind).among(paths)
    whole = [path for path in paths if path == pattern]
    return whole or [path for path in paths if pattern and path.endswith(f"/{pattern}")]


_SPECIAL = re.compile(r"[\\.^$*+?{}\[\]|()]")


def check(pattern: object, kind: str, *, names: bool = False) -> None:
    """Raises InputError for what can be no pattern, whatever the model.

    Args:
      pattern: as a user gave it.
      kind: what it is for, for the message.
      names: whether it may be a plain name, as in `matching`.
    """
    if not isinstance(pattern, str):
        raise InputTypeError(f"the {kind} rule must be text, got {brief(pattern)}")
    if not names or _SPECIAL.search(pattern):
        Expression(pattern, kind)


class Ordered(NamedTuple):
    """One of several rules in order.

    Attributes:
      kind: what it is, for messages.
      pattern: as a user wrote it.
      outcome: what it gives to its paths; compared with `==`.
      paths: that it matches.
    """

    kind: str
    pattern: str
    outcome: Any
    paths: Sequence[str]

    def __str__(self) -> str:
        return f"{self.kind} rule {shown(self.pattern)!r}"


def first_matches(rules: Sequence[Ordered]) -> dict[str, Ordered]:
    """The rule that each path belongs to: the first one that matches it.

    Raises:
      ValueError: earlier rules took all matches of a rule and give them another outcome, so that it
        has no effect. Where the outcome is the same nothing is lost (combined methods may have the
        same head).
    """
    owners: dict[str, Ordered] = {}
    for rule in rules:
        for path in rule.paths:
            owners.setdefault(path, rule)
    for rule in rules:
        if rule.paths and all(owners[path].outcome != rule.outcome for path in rule.paths):
            takers = dict.fromkeys(f"the {owners[path]}" for path in rule.paths)
            raise InputError(
                f"the {rule} never applies: {some(list(takers))} before it takes all that it matches "
                f"({some(rule.paths)}). The first rule that matches counts: put the narrower one "
                "first, or remove this one"
            )
    return owners


def some(names: Sequence[str], count: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
