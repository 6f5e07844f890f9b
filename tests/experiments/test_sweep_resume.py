"""Sweeps that are killed and go on, that grow, and that are refused; and the command line."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from experiments.sweep import local as sweeps
from experiments.sweep import program as program_module
from experiments.sweep.local import run_sweep
from experiments.sweep.steps import Steps
from tests.experiments.sweep_runs import TIMES, glue_sweep, record, without

ROOT = Path(__file__).parents[2]
GRIDS = {"a": {"method": {"rank": (1, 2)}, "seeds": (0, 1)}, "b": {"seeds": (2,)}}
POINTS = ["rank=1,seed=0", "rank=1,seed=1", "rank=2,seed=0", "rank=2,seed=1", "rank=8,seed=2"]
STEPS = 6  # 20 examples in batches of 8, two epochs

pytestmark = pytest.mark.usefixtures("no_java")


class Killed(BaseException):
    pass


def dying(function, calls):
    """`function`, which is killed when it was called so often."""
    numbers = iter(range(calls))

    def call(*arguments, **named):
        if next(numbers, None) is None:
            raise Killed
        return function(*arguments, **named)

    return call


@pytest.fixture
def steps(monkeypatch):
    """Numbers of the runs of every train step that is taken; `steps.most` kills the next one."""
    return counted(monkeypatch)


def counted(patch):
    class Taken(list):
        most = None

    taken, original = Taken(), Steps.train_step

    def train_step(self, count):
        step = original(self, count)

        def one(*arguments):
            if len(taken) == taken.most:
                raise Killed
            taken.append(count)
            return step(*arguments)

        return one

    patch.setattr(Steps, "train_step", train_step)
    return taken


@pytest.fixture(scope="module")
def config(tiny_model, tiny_glue):
    def make(grids=None, runs=3, **fields):
        small = {"batch_size": 8, "checkpoint_every": 2, "data__max_examples": 20}
        return glue_sweep(tiny_model, tiny_glue, grids or GRIDS, runs=runs, **{**small, **fields})

    return make


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A sweep that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole") / "sweep"
    run_sweep(config(), folder)
    return folder


def stamps(folder, *names):
    """Times of the last change of all files of these points."""
    files = [file for name in names for file in (folder / "points" / name).rglob("*")]
    return {file: file.stat().st_mtime_ns for file in files if file.is_file()}


def assert_same_bytes(one, two, names):
    for name in names:
        first, second = (folder / "points" / name for folder in (one, two))
        (seed,) = first.glob("seed_*")
        for file in (
            "adapter/adapter.safetensors", "adapter/adapter.json", f"{seed.name}/metrics.jsonl",
            f"{seed.name}/adapter/adapter.safetensors", "config.json",
        ):  # fmt: skip
            assert (first / file).read_bytes() == (second / file).read_bytes(), (name, file)
        assert without(record(first), TIMES) == without(record(second), TIMES), name


# One sweep is killed again and again: what is killed, after how many calls, and then how many train
# steps this start has taken and how many points are finished. Two programs of six steps each, whose
# checkpoints are at steps 2, 3, 4 and 6 (epochs end at 3 and 6).
KILLS = {
    "in mid-epoch": ("step", 5, 5, 0),
    "before the records": ("records", 0, 2, 0),
    "between records": ("records", 2, 0, 2),
    "between programs": ("program", 1, 0, 3),
    "in evaluation": ("evaluation", 1, 6, 3),
    "never": ("step", None, 2, 5),
}
if not os.environ.get("LORA_JAX_SLOW"):  # every start compiles what it trains
    KILLS = {
        "in mid-epoch": ("step", 5, 5, 0),
        "between records": ("records", 2, 2, 2),
        "never": ("step", None, 6, 5),
    }


@pytest.fixture(scope="module")
def killed(config, tmp_path_factory):
    """The folder in the end; by place, the steps taken, the points finished, and what was touched."""
    folder, found = tmp_path_factory.mktemp("killed") / "sweep", {}
    for place, (what, calls, _, _) in KILLS.items():
        finished = {path.parent.name for path in folder.glob("points/*/result.json")}
        before = stamps(folder, *finished)
        with pytest.MonkeyPatch.context() as patch:
            taken = counted(patch)
            if what == "step":
                taken.most = calls
            else:
                owner, name = {
                    "evaluation": (Steps, "predict"),
                    "records": (program_module, "_finish"),
                    "program": (sweeps, "train_program"),
                }[what]
                patch.setattr(owner, name, dying(getattr(owner, name), calls))
            with pytest.raises(Killed) if calls is not None else nullcontext():
                run_sweep(config(), folder)
        after = stamps(folder, *finished)
        touched = sorted(str(p.relative_to(folder)) for p in after if after[p] != before.get(p))
        count = len(list(folder.glob("points/*/result.json")))
        found[place] = len(taken), count, touched
    return folder, found


@pytest.mark.parametrize("place", KILLS)
def test_a_start_takes_the_steps_since_the_last_checkpoint_and_no_others(killed, place):
    assert killed[1][place][:2] == KILLS[place][2:]


@pytest.mark.parametrize("place", KILLS)
def test_finished_points_are_left_alone(killed, place):
    assert killed[1][place][2] == []


def test_killed_and_resumed_is_the_sweep_that_nobody_stopped(killed, whole):
    assert_same_bytes(whole, killed[0], POINTS)
    assert (killed[0] / "plan.json").read_bytes() == (whole / "plan.json").read_bytes()


def test_a_finished_sweep_is_left_alone(config, whole, steps):
    before = stamps(whole, *POINTS)
    run_sweep(config(), whole)
    assert stamps(whole, *POINTS) == before and not steps
    assert len(json.loads((whole / "plan.json").read_text())) == 2


@pytest.fixture
def copy(whole, tmp_path):

    return Path(shutil.copytree(whole, tmp_path / "copy"))


def test_further_points_are_trained_alone(config, copy, steps):
    """The number of runs at a time may be another, too."""
    before = stamps(copy, *POINTS)
    run_sweep(config({**GRIDS, "c": {"method": {"rank": (3, 4)}, "seeds": (0,)}}, runs=2), copy)
    assert steps == [2] * STEPS
    new = [f"rank={rank},seed=0" for rank in (3, 4)]
    assert {path.name for path in (copy / "points").iterdir()} == {*POINTS, *new}
    assert stamps(copy, *POINTS) == before
    for name in new:
        (seed,) = record(copy / "points" / name)["seeds"].values()
        assert seed["sweep"] == {"program": "002", "runs": 2, "points": 2}


@pytest.mark.slow
def test_a_second_seed_is_trained_alone(config, tmp_path, steps):
    """The first sweep's points have one order, the grown one's have two."""
    run_sweep(config({"a": {"seeds": (0,)}}, epochs=1), tmp_path)
    before = stamps(tmp_path, "seed=0")
    run_sweep(config({"a": {"seeds": (0, 1)}}, epochs=1), tmp_path)
    assert steps == [1] * STEPS
    assert stamps(tmp_path, "seed=0") == before


def test_another_naming_of_the_same_points_trains_nothing(config, copy, steps):
    """A field is named that has its old value; a point's folder keeps its name."""
    grids = {name: {**grid, "learning_rate": (0.01,)} for name, grid in GRIDS.items()}
    folder = run_sweep(config(grids), copy)
    assert not steps
    assert {path.name for path in (copy / "points").iterdir()} == set(POINTS)
    _, found = sweeps.opened(config(grids), copy)
    assert sorted(point.name for point in found) == POINTS
    assert {status.state for status in folder.statuses(found)} == {"finished"}


