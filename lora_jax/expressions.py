"""Regular expressions of users, configs and files: matching one takes bounded time and memory.

They mean what they mean in Python's `re`, which can backtrack for ever. The package `regex` matches them,
because it stops at a time limit; what it reads in another way than `re` is refused.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterable

import regex

from lora_jax.errors import InputError, InputTypeError, brief

SECONDS = 2.0  # for all texts that one expression is asked about; usual ones take microseconds
LONGEST = 2**20  # characters; programs write long ones
LONGEST_REPEATED = 2**16  # characters with repetitions such as {3} written out
_TOKEN = re.compile(
    r"(?P<comment>\(\?\#[^)]*\))"
    r"|(?P<escape>\\N\{[^}]*\}|\\.)"
    r"|(?P<set>\[\^?\]?(?:\\.|[^\]\\])*\])"
    r"|(?P<count>\{(?=[0-9,]*[0-9])[0-9]*,?[0-9]*\})"
    r"|(?P<other>.)",
    re.DOTALL,
)
_VERBOSE = re.compile(r"\(\?[a-zA-Z]*x")
_POSIX = re.compile(r"\[:\^?\w+:\]")


class Expression:
    """A regular expression for whole texts, which are paths nearly everywhere."""

    def __init__(self, pattern: str, kind: str):
        """Compiles it.

        Args:
          pattern: as a user wrote it.
          kind: what it is for, for messages.

        Raises:
          InputError: it is no regular expression of Python's `re`, or one that is too large.
        """
        if not isinstance(pattern, str):
            raise InputTypeError(f"the {kind} rule must be text, got {brief(pattern)}")
        self._pattern, self._kind, self._left = pattern, kind, SECONDS
        try:
            self._compiled = _compiled(pattern)
        except (re.error, regex.error, OverflowError, RecursionError, MemoryError) as error:
            reason = "it is nested too deep" if isinstance(error, RecursionError) else error
            raise InputError(
                f"the {kind} rule {brief(pattern, 200)} is no regular expression: {reason}"
            ) from error

    def matches(self, text: str) -> bool:
        """Whether the whole text matches.

        Raises:
          InputError: this text and those before it took too much time.
        """
        start = time.thread_time()
        try:
            if self._left <= 0:
                raise TimeoutError
            return self._compiled.fullmatch(text, timeout=self._left) is not None
        except (TimeoutError, MemoryError) as error:
            self._left = 0
            raise InputError(
                f"the {self._kind} rule {brief(self._pattern, 200)} was stopped after {SECONDS:g} seconds "
                f"at {brief(text)}: it tries too many ways to match. Write it without a repetition inside "
                "of a repetition, such as (.*)* or (a+)+: [^/]+ is one name of a path, .* any number of them"
            ) from error
        finally:
            self._left -= time.thread_time() - start

    def among(self, texts: Iterable[str]) -> list[str]:
        """Those of the texts that match, in their order."""
        return [text for text in texts if self.matches(text)]


@functools.lru_cache(maxsize=512)
def _compiled(pattern: str) -> regex.Pattern[str]:
    if len(pattern) > LONGEST:
        raise re.error(f"it has {len(pattern):,} characters, more than {LONGEST:,}")
    verbose = re.compile(pattern).flags & re.VERBOSE or _VERBOSE.search(pattern)
    if verbose and (
        "{" in pattern or "[:" in pattern
    ):  # perhaps in a comment, which is hard to tell
        raise re.error("with the flag x it can have no { and no [:")
    if _size(pattern) > max(len(pattern), LONGEST_REPEATED):
        raise re.error(
            f"with its repetitions written out it has more than {LONGEST_REPEATED:,} characters"
        )
    return regex.compile(pattern)


def _size(pattern: str) -> int:
    """The number of characters with repetitions written out, as `regex` does to prepare itself.

    Raises:
      re.error: something that `regex` reads in another way than `re`.
    """
    groups, atom = (
        [0],
        0,
    )  # sizes of what is in open brackets, and of what a repetition would repeat
    for token in _TOKEN.finditer(pattern):
        text, kind = token[0], token.lastgroup
        if kind == "count":
            groups[-1] += atom * (_times(text) - 1)
            atom *= _times(text)
            continue
        if kind == "comment":
            continue
        if kind == "set" and _POSIX.search(text):
            raise re.error(f"{text} is a set of another language; write \\w, \\d or [a-z]")
        if text == "{":
            raise re.error("a { that is no repetition is written \\{")
        if text == "(":
            groups.append(0)
            continue
        atom = groups.pop() if text == ")" and len(groups) > 1 else 1
        groups[-1] += atom
        if groups[-1] > LONGEST:
            break
    return sum(groups)


def _times(count: str) -> int:
    return max(1, *[int(number[:9]) for number in count[1:-1].split(",") if number])
