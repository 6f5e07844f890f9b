"""Tables of a user's own examples: JSON lines, JSON, CSV, TSV and Parquet as rows of named values.

The same rows give the same table in every format, but for types: cells of CSV and TSV are texts. What is
wrong with a file is a `FileError` with file, line, column, what was found and what was expected.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_jax import reading
from lora_jax.data.text_files import folder, short
from lora_jax.errors import FileError

MOST = 2**30  # bytes of a file, unpacked
REMEDY = "Repair this place, or name another file"
_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
FORMATS = "a name that ends in .jsonl, .json, .csv or .tsv (each also with .gz), or in .parquet"
_Numbered = Iterable[tuple[int, dict[str, Any]]]  # number of the line, item or row, and its values


class MissingColumnError(FileError):
    """A table has no column of a name; the message lists those that it has.

    Attributes:
      columns: that there are.
      column: the missing one.
    """

    def __init__(
        self,
        path: str | Path,
        columns: Sequence[str],
        column: str,
        remedy: str = "Name another one",
    ):
        """Makes the message; the remedy is a sentence without its full stop."""
        self.columns, self.column = tuple(columns), column
        there = f"the columns {', '.join(columns)}"
        super().__init__(path, "", there, f"a column {short(column)}", remedy)

    def __reduce__(self) -> tuple[Any, ...]:
        """For errors that cross from one process to another."""
        return type(self), (self.path, self.columns, self.column, self._remedy)

    def advised(self, remedy: str) -> MissingColumnError:
        """The same error with another remedy, for callers who know what names the column."""
        return MissingColumnError(self.path, self.columns, self.column, remedy)


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of a file.

    Attributes:
      path: of the file.
      columns: names, in the order in which they appear.
      rows: values by column; a row of JSON may lack some of the columns.
      numbers: of every row in the file, counted from 1: its line in text, its place in a list.
      unit: what the numbers count: `line`, `item` or `row`.
      unread: type of each column that is neither text, numbers, truth values, nor lists and objects of
        these (Parquet); the rows do not have it.
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[dict[str, Any]]
    numbers: list[int]
    unit: str
    unread: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, row: int) -> str:
        """File and place of a row, for messages; rows are counted from 0."""
        return f"{self.path}, {self.place(row)}"

    def place(self, row: int, column: str = "") -> str:
        """Place of a row, or of its value in a column, without the file."""
        named = f", column {short(column)}" if column else ""
        return f"{self.unit} {self.numbers[row]}{named}"

    def error(self, row: int, column: str, found: str, expected: str) -> FileError:
        """The error for a value; give it to `raise`."""
        return FileError(self.path, self.place(row, column), found, expected, REMEDY)

    def check_columns(self, names: Iterable[str]) -> None:
        """Raises FileError if one of these has a type that is not read, and MissingColumnError."""
        for name in names:
            if name in self.unread:
                found = f"the type {self.unread[name]} in column {short(name)}"
                raise FileError(self.path, "", found, "texts, numbers or lists", REMEDY)
            if name not in self.columns:
                raise MissingColumnError(self.path, self.columns, name)

    def values(self, column: str) -> list[Any]:
        """The values of a column, None where a row has none.

        Raises:
          FileError: no such column.
        """
        self.check_columns([column])
        return [row.get(column) for row in self.rows]

    def text(self, column: str, missing: str | None = None) -> list[str]:
        """The values of a column as texts; numbers as JSON writes them, `true` and `false`.

        Args:
          column: its name.
          missing: text of a row that has no value there, or null; without it that is an error.

        Raises:
          FileError: no such column, or a value that is no text and no number, or has NUL characters.
        """
        values = self.values(column)
        return [self._text(row, column, value, missing) for row, value in enumerate(values)]

    def _text(self, row: int, column: str, value: Any, missing: str | None) -> str:
        if isinstance(value, str):
            if "\0" in value:
                raise self.error(row, column, "a NUL character", "a text without")
            return value
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
            return _number(value)
        if value is None and missing is not None:
            return missing
        raise self.error(row, column, "no value" if value is None else short(value), "a text")


def read_table(path: str | Path) -> Table:
    """Reads a file of rows, whose format is that of its name.

    - `.jsonl`, `.ndjson`: one JSON object in every line; empty lines are passed over.
    - `.json`: a list of objects; a file of JSON lines under this name is read as such.
    - `.csv`, `.tsv`: a line with the names of the columns, then rows; cells may be in double quotes.
    - `.parquet`: needs pyarrow.

    Text is UTF-8, with or without a byte order mark, with line ends of Unix or Windows; NaN and infinity
    are no values.

    Args:
      path: of the file; all formats but Parquet may be packed, with .gz behind the name.

    Raises:
      MissingFileError: there is no such file.
      FileError: another suffix; a line that is not as its format wants it; no rows; too large.
      OSError: it cannot be read.
    """
    path = folder(str(path))
    packed = path.suffix.lower() == ".gz"
    suffix = Path(path.stem).suffix.lower() if packed else path.suffix.lower()
    if suffix not in _SUFFIXES or (packed and suffix == ".parquet"):
        raise FileError(path, "", f"the suffix {''.join(path.suffixes[-2:])!r}", FORMATS)
    if suffix == ".parquet":
        return _parquet(path)
    text = reading.read_text(path, MOST, REMEDY)
    if suffix in (".csv", ".tsv"):
        delimiter = "," if suffix == ".csv" else "\t"
        return _separated(path, text, delimiter)
    if suffix == ".json" and not text.lstrip().startswith("{"):
        return _table(path, _items(path, text), "item")
    return _table(path, _lines(path, text), "line")


def _table(path: Path, numbered: _Numbered, unit: str, columns: Iterable[str] = ()) -> Table:
    rows, numbers = [], []
    names = dict.fromkeys(columns)
    for number, row in numbered:
        rows.append(row)
        numbers.append(number)
        names.update(dict.fromkeys(row))
    if not rows:
        raise FileError(path, "", "no rows", "at least one", REMEDY)
    return Table(path, tuple(names), rows, numbers, unit)


def _lines(path: Path, text: str) -> _Numbered:
    # str.splitlines would also cut at characters such as U+2028, which JSON texts may have.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = reading.parse_json(line, path)
        except FileError as error:
            where, expected = f"line {number}", "a JSON object in every line"
            raise FileError(path, where, error.found, expected, REMEDY) from error
        yield number, _object(path, f"line {number}", value)


def _items(path: Path, text: str) -> _Numbered:
    values = reading.parse_json(text, path, REMEDY)
    if not isinstance(values, list):
        raise FileError(path, "", short(values), "a list of JSON objects", REMEDY)
    for number, value in enumerate(values, 1):
        yield number, _object(path, f"item {number}", value)


def _object(path: Path, where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FileError(path, where, short(value), "a JSON object", REMEDY)
    return value


def _separated(path: Path, text: str, delimiter: str) -> Table:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        if not header or not all(name.strip() for name in header):
            raise FileError(path, "line 1", short(header), "the names of all columns", REMEDY)
        if len(set(header)) < len(header):
            raise FileError(path, "line 1", short(header), "columns of different names", REMEDY)
        return _table(path, _cells(path, reader, header), "line", header)
    except csv.Error as error:
        kind = "CSV" if delimiter == "," else "TSV"
        raise FileError(
            path, f"line {max(1, reader.line_num)}", f"broken {kind} ({error})",
            'cells whose quotes are closed, and doubled inside of quotes ("")',
            "Write the rows as JSON lines, which take any text, or repair this place",
        ) from error  # fmt: skip


def _cells(path: Path, reader: Any, header: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    begin = reader.line_num + 1  # a cell in quotes may have several lines
    for cells in reader:
        if cells:  # an empty line is no row
            if len(cells) != len(header):
                found, expected = f"{len(cells)} cells", f"{len(header)}, as in line 1"
                raise FileError(path, f"line {begin}", found, expected, REMEDY)
            yield begin, dict(zip(header, cells, strict=True))
        begin = reader.line_num + 1


def _parquet(path: Path) -> Table:
    reading.check_file(path, MOST)
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        expected = 'the package pyarrow to read it (pip install "lora_jax[tables]")'
        raise FileError(path, "", "Parquet", expected, "Or write the rows as JSON lines") from error
    numbered: list[tuple[int, dict[str, Any]]] = []
    size = 0
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            unread = {f.name: str(f.type) for f in schema if not _plain(f.type, pyarrow.types)}
            names = [name for name in schema.names if name not in unread]
            if len(set(schema.names)) < len(schema.names):
                raise FileError(path, "", short(schema.names), "columns of different names", REMEDY)
            for batch in file.iter_batches(256, columns=names):
                size += batch.nbytes
                if size > MOST:
                    found = f"more than {MOST:,} bytes when unpacked"
                    raise FileError(path, "", found, f"at most {MOST:,}")
                numbered += enumerate(batch.to_pylist(), len(numbered) + 1)
    except FileError:
        raise
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        found = f"no readable Parquet ({' '.join(str(error).split())})"
        raise FileError(path, "", found, "a whole Parquet file", REMEDY) from error
    return dataclasses.replace(_table(path, numbered, "row", names), unread=unread)


def _plain(kind: Any, types: Any) -> bool:
    """Whether a type of Parquet is one that JSON has too."""
    if types.is_list(kind) or types.is_large_list(kind):
        return _plain(kind.value_type, types)
    if types.is_struct(kind):
        return all(_plain(kind.field(i).type, types) for i in range(kind.num_fields))
    tests = (
        types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean,
        types.is_null,
    )  # fmt: skip
    if types.is_dictionary(kind):
        return _plain(kind.value_type, types)
    return any(test(kind) for test in tests)


def _number(value: float) -> str:
    try:
        return repr(value)
    except ValueError:  # an integer of thousands of digits, which Python does not write out
        return hex(int(value))
