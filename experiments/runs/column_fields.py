"""Which fields of a config name the columns of a user's table, for the errors of those that are missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from lora_jax.data.tables import MissingColumnError


@contextlib.contextmanager
def named_by(fields: Mapping[str, Sequence[str]]) -> Iterator[None]:
    """Adds to the error of a missing column how the table's own columns are named on the command line.

    Args:
      fields: columns by what names them: `--config.data.text=COLUMN`.
    """
    try:
        yield
    except MissingColumnError as error:
        by = [flag for flag, columns in fields.items() if error.column in columns]
        if not by:
            raise
        raise error.advised(f"Name the file's own: {', or '.join(by)}") from None


def of_run(columns: Sequence[str]) -> str:
    """The remedy where a finished run says what the columns of a file are called."""
    return f"Name the file's columns as those of the run's data: {', '.join(columns)}"
