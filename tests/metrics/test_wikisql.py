"""WikiSQL's scores: against the rules of the official evaluation written again, and by hand."""

import random
import re
import sqlite3

import pytest

from lora_jax.data import wikisql_queries
from lora_jax.data.wikisql import Question, Table
from lora_jax.data.wikisql_queries import AGGREGATIONS, OPERATORS, Condition, Query
from lora_jax.errors import InputError
from lora_jax.metrics import wikisql

TABLE = Table(
    ("Player", "No.", "Team", "Score"),
    ("text", "real", "text", "real"),
    (
        ("Ann O'Neil", 3, "Butler CC (KS)", 1.5),
        ("Bob", 21, "Duke", 7),
        ("Carl", 42, "Duke", None),
        ("3", 42, "X", -2),
    ),
)
DUKE = Query(0, "", (Condition(2, "=", "Duke"), Condition(1, ">", "20")))


def scores(written, query=DUKE, table=TABLE):
    found = wikisql.score([written], [[Question("q", table, query)]])
    return found.values["logical_form"], found.values.get("execution")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        # as it is, in another order, in other letters, a condition twice
        ("""SELECT "Player" FROM table WHERE "Team" = 'Duke' AND "No." > '20'""", (1, 1)),
        ("""SELECT "Player" FROM table WHERE "No." > '20' AND "Team" = 'Duke'""", (1, 1)),
        ("""select "player" from table where "No." > 20 and "Team" = 'dUKE'""", (1, 1)),
        ("""SELECT "Player" FROM table WHERE "Team" = 'Duke' AND "Team" = 'duke' AND "No." > '20'""", (1, 1)),
        # another text of the number is another form, with the same result
        ("""SELECT "Player" FROM table WHERE "Team" = 'Duke' AND "No." > '20.0'""", (0, 1)),
        ("""SELECT "Player" FROM table WHERE "Team" = 'Duke' AND "No." > '20 points'""", (0, 1)),
        # fewer conditions with the same rows, and with others
        ("""SELECT "Player" FROM table WHERE "Team" = 'Duke'""", (0, 1)),
        ("""SELECT "Player" FROM table WHERE "No." > '20'""", (0, 0)),
        # another aggregation, column, operator
        ("""SELECT COUNT("Player") FROM table WHERE "Team" = 'Duke' AND "No." > '20'""", (0, 0)),
        ("""SELECT "Team" FROM table WHERE "Team" = 'Duke' AND "No." > '20'""", (0, 0)),
        ("""SELECT "Player" FROM table WHERE "Team" = 'Duke' AND "No." < '20'""", (0, 0)),
        # no number for a column of numbers, no such column, no query, an attack
        ("""SELECT "Player" FROM table WHERE "Team" = 'Duke' AND "No." > 'many'""", (0, 0)),
        ("""SELECT "Coach" FROM table WHERE "Team" = 'Duke' AND "No." > '20'""", (0, 0)),
        ("Bob and Carl", (0, 0)),
        ("""SELECT "Player" FROM table WHERE "Team" = 'Duke''; DROP TABLE data; --'""", (0, 0)),
        ("", (0, 0)),
    ],
)  # fmt: skip
def test_by_hand(written, expected):
    assert scores(written) == expected


def test_results_by_hand():
    def result(*query):
        with wikisql.database(TABLE) as connection:
            return wikisql.run(Query(*query), TABLE, connection)

    assert result(0) == ["ann o'neil", "bob", "carl", "3"]  # texts are in small letters
    assert result(3, "SUM") == [6.5] and result(3, "COUNT") == [3] and result(3, "AVG") == [6.5 / 3]
    assert result(1, "MAX", (Condition(2, "=", "X"),)) == [42]
    assert result(1, "MIN", (Condition(0, "=", "3"),)) == [42]  # a text that is a number
    assert result(1, "", (Condition(0, "=", "ANN O'NEIL"),)) == [3]
    assert result(0, "", (Condition(1, ">", "1,000"),)) == []
    assert result(3, "MAX", (Condition(0, "=", "nobody"),)) == [None]
    # Two conditions on one column both take the last value, as in the official code.
    assert result(1, "", (Condition(1, ">", "10"), Condition(1, "<", "30"))) == [] != [21]


def test_two_empty_results_are_the_same():
    nobody = Query(0, "", (Condition(0, "=", "nobody"),))
    assert scores("""SELECT "Team" FROM table WHERE "Player" = 'no one'""", nobody) == (0, 1)


def test_every_question_with_a_context_counts_once():
    other = Query(1, "MAX")
    questions = [
        [Question("q", TABLE, DUKE), Question("q", TABLE, other)],
        [Question("r", TABLE, other)],
    ]
    right = [wikisql_queries.text(query, TABLE.columns) for query in (DUKE, other)]
    assert wikisql.score(right, questions).values == {"logical_form": 2 / 3, "execution": 2 / 3}
    found = wikisql.score(["x", right[1]], questions)
    assert found.values["logical_form"] == 1 / 3
    assert found.notes == {"logical_form": "2 of 3 texts are no query on their table"}


