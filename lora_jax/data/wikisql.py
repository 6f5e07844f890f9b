"""WikiSQL (Zhong et al. 2017): questions on tables, and the queries that answer them (paper, Table 4).

The paper's context is table schema and question, its target the SQL query (appendix C). The official files
are, of every split, NAME.jsonl with the questions and NAME.tables.jsonl with the tables; the databases
beside them (NAME.db) hold the same tables and are not needed. A copy of the questions alone will do if it
writes columns by name.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_jax.data import tables, wikisql_queries
from lora_jax.data.pairs import Row
from lora_jax.data.text_files import find, short
from lora_jax.data.wikisql_queries import AGGREGATIONS, OPERATORS, Condition, Query
from lora_jax.errors import FileError

TYPES = ("text", "real")
Cell = str | int | float | None


@dataclasses.dataclass(frozen=True)
class Table:
    """A table that questions are about.

    Attributes:
      columns: names, each different, see `wikisql_queries.distinct`.
      types: of the columns, each one of `TYPES`; () if they are not known.
      rows: cells; None if they are not known.
    """

    columns: tuple[str, ...]
    types: tuple[str, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] | None = None

    @functools.cached_property
    def schema(self) -> str:
        """The columns as a model reads them: `table ("Player" text, "No." real)`."""
        names = map(wikisql_queries.quoted, self.columns)
        typed = map(" ".join, zip(names, self.types, strict=True)) if self.types else names
        return f"table ({', '.join(typed)})"


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with its table and the query that answers it."""

    text: str
    table: Table
    query: Query

    @property
    def row(self) -> Row:
        """Context and completion."""
        completion = wikisql_queries.text(self.query, self.table.columns)
        return Row(f"{self.table.schema}: {self.text}", completion)


def read(path: Path) -> list[Question]:
    """Reads the questions of a split, and its tables, which lie beside.

    Args:
      path: of NAME.jsonl or NAME.jsonl.gz. NAME.tables.jsonl is read if it is there. If it is not, a
        table's columns are those that its queries name, in alphabetical order.

    Raises:
      FileError: a line is not as described; or there are no tables, and columns are numbers.
    """
    questions = tables.read_table(path)
    for name in ("question", "table_id", "sql"):
        questions.check_columns([name])
    beside = tables_beside(path)
    known = _tables(beside) if beside else _named_tables(questions)
    result = []
    for number, row in enumerate(questions.rows):
        text, table_id = (_text(questions, number, name) for name in ("question", "table_id"))
        if table_id not in known:
            expected = f"a table of {beside}"
            raise questions.error(number, "table_id", short(table_id), expected)
        query = _query(questions, number, row.get("sql"), known[table_id].columns)
        result.append(Question(" ".join(text.split()), known[table_id], query))
    return result


def tables_beside(path: Path) -> Path | None:
    """The file of the tables of a file of questions; None if it is not there."""
    stem = path.name.removesuffix(".gz").removesuffix(".jsonl")
    return next(iter(find([path.parent], [f"{stem}.tables.jsonl"])), None)


def _tables(path: Path) -> dict[str, Table]:
    content = tables.read_table(path)
    for name in ("id", "header", "types", "rows"):
        content.check_columns([name])
    result: dict[str, Table] = {}
    for number, row in enumerate(content.rows):
        name = _text(content, number, "id")
        if name in result:
            raise content.error(number, "id", f"{short(name)} again", "one table of an id")
        header, types, rows = (row.get(key) for key in ("header", "types", "rows"))
        if not isinstance(header, list) or not header or not all(map(_is_text, header)):
            raise content.error(number, "header", short(header), "a list of names of columns")
        if not isinstance(types, list) or len(types) != len(header) or not _all_in(types, TYPES):
            expected = f"{' or '.join(TYPES)} for each of {len(header)} columns"
            raise content.error(number, "types", short(types), expected)
        if not isinstance(rows, list) or not all(_is_row(each, len(header)) for each in rows):
            expected = f"a list of rows with {len(header)} texts or numbers each"
            raise content.error(number, "rows", short(rows), expected)
        cells = tuple(map(tuple, rows))
        result[name] = Table(wikisql_queries.distinct(header), tuple(types), cells)
    return result


