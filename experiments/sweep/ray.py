"""The programs of a sweep on many separate machines or slices, through Ray; an optional extra.

    pip install -r requirements-ray.txt
    python -m experiments.sweep --engine=ray --ray_address=auto --ray_gpus=1 \\
        --config=configs/sweep/rank_glue.py:mrpc --config.runs_per_program=8 --workdir=DIR

One slice, or hosts that compute together, need no Ray: they are one JAX program, whose mesh axis
`run` splits its runs over all devices (`--hosts=auto`). Ray is for many machines, GPUs or slices of
one host each, which know nothing of each other: every program of the plan goes to one of them, in a
process of its own. `config.runs_per_program` must be given, as this process has no device to
measure; keep it so low that there are at least as many programs as machines.

The cluster: `ray start --head` on one machine, `ray start --address=HOST:6379` on the others (the
first one says how; newer versions of Ray want ~/.ray/auth_token of the first on all), then this
command on one of them. Without `--ray_address` Ray runs on this machine alone. What a program needs
is for the flags to say, as Ray gives out only what was asked for:

* `--ray_gpus=1`: a GPU; a machine with 8 of them then trains 8 programs at a time.
* `--ray_resources=TPU=4`: a TPU host with 4 chips; plan runs for all of them with
  `--config.run.mesh.run=4`.
* `--ray_cpus=N`: N cores, 1 if not given.

DIR, the code and what the config names must lie at the same places on all machines, and DIR on a
file system that they share: nothing is uploaded. Workers get PYTHONPATH, the working directory and
the variables JAX_*, XLA_*, LIBTPU_*, NCCL_* and LORA_JAX_* from here, so JAX_PLATFORMS=cpu holds for
them too. A program whose process or machine dies is started again, and goes on from its checkpoint.
Errors stay with their program, in DIR/programs/NAME/error.txt; worker.json there says who trains it.

Every program of the plan is locked by who trains it (see experiments/sweep/folder.py), so that a second
command on DIR, with either engine, trains nothing twice. Here a program that another command trains is an
error that stays with it; without Ray it is left out.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from configs.record import tuples
from experiments.runs import process
from experiments.sweep import local, ray_cluster
from experiments.sweep.folder import SweepFolder
from experiments.sweep.live_table import LiveTable
from experiments.sweep.points import Point
from experiments.sweep.programs import Program
from lora_jax import files
from lora_jax.errors import FileError, MissingFileError
from lora_jax.files import write_json
from lora_jax.reading import read_object

_POLL = 1.0  # seconds between two looks at the status files
_GOODBYE = 10.0  # seconds for cancelled programs to end
_PASSED_ON = ("JAX_", "XLA_", "LIBTPU_", "NCCL_", "LORA_JAX_")
_LAST = 5  # lines of an error that are shown
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class ProgramsFailed(ValueError):
    """Some programs of a sweep failed; all others are finished.

    Attributes:
      reasons: last lines of the error, by program.
    """

    def __init__(self, reasons: Mapping[str, str], total: int):
        self.reasons, self._total = dict(reasons), total
        parts = [f"program {name}:\n{text}" for name, text in sorted(self.reasons.items())]
        super().__init__(
            f"{len(reasons)} of {total} programs failed. The others are finished; the same command "
            "trains what is left. programs/NAME/error.txt has more.\n" + "\n".join(parts)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """For errors that cross from one process to another."""
        return type(self), (self.reasons, self._total)


def run_sweep(
    config: ConfigDict,
    workdir: Path,
    machines: ray_cluster.Machines,
    table: LiveTable | None = None,
) -> SweepFolder:
    """Trains all points that have no result yet, every program in a process that Ray starts.

    Args:
      config: of the sweep, with `runs_per_program`.
      workdir: its folder, which all machines see.
      machines: where.
      table: shown while it runs.

    Raises:
      ImportError: Ray is not installed.
      ValueError: bad grids, another sweep's folder, finished points of other data or weights, no cluster,
        or (`ProgramsFailed`) programs failed.
    """
    ray_cluster.load()  # raises here if Ray is not installed
    # The devices are for the workers: this process must not take this machine's.
    jax.config.update("jax_platforms", "cpu")
    workdir = workdir.resolve()
    folder, members = local.opened(config, workdir)
    local.check_all(config, folder, members, here=False)
    local.planned(config, folder, members)
    folder.claim()
    left = folder.unfinished(members)
    with table or contextlib.nullcontext():
        show = _shows(folder, members, table)
        show()
        if left:
            with ray_cluster.joined(machines) as ray:
                tasks = _submit(ray, left, workdir, machines)
                failed = _wait(ray, tasks, workdir, show)
            if failed:
                raise ProgramsFailed(failed, len(left))
    return folder


def _submit(
    ray: Any, programs: Sequence[Program], workdir: Path, machines: ray_cluster.Machines
) -> dict[Any, Program]:
    """Submits one task for each program; the programs by task."""
    root = str(Path(__file__).resolve().parents[2])
    path = [
        root,
        *(str(Path(p).resolve()) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p),
    ]
    passed = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
    passed["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path))
    # max_calls: a process owns its devices, so each trains one program and ends.
    task = ray.remote(
        num_cpus=machines.cpus, num_gpus=machines.gpus, resources=dict(machines.resources),
        max_calls=1, max_retries=machines.retries, retry_exceptions=True,
        runtime_env={"env_vars": passed},
    )(_train)  # fmt: skip
    return {
        task.remote(program.name, str(workdir), str(Path.cwd())): program for program in programs
    }


def _wait(
    ray: Any, tasks: Mapping[Any, Program], workdir: Path, show: Callable[[str], None]
) -> dict[str, str]:
    """Waits for all tasks; the last lines of the errors, by program."""
    failed: dict[str, str] = {}
    waiting = list(tasks)
    try:
        while waiting:
            done, waiting = ray.wait(waiting, timeout=_POLL)
            for task in done:
                name = tasks[task].name
                if text := _error_of(ray, task):
                    files.write_text(workdir / "programs" / name / "error.txt", text)
                    lines = [line for line in text.splitlines() if line.strip()]
                    failed[name] = "\n".join(f"  {line}" for line in lines[-_LAST:])
            show(f"{len(waiting)} of {len(tasks)} programs to do, {len(failed)} failed")
    except BaseException:
        for task in waiting:
            ray.cancel(task, force=True)
        if waiting:
            ray.wait(waiting, num_returns=len(waiting), timeout=_GOODBYE)
        raise
    return failed


def _error_of(ray: Any, task: Any) -> str | None:
    """A finished task's error, if any: its traceback, or how its process died."""
    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:
        return _COLOURS.sub("", str(error))


