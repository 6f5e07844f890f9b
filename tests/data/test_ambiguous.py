"""Where two files may be meant, none is taken in silence."""

import gzip

import pytest

from lora_jax.data import data_to_text, glue, glue_tasks
from lora_jax.errors import FileError, InputError

RTE = glue_tasks.task("rte")
HEADER = "index\tsentence1\tsentence2\tlabel\n"
ROW = "0\ta cat\ta dog\tentailment\n"
TEXT = "name : A | Type : pub||A is a pub . \n"
CSV = 'mr,ref\n"name[A], eatType[pub]","A is a pub."\n'


def put(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            gzip.compress(content.encode()) if name.endswith(".gz") else content.encode()
        )


def test_a_task_in_two_places(tmp_path):
    put(tmp_path, {"RTE/train.tsv": HEADER + ROW, "glue/RTE/train.tsv": HEADER + ROW})
    assert len(glue.read(RTE, "train", str(tmp_path))) == 1  # two copies of one file
    put(tmp_path, {"glue/RTE/train.tsv": HEADER + ROW + ROW})
    with pytest.raises(InputError, match=r"RTE/train.tsv and .*/glue/RTE/train.tsv are both there"):
        glue.read(RTE, "train", str(tmp_path))


@pytest.mark.parametrize("column", ["label", "sentence1"])
def test_a_column_that_is_there_twice(tmp_path, column):
    row = ROW.replace("\n", "\tnot_entailment\n")
    put(tmp_path, {"RTE/train.tsv": HEADER.replace("\n", f"\t{column}\n") + row})
    with pytest.raises(FileError, match=f"train.tsv, line 1: found several columns {column}"):
        glue.read(RTE, "train", str(tmp_path))


@pytest.mark.parametrize("score", ["0_1", "\u0663.0", "+3", " 3", "3e0", "inf", "0x1", "3,5"])
def test_numbers_that_are_not_written_as_in_the_files(tmp_path, score):
    task = glue_tasks.task("stsb")
    put(tmp_path, {"STS-B/train.tsv": f"index\tsentence1\tsentence2\tscore\n0\tx\ty\t{score}\n"})
    with pytest.raises(FileError, match="line 2: found score .*, expected a number from 0 to 5"):
        glue.read(task, "train", str(tmp_path))


@pytest.mark.parametrize("other", ["e2e/trainset.csv", "e2e/csv/trainset.csv.gz"])
def test_a_corpus_in_two_forms(tmp_path, other):
    put(tmp_path, {"e2e/train.txt": TEXT, other: CSV})
    assert data_to_text.read("e2e", "train", str(tmp_path)).contexts == ["name : A | Type : pub"]
    put(tmp_path, {other: CSV.replace("name[A]", "name[B]")})
    with pytest.raises(
        InputError, match=r"train.txt and .*trainset.csv.* are both there, with diff"
    ):
        data_to_text.read("e2e", "train", str(tmp_path))


@pytest.mark.parametrize("other", ["train.txt", "nlg/e2e/train.txt", "e2e/train.txt.gz"])
def test_a_corpus_in_two_places(tmp_path, other):
    put(tmp_path, {"e2e/train.txt": TEXT, other: TEXT})
    assert len(data_to_text.read("e2e", "train", str(tmp_path))) == 1
    put(tmp_path, {other: TEXT + TEXT})
    with pytest.raises(InputError, match=f"e2e/train.txt and .*{other} are both there"):
        data_to_text.read("e2e", "train", str(tmp_path))
