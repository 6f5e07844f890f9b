"""WikiSQL: official files, copies without tables, the text of queries and back, broken files."""

import collections
import copy
import gzip
import json
import random

import pytest
import wikisql_files
from wikisql_files import PLAYERS, QUESTIONS, SCHEMA, by_name

from lora_jax.data import data_to_text, wikisql, wikisql_queries
from lora_jax.data.wikisql_queries import AGGREGATIONS, OPERATORS, Condition, Query
from lora_jax.errors import FileError, MissingFileError


def test_official_files(tmp_path):
    wikisql_files.write(tmp_path / "wikisql" / "data", "dev")
    pairs = data_to_text.read("wikisql", "valid", str(tmp_path))
    assert pairs.contexts[0] == f"{SCHEMA}: Who plays at Butler?"
    assert pairs.completions == [
        """SELECT "Player" FROM table WHERE "School/Club Team" = 'Butler CC (KS)'""",
        """SELECT COUNT("Player") FROM table WHERE "School/Club Team" = 'Duke' AND "No." > '20'""",
        'SELECT MAX("Score") FROM table',
        """SELECT "score (2)" FROM table WHERE "Player" = 'Ann O''Neil'""",
    ]
    assert pairs.notes == "dev.jsonl has 4 rows, the official valid set has 8,421"
    questions = data_to_text.questions("valid", str(tmp_path))
    assert questions[1].query == Query(
        0, "COUNT", (Condition(2, "=", "Duke"), Condition(1, ">", "20"))
    )
    assert questions[0].table.rows[2] == ("Carl", 42, "Duke", None, "3")


def test_packed_files_and_names_instead_of_numbers_give_the_same(tmp_path):
    plain = wikisql_files.write(tmp_path / "a", "train")
    named = [by_name(question, PLAYERS["header"]) for question in QUESTIONS[:3]]
    packed = tmp_path / "b"
    wikisql_files.write(packed, "train", named)
    for path in list(packed.iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert wikisql.read(packed / "train.jsonl.gz") == wikisql.read(plain)[:3]


def test_without_tables_the_named_columns_stand_in(tmp_path):
    named = [by_name(question, ["b", "c", "a", "A ", "d"]) for question in QUESTIONS[:3]]
    named[2]["table_id"] = "other"
    wikisql_files.write(tmp_path, "test", named, tables=())
    pairs = data_to_text.read("wikisql", "test", str(tmp_path))
    schema = 'table ("a", "b", "c")'  # in alphabetical order: the answer does not come first
    assert pairs.contexts == [
        f"{schema}: Who plays at Butler?",
        f"{schema}: How many players of Duke have a number above 20?",
        'table ("A"): What is the best score?',
    ]
    assert "the columns that its queries name" in pairs.notes and "execution" in pairs.notes


def test_without_tables_numbers_of_columns_have_no_meaning(tmp_path):
    path = wikisql_files.write(tmp_path, "dev", tables=())
    with pytest.raises(FileError, match=r"dev.jsonl, line 1, column 'sql': found columns by their num"
                       r"bers, expected the file dev.tables.jsonl beside.*salesforce/WikiSQL"):  # fmt: skip
        wikisql.read(path)


def test_a_missing_split_says_where_it_is_and_what_stands_in(tmp_path):
    wikisql_files.write(tmp_path / "wikisql", "dev")
    with pytest.raises(MissingFileError, match=r"No wikisql train file.*salesforce/WikiSQL, data.tar."
                       r"bz2.*config.data.train_split"):  # fmt: skip
        data_to_text.read("wikisql", "train", str(tmp_path))


# queries as text

NAMES = wikisql_queries.distinct(
    ['a "quoted" one', "AND", "x = 'y'", "a  b", "A B", "", "AB (2)", "d) FROM table", "é\n½", "0"]
)


def test_repeated_names_are_told_apart():
    assert NAMES[3:7] == (
        "a b",
        "A B (2)",
        "",
        "AB (2) (2)",
    )  # looked up without blanks, as officially
    assert [wikisql_queries.place(name, NAMES) for name in NAMES] == list(range(len(NAMES)))


def test_random_queries_come_back_from_their_text():
    random_ = random.Random(0)
    pieces = [
        "'",
        "''",
        '"',
        " AND ",
        " WHERE ",
        "=",
        "x",
        "é",
        "1",
        ",",
        ";",
        ")",
        " ",
        "\n",
        "--",
        "\\",
    ]
    for _ in range(500):
        conditions = tuple(
            Condition(
                random_.randrange(len(NAMES)), random_.choice(OPERATORS),
                "".join(random_.choices(pieces, k=random_.randrange(6))),
            )
            for _ in range(random_.randrange(4))
        )  # fmt: skip
        query = Query(random_.randrange(len(NAMES)), random_.choice(AGGREGATIONS), conditions)
        assert wikisql_queries.parse(wikisql_queries.text(query, NAMES), NAMES) == query


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (' select  count ( "no." )from table ;', Query(1, "COUNT")),
        ("""SELECT "No." FROM table WHERE "No."=3 and "player"<'x'""",
         Query(1, "", (Condition(1, "=", "3"), Condition(0, "<", "x")))),
        ("""SELECT "No." FROM table WHERE "No." > -1.50;""", Query(1, "", (Condition(1, ">", "-1.50"),))),
    ],
)  # fmt: skip
def test_what_is_a_query_all_the_same(written, expected):
    assert wikisql_queries.parse(written, ("Player", "No.")) == expected