def test_without_rows_there_is_no_execution():
    table = Table(TABLE.columns)
    text = wikisql_queries.text(DUKE, TABLE.columns)
    found = wikisql.score([text], [[Question("q", table, DUKE)]])
    assert found.values == {"logical_form": 1.0}
    assert "the tables' file beside the questions'" in found.missing["execution"]


def test_a_question_whose_own_query_fails_is_wrong_and_told():
    broken = Query(0, "", (Condition(1, "=", "none"),))
    text = wikisql_queries.text(broken, TABLE.columns)
    found = wikisql.score([text], [[Question("q", TABLE, broken)]])
    assert found.values == {"logical_form": 1.0, "execution": 0.0}
    assert "1 questions count as wrong" in found.notes["execution"]


def test_what_a_model_writes_changes_nothing_and_fails_quietly():
    with wikisql.database(TABLE) as connection:
        for statement in (
            "DELETE FROM data",
            "DROP TABLE data",
            "INSERT INTO data VALUES (1, 2, 3, 4)",
        ):
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                connection.execute(statement)
    many = " AND ".join(["\"No.\" > '1'"] * 5000)
    assert scores(f'SELECT "Player" FROM table WHERE {many}')[0] == 0
    huge = Table(("a",), ("real",), ((2**70,), (2**62,), (2**62,), (None,)))
    assert scores('SELECT SUM("a") FROM table', Query(0, "SUM"), huge)[0] == 1
    assert scores('SELECT "a" FROM table WHERE "a" = \'nan\'', Query(0), huge) == (0, 0)
    assert scores('SELECT "a" FROM table WHERE "a" = \'1e99999\'', Query(0), huge) == (0, 0)


def test_unequal_numbers_of_texts_are_refused():
    with pytest.raises(InputError, match="1 texts for 0 contexts"):
        wikisql.score(["x"], [])
    with pytest.raises(InputError, match="at least one question"):
        wikisql.score(["x"], [[]])


# lib/query.py and lib/dbengine.py of salesforce/WikiSQL, written again on their own dictionaries


def official_form(sql):
    return sql["sel"], sql["agg"], {(c, op, str(value).lower()) for c, op, value in sql["conds"]}


def official_result(sql, table):
    connection = sqlite3.connect(":memory:")
    columns = ", ".join(f"col{i} {kind}" for i, kind in enumerate(table.types))
    connection.execute(f"CREATE TABLE t ({columns})")
    for row in table.rows:
        row = [cell.lower() if isinstance(cell, str) else cell for cell in row]
        connection.execute(f"INSERT INTO t VALUES ({', '.join('?' * len(row))})", row)
    bound, where = {}, []
    for column, op, value in sql["conds"]:
        if isinstance(value, str):
            value = value.lower()
            if table.types[column] == "real":
                try:
                    value = float(value.replace(",", ""))
                except ValueError:
                    value = float(re.findall(r"[-+]?\d*\.\d+|\d+", value)[0])
        where.append(f"col{column} {'=><'[op]} :col{column}")
        bound[f"col{column}"] = value
    aggregation = ["", "MAX", "MIN", "COUNT", "SUM", "AVG"][sql["agg"]]
    selected = f"{aggregation}(col{sql['sel']})" if aggregation else f"col{sql['sel']}"
    clause = f"WHERE {' AND '.join(where)}" if where else ""
    return [
        row[0] for row in connection.execute(f"SELECT {selected} AS result FROM t {clause}", bound)
    ]


def test_random_queries_score_as_officially():
    random_ = random.Random(1)
    names, words = (
        ("Name", "Rank", "Place", "Points"),
        ["Ann", "ann", "3", "3.0", "x y", "1,200", "-4", "4th"],
    )
    agreed = {True: 0, False: 0}
    for _ in range(400):
        types = tuple(random_.choice(("text", "real")) for _ in names)
        numbers = (3, 3.0, 4.5, -4, 1200, None)
        cells = {"text": [*words, 3, None], "real": numbers}
        rows = tuple(
            tuple(random_.choice(cells[kind]) for kind in types)
            for _ in range(random_.randrange(6))
        )
        table = Table(names, types, rows)

        def sql(types=types):
            conditions = []
            for column in random_.sample(range(4), random_.choice((0, 1, 1, 2))):
                value = random_.choice(
                    [*words, 3, 4.5] if types[column] == "text" else [*words[2:4], *words[5:], 3]
                )
                conditions.append([column, random_.randrange(3), value])
            return {"sel": random_.randrange(4), "agg": random_.randrange(6), "conds": conditions}

        def query(sql):
            conditions = [Condition(c, OPERATORS[op], str(value)) for c, op, value in sql["conds"]]
            return Query(sql["sel"], AGGREGATIONS[sql["agg"]], tuple(conditions))

        own = sql()
        other = random_.choice((sql(), {**own, "conds": own["conds"][::-1]}, {**own, "agg": 0}))
        expected = official_form(own) == official_form(other)
        results = official_result(own, table) == official_result(other, table)
        written = wikisql_queries.text(query(other), names)
        assert scores(written, query(own), table) == (expected, results), (own, other, table)
        agreed[results] += 1
    assert min(agreed.values()) > 50  # both outcomes were there
