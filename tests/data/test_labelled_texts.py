"""A user's rows: all formats alike, labels of every kind, and errors that name file, line and column."""

import csv
import json

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from lora_jax.data import labelled_texts, labels
from lora_jax.data.labelled_texts import Columns
from lora_jax.data.labels import Labels
from lora_jax.errors import FileError, InputError

TEXTS = ['Said "no", twice', "two\nlines", "tab\there", "é, ж and 🙂", "plain", "again"]
KINDS = {
    "names": ["spam", "ham", "Spam", "ham", "ham", "spam"],
    "integers": [10, 9, -1, 9, 10, 9],
    "booleans": [True, False, True, True, False, False],
    "numbers": [0.5, 2.0, -1.25, 1e-3, 4.0, 7.5],
}


def write(path, rows):
    """Rows in the format of a file's name."""
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            delimiter = "," if path.suffix == ".csv" else "\t"
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)  # True and False as Python and pandas write them
    return path


def read(path, columns=None, **kind):
    rows = labelled_texts.read([path], columns or Columns("text"))
    found = (
        labels.found_numbers(rows.encoded(Labels()))
        if kind.get("numbers")
        else labels.found_classes(rows.counts)
    )
    return rows, found, rows.examples(found)


@pytest.mark.parametrize("kind", KINDS)
def test_all_formats_give_the_same_examples(tmp_path, kind):
    rows = [
        {"id": i, "text": t, "label": label}
        for i, (t, label) in enumerate(zip(TEXTS, KINDS[kind], strict=True))
    ]
    results = [
        read(write(tmp_path / f"rows{suffix}", rows), numbers=kind == "numbers")
        for suffix in (".jsonl", ".json", ".csv", ".tsv", ".parquet")
    ]
    first = results[0]
    assert first[2].first == TEXTS and first[2].second is None
    for _, found, examples in results[1:]:
        assert found == first[1] and examples.first == first[2].first
        np.testing.assert_array_equal(examples.labels, first[2].labels)
        assert examples.labels.dtype == first[2].labels.dtype
    expected = {
        "names": ("Spam", "ham", "spam"), "integers": ("-1", "9", "10"), "booleans": ("false", "true"),
        "numbers": (),
    }  # fmt: skip
    assert first[1].classes == expected[kind]
    if kind == "numbers":
        outputs = first[2].labels[:, None]
        np.testing.assert_allclose(first[1].numbers(outputs), KINDS[kind], rtol=1e-6, atol=1e-6)
        assert abs(first[2].labels.mean()) < 1e-6 and abs(first[2].labels.std() - 1) < 1e-6
    else:
        named = [first[1].classes[i] for i in first[2].labels]
        assert named == [str(x).lower() if isinstance(x, bool) else str(x) for x in KINDS[kind]]


def test_labels_survive_their_record():
    from lora_jax.reading import Record

    for kind in (Labels(classes=("b", "a")), Labels(mean=3.5, std=0.25)):
        assert labels.from_json(Record("x", json.loads(json.dumps(kind.to_json())))) == kind


def test_several_files_and_pairs(tmp_path):
    one = write(tmp_path / "a.csv", [{"q": "x", "a": "y", "ok": 1}, {"q": "u", "a": "v", "ok": 0}])
    two = write(tmp_path / "b.jsonl", [{"ok": 0, "a": "w", "q": "z"}])
    rows = labelled_texts.read([one, two], Columns("q", "a", "ok"))
    assert rows.texts == [("x", "y"), ("u", "v"), ("z", "w")] and rows.labels == ["1", "0", "0"]
    assert rows.where(1) == f"{one}, line 3" and rows.where(2) == f"{two}, line 1"
    examples = rows.examples(labels.found_classes(rows.counts))
    assert examples.second == ["y", "v", "w"] and examples.labels.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("rows", "columns", "says"),
    [
        ([{"text": "x", "label": "a"}], Columns("review"), "columns text, label, expected a column 'review'"),
        ([{"text": "x", "y": "a"}], Columns("text"), "columns text, y, expected a column 'label'"),
        ([{"text": "x", "label": "a"}, {"text": "  ", "label": "a"}], Columns("text"),
         "line 3, column 'text': found an empty cell"),
        ([{"text": "x", "label": "a"}, {"text": "y", "label": ""}], Columns("text"),
         "line 3, column 'label': found an empty cell"),
        ([{"text": "x", "b": "", "label": "a"}], Columns("text", "b"), "line 2, column 'b': found an empty"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(tmp_path, rows, columns, says):
    with pytest.raises(FileError, match=says):
        labelled_texts.read([write(tmp_path / "rows.csv", rows)], columns)


def test_an_unknown_label_names_file_line_and_label(tmp_path):
    path = write(tmp_path / "dev.csv", [{"text": "x", "label": "a"}, {"text": "y", "label": "c"}])
    rows = labelled_texts.read([path], Columns("text"))
    says = r"dev.csv, line 3, column 'label': found the label 'c', expected one of .*: 'a', 'b'"
    with pytest.raises(FileError, match=says):
        rows.examples(Labels(classes=("a", "b")))
    with pytest.raises(FileError, match=r"line 2, column 'label': .*'a', expected a finite number"):
        rows.examples(Labels())


def test_files_without_labels_may_be_read_where_none_are_needed(tmp_path):
    path = write(tmp_path / "a.csv", [{"text": "x"}, {"text": "y"}])
    assert labelled_texts.read([path], Columns("text"), labelled=False).labels == []
    path = write(tmp_path / "b.csv", [{"text": "x", "label": ""}, {"text": "y", "label": ""}])
    assert labelled_texts.read([path], Columns("text"), labelled=False).labels == []
    path = write(tmp_path / "c.csv", [{"text": "x", "label": "a"}, {"text": "y", "label": ""}])
    with pytest.raises(FileError, match="line 3, column 'label': found an empty cell"):
        labelled_texts.read([path], Columns("text"), labelled=False)


def test_repeated_texts(tmp_path):
    rows = [
        ("Good film", "p"),
        ("good  film ", "p"),
        ("bad", "n"),
        ("GOOD FILM", "n"),
        ("bad", "n"),
    ]
    path = write(tmp_path / "a.csv", [{"text": t, "label": label} for t, label in rows])
    assert labelled_texts.read([path], Columns("text")).repeated() == (2, [(0, 3)])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: labels.found_classes({"a": 9}), "are one class, 'a'"),
        (
            lambda: labels.found_classes({str(i): 1 for i in range(1001)}),
            "are 1,001 classes.*numbers",
        ),
        (lambda: labels.given_classes(("a", " a ")), "same name"),
        (lambda: labels.found_numbers([2.0, 2.0]), "nothing to learn"),
    ],
)
def test_labels_of_which_nothing_is_learned(make, says):
    with pytest.raises(InputError, match=says):
        make()


@pytest.mark.parametrize("label", ["nan", "inf", "1_000", "", "one"])
def test_what_is_no_number(label):
    assert labels.number(label) is None
    assert labels.number("-1.5e3") == -1500.0