@pytest.mark.slow
def test_a_planned_program_some_of_whose_points_are_no_longer_wanted(config, tmp_path, steps):
    """None of them has begun: those that the grids still have are trained."""
    folder, found = sweeps.opened(config(runs=5, epochs=1), tmp_path)
    (program,) = sweeps.planned(config(runs=5, epochs=1), folder, found)
    assert len(program.points) == 5
    fewer = config({"a": {"method": {"rank": (1,)}, "seeds": (0, 1)}}, runs=5, epochs=1)
    run_sweep(fewer, tmp_path)
    for name in ("rank=1,seed=0", "rank=1,seed=1"):
        assert (tmp_path / "points" / name / "result.json").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weight_decay": 0.5}, r"run.weight_decay: 0.01 there, 0.5 now"),
        ({"learning_rate": 0.5}, r"run.learning_rate: 0.01 there, 0.5 now"),
        ({"data__max_examples": 30}, r"run.data.max_examples: 20 there, 30 now"),
        ({"method__targets": ".*/up"}, r"run.method.targets: .* there, '\.\*/up' now"),
    ],
)
def test_another_base_config_in_the_same_folder_is_refused(config, copy, change, says):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    with pytest.raises(ValueError, match=f"holds a sweep with another config.*{says}"):
        run_sweep(config(**change), copy)
    assert before == {path: path.stat().st_mtime_ns for path in copy.rglob("*")}


