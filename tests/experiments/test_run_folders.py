"""Folders of commands: damaged ones, and two programs in one of them."""

import json
import shutil

import pytest

from configs.glue import minilm
from experiments import glue
from experiments.runs.run import run_all
from experiments.sweep import local as sweeps
from experiments.sweep.folder import SweepFolder
from experiments.sweep.local import run_sweep
from lora_jax import json_lines, locking
from lora_jax.errors import FileError, FolderInUseError, InputError, MissingFileError
from tests.experiments.sweep_runs import glue_sweep

pytestmark = pytest.mark.usefixtures("no_java")


@pytest.fixture(scope="module")
def config(tiny_model, tiny_glue):
    values = minilm.get_config("rte,lora")
    values.model.name, values.data.source = str(tiny_model), str(tiny_glue)
    values.data.max_length, values.data.max_examples = 48, 16
    values.batch_size, values.epochs, values.log_every, values.seeds = 8, 1, 1, (0, 1)
    return values


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    return folder, run_all(glue.task, config, folder)


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "run")


def again(config, folder):
    return run_all(glue.task, config, folder)


@pytest.mark.slow
def test_a_finished_run_whose_adapter_is_gone_gets_it_from_its_seed(
    finished, config, folder, caplog
):
    before = {p.name: p.read_bytes() for p in (folder / "adapter").iterdir()}
    shutil.rmtree(folder / "adapter")
    assert again(config, folder) == finished[1]
    assert {p.name: p.read_bytes() for p in (folder / "adapter").iterdir()} == before
    seed = finished[1]["adapter"]["seed"]
    assert f"was missing; it is copied from {folder}/seed_{seed}/adapter" in caplog.text
    other = folder / f"seed_{1 - seed}/adapter/adapter.json"
    other.write_text("{}")
    with pytest.raises(FileError, match=f"{other}: found content that is not what the run wrote"):
        again(config, folder)


def test_records_of_earlier_versions(finished, config, folder):
    path = folder / "result.json"
    record = json.loads(path.read_text())
    del record["digests"]
    path.write_text(json.dumps(record))
    shutil.rmtree(folder / "adapter")
    assert again(config, folder) == record
    assert (folder / "adapter/adapter.safetensors").exists()
    del record["best"]["accuracy"]["median"]
    path.write_text(json.dumps(record))
    with pytest.raises(FileError, match=r"result.json, best.accuracy.median: found nothing"):
        again(config, folder)
    shutil.rmtree(folder / "seed_1/adapter")
    with pytest.raises(MissingFileError, match=r"seed_1/adapter/adapter.json is missing"):
        again(config, folder)


def test_a_folder_in_use_is_refused_before_data_are_read(config, folder, tmp_path, monkeypatch):
    (folder / "result.json").unlink()
    with locking.exclusive(folder):
        with pytest.raises(FolderInUseError, match=f"{folder} is in use by process"):
            run_all(lambda _: pytest.fail("it reads data"), config, folder)
        other = config.copy_and_resolve_references()
        other.learning_rate = 0.5
        with pytest.raises(InputError, match="holds a run with another config"):
            again(other, folder)
        other.eval_only, other.adapter = True, str(folder)
        with pytest.raises(InputError, match="holds a run with another config"):
            glue.evaluate(other, folder)
        with pytest.raises(FolderInUseError, match=f"lies in {folder}, which is in use by process"):
            locking.exclusive(folder / "seed_0").__enter__()


@pytest.fixture(scope="module")
def sweep_config(tiny_model, tiny_glue):
    grids = {"a": {"method": {"rank": (1, 2)}, "seeds": (0, 1)}}
    small = {"batch_size": 8, "data__max_examples": 16}
    return glue_sweep(tiny_model, tiny_glue, grids, runs=2, **small)