def _all_in(values: Sequence[Any], known: Sequence[str]) -> bool:
    """Whether all values, of whatever types, are among the known texts."""
    return all(isinstance(value, str) and value in known for value in values)


def _named_tables(questions: tables.Table) -> Mapping[str, Table]:
    """Of every table the columns that its queries name."""
    found: dict[str, set[str]] = {}
    for number, row in enumerate(questions.rows):
        sql = row.get("sql")
        conditions = sql.get("conds") if isinstance(sql, dict) else None
        if not isinstance(sql, dict) or not isinstance(conditions, list):
            raise questions.error(number, "sql", short(sql), "an object with sel, agg and conds")
        named: list[Any] = [
            sql.get("sel"),
            *(each[0] if isinstance(each, list) and each else None for each in conditions),
        ]
        if any(isinstance(name, int) for name in named):
            stem = questions.path.name.removesuffix(".gz").removesuffix(".jsonl")
            raise FileError(
                questions.path, questions.place(number, "sql"), "columns by their numbers",
                f"the file {stem}.tables.jsonl beside, which has their names",
                "Unpack data.tar.bz2 of the GitHub repository salesforce/WikiSQL and name its folder",
            )  # fmt: skip
        if not all(map(_is_text, named)):
            raise questions.error(number, "sql", short(sql), "names of columns")
        table_id = _text(questions, number, "table_id")
        found.setdefault(table_id, set()).update(named)
    return {table_id: Table(_once(sorted(names))) for table_id, names in found.items()}


def _once(names: Sequence[str]) -> tuple[str, ...]:
    """The names of different columns: two that differ in blanks or large letters only are of one."""
    kept = [
        name
        for number, name in enumerate(names)
        if wikisql_queries.place(name, names[:number]) is None
    ]
    return wikisql_queries.distinct(kept)


def _query(questions: tables.Table, number: int, sql: Any, columns: Sequence[str]) -> Query:
    """The query of a line: {sel, agg, conds} with numbers or names."""

    def chosen(what: str, value: Any, known: Sequence[str]) -> int:
        if isinstance(value, str) and (named := wikisql_queries.place(value, known)) is not None:
            return named
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(known):
            expected = f"one of {short(list(known))} or its number"
            raise questions.error(number, "sql", f"{what} {short(value)}", expected)
        return value

    if not isinstance(sql, dict) or not isinstance(sql.get("conds"), list):
        raise questions.error(number, "sql", short(sql), "an object with sel, agg and conds")
    conditions = []
    for each in sql["conds"]:
        if not isinstance(each, list) or len(each) != 3 or not _is_cell(each[2]) or each[2] is None:
            expected = "[column, operator, value] with a text or a number as value"
            raise questions.error(number, "sql", f"the condition {short(each)}", expected)
        place = chosen("the column", each[0], columns)
        operator = OPERATORS[chosen("the operator", each[1], OPERATORS)]
        conditions.append(Condition(place, operator, str(each[2])))
    aggregation = AGGREGATIONS[chosen("agg", sql.get("agg"), AGGREGATIONS)]
    selected = chosen("sel", sql.get("sel"), columns)
    return Query(selected, aggregation, tuple(conditions))


def _text(content: tables.Table, number: int, column: str) -> str:
    value: Any = content.rows[number].get(column)
    if not _is_text(value) or not value.strip():
        raise content.error(number, column, short(value), "a text that is not blank")
    return str(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _is_cell(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or _is_text(value) or number


def _is_row(row: Any, size: int) -> bool:
    return isinstance(row, list) and len(row) == size and all(map(_is_cell, row))
