"""Commands as `python -m` runs them: in this process, and with `LORA_JAX_SLOW=1` in one of their own.

A process of their own imports JAX and compiles everything anew, which takes ten times as long as what most
tests look at.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import runpy
import subprocess
import sys
import warnings

import pytest
from absl import flags, logging
from absl.testing import flagsaver

from experiments.runs import command_line

ROOT = pathlib.Path(__file__).parents[1]


def run(
    module: str, *arguments: object, text: str = "", alone: bool = False
) -> subprocess.CompletedProcess[str]:
    """Runs a command in the clone's folder; its status and what it printed.

    Args:
      module: such as `experiments.score`.
      arguments: of the command line.
      text: standard input.
      alone: in a process of its own in any case.
    """
    line = [module, *map(str, arguments)]
    if alone or os.environ.get("LORA_JAX_SLOW"):
        return subprocess.run(
            [sys.executable, "-m", *line], cwd=ROOT, input=text, capture_output=True, text=True,
            timeout=600, check=False,
        )  # fmt: skip
    out, err = io.StringIO(), io.StringIO()
    with _as_command(line, text), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = _status(module)
    return subprocess.CompletedProcess(line, status, out.getvalue(), err.getvalue())


def _status(module: str) -> int:
    """As of a process: what a program exits with is its status, or a message and the status 1."""
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


@contextlib.contextmanager
def _as_command(line: list[str], text: str):
    """Arguments, standard input and flags of a command; nothing of them is left."""
    verbosity = logging.get_verbosity()
    parsed = flags.FLAGS.is_parsed()
    environment = dict(os.environ)
    with pytest.MonkeyPatch.context() as patch, flagsaver.flagsaver(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # runpy's, of modules that tests import
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", line)
        patch.setattr(sys, "stdin", io.StringIO(text))
        patch.setattr(command_line, "run", lambda main: main(command_line.parse_flags(line)))
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(environment)
            logging.set_verbosity(verbosity)
            if not parsed:
                flags.FLAGS.unparse_flags()
