"""GLUE examples from the original files: generated ones and the real ones."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from glue_files import assert_equal, write_rows

from lora_jax.data import glue, glue_tasks

# Rows of train and of each evaluation split, from the GLUE paper's files. MNLI's train file may be
# the whole or the subset of 9,999 rows.
ROWS = {
    "cola": (8551, 1043),
    "sst2": (67349, 872),
    "mrpc": (3668, 408),
    "stsb": (5749, 1500),
    "rte": (2490, 277),
    "mnli": ((392702, 9999), 9815, 9832),
}
# Examples of each class in the evaluation splits, as published with the data.
COUNTS = {
    "cola": [(322, 721)],
    "sst2": [(428, 444)],
    "mrpc": [(129, 279)],
    "rte": [(146, 131)],
    "mnli": [(3479, 3123, 3213), (3463, 3129, 3240)],
}


@pytest.mark.parametrize("name", ROWS)
def test_real_row_and_class_counts(name, real_data):
    task = glue_tasks.task(name)
    for place, split in enumerate(("train", *task.evaluations)):
        examples = glue.read(task, split, str(real_data))
        expected = ROWS[name][place]
        assert len(examples) in (expected if isinstance(expected, tuple) else (expected,))
        assert (examples.second is None) == (name in ("cola", "sst2"))
        assert all(examples.first) and all(examples.second or ())
        if place and name in COUNTS:
            assert tuple(np.bincount(examples.labels)) == COUNTS[name][place - 1]
        if task.regression:
            assert examples.labels.dtype == np.float32
            assert examples.labels.min() == 0.0 and examples.labels.max() == 5.0


def test_real_first_rows(real_data):
    def first(name, split="validation"):
        examples = glue.read(glue_tasks.task(name), split, str(real_data / "glue")).take(1)
        return examples.first, examples.second, examples.labels.tolist()

    assert first("sst2") == (["it 's a charming and often affecting journey . "], None, [1])
    assert first("cola") == (["The sailors rode the breeze clear of the rocks."], None, [1])
    (one,), (two,), labels = first("mrpc")
    assert one.startswith("He said the foodservice pie business doesn 't fit the company 's long")
    assert two == '" The foodservice pie business does not fit our long-term growth strategy .'
    assert labels == [1]
    assert first("stsb") == (
        ["A man with a hard hat is dancing."],
        ["A man wearing a hard hat is dancing."],
        [5.0],
    )
    assert first("rte")[1:] == (["Christopher Reeve had an accident."], [1])
    assert first("mnli", "validation_matched") == (
        ["The new rights are nice enough"],
        ["Everyone really likes the newest benefits "],
        [1],
    )
    assert first("mnli", "validation_mismatched")[2] == [2]
    assert first("mnli", "train")[2] == [0]


def test_file_details_carriage_returns_bom_and_no_last_newline(tmp_path):
    path = tmp_path / "RTE" / "dev.tsv"
    path.parent.mkdir()
    text = '\ufeffindex\tsentence1\tsentence2\tlabel\r\n0\t"a\x0bb\rc\td"\tentailment\r\n'
    path.write_bytes((text + "1\te\tf\tnot_entailment").encode())
    for source in (tmp_path, path.parent):  # The folder of folders, and the task's folder.
        examples = glue.read(glue_tasks.task("rte"), "validation", str(source))
        assert examples.first == ['"a\x0bb\rc', "e"]
        assert examples.second == ['d"', "f"]
        assert examples.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        (
            "rte",
            "2\tonly one",
            r"train\.tsv, line 4: found 2 tab-sep.* in '2\\tonly one', expected 4",
        ),
        ("rte", "2\ta\tb\tc\tentailment", r"line 4: found 5 tab-separated columns.*expected 4"),
        ("rte", "2\ta\tb\t", r"line 4: found label '', expected one of entailment, not_entail"),
        ("mnli", "2\tp\ta\tb\t_\t-", r"line 4: found gold_label '-', expected one of entail"),
        ("sst2", "fine\t2", r"line 4: found label '2', expected one of 0, 1"),
        ("cola", "src\t-1\t\tfine", r"line 3: found label '-1', expected one of 0, 1"),
        ("stsb", "\t".join("abcdefghi") + "\t5.5", r"line 4: found score '5.5', expected a number"),
        ("stsb", "\t".join("abcdefghi") + "\tnan", r"line 4: found score 'nan', expected a number"),
        ("qqp", "0\t1\t2\ta\tb\tc\t1", r"line 4: found 7 tab-separated columns"),
    ],
)
def test_bad_row_is_located(name, row, message, tmp_path):
    task = glue_tasks.task(name)
    write_rows(task, tmp_path / task.folder / "train.tsv", 2, 0, row + "\n")
    with pytest.raises(ValueError, match=message) as error:
        glue.read(task, "train", str(tmp_path))
    assert "Download the file again" in str(error.value)


def test_bad_header_encoding_and_empty_file_are_located(tmp_path):
    path = tmp_path / "SST-2" / "train.tsv"
    path.parent.mkdir()
    task = glue_tasks.task("sst2")
    for content, message in (
        (b"index\tsentence\n0\tfine\n", r"line 1: found the header .*with sentence, label"),
        (b"", r"line 1: found the header"),
        (b"sentence\tlabel\n", r"no rows"),
        (b"sentence\tlabel\nfine\t1\ncaf\xe9\t1\n", r"line 3: found bytes that are not UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            glue.read(task, "train", str(tmp_path))


def test_qqp_rows_cut_by_newlines_are_dropped_and_counted(tmp_path, caplog):
    task = glue_tasks.task("qqp")
    path = tmp_path / "QQP" / "train.tsv"
    whole = write_rows(task, path, 5, 0)
    complete = glue.read(task, "train", str(tmp_path))
    path.write_text(whole + "9\t1\t2\tcut\nhere\tsecond\t1\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING, logger="lora_jax.data.glue"):
        assert_equal(glue.read(task, "train", str(tmp_path)), complete)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: dropped 2 rows cut by newlines inside a question; 5 rows are left."
    ]


def test_missing_files_say_what_is_there(tmp_path):
    task = glue_tasks.task("sst2")
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder.*gluebenchmark"):
        glue.read(task, "train", str(tmp_path / "nowhere"))
    write_rows(task, tmp_path / "SST-2" / "train.tsv", 1, 0)
    (tmp_path / "CoLA").mkdir()
    with pytest.raises(FileNotFoundError) as error:
        glue.read(task, "validation", str(tmp_path))
    for part in (str(tmp_path / "SST-2" / "dev.tsv"), "CoLA, SST-2, train.tsv", "source='tfds'"):
        assert part in str(error.value)
    # Another task's folder is never read, although it holds a file of the right name.
    with pytest.raises(FileNotFoundError):
        glue.read(glue_tasks.task("qnli"), "train", str(tmp_path / "SST-2"))


@pytest.mark.parametrize(
    ("wrong", "suggestion"),
    [("SST-2", "sst2"), ("STS-B", "stsb"), ("mnli-mm", "mnli"), ("RTE", "rte"), ("colaa", "cola")],
)
def test_unknown_task_suggests_the_nearest(wrong, suggestion):
    with pytest.raises(ValueError, match=f"Did you mean '{suggestion}'.*cola, sst2, mrpc, stsb"):
        glue_tasks.task(wrong)


def test_splits_without_labels_and_unknown_splits_are_refused(tmp_path):
    for split in ("test", "test_matched"):
        with pytest.raises(ValueError, match="test labels are not public"):
            glue.read(glue_tasks.task("mnli"), split, str(tmp_path))
    with pytest.raises(ValueError, match="'validation'. Use one of: train, validation_matched"):
        glue.read(glue_tasks.task("mnli"), "validation", str(tmp_path))


def test_take_and_subset_keep_texts_with_their_labels():
    texts = [f"t{i}" for i in range(5)]
    examples = glue.Examples(texts, texts[::-1], np.arange(5, dtype=np.int32))
    assert examples.take(0) is examples and len(examples.take(9)) == 5
    chosen = examples.take(4).subset(np.array([3, 0, 3]))
    assert chosen.first == ["t3", "t0", "t3"]
    assert chosen.second == ["t1", "t4", "t1"]
    assert chosen.labels.tolist() == [3, 0, 3] and chosen.labels.dtype == np.int32
    with pytest.raises(ValueError, match="5 first texts, 4 second texts"):
        glue.Examples(texts, texts[1:], np.arange(5))


def _examples(labels):
    labels = np.asarray(labels)
    texts = [f"text {n}" for n in range(len(labels))]
    return glue.Examples(texts, [f"second {n}" for n in range(len(labels))], labels)


def test_balanced_examples_are_the_first_of_each_class():
    labels = np.array([2, 0, 0, 1, 0, 2, 1, 1, 0, 2], np.int32)
    examples = _examples(labels)
    names = ("no", "maybe", "yes")
    taken = examples.balanced(6, names)
    assert taken.labels.tolist() == [2, 0, 0, 1, 2, 1]
    assert taken.first == [f"text {n}" for n in (0, 1, 2, 3, 5, 6)]
    assert taken.second == [f"second {n}" for n in (0, 1, 2, 3, 5, 6)]
    assert np.bincount(examples.balanced(7, names).labels).tolist() == [3, 2, 2]
    assert np.bincount(examples.balanced(0, names).labels).tolist() == [3, 3, 3]
    for limit, classes, message in (
        (11, names, "need 4 of class 'maybe', and there are 3: at most 9"),
        (2, names, "2 balanced examples of 3 classes leave some without any"),
        (8, (*names, "other"), "no example of class 'other', so it cannot be balanced"),
    ):
        with pytest.raises(ValueError, match=message):
            examples.balanced(limit, classes)
    scores = _examples(np.array([0.5, 1.0], np.float32))
    with pytest.raises(ValueError, match=r"labels are scores: leave data\.balanced out"):
        scores.balanced(2, ())


def test_real_balanced_examples(real_data):
    task = glue_tasks.task("mnli")
    mnli = glue.read(task, "train", str(real_data))
    for limit, counts in ((100, [34, 33, 33]), (1_000, [334, 333, 333])):
        assert np.bincount(mnli.balanced(limit, task.labels).labels).tolist() == counts
