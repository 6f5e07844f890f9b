"""A sweep's folder holds points of one set of inputs, and is claimed once everything has proved good."""

import json
import shutil

import pytest

from experiments.runs import folder
from experiments.sweep.__main__ import write_report
from experiments.sweep.local import run_sweep
from lora_jax.errors import FileError, InputError, MissingFileError
from tests.experiments.sweep_runs import glue_sweep

SMALL = {
    "epochs": 1, "data__max_examples": 8, "data__max_eval_examples": 4, "batch_size": 8,
    "method": "head_only", "runs": 2,
}  # fmt: skip
RATES = {"a": {"learning_rate": (0.01, 0.02)}}
MORE = {"a": {"learning_rate": (0.03,)}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_model, tiny_glue):
    root = tmp_path_factory.mktemp("swept")
    shutil.copytree(tiny_glue, root / "glue")
    run_sweep(glue_sweep(tiny_model, root / "glue", RATES, **SMALL), root / "sweep")
    return root


@pytest.fixture
def root(whole, tmp_path):
    """The folders as they were, whatever a test does to them: data are named by their path."""
    shutil.copytree(whole, tmp_path / "kept")
    yield whole
    shutil.rmtree(whole)
    shutil.copytree(tmp_path / "kept", whole)


def config(root, tiny_model, grids):
    return glue_sweep(tiny_model, root / "glue", grids, **SMALL)


def names(folder):
    return sorted(path.name for path in (folder / "points").iterdir())


@pytest.mark.slow
def test_further_points_are_of_the_data_of_the_first(root, tiny_model):
    before = names(root / "sweep")
    path = root / "glue/RTE/train.tsv"
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([first, *reversed(others), ""]))
    with pytest.raises(
        InputError, match=r"learning_rate=0.01 holds a run on other inputs: train d"
    ):
        run_sweep(config(root, tiny_model, MORE), root / "sweep")
    assert names(root / "sweep") == before
    shutil.rmtree(root / "glue/RTE")  # points on other data of their own are other runs
    other = {"a": {"task": ("mnli",), "learning_rate": (0.03,)}}
    run_sweep(config(root, tiny_model, other), root / "sweep")
    assert len(names(root / "sweep")) == 3


def test_the_report_has_the_sweeps_points_and_no_others(root, tiny_model, monkeypatch):
    sweep = root / "sweep"
    shutil.copytree(sweep / "points/learning_rate=0.01", sweep / "points/foreign")
    run_sweep(config(root, tiny_model, MORE), sweep)  # the first two are not in the grids any more
    write_report(sweep, "glue")
    text = (sweep / "report.md").read_text()
    assert "from 3 run records" in text
    assert "- `points/foreign`: no point of this sweep" in text
    path = sweep / "points/learning_rate=0.01/result.json"
    record = json.loads(path.read_text())
    record["best"]["accuracy"]["values"] = [0.99]
    path.write_text(json.dumps(record))
    for act in (
        lambda: run_sweep(config(root, tiny_model, MORE), sweep),
        lambda: write_report(sweep, "glue"),
    ):
        with pytest.raises(FileError, match=r"learning_rate=0.01/result.json: found content"):
            act()


def test_results_of_two_points_that_changed_places_are_refused(root, tiny_model):
    one, two = (root / "sweep/points" / f"learning_rate={v}/result.json" for v in (0.01, 0.02))
    kept = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(kept)
    with pytest.raises(
        FileError, match=r"result.json, config: found learning_rate: 0.01 in config"
    ):
        run_sweep(config(root, tiny_model, RATES), root / "sweep")


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"data.source": "/nowhere"}, MissingFileError, "/nowhere"),
        ({"model.name": "/nowhere"}, FileNotFoundError, "/nowhere"),
        ({"eval_only": True}, InputError, "config.run.eval_only is True: a sweep trains"),
        ({"init_adapter": "/nowhere"}, MissingFileError, "/nowhere"),
        (
            {"grids": {"a": {"eval_only": (False, True)}}},
            InputError,
            "config.grids.a.eval_only is True",
        ),
        (
            {"grids": {"a": {"epochs": (0, 1)}}},
            InputError,
            "config.grids.a.epochs is 0: a sweep trains",
        ),
        ({"grids": {"a": {"mesh": {"data": (1, 2)}}}}, InputError, "config.grids.a.mesh.data is 1"),
        ({"grids": {"a": {"init_adapter": ("", "/nowhere")}}}, MissingFileError, "/nowhere"),
        ({"grids": {"a": {"task": ("rte", "mnli")}}}, MissingFileError, "MNLI"),
        ({"grids": {"a": {"prng": ("rbg",)}}}, InputError, "config.grids.a.prng is 'rbg'"),
        # Of the programs that come later:
        (
            {"grids": {"a": {"data": {"row_length": (0, 4)}}}},
            InputError,
            "rows of 4 tokens cannot hold the longest example, which has",
        ),
        (
            {
                "grids": {
                    "a": {"method": ({"name": "head_only"}, {"name": "lora", "targets": "no"})}
                }
            },
            InputError,
            "'no'",
        ),
    ],
)
def test_bad_input_leaves_no_folder(root, tiny_model, change, error, says):
    shutil.rmtree(root / "glue/MNLI", ignore_errors=True)
    values = config(root, tiny_model, change.pop("grids", RATES))
    values.run.update_from_flattened_dict(change)
    with pytest.raises(error, match=says):
        run_sweep(values, root / "new/sweep")
    assert not (root / "new").exists()
    run_sweep(config(root, tiny_model, MORE), root / "new/sweep")  # the corrected command


def test_a_run_is_not_put_into_a_sweep(root, tiny_model):
    for place in ("sweep", "sweep/points/other", "sweep/programs/000/run"):
        with pytest.raises(InputError, match=f"{root}/{place} .*the folder of a sweep"):
            folder.check_place(root / place)
    folder.check_place(root / "sweep/points/learning_rate=0.01")  # of a point, to start it alone
