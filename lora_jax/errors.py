"""The errors of this project. What else is raised is a fault of ours, or of a library.

Every one of them says what is wrong with something that a user gave, and what to do. They are kinds of the
errors of Python that one would expect: `except ValueError` catches an `InputError`.
"""

from __future__ import annotations

import os


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
        place = f"{path}, {where}" if where else str(path)
        end = f". {remedy}" if remedy else ""
        super().__init__(f"{place}: found {_short(found)}, expected {expected}{end}")


class DivergedError(ArithmeticError):
    """Training was stopped because its loss or its parameters were not finite.

    Attributes:
      steps: by run, the step at which that was seen.
    """

    def __init__(self, message: str, steps: dict[str, int]):
        super().__init__(message)
        self.steps = steps


def brief(value: object, length: int = 80) -> str:
    """A value as messages show it: its `repr`, cut; also of integers too long for Python to write out."""
    try:
        return _short(repr(value), length)
    except ValueError:
        return "an integer of more digits than Python writes out"
    except RecursionError:
        return "a value nested too deep to write out"


def _short(text: str, length: int = 160) -> str:
    return text if len(text) <= length else f"{text[:length]}..."
