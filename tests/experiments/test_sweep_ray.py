"""Sweeps through Ray, which really runs here, with two workers at a time."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from configs.glue import minilm
from configs.sweep.common import sweep_config
from experiments.runs import classification
from experiments.sweep import local, ray, ray_cluster
from experiments.sweep.ray_cluster import Machines, parse_resources
from lora_jax import locking

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster(no_java):
    """The address of a cluster of two cores, which this process belongs to."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "cpu")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            "local", num_cpus=2, include_dashboard=False, log_to_driver=False,
            object_store_memory=80 * 2**20, logging_level="error",
        )  # fmt: skip
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()


@pytest.fixture
def config(tiny_model, tiny_glue):
    def make(grid, **fields):
        run = minilm.get_config("rte,lora")
        run.model.name, run.data.source = str(tiny_model), str(tiny_glue)
        run.data.max_length, run.batch_size, run.log_every = 48, 8, 1
        for name, value in fields.items():
            run[name] = value
        values = sweep_config("glue", run, {"all": grid})
        values.runs_per_program = 2
        return values

    return make


def worker_of(folder, program):
    return json.loads((folder / f"programs/{program}/worker.json").read_text())


def kill_after_checkpoint(folder, killed):
    """SIGKILL for the process that trains program 000, as soon as it can be resumed."""
    checkpoints = folder / "programs/000/checkpoints"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if checkpoints.is_dir() and any(p.name.isdecimal() for p in checkpoints.iterdir()):
            killed.append(worker_of(folder, "000")["process"])
            os.kill(killed[0], signal.SIGKILL)
            return
        time.sleep(0.005)


@pytest.mark.slow
def test_records_are_those_of_one_process_though_a_worker_was_killed(config, tmp_path, cluster):
    values = config(
        {"method": {"rank": (2, 4)}, "seeds": (0, 1)}, epochs=2, checkpoint_every=4,
        learning_rate=1e-2,
    )  # fmt: skip
    here, there, killed = tmp_path / "here", tmp_path / "there", []
    local.run_sweep(values, here)
    killer = threading.Thread(target=kill_after_checkpoint, args=(there, killed), daemon=True)
    killer.start()
    ray.run_sweep(values, there, Machines("auto"))
    killer.join()
    assert killed and worker_of(there, "000")["process"] != killed[0]
    names = sorted(path.name for path in (here / "points").iterdir())
    assert len(names) == 4
    assert [len(p["points"]) for p in json.loads((there / "plan.json").read_text())] == [2, 2]
    for name in names:
        a, b = (folder / "points" / name for folder in (here, there))
        result, other = (json.loads((run / "result.json").read_text()) for run in (a, b))
        for key in ("best", "last", "steps", "config", "sweep"):
            assert result.get(key) == other.get(key), (name, key)
        seed = f"seed_{result['config']['seeds'][0]}"
        for file in ("adapter/adapter.safetensors", f"{seed}/metrics.jsonl"):
            assert (a / file).read_bytes() == (b / file).read_bytes(), (name, file)


@pytest.mark.slow
def test_the_command_names_a_program_that_fails_and_only_it_is_repeated(
    config, tiny_glue, tmp_path, cluster
):
    other, folder = tmp_path / "other", tmp_path / "sweep"
    shutil.copytree(tiny_glue, other)
    values = config({"data": {"source": (str(other), str(tiny_glue))}}, epochs=1)
    text = f"from ml_collections import ConfigDict\nget_config = lambda: ConfigDict({values.to_dict()})"
    (tmp_path / "config.py").write_text(text)
    command = [
        sys.executable, "-m", "experiments.sweep", "--config=config.py", "--workdir=sweep",
        "--engine=ray", f"--ray_address={cluster}", "--ray_retries=0",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with locking.taken(
        folder / "programs/000"
    ):  # by this process, as a command on the same sweep would
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
    assert done.returncode == 1, done.stderr
    assert "error: 1 of 2 programs failed" in done.stderr
    assert re.search(r"program 000:(.|\n)*FolderInUseError", done.stderr)
    assert 'local.py", line' in (folder / "programs/000/error.txt").read_text()
    (result,) = (folder / "points").glob("*/result.json")
    before = result.stat().st_mtime_ns, worker_of(folder, "001")
    ray.run_sweep(values, folder, Machines("auto"))
    assert len(list((folder / "points").glob("*/result.json"))) == 2
    assert (result.stat().st_mtime_ns, worker_of(folder, "001")) == before
    assert not (folder / "programs/000/error.txt").exists()


def test_a_machine_that_does_not_see_the_folder_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="file system that all machines share"):
        ray._train("000", str(tmp_path), str(tmp_path))


@pytest.mark.slow
def test_finished_points_are_of_their_data(config, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    values = config({"learning_rate": (0.01, 0.02)}, epochs=1)
    values.run.data.max_examples, values.run.data.max_eval_examples = 8, 4
    local.run_sweep(values, tmp_path / "sweep")
    ray.run_sweep(values, tmp_path / "sweep", Machines())  # nothing to do, so no cluster starts
    monkeypatch.setattr(classification, "_digest", lambda examples: "of others")
    with pytest.raises(ValueError, match="holds a run on other inputs: train data"):
        ray.run_sweep(values, tmp_path / "sweep", Machines())


def test_the_number_of_runs_must_be_given(config, tmp_path):
    values = config({"seeds": (0,)})
    values.runs_per_program = 0
    with pytest.raises(ValueError, match="runs_per_program is 0"):
        ray.run_sweep(values, tmp_path, Machines())


def test_no_ray(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match="pip install -r requirements-ray.txt"):
        ray.run_sweep(config({"seeds": (0,)}), tmp_path, Machines())


def test_resources():
    assert parse_resources("") == {}
    assert parse_resources("TPU=4, accelerator=0.5") == {"TPU": 4, "accelerator": 0.5}
    assert Machines(gpus=1, resources={"TPU": 4}).needs == {"CPU": 1, "GPU": 1, "TPU": 4}


@pytest.mark.parametrize("text", ["TPU", "TPU=", "=4", "TPU=four", "TPU=0", "TPU=-1", "TPU=nan"])
def test_other_resources_are_refused(text):
    with pytest.raises(ValueError, match=rf"resources '{text}': .* is not NAME=NUMBER"):
        parse_resources(text)


@pytest.mark.parametrize(
    ("text", "says"), [("GPU=1", "give GPU with --ray_gpus"), ("a=1,a=2", "a is there twice")]
)
def test_resources_with_another_place_are_refused(text, says):
    with pytest.raises(ValueError, match=says):
        parse_resources(text)


def test_a_cluster_that_is_not_there():
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match=r"nothing answers at --ray_address=127.0.0.1:1 "):
        ray_cluster._reach("127.0.0.1", 1)


def test_needs_that_no_machine_meets(capsys):
    machine = {"CPU": 8.0, "GPU": 4.0}
    ray_cluster._check(Machines(gpus=4), [machine])
    assert capsys.readouterr().err == ""
    with pytest.raises(
        ValueError, match=r"no machine has the resources that a program needs \(CPU=1, GPU=8\)"
    ):
        ray_cluster._check(Machines(gpus=8), [machine])
    ray_cluster._check(Machines("auto", gpus=8), [machine])
    assert "Waiting for one to join" in capsys.readouterr().err
    ray_cluster._check(Machines(), [machine])
    assert "programs ask for none: --ray_gpus=1" in capsys.readouterr().err