@pytest.mark.parametrize(
    "written",
    [
        "", "Duke", "SELECT", 'SELECT "No."', 'SELECT "No." FROM tables', "SELECT No. FROM table",
        'SELECT "Team" FROM table', 'SELECT TOTAL("No.") FROM table', 'SELECT COUNT("No." FROM table',
        'SELECT "No." FROM table WHERE', """SELECT "No." FROM table WHERE "Team" = 'x'""",
        """SELECT "No." FROM table AND "No." = '3'""", """SELECT "No." FROM table WHERE "No." = '3""",
        """SELECT "No." FROM table WHERE "No." = '3' WHERE "No." = '3'""",
        """SELECT "No." FROM table WHERE "No." >= '3'""", """SELECT "No." FROM table WHERE "No." = 3x""",
        """SELECT "No." FROM table WHERE "No." = '3' OR 1 = 1""", 'SELECT "No." FROM table; DROP TABLE data',
        'SELECT "No." FROM table UNION SELECT "No." FROM table', "SELECT * FROM table",
        'SELECT "No." FROM table WHERE ' + '"' * 100_000, "SELECT " + '""' * 100_000,
        "SELECT" + " " * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_query(written):
    assert wikisql_queries.parse(written, ("Player", "No.")) is None


# broken files


def broken(change):
    question = copy.deepcopy(QUESTIONS[1])
    change(question)
    return question


@pytest.mark.parametrize(
    ("question", "says"),
    [
        (broken(lambda q: q.pop("question")), "line 2, column 'question': found None, expected a text"),
        (broken(lambda q: q.update(question=" ")), "line 2, column 'question': found ' ', expected a text"),
        (broken(lambda q: q.update(table_id="1-1")), "'table_id': found '1-1', expected a table of .*dev.ta"),
        (broken(lambda q: q.update(sql=[])), r"'sql': found \[\], expected an object with sel, agg and co"),
        (broken(lambda q: q["sql"].pop("conds")), "expected an object with sel, agg and conds"),
        (broken(lambda q: q["sql"].update(sel=5)), "'sql': found sel 5, expected one of .* or its number"),
        (broken(lambda q: q["sql"].update(sel=True)), "'sql': found sel True, expected one of"),
        (broken(lambda q: q["sql"].update(sel="Team")), "'sql': found sel 'Team', expected one of"),
        (broken(lambda q: q["sql"].update(agg=-1)), "'sql': found agg -1, expected one of"),
        (broken(lambda q: q["sql"]["conds"].append([0, 3, "x"])), "found the operator 3, expected one of"),
        (broken(lambda q: q["sql"]["conds"].append([0, 0])), r"the condition \[0, 0\], expected \[column"),
        (broken(lambda q: q["sql"]["conds"].append([0, 0, None])), "with a text or a number as value"),
    ],
)  # fmt: skip
def test_broken_questions_are_named(tmp_path, question, says):
    path = wikisql_files.write(tmp_path, "dev", [QUESTIONS[0], question])
    with pytest.raises(
        FileError, match=f"dev.jsonl, line 2.*{says.removeprefix('line 2')}"
    ) as error:
        wikisql.read(path)
    assert str(error.value).endswith("Repair this place, or name another file")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"id": "1-10-1"}, "'id': found '1-10-1' again, expected one table of an id"),
        ({"header": []}, r"'header': found \[\], expected a list of names"),
        ({"types": ["text"]}, "'types': .*expected text or real for each of 5 columns"),
        ({"types": ["text", "real", "int", "real", "text"]}, "'types': .*expected text or real"),
        ({"types": [[], "real", "text", "real", "text"]}, "'types': .*expected text or real"),
        ({"rows": [["a"]]}, "'rows': .*expected a list of rows with 5 texts or numbers each"),
        ({"rows": [[{}, 1, "a", 1, "b"]]}, "'rows': .*expected a list of rows"),
    ],
)
def test_broken_tables_are_named(tmp_path, change, says):
    tables = [PLAYERS, {**PLAYERS, "id": "2", **change}]
    path = wikisql_files.write(tmp_path, "dev", tables=tables)
    with pytest.raises(FileError, match=f"dev.tables.jsonl, line 2, column {says}"):
        wikisql.read(path)


def test_a_line_that_is_no_json(tmp_path):
    path = wikisql_files.write(tmp_path, "dev")
    path.write_text(path.read_text() + '{"question": \n')
    with pytest.raises(
        FileError, match=r"dev.jsonl, line 5: found invalid JSON .*expected a JSON object"
    ):
        wikisql.read(path)


# the real files


def test_real_questions(real_data):
    questions = data_to_text.questions("valid", str(real_data))
    assert len(questions) == 8467
    for each in questions:
        assert wikisql_queries.parse(each.row.completion, each.table.columns) == each.query
    text = (real_data / "nlg" / "wikisql" / "dev.jsonl").read_text()
    raw = [json.loads(line)["sql"] for line in text.splitlines()]
    found = collections.Counter(each.query.aggregation for each in questions)
    assert found == collections.Counter(sql["agg"] for sql in raw)
    written = [
        (len(each.query.conditions), each.table.columns[each.query.column]) for each in questions
    ]
    assert written == [(len(sql["conds"]), " ".join(sql["sel"].split())) for sql in raw]
