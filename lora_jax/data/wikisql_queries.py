"""WikiSQL's queries (Zhong et al. 2017) as a structure, as text that a model writes, and back.

The text is SQL: `SELECT COUNT("School") FROM table WHERE "No." = '3' AND "Position" = 'Guard'`. Names are in
double quotes and values in single ones, each doubled inside, so that no name and no value is mistaken for
anything else. What a model writes is parsed into the structure, never run as it is.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

AGGREGATIONS = (
    "",
    "MAX",
    "MIN",
    "COUNT",
    "SUM",
    "AVG",
)  # in the order of their numbers in the files
OPERATORS = ("=", ">", "<")

_NAME = r'"(?:[^"]|"")*"'
_VALUE = r"'(?:[^']|'')*'|[-+]?\d+(?:\.\d+)?(?![\w.])"
_SELECT = re.compile(
    rf"\s*SELECT\s*(?:({'|'.join(AGGREGATIONS[1:])})\s*\(\s*({_NAME})\s*\)|({_NAME}))\s*FROM\s+table\b",
    re.IGNORECASE,
)
_CONDITION = re.compile(
    rf"\s*(WHERE|AND)\s*({_NAME})\s*([{''.join(OPERATORS)}])\s*({_VALUE})", re.IGNORECASE
)
_END = re.compile(r"\s*;?\s*")


class Condition(NamedTuple):
    """One condition of a query.

    Attributes:
      column: its number in the table, from 0.
      operator: one of `OPERATORS`.
      value: as text, also where the file has a number: the official evaluation compares texts.
    """

    column: int
    operator: str
    value: str


@dataclasses.dataclass(frozen=True)
class Query:
    """A query on one table.

    Attributes:
      column: number of the selected column, from 0.
      aggregation: one of `AGGREGATIONS`.
      conditions: all of which must hold.
    """

    column: int
    aggregation: str = ""
    conditions: tuple[Condition, ...] = ()

    def same_form(self, other: Query) -> bool:
        """Whether both have one logical form (`Query.__eq__` of the official lib/query.py).

        The order of conditions does not count, nor do repeated ones, nor large and small letters of values.
        """
        return self._form() == other._form()

    def _form(self) -> tuple[int, str, frozenset[Condition]]:
        lower = frozenset(each._replace(value=each.value.lower()) for each in self.conditions)
        return self.column, self.aggregation, lower


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Names of columns as a schema shows them: blanks made one, repeated names numbered.

    Names that differ in blanks or in large and small letters only count as repeated, as the official code
    looks columns up without them.
    """
    result: list[str] = []
    taken: set[str] = set()
    for name in (" ".join(name.split()) for name in names):
        shown, number = name, 1
        while _key(shown) in taken:
            number += 1
            shown = f"{name} ({number})"
        taken.add(_key(shown))
        result.append(shown)
    return tuple(result)


def place(name: str, columns: Sequence[str]) -> int | None:
    """The number of the column of a name, from 0; None if there is none. Blanks and large letters are one."""
    keys = list(map(_key, columns))
    return keys.index(_key(name)) if _key(name) in keys else None


def quoted(name: str) -> str:
    """The name of a column as schema and query write it."""
    return '"' + name.replace('"', '""') + '"'


def text(query: Query, columns: Sequence[str]) -> str:
    """The query as a model is to write it.

    Args:
      query: on a table with these columns.
      columns: names, from `distinct`.
    """
    selected = quoted(columns[query.column])
    if query.aggregation:
        selected = f"{query.aggregation}({selected})"
    conditions = [
        f"{quoted(columns[column])} {operator} '{value.replace(chr(39), 2 * chr(39))}'"
        for column, operator, value in query.conditions
    ]
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return f"SELECT {selected} FROM table{where}"


def parse(written: str, columns: Sequence[str]) -> Query | None:
    """The query that a text is, or None if it is none on a table with these columns.

    Numbers may stand without quotes. Names are looked up without blanks and large letters.

    Args:
      written: by a model: anything.
      columns: names, from `distinct`.
    """
    select = _SELECT.match(written)
    if select is None:
        return None
    column = place(_inside(select[2] or select[3]), columns)
    conditions: list[Condition] = []
    at = select.end()
    while (found := _CONDITION.match(written, at)) is not None:
        word, name, operator, value = found.groups()
        of_name = place(_inside(name), columns)
        if of_name is None or word.upper() != ("AND" if conditions else "WHERE"):
            return None
        conditions.append(Condition(of_name, operator, _inside(value)))
        at = found.end()
    if column is None or _END.fullmatch(written, at) is None:
        return None
    return Query(column, (select[1] or "").upper(), tuple(conditions))


def _inside(written: str) -> str:
    """A name or a value without its quotes."""
    quote = written[0]
    if quote not in "'\"":
        return written
    return written[1:-1].replace(2 * quote, quote)


def _key(name: str) -> str:
    return "".join(name.lower().split())
