"""What the report takes of run records: only what the run wrote, of one data set and model, and once."""

import copy
import json
import shutil

import pytest

from experiments.report import document
from experiments.report.records import find
from experiments.report.set_ups import set_up_lines
from experiments.report.settings import pooled
from experiments.report.weight_sweeps import find_sweeps
from lora_jax import run_files
from lora_jax.errors import FileError
from tests.experiments.report_records import glue_record, merged, nlg_record, write


def signed(folder, **changes):
    """A record with its digest, as runs leave it."""
    record = merged(json.loads((glue_record(folder) / "result.json").read_text()), changes)
    return write(folder, run_files.signed(folder, record))


def page(folder):
    found = find([folder])
    return document.document(found, document.tables(found.records), "COMMAND", {})


def test_what_a_run_wrote_is_taken_and_an_edited_score_is_not(tmp_path):
    path = signed(tmp_path / "a") / "result.json"
    assert find([tmp_path]).records[0].scores == {"accuracy": (0.9,)}
    record = json.loads(path.read_text())
    record["best"]["accuracy"]["values"] = [0.99]
    path.write_text(json.dumps(record))
    with pytest.raises(FileError, match=r"a/result.json: found content that is not what the run"):
        find([tmp_path])
    del record["digests"]  # of an earlier version: shown as it is
    path.write_text(json.dumps(record))
    assert find([tmp_path]).records[0].scores == {"accuracy": (0.99,)}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"best__accuracy__values": [47.0]},
            r"best.accuracy.values\[0\]: found 47.0, expected a n",
        ),
        ({"best__accuracy__values": ["1e400"]}, r"best.accuracy.values\[0\]: found '1e400'"),
        ({"best__accuracy__values": [True]}, r"best.accuracy.values\[0\]: found True"),
        ({"best__accuracy__values": [10**400]}, r"best.accuracy.values\[0\]: found 1000"),
        (
            {"best__accuracy__values": []},
            r"best.accuracy.values: found 0 values, expected one for each of 1 seeds",
        ),
        ({"best__accuracy": 3}, r"best.accuracy: found 3, expected an object"),
        ({"best": []}, r"best: found \[\], expected an object"),
        ({"task": 3}, r"task: found 3, expected a string"),
        ({"method": {}}, r"method: found {}"),
        ({"seeds": [1]}, r"seeds: found \[1\], expected an object"),
        ({"seeds": {}}, r"seeds: found {}, expected a record for each seed"),
        ({"seeds": {"0": None}}, r"seeds.0: found None"),
        ({"seeds__0__examples": "x"}, r"seeds.0.examples: found 'x'"),
        ({"config__data": []}, r"config.data: found \[\], expected an object"),
        ({"config__method": "x"}, r"config.method: found 'x'"),
        ({"config__epochs": 0}, r"config.epochs: found 0, expected an integer from 1"),
        ({"config__epochs": "x"}, r"config.epochs: found 'x'"),
        ({"config__learning_rate": None}, r"config.learning_rate: found None"),
        ({"config__data__max_length": "x"}, r"config.data.max_length: found 'x'"),
        ({"config__method__targets": "("}, r"config.method: .*no regular expression"),
        ({"device": None}, r"device: found None, expected an object"),
        ({"parameters__trainable": "x"}, r"parameters.trainable: found 'x'"),
        ({"inputs": 3}, r"inputs: found 3"),
    ],
)
def test_what_no_run_writes_is_named(tmp_path, changes, says):
    path = glue_record(tmp_path / "a") / "result.json"
    path.write_text(json.dumps(merged(json.loads(path.read_text()), changes)))
    with pytest.raises(FileError, match=rf"a/result.json, {says}"):
        page(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"a": "\xff"}', "line 1: found bytes that are not UTF-8"),
        (b"[" * 100_000, "found JSON nested too deep"),
        (b'{"a": ' + b"9" * 5000 + b"}", "found a number that is too long"),
    ],
)
def test_files_that_are_no_record_are_named(tmp_path, content, says):
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(FileError, match=f"result.json.*{says}"):
        find([tmp_path])


def test_a_seed_on_other_data_is_a_run_of_its_own(tmp_path):
    inputs = {"model": "m", "train data": "one"}
    for name, seed, of_run in (
        ("a", 0, inputs),
        ("b", 1, inputs),
        ("c", 2, {**inputs, "train data": "two"}),
    ):
        path = (
            glue_record(tmp_path / name, seeds=(seed,), values=(0.5 + seed / 10,)) / "result.json"
        )
        path.write_text(json.dumps({**json.loads(path.read_text()), "inputs": of_run}))
    glue_record(tmp_path / "older", seeds=(3,), values=(0.8,))  # says nothing of its inputs
    records = find([tmp_path]).records
    assert [record.seeds for record in pooled(records)] == [("0", "1", "3"), ("2",)]
    name = tmp_path.name
    says = f"  - `{name}/c` and `{name}/a` differ in train data: not pooled"
    assert says in set_up_lines(records)
    text = page(tmp_path)
    assert "60.00" in text and f"[`{name}/c`]" in text  # the median of three, and the other run
    # Points of one sweep are of one data set, too.
    for rank in (1, 2):
        changes = {"method__rank": rank}
        path = glue_record(tmp_path / f"r{rank}", **changes) / "result.json"
        of_rank = {**inputs, "train data": str(rank)}
        path.write_text(json.dumps({**json.loads(path.read_text()), "inputs": of_rank}))
    shutil.rmtree(tmp_path / "older")
    sweeps = find_sweeps(find([tmp_path]).records)
    assert not [s for s in sweeps if {r.rank for r in s} >= {1, 2}]


def test_a_copied_run_is_shown_once(tmp_path):
    signed(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    nlg_record(tmp_path / "older")
    shutil.copytree(tmp_path / "older", tmp_path / "older_copy")
    found = find([tmp_path])
    name = tmp_path.name
    assert [record.workdir for record in found.records] == [f"{name}/a", f"{name}/older"]
    assert f"- `{name}/b`: a copy of the run `{name}/a`, which is shown" in page(tmp_path)
    assert f"{name}/older_copy" in dict(found.others)


def test_folders_of_others_are_left_out_with_the_reason(tmp_path):
    signed(tmp_path / "a")
    signed(tmp_path / "b", task="rte")
    found = find([tmp_path], {tmp_path / "b": "no point of this sweep"})
    assert len(found.records) == 1
    assert found.others == ((f"{tmp_path.name}/b", "no point of this sweep"),)


def test_evaluations_are_no_unfinished_runs(tmp_path):
    signed(tmp_path / "a")
    config = copy.deepcopy(find([tmp_path]).records[0].config)
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/config.json").write_text(json.dumps({**config, "eval_only": True}))
    assert not find([tmp_path]).unfinished
