"""Writes small files in the format of WikiSQL's official release."""

from __future__ import annotations

import json
import pathlib

PLAYERS = {
    "id": "1-10-1",
    "header": ["Player", "No.", "School/Club  Team", "Score", "score"],
    "types": ["text", "real", "text", "real", "text"],
    "rows": [
        ["Ann O'Neil", 3, "Butler CC (KS)", 1.5, "a"],
        ["Bob \"B\" Lee", 21, "Duke", 7, "b"],
        ["Carl", 42, "Duke", None, "3"],
    ],
    "caption": "Players",
}  # fmt: skip
QUESTIONS = [
    {"phase": 1, "table_id": "1-10-1", "question": "Who plays at Butler?",
     "sql": {"sel": 0, "agg": 0, "conds": [[2, 0, "Butler CC (KS)"]]}},
    {"phase": 1, "table_id": "1-10-1", "question": "How many players of Duke have a number above 20?",
     "sql": {"sel": 0, "agg": 3, "conds": [[2, 0, "Duke"], [1, 1, 20]]}},
    {"phase": 1, "table_id": "1-10-1", "question": "What is the best score?",
     "sql": {"sel": 3, "agg": 1, "conds": []}},
    {"phase": 2, "table_id": "1-10-1", "question": "Which letter has O'Neil?",
     "sql": {"sel": 4, "agg": 0, "conds": [[0, 0, "Ann O'Neil"]]}},
]  # fmt: skip
SCHEMA = (
    'table ("Player" text, "No." real, "School/Club Team" text, "Score" real, "score (2)" text)'
)


def by_name(question: dict, header: list[str]) -> dict:
    """The question as copies have it that write columns, aggregations and operators by name."""
    sql = question["sql"]
    conditions = [[header[column], "=><"[op], value] for column, op, value in sql["conds"]]
    names = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")
    named = {"sel": header[sql["sel"]], "agg": names[sql["agg"]], "conds": conditions}
    return {**question, "sql": named}


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(folder: pathlib.Path, split: str, questions=QUESTIONS, tables=(PLAYERS,)) -> pathlib.Path:
    """Writes the questions of a split and, if there are any, its tables; the path of the questions."""
    folder.mkdir(parents=True, exist_ok=True)
    if tables:
        (folder / f"{split}.tables.jsonl").write_text(lines(list(tables)))
    path = folder / f"{split}.jsonl"
    path.write_text(lines(list(questions)))
    return path
