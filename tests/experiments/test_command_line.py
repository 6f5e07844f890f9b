"""What is wrong with flags and configs is one readable message."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def message(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.subspace", *arguments],
        cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
        timeout=200,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr and not done.stdout
    assert done.stderr.startswith("error: ") and "FATAL" not in done.stderr
    return done.stderr.removeprefix("error: ").rstrip("\n")


def test_a_typo_in_the_argument_of_a_config():
    text = message("--config=configs/glue/minilm.py:rte,loar")
    says = (
        "--config=configs/glue/minilm.py:rte,loar: unknown variant 'loar' in 'rte,loar'; known are"
    )
    assert text.startswith(says) and "\n" not in text


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def get_config():\n    return {}['b']\n", "KeyError: 'b' ({file}, line 2)\n  File"),
        ("def get_config(:\n", "SyntaxError: invalid syntax ({file}, line 1)"),
        (
            "import no_such_module\n",
            "ModuleNotFoundError: No module named 'no_such_module' ({file}, l",
        ),
        (
            "def get_config():\n    raise ValueError('no')\n",
            "ValueError: no ({file}, line 2)\n  File",
        ),
    ],
)
def test_errors_of_ones_own_config_name_the_line(tmp_path, code, says):
    file = tmp_path / "own.py"
    file.write_text(code)
    assert message(f"--config={file}").startswith(f"--config={file}: {says.format(file=file)}")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config=/nowhere.py"], "--config=/nowhere.py: /nowhere.py does not exist"),
        (
            ["--config=configs/subspace/folders.py:a=b", "--bad=3"],
            "Unknown command line flag 'bad'",
        ),
        (
            ["--config=configs/subspace/folders.py:a=b", "--config.seed=x"],
            "flag --config.seed=x: inv",
        ),
        (
            ["--config=configs/subspace/folders.py:a=b", "--config.nope=1"],
            "--config.nope=1: no field",
        ),
    ],
)
def test_flags(arguments, says):
    assert message(*arguments).startswith(says)
