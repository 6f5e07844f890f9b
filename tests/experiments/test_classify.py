"""Texts of one's own on a tiny model: the same as GLUE's path, records, notes, pictures, errors."""

import csv
import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn import metrics as sklearn_metrics

from configs.glue import minilm as glue_configs
from experiments import classify, glue
from experiments.report.document import document, tables
from experiments.report.records import find
from experiments.runs import class_tables, own_texts
from experiments.runs.run import run_all
from lora_jax.errors import FileError, InputError
from tests.experiments.own_rows import CLASSES, config, rows, write

pytestmark = pytest.mark.usefixtures("no_java")


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory):
    """Two seeds on three classes: folder, record, config."""
    root = tmp_path_factory.mktemp("classify")
    train = write(root / "rows.csv", rows())
    values = config(tiny_model, train, seeds=(3, 5))
    return root / "run", run_all(classify.task, values, root / "run"), values


def glue_rows(folder, name):
    """A task's file of GLUE as a table of one's own; its values as texts."""
    lines = (folder / name).read_text().removesuffix("\n").split("\n")
    header, *cells = (line.split("\t") for line in lines)
    return [dict(zip(header, row, strict=True)) for row in cells]


def both_configs(task, source, columns, model, tmp_path, count):
    """The config of a GLUE task, and that of the same rows as CSV files."""
    folder, ours = source / {"rte": "RTE", "mrpc": "MRPC"}[task], {}
    for name in ("train", "dev"):
        table = glue_rows(folder, f"{name}.tsv")[:count]
        ours[name] = write(tmp_path / f"{name}.csv", table)
    of_glue = glue_configs.get_config(f"{task},lora")
    of_glue.update_from_flattened_dict({
        "model.name": str(model), "data.source": str(source), "data.max_length": 48, "batch_size": 8,
        "epochs": 1, "log_every": 1, "data.max_examples": count, "data.max_eval_examples": count,
    })  # fmt: skip
    own = config(model, ours["train"])
    own.update_from_flattened_dict({
        **{f"data.{name}": column for name, column in columns.items()},
        "data.held_out": (str(ours["dev"]),), "data.max_length": 48, "epochs": 1,
        "learning_rate": of_glue.learning_rate,
    })  # fmt: skip
    return of_glue, own


def assert_same_tokens(of_glue, own):
    first, second = glue.task(of_glue), classify.task(own)
    assert first.train.digest == second.train.digest
    assert first.inputs["validation data"] == second.inputs["held_out data"]
    for one, two in zip(first.evaluation_batches, second.evaluation_batches, strict=True):
        np.testing.assert_array_equal(one.inputs.tokens, two.inputs.tokens)
        np.testing.assert_array_equal(one.inputs.types, two.inputs.types)
        np.testing.assert_array_equal(one.labels, two.labels)


