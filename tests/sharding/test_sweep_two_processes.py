"""A sweep of two processes, one run for each: the points of one process, one writer, and no hang."""

import json
import signal
import time

import pytest

from experiments.sweep.local import run_sweep
from tests.experiments.sweep_runs import TIMES, assert_same, glue_sweep, record, without
from tests.sharding.test_two_processes import Pair

FIELDS = {
    "data.max_length": 48, "data.max_examples": 20, "batch_size": 4, "epochs": 2, "log_every": 1,
    "checkpoint_every": 3, "learning_rate": 0.01,
}  # fmt: skip
GRIDS = {
    "a": {"method": {"rank": (1, 2)}},
    "b": {"seeds": (1,)},
}  # three points: a program is filled
# The grids of the pair: those above, from a file, as the command line cannot add any.
CONFIG = """
from configs.glue import minilm
from configs.sweep.common import sweep_config
def get_config():
    return sweep_config("glue", minilm.get_config("rte,lora"), {grids!r})
"""

# Two processes are shown by test_two_processes.py, sweeps on 8 devices by test_sweep_on_meshes.py.
pytestmark = [pytest.mark.usefixtures("no_java"), pytest.mark.slow]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("sweeps_of_two_processes")


@pytest.fixture(scope="module")
def start(tiny_model, tiny_glue, root):
    """Starts the sweep in two processes, in a folder below `root`."""
    (root / "grids.py").write_text(CONFIG.format(grids=GRIDS))
    fields = {**FIELDS, "model.name": tiny_model, "data.source": tiny_glue}

    def pair(folder, log):
        given = [
            f"--workdir={root / folder}", "--config.runs_per_program=2",
            *(f"--config.run.{name}={value}" for name, value in fields.items()),
        ]  # fmt: skip
        program = ["-m", "experiments.sweep", f"--config={root / 'grids.py'}"]
        return Pair(program, given, root / log)

    return pair


@pytest.fixture(scope="module")
def whole(start, root):
    """The folder of a sweep that nobody stopped, and what its processes printed."""
    statuses, outputs, errors = start("whole", "whole_log").wait()
    assert statuses == [0, 0], errors
    return root / "whole", outputs, errors


def test_points_are_those_of_one_process(whole, tiny_model, tiny_glue, tmp_path):
    fields = {name.replace(".", "__"): value for name, value in FIELDS.items()}
    run_sweep(glue_sweep(tiny_model, tiny_glue, GRIDS, runs=2, **fields), tmp_path / "one")
    names = sorted(path.name for path in (tmp_path / "one/points").iterdir())
    assert names == ["rank=1,seed=0", "rank=2,seed=0", "rank=8,seed=1"]
    plan = json.loads((whole[0] / "plan.json").read_text())
    assert [(len(program["points"]), program["runs"]) for program in plan] == [(2, 2), (1, 2)]
    for name in names:
        two, one = (folder / "points" / name for folder in (whole[0], tmp_path / "one"))
        assert_same(two, one)
        assert record(two)["device"]["processes"] == 2 and record(two)["device"]["count"] == 2


def test_only_the_first_process_writes_and_talks(whole, root):
    folder, outputs, errors = whole
    first, second = ((root / f"whole_log/written_{i}").read_text().splitlines() for i in range(2))
    assert any("result.json" in path for path in first)
    # Each process writes its shards of a checkpoint.
    others = [
        path for path in second if path.startswith(str(folder)) and "/checkpoints" not in path
    ]
    assert others == []
    said = [text for text in outputs[1].splitlines() if not text.startswith("[Gloo]")]
    assert said == [] and errors[1] == ""
    assert outputs[0].splitlines()[-1].endswith(f"report: {folder}/report.md")
    assert "3 of 3 finished" in outputs[0] and (folder / "report.md").exists()
    assert not list(folder.rglob(".*"))
    assert len(list(folder.glob("points/rank=1,seed=0/seed_0/tensorboard/*"))) == 1


@pytest.mark.slow
def test_one_process_killed_and_both_started_again(start, whole, root):
    folder = root / "killed"
    pair = start("killed", "killed_log")
    log = folder / "points/rank=1,seed=0/seed_0/metrics.jsonl"
    while pair.processes[0].poll() is None and not (
        log.exists() and len(log.read_text().splitlines()) > 4
    ):
        time.sleep(0.005)
    pair.processes[0].send_signal(signal.SIGKILL)
    statuses, _, errors = pair.wait()  # the other ends by itself, or this raises TimeoutExpired
    assert statuses[0] == -signal.SIGKILL and statuses[1] not in (0, -signal.SIGKILL), errors
    assert not list(folder.glob("points/*/result.json")), "it ended before it could be killed"
    statuses, _, errors = start("killed", "resumed_log").wait()
    assert statuses == [0, 0], errors
    for point in (whole[0] / "points").iterdir():
        other = folder / "points" / point.name
        assert without(record(point), TIMES) == without(record(other), TIMES)
        (seed,) = (path.name for path in point.glob("seed_*"))
        for name in ("adapter/adapter.safetensors", f"{seed}/metrics.jsonl"):
            assert (point / name).read_bytes() == (other / name).read_bytes(), name
