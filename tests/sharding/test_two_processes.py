"""Two processes on this machine, as on two hosts: the result of one, one writer, and no hang."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from configs.glue import minilm
from configs.nlg import small
from experiments import glue
from experiments.runs import command_line
from experiments.runs.data_to_text import DataToTextTask
from experiments.runs.run import run_all

ROOT = Path(__file__).parents[2]
WITHOUT_TORCH = ROOT / "tests/without_torch/sitecustomize.py"
LIMIT = 240  # seconds until a process that hangs is ended; they need 10 to 25
GLUE = {
    "data.max_length": 48, "data.max_examples": 28, "batch_size": 4, "epochs": 2, "log_every": 1,
    "checkpoint_every": 4, "learning_rate": 0.01,
}  # fmt: skip
STEPS = 14  # 28 examples in batches of 4, two epochs
NLG = {
    "epochs": 1, "batch_size": 4, "warmup_steps": 2, "learning_rate": 0.02, "log_every": 1,
    "decode.beams": 2, "decode.max_tokens": 6, "decode.batch_size": 3,
}  # fmt: skip
# No Java, whose METEOR takes seconds to load.
WITHOUT_JAVA = """
import runpy
from lora_jax.metrics import java
java._candidates = lambda: iter(())
runpy.run_module("experiments.nlg", run_name="__main__")
"""

# Writes down every file that a process opens for writing or renames.
AUDIT = """
import os, sys
log = open(os.environ["AUDIT_LOG"], "a", buffering=1)
def audit(event, arguments):
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR) or event == "os.rename":
        log.write(f"{arguments[0]}\\n")
