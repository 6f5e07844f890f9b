"""Files that commands write: never one that they read, never a folder, and known before the work."""

import json
from pathlib import Path

import commands
import pytest

from experiments.convert.loralib import from_loralib, to_loralib
from lora_jax.errors import FileError, InputError
from lora_jax.files import check_output


def command(name, *arguments):
    return commands.run(f"experiments.{name}", *arguments)


@pytest.fixture
def texts(tmp_path):
    for name in ("refs", "hyps"):
        (tmp_path / name).write_text("a cheap pub\n")
    (tmp_path / "link").symlink_to("hyps")
    return tmp_path


@pytest.mark.parametrize("name", ["hyps", "refs", "link", "../{}/hyps"])
def test_scores_are_not_written_over_what_is_scored(texts, name):
    path = texts / name.format(texts.name)
    done = command("score", texts / "refs", texts / "hyps", f"--json={path}")
    assert done.returncode == 1 and f"error: --json={path} is " in done.stderr, done.stderr
    assert "which is read; name another file" in done.stderr
    assert (texts / "hyps").read_text() == (texts / "refs").read_text() == "a cheap pub\n"


def test_what_cannot_be_an_output(texts):
    check_output(texts / "new/scores.json", [texts / "refs"])
    check_output(texts / "refs", [texts / "hyps", texts / "gone"])  # an old file is replaced
    for path, says in (
        (texts, "is a folder; name a file in it"),
        (texts / "refs/x.json", "found a file in its place"),
        (texts / "refs/y/x.json", "found the file .*refs above it"),
        (Path("/dev/null"), "is a device"),
        (texts / ("x" * 300) / "x", "a place where no folder can be made .File name too long"),
        (texts / "a\0b/x", "has a NUL character"),
    ):
        with pytest.raises(InputError, match=says):
            check_output(path)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("parameters", ["--output={}"]),
        ("settings", ["--output={}"]),
        ("report", ["{}", "--output={}/x.md"]),
    ],
)
def test_commands_look_at_their_outputs_first(tmp_path, name, arguments):
    if name == "report":
        (tmp_path / "config.json").write_text(json.dumps({"seeds": [0], "method": {}}))
    done = command(name, *(text.format(tmp_path) for text in arguments))
    assert done.returncode == 1 and done.stderr.startswith(f"error: --output={tmp_path}"), (
        done.stderr
    )
    assert "is a folder" in done.stderr or "is the folder of a run" in done.stderr


def test_a_converted_adapter_is_not_put_into_a_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(json.dumps({"seeds": [0], "method": {}}))
    (tmp_path / "file").touch()
    for output, says in (
        (tmp_path / "run", "run is the folder of a run"),
        (tmp_path / "run/adapter", "adapter lies in .*run, the folder of a run"),
    ):
        with pytest.raises(InputError, match=says):
            from_loralib(tmp_path / "none.safetensors", output, alpha=1.0)
    with pytest.raises(FileError, match="file: found a file in its place"):
        from_loralib(tmp_path / "none.safetensors", tmp_path / "file", alpha=1.0)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json"]
    with pytest.raises(InputError, match="is a folder"):
        (tmp_path / "x.bin").mkdir()
        to_loralib(tmp_path / "none", tmp_path / "x.bin")
    with pytest.raises(InputError, match=r"prefix '\\udcff' has half of a surrogate pair"):
        to_loralib(tmp_path / "none", tmp_path / "y.bin", prefix="\udcff")
