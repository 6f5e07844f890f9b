"""Predictions of finished runs: the run's own scores again, files, lines, other bases refused."""

import csv
import io
import json
import re
import shutil

import commands
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs.glue import minilm
from experiments import classify, glue, predict
from experiments.runs.answers import as_text
from experiments.runs.run import run_all
from lora_jax.errors import FileError, InputError
from tests.experiments.own_rows import CLASSES, config, rows, write

pytestmark = pytest.mark.usefixtures("no_java")


class Made:
    """A finished run with a base of its own, a held-out file beside."""

    def __init__(self, root, tiny_model):
        self.model, self.run = root / "model", root / "run"
        shutil.copytree(tiny_model, self.model)
        self.train = write(root / "rows.csv", rows())
        self.dev = write(root / "dev.csv", rows(30, seed=1))
        values = config(self.model, self.train, **{"data.held_out": (str(self.dev),)})
        self.record = run_all(classify.task, values, self.run)
        self.best = self.record["seeds"]["0"]["best"]


@pytest.fixture(scope="module")
def made(tiny_model, tmp_path_factory):
    return Made(tmp_path_factory.mktemp("predict"), tiny_model)


@pytest.fixture(scope="module")
def predicted(made):
    """The held-out file by the command's function: rows and scores."""
    return predict.predict_rows(made.run, str(made.dev))


@pytest.mark.slow
def test_the_held_out_file_gives_the_scores_of_the_run(made):
    of_file, scores = predict.predict_rows(made.run, str(made.dev))
    assert scores == made.best
    of_run, again = predict.predict_rows(made.run, "")
    assert again == made.best and of_run == of_file
    assert np.mean([row["correct"] for row in of_file]) == made.best["accuracy"]
    matrix = np.zeros((3, 3), int)
    for row in of_file:
        matrix[CLASSES.index(row["label"]), CLASSES.index(row["prediction"])] += 1
    assert matrix.tolist() == made.record["seeds"]["0"]["confusion_matrix"]
    assert [row["label"] for row in of_file] == [row["label"] for row in rows(30, seed=1)]


def test_merged_and_unmerged_agree(made, predicted):
    merged, _ = predicted
    unmerged, scores = predict.predict_rows(made.run, str(made.dev), merged=False)
    assert scores == made.best
    for one, two in zip(merged, unmerged, strict=True):
        assert one["probabilities"] == pytest.approx(two["probabilities"], abs=1e-5)
        assert sum(one["probabilities"].values()) == pytest.approx(1.0)
        assert max(one["probabilities"], key=one["probabilities"].get) == one["prediction"]


def test_a_line_at_a_time_gives_the_same_answers(made, predicted):
    table = [{"text": row["text"]} for row in rows(30, seed=1)[:5]]
    of_file, _ = predicted
    lines = [f"{row['text']}\r\n" for row in table]
    found = list(predict.predict_lines(made.run, [lines[0], " \n", *lines[1:]]))
    for one, two in zip(found, of_file, strict=False):
        assert one["prediction"] == two["prediction"] and one["text"] == two["text"]
        assert one["probabilities"] == pytest.approx(two["probabilities"], abs=1e-5)
    assert len(found) == 5 and "label" not in found[0]


def test_text_files_and_rows_without_labels(made, predicted, tmp_path):
    texts = [row["text"] for row in rows(30, seed=1)]
    (tmp_path / "lines.txt").write_text("\n".join(texts) + "\n")
    of_lines, scores = predict.predict_rows(made.run, str(tmp_path / "lines.txt"))
    assert scores == {}
    of_file, _ = predicted
    assert [row["prediction"] for row in of_lines] == [row["prediction"] for row in of_file]
    assert "label" not in of_lines[0] and "correct" not in of_lines[0]
    (tmp_path / "empty.txt").write_text("a\n\nb\n")
    with pytest.raises(FileError, match="empty.txt, line 2, column 'text': found an empty cell"):
        predict.predict_rows(made.run, str(tmp_path / "empty.txt"))


def test_both_formats_of_output(predicted):
    found, _ = predicted
    assert [json.loads(line) for line in as_text(found, ".jsonl").splitlines()] == found
    table = list(csv.DictReader(io.StringIO(as_text(found, ".csv"))))
    for row, cells in zip(found, table, strict=True):
        assert cells["prediction"] == row["prediction"] and cells["text"] == row["text"]
        for name, share in row["probabilities"].items():
            assert float(cells[f"probability of {name}"]) == share


