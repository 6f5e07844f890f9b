"""Files that are written whole, folders that are replaced, and JSON lines: also on a full disk."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_jax import files, inputs, json_lines
from lora_jax.errors import FileError, InputError
from lora_jax.reading import named
from lora_jax.tensor_files import Tensors


def full(*_):
    raise OSError(28, "No space left on device")


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    files.write_text(path, "old")
    monkeypatch.setattr(type(path), "write_bytes", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'"):
        files.write_text(path, "new")
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_line_is_appended_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "lines.jsonl"
    write, room = os.write, [20]

    def little(file, data):
        if not room[0]:
            raise OSError(28, "No space left on device")
        written = write(file, bytes(data)[: room[0]])
        room[0] -= written
        return written

    with json_lines.Appender(path) as lines:
        lines.write({"step": 1})
        monkeypatch.setattr(json_lines.os, "write", little)
        with pytest.raises(OSError, match=rf"No space left on device: '{path}'"):
            lines.write({"step": 2, "text": "longer than the room"})
        room[0] = 1000
        lines.write({"step": 3})
    assert path.read_text() == '{"step": 1}\n{"step": 3}\n'


def test_lines_that_are_damaged_are_told_from_one_that_was_being_written(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert json_lines.read(path).values == []
    path.write_bytes(b'{"a": 1}\n\xff\n[1]\n{"a": 2}\n{"a"')
    lines = json_lines.read(path)
    assert lines.values == [{"a": 1}, {"a": 2}] and lines.bad == [2, 3] and lines.torn == '{"a"'
    path.write_bytes(b'{"a": 1}')
    assert json_lines.read(path) == json_lines.Lines(['{"a": 1}'], [{"a": 1}], [], "")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_folder_is_whole_whenever_its_replacement_is_killed(tmp_path, monkeypatch, renames):
    target = tmp_path / "adapter"
    with files.replaced_folder(target) as new:
        (new / "file").write_text("old")
    rename, left = type(target).rename, iter(range(renames))

    def killed(self, *to):
        if next(left, None) is None:
            raise Killed
        return rename(self, *to)

    with monkeypatch.context() as patch:
        patch.setattr(type(target), "rename", killed)
        patch.setattr(files.shutil, "rmtree", lambda *_, **__: None)
        try:
            with files.replaced_folder(target) as new:
                (new / "file").write_text("new")
        except Killed:
            pass
    files.recover_folder(target)
    assert (target / "file").read_text() == ("old" if renames == 0 else "new")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "adapter").write_text("a user's")
    refused = pytest.raises(FileError, match=r"adapter: found a file, expected a folder")
    with refused, files.replaced_folder(tmp_path / "adapter"):
        pytest.fail("it gives a folder")
    assert (tmp_path / "adapter").read_text() == "a user's"


def test_what_is_set_aside_keeps_what_was_set_aside_before(tmp_path):
    for number in range(3):
        (tmp_path / "a").write_text(str(number))
        files.set_aside(tmp_path / "a")
    names = ["a.damaged", "a.damaged-2", "a.damaged-3"]
    assert [(tmp_path / name).read_text() for name in names] == ["0", "1", "2"]


def test_places_where_nothing_can_be_written_are_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path, says in (
        ("file", "found a file in its place"),
        ("file/a/b", "found the file .*file above it"),
        ("x" * 300, "a place where no folder can be made .File name too long"),
        ("a\0b", "has a NUL character"),
        ("/proc/new", "a place where no folder can be made .No such file"),
    ):
        with pytest.raises(InputError, match=says):
            files.make_folder(tmp_path / path)
    with pytest.raises(FileError, match="folder: found a folder, expected a file"):
        files.write_text(tmp_path / "folder", "text")
    files.make_folder(tmp_path / "new/folder")
    files.make_folder(tmp_path / "new/folder")
    assert (tmp_path / "new/folder").is_dir()


def test_inputs_are_written_over_bytes_that_are_no_text(tmp_path):
    (tmp_path / inputs.FILE).write_bytes(b"\xff")
    inputs.write(tmp_path, {"model": "m"})
    assert json.loads((tmp_path / inputs.FILE).read_text()) == {"model": "m"}


def test_an_unreadable_file_of_tensors_is_not_called_missing(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_file({"x": np.zeros(2, np.float32)}, path)
    assert list(Tensors(path).types) == ["x"]

    def refused(self, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(PermissionError, match="Permission denied: .*model.safetensors"):
        Tensors(path)


def test_errors_without_a_number_keep_their_text(tmp_path):
    error = named(FileNotFoundError("No such file: x"), tmp_path / "x")
    assert str(error) == f"{tmp_path}/x: No such file: x" and "None" not in str(error)
