"""The record of all parts: started, stopped and written by a process that has no accelerator itself."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.accelerator_parts.catalogue import Part
from benchmarks.accelerator_parts.stopping import Stopped
from lora_jax.files import write_json

REACHED = "all parts were reached"  # how a record ends that nothing has stopped
RESERVE = 5.0  # seconds at the end for the record
_LONGEST = 3.0  # times its estimate, a part is stopped: one that hangs does not take all the time
_LEAST = 30.0  # seconds that any part is given
# A small model is compiled on CPUs, and only to see that everything works: quickly.
_QUICK = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
}


class Record:
    """What was measured until now, in a file that is whole at any moment.

    Attributes:
      content: of the file.
    """

    def __init__(self, output: Path, size: str, minutes: float, seconds: float, programs: str = ""):
        """Begins a record; the time runs from here.

        Args:
          output: the file.
          size: of the models, see `setting.Setting`.
          minutes: for everything.
          seconds: for every timed loop.
          programs: folder for compiled programs, which makes another try quicker; "" for none.
        """
        self._output, self._size, self._seconds = output, size, seconds
        self._until = time.monotonic() + 60 * minutes
        self._programs = programs
        self.content: dict[str, Any] = {
            "command": sys.argv,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": _commit(),
            "size": size,
            "minutes": minutes,
            "compiled_before": _count(programs),
            "device": None,
            "ended": None,
            "parts": {},
        }
        self._write()

    def run(self, parts: Sequence[Part]) -> None:
        """Runs the parts in order, each in a process of its own, and writes the file after each.

        A part that fails, or is stopped for its time, leaves what it had found; the next one goes on.
        """
        for part in parts:
            self.content["parts"][part.name] = {"status": "not reached"}
        self._write()
        try:
            for part in parts:
                self._part(part)
                device = self.content["device"] or {}
                if self._size == "full" and device.get("platform") == "cpu":
                    self.content["ended"] = "no accelerator"
                    return
            statuses = [of_part["status"] for of_part in self.content["parts"].values()]
            skipped = statuses.count("skipped")
            left_out = f", no time was left for {skipped}" if skipped else ""
            self.content["ended"] = f"{REACHED}{left_out}"
        except Stopped as stopped:
            self.content["ended"] = str(stopped)
        finally:
            self._write()

    def _part(self, part: Part) -> None:
        left = self._until - time.monotonic() - RESERVE
        if left < part.estimate:
            why = f"{max(left, 0):.0f} s are left, and it takes about {part.estimate:.0f} s"
            self._keep(part, {"status": "skipped", "why": why})
            return
        print(f"{part.name} ...", flush=True)
        with tempfile.TemporaryDirectory(prefix="lora_jax_accelerator_") as folder:
            self._in_process(part, left, Path(folder))
        of_part = self.content["parts"][part.name]
        print(f"  {of_part['status']}, {of_part['seconds']:.0f} s", flush=True)

    def _in_process(self, part: Part, left: float, folder: Path) -> None:
        limit = min(left, max(_LONGEST * part.estimate, _LEAST))
        output, log, begin = folder / "found.json", folder / "log.txt", time.monotonic()
        ended: dict[str, Any] = {"status": "stopped", "why": "the script was ended"}
        with log.open("wb") as file:
            process = subprocess.Popen(
                self._command(part, limit, output), stdout=file, stderr=file, env=self._environment(),
                start_new_session=True,  # signals for this process are not for the part: it is ended here
            )  # fmt: skip
            running = {"status": "running", "process": process.pid}
            try:
                while process.poll() is None and time.monotonic() - begin < limit:
                    self._keep(part, {**running, **_found(output)})
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(1)
                if process.returncode is None:
                    ended["why"] = f"it was given {limit:.0f} s"
                else:
                    ended = {"status": "failed" if process.returncode else "done"}
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                found = _found(output)
                if ended["status"] == "failed" and "error" not in found:
                    found["error"] = f"the process ended with {process.returncode}: {_tail(log)}"
                self._keep(part, {**ended, "seconds": time.monotonic() - begin, **found})

    def _keep(self, part: Part, of_part: dict[str, Any]) -> None:
        """Writes what there is of a part, if it is new."""
        device = of_part.pop("device", None)
        if of_part != self.content["parts"][part.name]:
            self.content["device"] = self.content["device"] or device
            self.content["parts"][part.name] = of_part
            self._write()

    def _command(self, part: Part, limit: float, output: Path) -> list[str]:
        return [
            sys.executable, "-m", "benchmarks.accelerator_parts.child", f"--target={part.target}",
            f"--argument={part.argument}", f"--size={self._size}", f"--limit={limit}",
            f"--seconds={self._seconds}", f"--output={output}",
        ]  # fmt: skip

    def _environment(self) -> dict[str, str]:
        own = dict(os.environ)
        # One part at a time has the device. JAX takes its memory at once, and more of it than by default.
        own.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
        if self._programs:
            own.setdefault("JAX_COMPILATION_CACHE_DIR", self._programs)
        if self._size != "full":
            own = _QUICK | own
        return own

    def _write(self) -> None:
        write_json(self._output, self.content)


def set_aside(output: Path) -> Path | None:
    """Gives an earlier record a number, so that a second try does not overwrite it.

    Returns:
      Where it is now; None if there was none.
    """
    if not output.exists():
        return None
    numbered = (output.with_stem(f"{output.stem}_{number}") for number in itertools.count(1))
    free = next(path for path in numbered if not path.exists())
    output.rename(free)
    return free


def _found(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found


def _count(programs: str) -> int:
    """How many compiled programs a folder has: with some, compile seconds are those of reading them."""
    folder = Path(programs)
    return sum(1 for _ in folder.iterdir()) if programs and folder.is_dir() else 0


def _tail(log: Path) -> str:
    return log.read_bytes()[-2000:].decode(errors="replace").strip()


def _commit() -> str | None:
    """Of the clone that this file is in, with a plus where it has been changed; None without git."""
    git = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--abbrev=40",
        "--dirty=+",
    ]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
