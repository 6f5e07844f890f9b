"""The errors of this project. What else is raised is a fault of ours, or of a library.

Every one of them says what is wrong with something that a user gave, and what to do. They are kinds of the
errors of Python that one would expect: `except ValueError` catches an `InputError`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from typing import Any


class InputError(ValueError):
    """Something that a user gave is wrong: an argument, a setting, a file."""


class InputTypeError(InputError, TypeError):
    """The same, of a type that cannot be used."""


class MissingFileError(InputError, FileNotFoundError):
    """A file or folder that a user named is not there."""

    def __init__(self, message: str):
        super().__init__(message)


class FileError(InputError):
    """A file has something in it that should not be there.

    Attributes:
      path: of the file.
      where: the place in it, such as a key or a line; "" for the file as a whole.
      found: what is there.
      expected: what should be there.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        where: str,
        found: str,
        expected: str,
        remedy: str = "",
    ):
        """Makes the message.

        Args:
          path: of the file.
          where: the place in it.
          found: what is there; a long text is cut.
          expected: what should be there.
          remedy: what to do about it, a sentence without its full stop.
        """
        self.path, self.where, self.found, self.expected = str(path), where, found, expected
        self._remedy = remedy
        place = f"{path}, {where}" if where else str(path)
        end = f". {remedy}" if remedy else ""
        super().__init__(f"{place}: found {_short(found)}, expected {expected}{end}")

    def __reduce__(self) -> tuple[Any, ...]:
        """For errors that cross from one process to another."""
        made_of = (self.path, self.where, self.found, self.expected, self._remedy)
        return type(self), made_of


class SettingError(FileError):
    """A setting in a file is refused by what it is a setting of."""

    def __init__(self, path: str | os.PathLike[str], where: str, reason: object):
        """Makes the message.

        Args:
          path: of the file.
          where: the place in it; "" for the file as a whole.
          reason: the error that the setting's check raised, or its text.
        """
        self.path, self.where, self.found = str(path), where, str(reason)
        self.expected = "a setting that this version knows"
        place = f"{path}, {where}" if where else str(path)
        InputError.__init__(self, f"{place}: {self.found}")

    def __reduce__(self) -> tuple[Any, ...]:
        """For errors that cross from one process to another."""
        return type(self), (self.path, self.where, self.found)


class FolderInUseError(InputError):
    """Another program writes into the folder, or has taken it over.

    Attributes:
      folder: that was to be written into.
    """

    def __init__(self, message: str, folder: str | os.PathLike[str]):
        super().__init__(message)
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        """For errors that cross from one process to another."""
        return type(self), (str(self), self.folder)


class DivergedError(ArithmeticError):
    """Training was stopped because its loss, its gradient or its parameters were not finite.

    Attributes:
      steps: by name of the run, the step that showed it.
      folder: of the runs.
    """

    def __init__(self, steps: Mapping[str, int], folder: str | os.PathLike[str]):
        """Makes the message.

        Args:
          steps: by name of the run, the step that showed it.
          folder: of the runs.
        """
        self.steps, self.folder = dict(steps), str(folder)
        runs = ", ".join(f"{name} at step {step}" for name, step in steps.items())
        super().__init__(
            f"training diverged: {runs} (loss, gradient or parameters were not finite). Adapters and "
            f"checkpoints from before are kept in {folder}. Lower learning_rate or set max_grad_norm, and "
            "train in another folder"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """For errors that cross from one process to another."""
        return type(self), (self.steps, self.folder)


def brief(value: object, length: int = 80) -> str:
    """A value as messages show it: its `repr`, cut; also of integers too long for Python to write out."""
    try:
        return _short(repr(value), length)
    except ValueError:
        return "an integer of more digits than Python writes out"
    except RecursionError:
        return "a value nested too deep to write out"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """For a message: `, did you mean 'rank'?`, or "" if none of the known names is like this one."""
    near = nearest_name(name, known)
    return f", did you mean {near!r}?" if near else ""


def nearest_name(name: str, known: Iterable[str]) -> str:
    """The known name that is most like this one, in large or small letters; "" if none is like it."""
    by_letters = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name[:100].lower(), list(by_letters), n=1)
    return by_letters[near[0]] if near else ""


def _short(text: str, length: int = 160) -> str:
    return text if len(text) <= length else f"{text[:length]}..."