sys.addaudithook(audit)
"""

pytestmark = pytest.mark.usefixtures("no_java")


class Pair:
    """Two processes of one run, which differ in the index alone and in `extra` arguments."""

    def __init__(self, program, arguments, log, extra=((), ())):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
            "XLA_FLAGS": " ".join(
                f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f
            ),
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "PYTHONPATH": os.pathsep.join([str(log), str(ROOT)]),
        }
        log.mkdir()
        (log / "sitecustomize.py").write_text(WITHOUT_TORCH.read_text() + AUDIT)
        self.log = log
        self.processes = []
        for index in range(2):
            hosts = f"--hosts=localhost:{port},{index}/2"
            command = [sys.executable, *program, hosts, *arguments, *extra[index]]
            streams = {name: (log / f"{name}_{index}").open("wb") for name in ("stdout", "stderr")}
            process_environment = {**environment, "AUDIT_LOG": str(log / f"written_{index}")}
            self.processes.append(
                subprocess.Popen(command, cwd=ROOT, env=process_environment, **streams)
            )

    def wait(self):
        """Exit statuses, standard outputs and standard errors of both."""
        end = time.monotonic() + LIMIT
        try:
            for process in self.processes:
                process.wait(max(0.1, end - time.monotonic()))
        finally:
            self.kill()
        texts = [
            [(self.log / f"{name}_{index}").read_text() for index in range(2)]
            for name in ("stdout", "stderr")
        ]
        return [process.returncode for process in self.processes], *texts

    def kill(self):
        """Ends what still runs."""
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("two_processes")


def arguments(fields, folder):
    return [*(f"--config.{name}={value}" for name, value in fields.items()), f"--workdir={folder}"]


@pytest.fixture(scope="module")
def glue_pair(tiny_model, tiny_glue, root):
    """Starts the GLUE run of two processes in a folder below `root`."""
    fields = {
        **GLUE, "model.name": tiny_model, "data.source": tiny_glue, "mesh.data": 1, "mesh.fsdp": 2,
    }  # fmt: skip
    program = ["-m", "experiments.glue", "--config=configs/glue/minilm.py:rte,lora"]

    def start(run, log, extra=((), ())):
        return Pair(program, arguments(fields, root / run), root / log, extra)

    return start


@pytest.fixture(scope="module")
def uninterrupted(glue_pair, root):
    """The folder of a whole run, and what its processes printed."""
    statuses, outputs, errors = glue_pair("whole", "whole_log").wait()
    assert statuses == [0, 0], errors
    return root / "whole", outputs, errors


def lines(folder):
    return [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_close(one, two, **tolerance):
    for name in one:
        np.testing.assert_allclose(two[name], one[name], **tolerance, err_msg=name)


def assert_one_writer(folder, log, outputs, errors, steps):
    first, second = ((log / f"written_{i}").read_text().splitlines() for i in range(2))
    assert any("result.json" in path for path in first)
    checkpoints = str(folder / "seed_0/checkpoints")  # where each process writes its shards
    assert [p for p in second if p.startswith(str(folder)) and checkpoints not in p] == []
    # gloo itself greets on standard output.
    said = [text for text in outputs[1].splitlines() if not text.startswith("[Gloo]")]
    assert said == [] and errors[1] == ""
    assert "record:" in outputs[0]
    assert [x["step"] for x in lines(folder / "seed_0") if "loss" in x] == list(range(1, steps + 1))
    assert len(list((folder / "seed_0/tensorboard").iterdir())) == 1
    assert not list(folder.rglob(".*"))  # files that were written beside, and not renamed


def test_glue_with_its_state_split_over_two_processes(
    uninterrupted, tiny_model, tiny_glue, tmp_path
):
    """Sums over rows and over halves of the width are taken in another order: float32 rounding.

    Adam divides by the gradients' own size, so rounding moves small gradients' updates by more than
    a loss: 1e-4 is 1% of the learning rate.
    """
    folder, outputs, errors = uninterrupted
    assert_one_writer(folder, folder.with_name("whole_log"), outputs, errors, STEPS)
    config = minilm.get_config("rte,lora")
    values = {**GLUE, "model.name": str(tiny_model), "data.source": str(tiny_glue)}
    config.update_from_flattened_dict(values)
    one = run_all(glue.task, config, tmp_path / "one")
    two = json.loads((folder / "result.json").read_text())
    assert two["device"]["processes"] == 2 and two["device"]["count"] == 2
    for key in ("steps", "best", "last", "parameters", "adapter"):
        assert two[key] == json.loads(json.dumps(one[key])), key
    for a, b in zip(lines(tmp_path / "one/seed_0"), lines(folder / "seed_0"), strict=True):
        assert a.keys() == b.keys()
        assert_close(a, b, rtol=2e-4, atol=1e-5)
    a, b = (load_file(f / "adapter/adapter.safetensors") for f in (tmp_path / "one", folder))
    assert a.keys() == b.keys()
    assert_close(a, b, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_one_process_killed_and_both_started_again(uninterrupted, glue_pair, root):
    folder = root / "killed"
    pair = glue_pair("killed", "killed_log")
    log = folder / "seed_0/metrics.jsonl"
    while pair.processes[0].poll() is None and not (log.exists() and len(lines_of(log)) > 6):
        time.sleep(0.005)
    pair.processes[0].send_signal(signal.SIGKILL)
    statuses, _, errors = pair.wait()  # the other ends by itself, or this raises TimeoutExpired
    assert statuses[0] == -signal.SIGKILL and statuses[1] not in (0, -signal.SIGKILL), errors
    assert not (folder / "result.json").exists(), "it ended before it could be killed"
    saved = max(int(path.name) for path in (folder / "seed_0/checkpoints").glob("[0-9]*"))
    statuses, _, errors = glue_pair("killed", "resumed_log").wait()
    assert statuses == [0, 0], errors
    # The progress bar's first count is the checkpoint's.
    assert int(re.search(rf"(\d+)/{STEPS} ", errors[0])[1]) == saved >= 4
    whole = uninterrupted[0]
    a, b = (json.loads((f / "result.json").read_text()) for f in (whole, folder))
    for key in ("best", "last", "steps", "padding_efficiency"):
        assert a[key] == b[key]
    for name in ("adapter/adapter.safetensors", "seed_0/metrics.jsonl"):
        assert (whole / name).read_bytes() == (folder / name).read_bytes(), name


def lines_of(path):
    return path.read_text().splitlines()


@pytest.mark.slow
def test_data_to_text_is_trained_and_decoded_by_two_processes(tiny_nlg, root, tmp_path):
    """Each process takes half of the rows; 7 prompts in batches of 3 divide by nothing."""
    fields = {**NLG, "model.name": str(tiny_nlg / "gpt2"), "data.source": str(tiny_nlg)}
    program = ["-c", WITHOUT_JAVA, "--config=configs/nlg/small.py:e2e,lora"]
    folder = root / "nlg"
    given = arguments({**fields, "mesh.data": 2}, folder)
    statuses, outputs, errors = Pair(program, given, root / "nlg_log").wait()
    assert statuses == [0, 0], errors
    assert_one_writer(folder, root / "nlg_log", outputs, errors, 5)
    config = small.get_config("e2e,lora")
    config.update_from_flattened_dict(fields)
    one = run_all(DataToTextTask, config, tmp_path / "one")
    two = json.loads((folder / "result.json").read_text())
    assert two["test"] == one["test"] and two["steps"] == one["steps"]
    for a, b in zip(lines(tmp_path / "one/seed_0"), lines(folder / "seed_0"), strict=True):
        assert_close(a, b, rtol=2e-4, atol=1e-5)
    a, b = (load_file(f / "adapter/adapter.safetensors") for f in (tmp_path / "one", folder))
    assert_close(a, b, rtol=0, atol=2e-4)  # 1% of the learning rate, as above
    for name in ("predictions.txt", "references.txt"):
        a, b = ((f / "seed_0" / name).read_bytes() for f in (tmp_path / "one", folder))
        assert a == b, name
    decoded = lines_of(folder / "seed_0/predictions.jsonl")
    assert sorted(i for x in decoded[1:] for i in json.loads(x)["indices"]) == list(range(7))


@pytest.mark.slow
def test_a_folder_that_only_one_process_sees_ends_both(glue_pair, tmp_path):
    extra = ((), [f"--workdir={tmp_path / 'other'}"])
    statuses, _, errors = glue_pair(tmp_path.name, f"{tmp_path.name}_log", extra).wait()
    assert statuses == [1, 1], errors
    for text in errors:
        assert re.search(r"\Aerror: the folder .* is not the same on all hosts", text), text
        assert "Traceback" not in text


def test_processes_agree_on_values_failures_and_configs(root, tmp_path):
    program = [str(Path(__file__).with_name("agree.py")), str(tmp_path)]
    statuses, _, errors = Pair(program, [], root / "agree_log").wait()
    assert statuses == [0, 0], errors
    first, second = (json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2))
    assert first["value"] == [70000, 0, [0]] and second["value"] == [70000, 0, []]
    assert first["error"] == "OSError: disk full"
    assert second["error"] == "InputError: the first process failed: OSError: disk full"
    missing, other = "FileNotFoundError: no data here", "InputError: another process failed; "
    assert first["together"][:2] == ["went on", missing] and first["together"][2].startswith(other)
    assert second["together"][1].startswith(other) and second["together"][2] == missing
    assert "different configs (see the others)" in first["other config"]
    assert "different configs (rate: 0.1 on the first host, 1.1 here)" in second["other config"]
    for seen in (first, second):
        assert seen["everywhere"] == [True, False, False]
        assert seen["same config"] is None and seen["claimed"] is None
        assert seen["another mesh"] is None  # a run may be resumed on another mesh
        assert "rate: 0.1 there, 0.2 now" in seen["another run"]
        assert seen["after all this"] == "in step"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("localhost", "'localhost' is neither 'auto' nor HOST:PORT,INDEX/COUNT"),
        ("localhost:1,first/2", "is neither 'auto' nor HOST:PORT,INDEX/COUNT"),
        ("localhost:1", "is neither 'auto' nor HOST:PORT,INDEX/COUNT"),
        ("localhost:1,2/2", "the index goes from 0 to the count less one, 1"),
        ("localhost:1,0/0", "the count is from 1 to 65,536, got 0"),
        ("localhost:99999999,0/2", "the port is from 1 to 65,535, got 99999999"),
        ("localhost:0,0/2", "the port is from 1 to 65,535, got 0"),
        ("localhost:1,0/99999999", "the count is from 1 to 65,536, got 99999999"),
        ("localhost:1,\u0660/2", "is neither 'auto' nor HOST:PORT,INDEX/COUNT"),
        (":9876,0/2", "is neither 'auto' nor HOST:PORT,INDEX/COUNT"),
    ],
)
def test_a_wrong_hosts_text_ends_the_program_at_once(text, says):
    with pytest.raises(SystemExit, match=f"error: .*{says}"), command_line.readable_errors():
        command_line.join_hosts(text)
