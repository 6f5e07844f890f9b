"""Starts programs with 8 CPU devices: the number of devices is fixed when JAX starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def on_eight_devices(tmp_path_factory):
    """Runs a program of this folder on 8 CPU devices and returns the JSON that it writes."""

    def run(program, *arguments):
        out = tmp_path_factory.mktemp("eight") / "out.json"
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8",
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
        }
        done = subprocess.run(
            [sys.executable, str(HERE / program), *arguments, str(out)],
            env=environment, capture_output=True, text=True, timeout=1200,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(out.read_text())

    return run