@pytest.mark.slow
def test_two_programs_share_a_sweep(sweep_config, tmp_path, monkeypatch, capsys):
    folder, members = sweeps.opened(sweep_config, tmp_path / "sweep")
    planned = sweeps.planned(sweep_config, folder, members)
    assert len(planned) == 2
    (tmp_path / "sweep/programs/000").mkdir(parents=True)
    with locking.exclusive(tmp_path / "sweep/programs/000"):
        run_sweep(sweep_config, tmp_path / "sweep")
        assert "program 000 is left to another" in capsys.readouterr().out
        assert folder.finished() == set(planned[1].points)
        with pytest.raises(FolderInUseError, match="programs/000 is in use"):
            run_sweep(sweep_config, tmp_path / "sweep", only={"000"})
    run_sweep(sweep_config, tmp_path / "sweep")
    assert len(folder.finished()) == 4
    assert not list((tmp_path / "sweep").rglob("*.lock"))
    point = tmp_path / "sweep/points" / planned[0].points[0]
    shutil.rmtree(point / "adapter")
    run_sweep(sweep_config, tmp_path / "sweep")
    assert (point / "adapter/adapter.json").exists()


def test_what_another_has_planned_meanwhile_is_not_planned_again(
    sweep_config, tmp_path, monkeypatch
):
    folder, members = sweeps.opened(sweep_config, tmp_path / "sweep")
    original = SweepFolder.planning

    def planning(self):
        monkeypatch.setattr(SweepFolder, "planning", original)
        sweeps.planned(sweep_config, folder, members)  # the other program is quicker
        return original(self)

    monkeypatch.setattr(SweepFolder, "planning", planning)
    assert [program.name for program in sweeps.planned(sweep_config, folder, members)] == [
        "000",
        "001",
    ]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("sweep.json", "{", r"sweep.json, line 1: found invalid JSON"),
        ("sweep.json", "{}", r"sweep.json, run: found none"),
        ("plan.json", "{}", r"plan.json: found {}, expected a list of objects"),
        ("plan.json", '[{"name": "000"}]', r"plan.json, \[0\].points: found nothing"),
        ("programs/000/status.json", "[{}]", r"status.json, \[0\].loss: found nothing"),
        ("programs/000/status.json", "\0", r"status.json, line 1: found a NUL character"),
        ("points/rank=1,seed=0/config.json", "[]", r"seed=0/config.json: found \[\]"),
    ],
)
def test_broken_files_of_a_sweep_are_named(sweep_config, tmp_path, name, content, says):
    folder, members = sweeps.opened(sweep_config, tmp_path)
    sweeps.planned(sweep_config, folder, members)
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    with pytest.raises(FileError, match=says):
        folder, members = sweeps.opened(sweep_config, tmp_path)
        folder.programs()
        folder.statuses(members)


def test_a_point_s_name_that_is_too_long_for_a_folder(tiny_model, tiny_glue):
    grids = {"a": {"method": {"targets": ("a" * 300, "b")}}}
    with pytest.raises(InputError, match=r"name targets=aaa.* is too long for a folder.*labels"):
        sweeps.points(glue_sweep(tiny_model, tiny_glue, grids))


def test_plans_of_a_pod_are_made_again_where_their_file_is_damaged(tmp_path, caplog):
    planner = pytest.importorskip("experiments.plan.planner")
    names = [field.name for field in planner.dataclasses.fields(planner.StepFigures)]
    lines = [json.dumps({"key": key, "plan": dict.fromkeys(names, 1)}) for key in "abc"]
    path = tmp_path / "plans.jsonl"
    path.write_text(
        "\n".join([lines[0], lines[1][:50], '{"key": "d", "plan": {}}', lines[2], '{"k'])
    )
    assert planner._known(path).keys() == {"a", "c"}
    assert "2 damaged lines" in caplog.text and (tmp_path / "plans.jsonl.damaged").exists()
    assert json_lines.read(path).texts == [lines[0], lines[2]]
    caplog.clear()
    assert planner._known(path).keys() == {"a", "c"} and not caplog.text
