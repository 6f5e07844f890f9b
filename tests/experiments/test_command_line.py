"""What is wrong with flags and configs is one readable message."""

import io
import sys

import commands
import pytest
from absl import app, logging

from configs.tune import smollm2
from experiments.runs import command_line, typos


def message(*arguments):
    done = commands.run("experiments.subspace", *arguments)
    assert done.returncode == 1 and "Traceback" not in done.stderr and not done.stdout
    assert done.stderr.startswith("error: ") and "FATAL" not in done.stderr
    return done.stderr.removeprefix("error: ").rstrip("\n")


@pytest.mark.slow
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
            ["--config=configs/subspace/folders.py:a=b", "--config.laers=1"],
            "--config.laers=1: no field 'laers' in config, did you mean 'layers'? config has adapters, ",
        ),
        (
            ["--config=configs/subspace/folders.py:a=b", "--config.zoom", "=", "2"],
            "flag --config.zoom==: inv",
        ),
        (
            ["--config=configs/subspace/folders.py:a=b", "--config.zoom=2", "x"],
            "unknown arguments ['x']: write --NAME=VALUE without blanks",
        ),
        (
            ["--config=configs/subspace/folders.py:a=b", "--zoom=1"],
            "unknown flag --zoom, did you mean --config.zoom?",
        ),
    ],
)
def test_flags(arguments, says):
    assert message(*arguments).startswith(says)


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--config.data.chat_templat=x", "no field 'chat_templat' in config.data, did you mean "
         "'chat_template'? config.data has chat_template, completion, "),
        ("--config.dta.train=x", "no field 'dta' in config, did you mean 'data'? config has accumulate, "),
        ("--config.train=x", "no field 'train' in config, did you mean --config.data.train? config has "),
        ("--noconfig.eval_ony", "no field 'eval_ony' in config, did you mean 'eval_only'? config has "),
        ("--config.method.rnak=4", "no field 'rnak' in config.method, did you mean 'rank'? config.method has "
         "alpha, dropout, name, rank, targets. lora also takes scaling, "),
        ("--config.xyzzy=4", "no field 'xyzzy' in config; config has accumulate, "),
        ("--config.epochs.x=4", "config.epochs is a value and has no fields"),
    ],
)  # fmt: skip
def test_unknown_fields_are_named_with_those_that_are_there(argument, says):
    arguments = ["x", "--config=y", "--config.seeds[0]=3", "--config.epochs=1", argument]
    found = typos.unknown_field(smollm2.get_config(), arguments)
    assert found.startswith(f"{argument}: {says}") and "\n" not in found
    assert typos.unknown_field(smollm2.get_config(), arguments[:-1]) is None


def test_commands_leave_out_what_jax_tells_of_backends(monkeypatch):
    """absl shows INFO once flags are parsed, such as that no TPU is there."""
    before, seen = logging.get_verbosity(), []
    monkeypatch.setattr(command_line.process, "tune", lambda: None)

    def run(main, flags_parser):
        logging.set_verbosity(logging.INFO)
        main(["command"])

    monkeypatch.setattr(app, "run", run)
    try:
        command_line.run(lambda rest: seen.append((rest, logging.get_verbosity())))
    finally:
        logging.set_verbosity(before)
    assert seen == [(["command"], logging.WARNING)]


def test_what_is_said_is_there_at_once(monkeypatch):
    """A server's log is read while it runs."""
    file = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(file)))
    command_line.say("serving")
    assert file.getvalue() == b"serving\n"