def losses(folder):
    lines = map(json.loads, (folder / "seed_0/metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def test_pairs_are_those_of_glue(tiny_model, tiny_glue, tmp_path):
    columns = {"text": "sentence1", "pair": "sentence2"}
    of_glue, own = both_configs("rte", tiny_glue, columns, tiny_model, tmp_path, 60)
    assert_same_tokens(of_glue, own)
    description = own_texts.problem(own).description
    assert description["labels"] == {"classes": ["entailment", "not_entailment"]}


@pytest.mark.slow
def test_pairs_train_as_those_of_glue(tiny_model, tiny_glue, tmp_path):
    columns = {"text": "sentence1", "pair": "sentence2"}
    of_glue, own = both_configs("rte", tiny_glue, columns, tiny_model, tmp_path, 60)
    assert_same_tokens(of_glue, own)
    first = run_all(glue.task, of_glue, tmp_path / "glue")
    second = run_all(classify.task, own, tmp_path / "own")
    assert losses(tmp_path / "glue") == losses(tmp_path / "own")
    assert len(losses(tmp_path / "own")) == first["steps"] == 8
    assert first["best"]["accuracy"] == second["best"]["accuracy"]
    one, two = (
        load_file(tmp_path / name / "adapter/adapter.safetensors") for name in ("glue", "own")
    )
    for path, value in one.items():
        np.testing.assert_array_equal(value, two[path])
    assert second["labels"] == {"classes": ["entailment", "not_entailment"]}
    assert second["columns"] == {**columns, "label": "label"}


def test_real_pairs_are_those_of_glue(tiny_model, real_data, tmp_path):
    columns = {"text": "#1 String", "pair": "#2 String", "label": "Quality"}
    source = real_data / "glue"
    assert_same_tokens(*both_configs("mrpc", source, columns, tiny_model, tmp_path, 200))


def test_record_and_adapter_have_the_classes_and_the_baseline(finished):
    folder, result, _ = finished
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    assert result["labels"] == {"classes": list(CLASSES)}
    assert result["rows"] == {"train": 63, "held_out": 27}
    assert result["counts"] == {
        "train": dict.fromkeys(CLASSES, 21), "held_out": dict.fromkeys(CLASSES, 9)
    }  # fmt: skip
    always = {"accuracy": 1 / 3, "micro_f1": 1 / 3, "macro_f1": 0.5 / 3, "matthews": 0.0}
    assert result["baseline"] == pytest.approx({"answer": CLASSES[0], **always})
    notes = json.loads((folder / "adapter/adapter.json").read_text())["notes"]
    for name in ("labels", "columns", "baseline", "rows", "counts"):
        assert notes[name] == result[name]
    assert set(result["best"]) == {"accuracy", "macro_f1", "micro_f1", "matthews"}


def test_the_confusion_matrix_is_that_of_the_best_epoch(finished):
    for seed in finished[1]["seeds"].values():
        matrix = np.array(seed["confusion_matrix"])
        assert matrix.sum(axis=1).tolist() == [9, 9, 9]
        labels, predictions = np.repeat(
            [(i, j) for i in range(3) for j in range(3)], matrix.ravel(), axis=0
        ).T
        assert np.trace(matrix) / 27 == seed["best"]["accuracy"]
        assert seed["best"]["macro_f1"] == pytest.approx(
            sklearn_metrics.f1_score(labels, predictions, average="macro"), rel=1e-12
        )
        assert list(seed["by_class"]) == list(CLASSES)
        recalls = [of_class["recall"] for of_class in seed["by_class"].values()]
        assert recalls == pytest.approx(np.diag(matrix) / 9)


def test_what_is_printed_and_drawn(finished, tmp_path):
    folder, result, values = finished
    text = classify.table(json.loads(json.dumps(result)))
    for part in ("median of 2 seeds", "always cat, or dog", "33.33", "Matthews", "precision"):
        assert part in text
    seed = result["seeds"][str(result["adapter"]["seed"])]
    row = next(
        line for line in text.splitlines() if line.startswith("  tree  ") and "." not in line
    )
    assert [int(n) for n in row.split()[1:]] == seed["confusion_matrix"][2]
    assert classify.draw(result, tmp_path).read_bytes().startswith(b"\x89PNG")
    # A finished run is read back, and its picture is the same.
    again = run_all(classify.task, values, folder)
    assert again["seeds"]["3"]["confusion_matrix"] == result["seeds"]["3"]["confusion_matrix"]


def test_the_report_names_the_run_and_goes_on(finished):
    runs = find([finished[0]])
    page = document(runs, tables(runs.records), "command", {})
    assert "`run`: classify is no task of these tables (accuracy" in page


def test_the_folder_is_of_its_rows_and_of_what_the_labels_mean(finished, tmp_path):
    import shutil

    folder, _, values = finished
    copy = tmp_path / "rows.csv"
    shutil.copytree(folder, tmp_path / "run")
    kept = values.data.train
    original = rows()
    path = values.data.train[0]
    try:
        renamed = [{**row, "label": row["label"].replace("tree", "unlike")} for row in original]
        write(copy, renamed).replace(path)  # the same order of classes, another name
        with pytest.raises(InputError, match="holds a run on other inputs: labels "):
            run_all(classify.task, values, tmp_path / "run")
    finally:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label"])
            writer.writeheader()
            writer.writerows(original)
    assert values.data.train == kept
    assert run_all(classify.task, values, tmp_path / "run")["best"]


def test_evaluation_takes_the_classes_of_the_adapter(finished, tmp_path):
    """A file with only one of the classes, in which ids of its own would mean another."""
    folder, result, values = finished
    one = write(tmp_path / "dev.csv", [row for row in rows(9, seed=1) if row["label"] == "tree"])
    values = values.copy_and_resolve_references()
    with values.unlocked():
        values.eval_only, values.adapter = True, str(folder)
    same = classify.evaluation.evaluate(classify.task, values, None)
    seed = result["seeds"][str(result["adapter"]["seed"])]
    assert same == seed["best"]
    values.data.train, values.data.held_out = (), (str(one),)
    found = classify.evaluation.evaluate(classify.task, values, tmp_path / "evaluation")
    logits = np.loadtxt(tmp_path / "evaluation/outputs_held_out.tsv")
    right = np.mean(logits.argmax(-1) == 2)
    shown = class_tables.plain_lines(found)
    assert shown[:2] == ["  scores in %:", f"  {'accuracy':24s} {100 * right:8.2f}"]
    assert logits.shape == (3, 3) and found["accuracy"] == right


def test_regression_on_large_numbers(tiny_model, tmp_path):
    table = [
        {"text": row["text"], "price": 40_000 + 5_000 * (i % 3)} for i, row in enumerate(rows())
    ]
    values = config(
        tiny_model, write(tmp_path / "prices.csv", table), **{"labels": "numbers", "data.label": "price"}
    )  # fmt: skip
    result = run_all(classify.task, values, tmp_path / "run")
    numbers = [row["price"] for row in table]
    assert result["labels"] == pytest.approx({"mean": np.mean(numbers), "std": np.std(numbers)})
    assert result["baseline"]["answer"] == pytest.approx(45_000)
    assert result["baseline"]["mse"] == pytest.approx(np.var(numbers), rel=0.1)
    assert result["headline"] == "pearson" and result["best"]["mse"]["median"] < 2 * np.var(numbers)
    assert "MSE" in classify.table(result) and classify.draw(result, tmp_path) is None


def test_given_classes_keep_their_order_and_notes_tell_what_is_odd(tiny_model, tmp_path):
    table = [row for row in rows() if row["label"] != "tree"][:40]
    table += [{"text": "a rare one", "label": "tree"}, {"text": "A rare  one", "label": "neither"}]
    table += [table[0]]
    train = write(tmp_path / "rows.csv", table)
    values = config(tiny_model, train, **{"data.classes": ("tree", "neither", CLASSES[0], "never")})
    problem = own_texts.problem(values)
    assert problem.description["labels"]["classes"] == ["tree", "neither", CLASSES[0], "never"]
    note = problem.notes["train"]
    assert "1 rows repeat a text with its label" in note
    assert f"such as 'neither' in {train}, line 43, which is 'tree' in {train}, line 42" in note
    assert "the classes are uneven" in note and "'never' has 0" in note
    assert "no rows of 'tree', 'never'" in problem.notes["held_out"]
    values.data.held_out = (str(train),)
    shared = own_texts.problem(values).notes["held_out"]
    assert "43 of 43 rows have a text of the training rows" in shared


def test_limits_are_stratified(tiny_model, tmp_path):
    table = sorted(rows(), key=lambda row: row["label"])
    values = config(
        tiny_model, write(tmp_path / "rows.csv", table),
        **{"data.max_examples": 30, "data.max_eval_examples": 12},
    )  # fmt: skip
    counts = own_texts.problem(values).description["counts"]
    assert counts["train"] == dict.fromkeys(CLASSES, 10)
    assert counts["held_out"] == dict.fromkeys(CLASSES, 4)


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"data.train": ()}, InputError, "config.data.train is empty: name the file"),
        ({"data.text": "review"}, FileError, "columns text, label, expected a column 'review'. "
         "Name the file's own: --config.data.text=COLUMN$"),
        ({"data.label": "stars"}, FileError, "Name the file's own: --config.data.label=COLUMN$"),
        ({"data.pair": "text"}, InputError, "must be different columns"),
        ({"data.train": ("/no/rows.csv",)}, FileNotFoundError, "/no/rows.csv is missing"),
        ({"data.train": ("rows.xls",)}, FileError, "'.xls', expected a name that ends in .jsonl"),
        ({"data.label": "text"}, InputError, "must be different columns"),
        ({"labels": "numbers"}, FileError, "line 2, column 'label': .*'cat, or dog', expected a finite"),
        ({"data.classes": ("neither", "tree")}, FileError, "line 2.*'cat, or dog', expected one of"),
        ({"data.classes": ("a", "b"), "labels": "numbers"}, InputError, "names classes, but"),
        ({"headline": "pearson"}, InputError, "headline is 'pearson', but config.labels is 'classes'"),
        ({"data.held_out_share": 1.0}, InputError, r"held_out_share must be a number in \(0, 1\)"),
        ({"labels": "class"}, InputError, "config.labels must be 'classes' or 'numbers'"),
    ],
)  # fmt: skip
def test_bad_input_is_named_and_claims_no_folder(tiny_model, tmp_path, change, kind, says):
    values = config(tiny_model, write(tmp_path / "rows.csv", rows(30)))
    values.update_from_flattened_dict(change)
    with pytest.raises(kind, match=says):
        run_all(classify.task, values, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_held_out_label_that_is_not_trained_is_named(tiny_model, tmp_path):
    values = config(tiny_model, write(tmp_path / "rows.csv", rows(30)))
    table = [*rows(6), {"text": "x", "label": "bird"}]
    values.data.held_out = (str(write(tmp_path / "dev.csv", table)),)
    says = (
        r"dev.csv, line 8, column 'label': found the label 'bird', expected one of the classes of"
    )
    with pytest.raises(FileError, match=says):
        run_all(classify.task, values, tmp_path / "run")