def test_another_base_is_refused_and_the_same_may_lie_elsewhere(made, predicted, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(made.model, other)
    found, _ = predict.predict_rows(made.run, str(made.dev), model=str(other))
    assert found == predicted[0]
    tensors = load_file(other / "model.safetensors")
    tensors["encoder.layer.0.attention.self.query.weight"] *= 1.01
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="holds a run on other inputs: model"):
        predict.predict_rows(made.run, str(made.dev), model=str(other))
    copy = tmp_path / "run"  # of an earlier version, without digests: the fingerprint is left
    shutil.copytree(made.run, copy)
    (copy / "inputs.json").unlink()
    with pytest.raises(InputError, match="was trained on another base"):
        predict.predict_rows(copy, str(made.dev), model=str(other))


def test_other_held_out_rows_are_refused(made, tmp_path):
    kept = made.dev.read_bytes()
    try:
        write(made.dev, rows(33, seed=1))
        with pytest.raises(InputError, match="other inputs: held_out data"):
            predict.predict_rows(made.run, "")
    finally:
        made.dev.write_bytes(kept)


def test_bad_input_is_named(made, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        predict.predict_rows(tmp_path / "nowhere", "")
    shutil.copytree(made.run, tmp_path / "run")
    (tmp_path / "run/result.json").unlink()
    with pytest.raises(FileNotFoundError, match="the run is not finished"):
        predict.predict_rows(tmp_path / "run", "")
    table = write(tmp_path / "a.csv", [{"text": "x", "label": "bird"}])
    with pytest.raises(FileError, match="line 2, column 'label': found the label 'bird'"):
        predict.predict_rows(made.run, str(table))
    table = write(tmp_path / "b.csv", [{"body": "x"}])
    with pytest.raises(
        FileError, match="body, expected a column 'text'. Name the file's columns as .*: text$"
    ):
        predict.predict_rows(made.run, str(table))


@pytest.mark.slow
def test_regression(tiny_model, tmp_path):
    table = [{"text": row["text"], "price": 900 + 50 * (i % 3)} for i, row in enumerate(rows())]
    train, dev = write(tmp_path / "a.csv", table[:60]), write(tmp_path / "b.csv", table[60:])
    columns = {"data.label": "price", "data.held_out": (str(dev),)}
    values = config(tiny_model, train, labels="numbers", **columns)
    result = run_all(classify.task, values, tmp_path / "run")
    best = result["seeds"]["0"]["best"]
    found, scores = predict.predict_rows(tmp_path / "run", str(dev), merged=False)
    assert scores == best  # to the last bit
    _, merged = predict.predict_rows(tmp_path / "run", str(dev))
    assert merged == pytest.approx(best, rel=1e-3, abs=1e-4)
    errors = [row["error"] for row in found]
    assert np.mean(np.square(errors)) == pytest.approx(best["mse"])
    assert [row["label"] for row in predict.predict_rows(tmp_path / "run", "")[0]] == [
        float(row["price"]) for row in table[60:]
    ]


@pytest.mark.slow
def test_runs_of_glue_are_predicted_too(tiny_model, tiny_glue, tmp_path):
    values = minilm.get_config("rte,lora")
    values.update_from_flattened_dict({
        "model.name": str(tiny_model), "data.source": str(tiny_glue), "data.max_length": 48,
        "batch_size": 8, "epochs": 1,
    })  # fmt: skip
    result = run_all(glue.task, values, tmp_path / "run")
    best = result["seeds"]["0"]["best"]
    of_file, scores = predict.predict_rows(tmp_path / "run", str(tiny_glue / "RTE/dev.tsv"))
    of_run, again = predict.predict_rows(tmp_path / "run", "")
    assert scores == again == best and of_file == of_run
    assert {row["label"] for row in of_file} == {"entailment", "not_entailment"}
    first = of_file[0]
    lines = [f"{first['sentence1']}\t{first['sentence2']}", "only one text"]
    one, two = predict.predict_lines(tmp_path / "run", lines)
    assert one["probabilities"] == pytest.approx(first["probabilities"], abs=1e-5)
    assert "line 2: found 1 texts, expected two with a tab between them" in two["error"]


def command(made, *arguments, lines=""):
    return commands.run("experiments.predict", f"--run={made.run}", *arguments, text=lines)


def test_the_command_writes_a_file(made, tmp_path):
    output = tmp_path / "out.csv"
    done = command(made, f"--input={made.dev}", f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert re.search(rf"accuracy +{100 * made.best['accuracy']:.2f}\n", done.stdout)
    assert len(output.read_text().splitlines()) == 31


@pytest.mark.slow
def test_the_command_answers_lines(made):
    done = command(made, "--input=-", lines="the red cat\n")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["prediction"] in CLASSES
    done = command(made, "--output=x.xls")
    assert done.returncode == 1 and "must end in .jsonl or .csv" in done.stderr