def _shows(
    folder: SweepFolder, members: Sequence[Point], table: LiveTable | None
) -> Callable[..., None]:
    def show(note: str = "") -> None:
        # A shared file system may lose sight of a file that is being replaced: next time then.
        with contextlib.suppress(OSError, FileError):
            if table is not None:
                table.update(folder.statuses(members), note)

    return show


def _train(name: str, workdir: str, started_in: str) -> str | None:
    """Ray's task: trains a program in this process. Bad input is returned: trying again is no use."""
    logging.set_verbosity(logging.WARNING)
    folder = Path(workdir)
    for path in (Path(started_in), folder / "sweep.json", folder / "plan.json"):
        if not path.exists():
            raise MissingFileError(
                f"{path} is not on the machine {platform.node()}; --workdir and the directory where "
                "the command was started must be on a file system that all machines share"
            )
    os.chdir(started_in)
    process.tune()
    program_folder = folder / "programs" / name
    worker = {"host": platform.node(), "process": os.getpid(), "since": time.time()}
    write_json(program_folder / "worker.json", worker)
    config = ConfigDict(tuples(read_object(folder / "sweep.json").values))
    try:
        done = local.run_sweep(config, folder, only={name})
        (program,) = (planned for planned in done.programs() if planned.name == name)
        if left := set(program.points) - done.finished():
            raise RuntimeError(f"program {name} was not trained: {', '.join(sorted(left))} left")
    except (ValueError, TypeError):
        return traceback.format_exc()
    (program_folder / "error.txt").unlink(missing_ok=True)
    return None
