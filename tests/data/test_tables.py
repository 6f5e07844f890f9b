"""Tables in all formats: the same rows, and errors that name file, line and column."""

import csv
import gzip
import io
import json

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from lora_jax.data.tables import Table, read_table
from lora_jax.errors import FileError, MissingFileError

ROWS = [
    {"prompt": 'Say "hi", twice', "answer": "hi\nhi", "n": "2"},
    {"prompt": "tab\there, é ", "answer": "\u2028 ,", "n": "-0.5"},
    {"prompt": "", "answer": "'", "n": "x"},
]


def as_separated(rows, delimiter, end="\n", encoding="utf-8"):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode(encoding)


def as_lines(rows, end="\n"):
    return end.join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


def write(folder, name, rows=ROWS):
    """The rows in the format of a name."""
    path = folder / name
    if name.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    content = {
        "jsonl": lambda: as_lines(rows),
        "ndjson": lambda: as_lines(rows, "\r\n\r\n"),
        "json": lambda: json.dumps(rows, indent=1).encode(),
        "csv": lambda: as_separated(rows, ",", "\r\n", "utf-8-sig"),
        "tsv": lambda: as_separated(rows, "\t"),
    }[name.split(".")[1].lower()]()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


NAMES = (
    "a.jsonl", "a.ndjson", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.json.gz", "a.csv.gz",
    "a.tsv.gz", "A.JSONL", "A.CSV",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_rows(tmp_path, name):
    table = read_table(write(tmp_path, name))
    assert table.rows == ROWS and table.columns == ("prompt", "answer", "n") and len(table) == 3
    assert table.text("answer") == [row["answer"] for row in ROWS]


def test_json_lines_under_the_name_of_json(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(as_lines(ROWS))
    assert read_table(path).rows == ROWS


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_values_keep_their_types_and_read_as_text(tmp_path, name):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"n": 3, "x": 0.25, "ok": True, "chat": messages, "note": None}]
    table = read_table(write(tmp_path, name, rows))
    assert table.rows == rows and table.values("chat") == [messages]
    assert [table.text(c) for c in ("n", "x", "ok")] == [["3"], ["0.25"], ["true"]]
    assert table.text("note", missing="") == [""]
    unit = {"a.jsonl": "line", "a.json": "item", "a.parquet": "row"}[name]
    assert table.where(0) == f"{tmp_path / name}, {unit} 1"
    for column, found in (("chat", r"\[\{"), ("note", "no value")):
        with pytest.raises(FileError, match=rf"{unit} 1, column '{column}': found {found}"):
            table.text(column)


def test_places_count_lines_of_the_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"a": "x"}\n\n \n{"a": null, "b": 1}\n')
    table = read_table(path)
    assert [table.place(row) for row in range(2)] == ["line 2", "line 5"]
    assert table.columns == ("a", "b") and table.values("b") == [None, 1]
    csv_file = tmp_path / "a.csv"
    csv_file.write_text('a,b\n"x\ny",1\n\nz,2\n')
    assert [read_table(csv_file).place(row) for row in range(2)] == ["line 2", "line 5"]


def test_a_missing_column_lists_those_that_are_there(tmp_path):
    table = read_table(write(tmp_path, "a.jsonl"))
    with pytest.raises(FileError, match=r"the columns prompt, answer, n, expected a column 'text'"):
        table.text("text")


def test_parquet_columns_of_other_types_are_an_error_only_when_asked_for(tmp_path):
    path = tmp_path / "a.parquet"
    stamps = pyarrow.array(np.array(["2026-01-01"], "datetime64[ns]"))
    columns = {"a": ["x"], "when": stamps, "raw": [b"\xff"]}
    columns["kind"] = pyarrow.array(["k"]).dictionary_encode()
    parquet.write_table(pyarrow.table(columns), path)
    table = read_table(path)
    assert table.rows == [{"a": "x", "kind": "k"}]
    for column, kind in (("when", r"timestamp\[ns\]"), ("raw", "binary")):
        with pytest.raises(FileError, match=rf"the type {kind} in column '{column}'"):
            table.text(column)


BAD = [
    ("a.jsonl", b'{"a": 1}\n{"a": \n', r"line 2: found invalid JSON"),
    ("a.jsonl", b'{"a": 1}\n[1]\n', r"line 2: found \[1\], expected a JSON object"),
    ("a.jsonl", b'{"a": "\xff"}\n', r"line 1: found bytes that are not UTF-8"),
    ("a.jsonl", b"\n \n", "found no rows"),
    ("a.json", b"", "invalid JSON"),
    ("a.json", b"[]", "found no rows"),
    ("a.json", b'"text"', "found 'text', expected a list of JSON objects"),
    ("a.json", b'[{"a": 1}, 2]', "item 2: found 2, expected a JSON object"),
    ("a.csv", b"", r"line 1: found \[\], expected the names of all columns"),
    ("a.csv", b"a,b\n", "found no rows"),
    ("a.csv", b"a,,b\n1,2,3\n", "expected the names of all columns"),
    ("a.csv", b"a,b,a\n1,2,3\n", "expected columns of different names"),
    ("a.csv", b'a,b\n1,2\n"x\ny",2,3\n', "line 3: found 3 cells, expected 2"),
    ("a.csv", b'a,b\n1,"2\n', "broken CSV .*closed"),
    ("a.csv", b"a\n" + b"x" * 200_000, "broken CSV .*field larger.*JSON lines"),
    ("a.tsv", b'a\tb\n"x" y\t2\n', "line 2: found broken TSV"),
    ("a.jsonl.gz", b"plain", "broken gzip"),
    ("a.parquet", b"PAR1 no PAR1", "no readable Parquet"),
    ("a.txt", b"x", "the suffix '.txt', expected a name that ends in .jsonl"),
    ("a.parquet.gz", b"x", "the suffix '.parquet.gz'"),
    ("a", b"x", "the suffix ''"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "says"), BAD)
def test_bad_files_are_refused_by_name(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FileError, match=says) as error:
        read_table(path)
    assert error.value.path == str(path)


def test_missing_files_folders_and_nul_characters(tmp_path):
    with pytest.raises(MissingFileError, match="none.csv is missing"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(FileError, match="a folder or a device"):
        read_table(tmp_path / "folder.csv")
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "x\\u0000"}\n')
    with pytest.raises(FileError, match="line 1, column 'a': found a NUL character"):
        read_table(path).text("a")


def test_parquet_is_bounded_when_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"a": ["x" * 1000] * 1000}), path)
    assert path.stat().st_size < 100_000
    monkeypatch.setattr("lora_jax.data.tables.MOST", 100_000)
    with pytest.raises(FileError, match="more than 100,000 bytes when unpacked"):
        read_table(path)


def test_truncated_parquet_is_refused(tmp_path):
    path = write(tmp_path, "a.parquet")
    whole = path.read_bytes()
    for cut in range(0, len(whole), 37):
        path.write_bytes(whole[:cut])
        with pytest.raises(FileError, match="no readable Parquet"):
            read_table(path)
    for place in range(
        4, len(whole), 41
    ):  # a changed byte: an error with the file's name, or a table
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            assert isinstance(read_table(path), Table)
        except FileError as error:
            assert error.path == str(path)
