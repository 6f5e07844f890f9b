"""benchmarks.accelerator: its record survives whatever becomes of it and of its parts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.accelerator_parts import record as records
from benchmarks.accelerator_parts.catalogue import PARTS, Part
from benchmarks.accelerator_parts.table import table

ROOT = Path(__file__).parents[2]
ODD_PARTS = """
import os, time

def refuse(setting, what):
    setting.report(before=1)
    raise RuntimeError(f"RESOURCE_EXHAUSTED: {what}")

def abort(setting):
    setting.report(before=2)
    os.abort()

def hang(setting):
    setting.report(before=3)
    time.sleep(600)
"""


def by_name(name):
    return next(part for part in PARTS if part.name == name)


@pytest.fixture
def odd_parts(tmp_path, monkeypatch):
    """A module of parts that do not end well, where the processes of parts find it."""
    (tmp_path / "odd_parts.py").write_text(ODD_PARTS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")


def test_what_goes_wrong_leaves_the_rest(odd_parts, tmp_path, monkeypatch, capsys):
    """An error, a crash, a part that hangs, one too long for the time: each is said, and the next runs."""
    monkeypatch.setattr(records, "_LEAST", 60)
    output = tmp_path / "made" / "record.json"
    record = records.Record(output, "small", 10, 0.1)
    record.run(
        [
            Part("memory", "odd_parts:refuse", 1, "8 GiB"),
            Part("crash", "odd_parts:abort", 1),
            Part("absent", "odd_parts:nothing", 1),
            Part("long", "odd_parts:hang", 1000),
            by_name("gpt2-medium-lora"),
        ]
    )
    monkeypatch.setattr(records, "_LEAST", 1)
    record.run([Part("hangs", "odd_parts:hang", 2)])
    content = json.loads(output.read_text())
    parts = content["parts"]
    statuses = {name: part["status"] for name, part in parts.items()}
    assert statuses == {
        "memory": "failed", "crash": "failed", "absent": "failed", "long": "skipped",
        "gpt2-medium-lora": "done", "hangs": "stopped",
    }  # fmt: skip
    assert parts["memory"]["error"] == "RuntimeError: RESOURCE_EXHAUSTED: 8 GiB"
    assert "odd_parts.py" in parts["memory"]["where"]
    assert (parts["memory"]["before"], parts["crash"]["before"]) == (1, 2)
    assert f"ended with {-signal.SIGABRT}" in parts["crash"]["error"]
    assert "nothing" in parts["absent"]["error"]
    assert "takes about 1000 s" in parts["long"]["why"]
    assert parts["hangs"]["why"] == "it was given 6 s"
    assert 6 <= parts["hangs"]["seconds"] < 60
    assert content["device"]["platform"] == "cpu"
    assert {"jax", "jaxlib", "flax"} <= content["device"]["versions"].keys()
    assert content["ended"] == "all parts were reached, no time was left for 1"
    step = parts["gpt2-medium-lora"]
    assert step["finite"] and step["fits"] and step["mfu"] is None
    assert step["predicted"]["peak"] == sum(
        step["predicted"][k] for k in ("arguments", "temporaries")
    )
    assert step["tokens_per_second"] == pytest.approx(2 * 16 / step["step_seconds"])
    shown = table(content)
    assert "| memory | failed |" in shown
    assert "- memory: failed: RuntimeError: RESOURCE_EXHAUSTED: 8 GiB" in shown
    assert f"{step['tokens_per_second']:,.0f}" in shown
    assert "crash ...\n  failed" in capsys.readouterr().out


def command(*arguments, **options):
    line = [sys.executable, "-m", "benchmarks.accelerator", *arguments]
    return subprocess.Popen(
        line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def when(output, name, key, process):
    """The record as soon as a part has found something."""
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        content = json.loads(output.read_text()) if output.exists() else {"parts": {}}
        if key in content["parts"].get(name, {}):
            return content
        time.sleep(0.05)
    raise AssertionError(f"nothing was found: {process.communicate()[0]}")


def is_running(number):
    """Whether a process lives (and is no zombie)."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.slow
def test_a_script_that_is_ended_leaves_what_it_had(number, tmp_path):
    """At a moment when a part has found something and is not done."""
    output = tmp_path / "record.json"
    arguments = ("--size=small", "--only=eight-runs,meshes", f"--output={output}", "--programs=")
    with command(*arguments, env=os.environ | {"TMPDIR": str(tmp_path)}) as process:
        before = when(output, "eight-runs", "method", process)
        part = before["parts"]["eight-runs"]["process"]
        assert is_running(part)
        process.send_signal(number)
        shown = process.communicate()[0]
    content = json.loads(output.read_text())
    runs = content["parts"]["eight-runs"]
    assert content["parts"]["device"]["status"] == "done"
    assert content["parts"]["device"]["matrix_flops_per_second"] > 0
    assert runs["runs"] == 8
    assert content["parts"]["meshes"] == {"status": "not reached"}
    if number == signal.SIGKILL:
        os.kill(part, signal.SIGKILL)  # else it ends by itself, when its time is over
        assert (content["ended"], runs["status"]) == (None, "running")
        return
    assert not is_running(part)
    assert process.returncode == 1
    assert content["ended"] == number.name
    assert (runs["status"], runs["why"]) == ("stopped", "the script was ended")
    assert "| eight-runs | stopped |" in shown


@pytest.mark.slow
def test_full_size_is_refused_without_an_accelerator(tmp_path):
    output = tmp_path / "record.json"
    with command("--only=pool", f"--output={output}", "--programs=") as process:
        shown = process.communicate()[0]
    content = json.loads(output.read_text())
    assert process.returncode == 1
    assert "JAX sees no accelerator here, only CPUs" in shown
    assert "--size=small" in content["parts"]["device"]["error"]
    assert content["ended"] == "no accelerator"
    assert content["parts"]["pool"] == {"status": "not reached"}


def test_an_earlier_record_is_kept(tmp_path):
    output = tmp_path / "record.json"
    assert records.set_aside(output) is None
    for number in (1, 2):
        output.write_text(str(number))
        assert records.set_aside(output) == tmp_path / f"record_{number}.json"
        assert (tmp_path / f"record_{number}.json").read_text() == str(number)
    assert not output.exists()


def test_a_part_that_there_is_not_is_named():
    with command("--only=polo") as process:
        shown = process.communicate()[0]
    assert process.returncode == 1
    assert "no part 'polo'; they are device, attention" in shown
