"""Locks of folders: one program at a time, dead holders, and holders that lost their lock."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from filelock import SoftFileLease

from lora_jax import locking
from lora_jax.errors import FileError, FolderInUseError
from lora_jax.files import write_json
from lora_jax.locking import NAME, exclusive

HOLDER = """
import pathlib, sys
from lora_jax.locking import exclusive
with exclusive(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def quick(monkeypatch):
    """Holders on other machines are dead after a second."""
    for name, seconds in {"_DEAD": 1.0, "_RENEWAL": 0.3, "_POLL": 0.02}.items():
        monkeypatch.setattr(locking, name, seconds)


def marker(folder, **changes):
    """The text of a lock of this process, with other values of some keys."""
    lock = SoftFileLease(
        folder / "sample", lease_duration=locking._DEAD, heartbeat_interval=locking._RENEWAL
    )
    with lock:
        lines = dict(
            line.split("=") for line in (folder / "sample").read_text().splitlines() if "=" in line
        )
    values = {**lines, **changes}
    return "filelock/2\n" + "".join(f"{key}={value}\n" for key, value in values.items())


def test_another_program_is_refused_until_it_is_dead(tmp_path, caplog):
    folder = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(FolderInUseError, match=rf"in use by process {holder.pid} on .* since 20"):
        exclusive(folder).__enter__()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (folder / NAME).exists()
    with caplog.at_level(logging.WARNING), exclusive(folder):
        assert f"the lock of process {holder.pid} on" in caplog.text
        write_json(folder / "result.json", {})
    assert [path.name for path in folder.iterdir()] == ["result.json"]


def test_the_same_process_is_another_program_too(tmp_path):
    with exclusive(tmp_path), pytest.raises(FolderInUseError, match=r"\(this one\)"):
        exclusive(tmp_path).__enter__()


def test_a_process_number_that_was_given_away_again_holds_nothing(tmp_path):
    (tmp_path / NAME).write_text(marker(tmp_path, start="12345"))
    with exclusive(tmp_path):
        pass


@pytest.mark.parametrize("quiet", [False, True])
def test_one_of_many_locks_says_that_they_were_left_behind(quiet, tmp_path, caplog):
    """A sweep that was killed leaves the lock of its program, and one for each of its runs."""
    (tmp_path / NAME).write_text(marker(tmp_path, start="12345"))
    with locking.taken(tmp_path, quiet=quiet):
        assert ("was left behind; it is taken over" in caplog.text) != quiet


def test_a_folder_that_was_only_locked_is_removed(tmp_path):
    with pytest.raises(KeyboardInterrupt), exclusive(tmp_path / "a" / "b"):
        raise KeyboardInterrupt
    assert not (tmp_path / "a").exists()
    with exclusive(tmp_path / "a" / "b"):
        (tmp_path / "a" / "file").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]


@pytest.mark.usefixtures("quick")
def test_a_holder_on_another_machine_is_dead_if_it_renews_nothing(tmp_path, caplog):
    (tmp_path / NAME).write_text(marker(tmp_path, host="elsewhere"))
    with exclusive(tmp_path):
        assert "waiting for up to 1 s to see whether that program is alive" in caplog.text
        assert "on elsewhere was left behind" in caplog.text


@pytest.mark.usefixtures("quick")
def test_a_holder_on_another_machine_is_alive_if_it_renews(tmp_path):
    path, ended = tmp_path / NAME, threading.Event()
    path.write_text(marker(tmp_path, host="elsewhere"))

    def renew():
        while not ended.wait(0.1):
            os.utime(path)

    thread = threading.Thread(target=renew)
    thread.start()
    with pytest.raises(FolderInUseError, match="on elsewhere"):
        exclusive(tmp_path).__enter__()
    ended.set()
    thread.join()
    assert path.exists()


def test_of_many_that_take_over_a_dead_lock_one_gets_it(tmp_path):
    (tmp_path / NAME).write_text(marker(tmp_path, start="12345"))
    held, refused, together, end = [], [], threading.Barrier(8), threading.Event()

    def take():
        together.wait()
        try:
            with exclusive(tmp_path):
                held.append(1)
                end.wait()
        except FolderInUseError as error:
            refused.append(error)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    while len(held) + len(refused) < 8:
        time.sleep(0.01)
    end.set()
    for thread in threads:
        thread.join()
    assert len(held) == 1 and len(refused) == 7
    assert list(tmp_path.iterdir()) == []


def test_a_holder_whose_lock_was_taken_over_writes_nothing_more(tmp_path, monkeypatch):
    monkeypatch.setattr(locking, "_MOMENTS", (0.0, 0.01))
    other = marker(tmp_path, host="elsewhere", pid="77", token="0" * 32)
    over = pytest.raises(FolderInUseError, match="process 77 on elsewhere has taken it over")
    with over, exclusive(tmp_path):
        write_json(tmp_path / "deep" / "one.json", {})
        (tmp_path / NAME).unlink()
        (tmp_path / NAME).write_text(other)
        write_json(tmp_path / "deep" / "two.json", {})
    assert (tmp_path / NAME).read_text() == other, "the other's lock stays"
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["one.json"]


def test_a_lock_that_names_nobody_says_what_to_do(tmp_path):
    (tmp_path / NAME).touch()
    with pytest.raises(FolderInUseError, match="names no program.*delete that file"):
        exclusive(tmp_path).__enter__()


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "run").touch()
    for folder, what in (("run", "a file in its place"), ("run/below", "the file .*run above it")):
        folder = tmp_path / folder
        with pytest.raises(FileError, match=f"{folder}: found {what}"):
            exclusive(folder).__enter__()