def command(workdir, tiny_model, tiny_glue, *arguments):
    fields = {
        "model.name": tiny_model, "data.source": tiny_glue, "data.max_length": 48, "batch_size": 8,
        "epochs": 1, "log_every": 1, "data.max_examples": 20,
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "experiments.sweep", "--config=configs/sweep/rank_glue.py:rte",
         f"--workdir={workdir}", *(f"--config.run.{name}={v}" for name, v in fields.items()),
         *arguments],
        cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True,
        text=True, timeout=200,
    )  # fmt: skip


@pytest.mark.slow
def test_command_line(tiny_model, tiny_glue, tmp_path):
    grids = ['--config.grids.ranks.method.rank="(1,2)"', '--config.grids.seeds.seeds="(1,)"']
    grids = [text.replace('"', "") for text in grids]
    done = command(tmp_path / "sweep", tiny_model, tiny_glue, *grids)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == f"runs: {tmp_path}/sweep/points   report: {tmp_path}/sweep/report.md"
    assert lines[-2].startswith("3 of 3 finished, 0 training, 0 diverged, 0 waiting; best 0.")
    for name in ("rank=1,seed=0", "rank=2,seed=0", "rank=8,seed=1"):
        assert (tmp_path / "sweep/points" / name / "result.json").exists()
        assert any(
            line.startswith(f"{name}: finished, step 3/3, training loss 0.") for line in lines
        )
    assert "\x1b" not in done.stdout + done.stderr and "Traceback" not in done.stderr
    report = (tmp_path / "sweep/report.md").read_text()
    assert "## Rank sweeps" in report and "python -m experiments.report sweep/points" in report


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config.grids.ranks.method.rank=()"], "error: config.grids.ranks.method.rank must be"),
        (
            ["--config.grids.ranks.method.rang=(1,)"],
            r"error: --config.grids.ranks.method.rang=\(1,\): no field 'rang'",
        ),
    ],
)
def test_bad_grids_of_the_command_line(tiny_model, tiny_glue, tmp_path, arguments, says):
    done = command(tmp_path / "sweep", tiny_model, tiny_glue, *arguments)
    assert done.returncode == 1 and "Traceback" not in done.stderr

    assert re.search(says, done.stderr), done.stderr
    assert not list((tmp_path / "sweep").glob("points/*"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"grids": {"a": {"method": {"rank": (1, 99)}}}}, "rank 99 is larger than the matrix"),
        ({"mesh__run": 2}, "mesh: run=2 "),
        ({"data__source": "/nowhere"}, "/nowhere"),
    ],
)
def test_bad_input_is_named_and_begins_no_point(config, tmp_path, change, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        values = config(**{name: value for name, value in change.items() if name != "mesh__run"})
        values.run.mesh.run = change.get("mesh__run", -1)
        run_sweep(values, tmp_path)
    assert not list(tmp_path.glob("points/*")) and not (tmp_path / "plan.json").exists()
