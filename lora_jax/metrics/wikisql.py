"""Scores of queries on WikiSQL: logical form and execution, as the official evaluation has them.

The evaluation is evaluate.py of salesforce/WikiSQL, with lib/query.py and lib/dbengine.py. Logical-form
accuracy is what the paper reports (Tables 4, 5, 6 and 15). What a model wrote is parsed into a query first,
and whatever is none on the question's table is wrong. The SQL that runs is made here: columns are numbers,
values are bound.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from decimal import Decimal, InvalidOperation

from lora_jax.data import wikisql_queries
from lora_jax.data.wikisql import Cell, Question, Table
from lora_jax.data.wikisql_queries import Query
from lora_jax.errors import InputError
from lora_jax.metrics.generation import Scores

LOGICAL_FORM, EXECUTION = "logical_form", "execution"
_NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+")  # of dbengine.py: finds no sign before a whole number
_Result = list[Cell]


def score(texts: Sequence[str], questions: Sequence[Sequence[Question]]) -> Scores:
    """Scores one text for each different context.

    Args:
      texts: N, as a model wrote them.
      questions: N lists of the questions with this context; mostly one each. Every question counts once,
        as in the official evaluation.

    Returns:
      Shares of all questions: 'logical_form', and 'execution' if all tables have rows.

    Raises:
      InputError: the numbers differ, or there is no question.
    """
    if len(texts) != len(questions) or not all(questions) or not questions:
        raise InputError(
            f"{len(texts)} texts for {len(questions)} contexts: each context needs one text and at least "
            "one question"
        )
    pairs = [(text, each) for text, alike in zip(texts, questions, strict=True) for each in alike]
    parsed = [wikisql_queries.parse(text, each.table.columns) for text, each in pairs]
    found = [(query, each) for query, (_, each) in zip(parsed, pairs, strict=True)]
    right = sum(query is not None and query.same_form(each.query) for query, each in found)
    values, notes = {LOGICAL_FORM: right / len(found)}, dict[str, str]()
    if unread := parsed.count(None):
        notes[LOGICAL_FORM] = f"{unread:,} of {len(found):,} texts are no query on their table"
    if any(each.table.rows is None for _, each in found):
        why = (
            "the rows of the tables are not known: it needs the tables' file beside the questions'"
        )
        return Scores(values, {EXECUTION: why}, notes)
    results = [same_result(query, each) for query, each in found]
    values[EXECUTION] = results.count(True) / len(found)
    if broken := results.count(None):
        notes[EXECUTION] = (
            f"{broken:,} questions count as wrong, as their own queries cannot be run"
        )
    return Scores(values, {}, notes)


def same_result(query: Query | None, question: Question) -> bool | None:
    """Whether a query gives what the question's own gives: the same cells in the same order.

    Returns:
      None if the question's own query cannot be run.
    """
    with database(question.table) as connection:
        try:
            expected = run(question.query, question.table, connection)
        except _FAILURES:
            return None
        try:
            return query is not None and run(query, question.table, connection) == expected
        except _FAILURES:
            return False


# Values without a number for columns of numbers, sums that are too large, too many conditions.
_FAILURES = (sqlite3.Error, ValueError, OverflowError)


@contextmanager
def database(table: Table) -> Iterator[sqlite3.Connection]:
    """A database in memory that holds a table, its texts in small letters; nothing can be written to it.

    Its columns are col0, col1 and so on, as in the official databases.

    Args:
      table: with types and rows.
    """
    assert table.rows is not None, "there are no rows"
    columns = ", ".join(f"col{number} {kind}" for number, kind in enumerate(table.types))
    places = ", ".join("?" * len(table.types))
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(f"CREATE TABLE data ({columns})")
        connection.executemany(
            f"INSERT INTO data VALUES ({places})", [list(map(_stored, row)) for row in table.rows]
        )
        connection.execute("PRAGMA query_only = ON")
        yield connection


def run(query: Query, table: Table, connection: sqlite3.Connection) -> _Result:
    """The cells that a query selects, as `DBEngine.execute` gives them.

    Where two conditions are on one column, both take the value of the last, as in that code, which binds
    values by column.

    Raises:
      ValueError: a value for a column of numbers has none in it.
      sqlite3.Error, OverflowError: it cannot be run.
    """
    values: Mapping[str, Cell] = {
        f"col{column}": _bound(value, table.types[column]) for column, _, value in query.conditions
    }
    selected = f"col{query.column}"
    if query.aggregation:
        selected = f"{query.aggregation}({selected})"
    conditions = [
        f"col{each.column} {each.operator} :col{each.column}" for each in query.conditions
    ]
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return [cell for (cell,) in connection.execute(f"SELECT {selected} FROM data{where}", values)]


def _stored(cell: Cell) -> Cell:
    if isinstance(cell, int) and abs(cell) >= 2**63:  # SQLite's integers end there
        return float(cell)
    return cell.lower() if isinstance(cell, str) else cell


def _bound(value: str, kind: str) -> Cell:
    """A value as it is compared: in small letters, or the number in it where the column has numbers."""
    value = value.lower()
    if kind != "real":
        return value
    try:
        return float(Decimal(value.replace(",", "")))  # as babel's parse_decimal for English
    except InvalidOperation:
        numbers = _NUMBER.findall(value)
    if not numbers:
        raise ValueError(f"{value[:40]!r} has no number")
    return float(numbers[0])
