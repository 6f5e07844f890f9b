"""The members of a program while it trains: progress, logs and checkpoints."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jax.typing import ArrayLike

from lora_jax.inputs import Inputs
from lora_jax.partition import Params
from lora_jax.sharding.placement import gather
from lora_jax.training.checkpoints import Checkpoints
from lora_jax.training.newest import Step
from lora_jax.training.progress import TIMES, LoopSettings, Progress
from lora_jax.training.records import MetricsLog
from lora_jax.training.step import FINITE

Metrics = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a program.

    Attributes:
      settings: of its loop; all members have the same epochs and intervals.
      folder: for metrics.jsonl and TensorBoard.
      on_best: called after each epoch that is its best so far, with its (padded) parameters.
      on_resume: called with the progress of the checkpoint that it goes on from.
    """

    settings: LoopSettings
    folder: Path
    on_best: Callable[[Mapping[str, np.ndarray], Progress], None]
    on_resume: Callable[[Progress], None] = lambda progress: None


@runtime_checkable
class Watch(Protocol):
    """Called with the progress of a program's runs, at every logged step and after every epoch."""

    def __call__(self, runs: Sequence[Progress], losses: Sequence[float]) -> None:
        """Progress and the last logged loss of every run."""
        ...


class RunningMembers:
    """Progress, logs and checkpoints of a program's members."""

    def __init__(
        self, members: Sequence[Member], folder: Path, watch: Watch, inputs: Inputs | None = None
    ):
        self.members = members
        self.shared = Progress()
        self.runs = [Progress() for _ in members]
        self._losses = [math.nan] * len(members)
        self._watch = watch
        self._checkpoints = Checkpoints(folder / "checkpoints", inputs)
        self._logs: list[MetricsLog] = []

    @property
    def live(self) -> list[int]:
        """Numbers of the members that have not diverged."""
        return [i for i, run in enumerate(self.runs) if not run.diverged]

    def restore(self, trainable: Params, state: Any) -> tuple[Params, Any]:
        """The newest checkpoint's arrays, or the given ones."""
        restored = self._checkpoints.restore({"trainable": trainable, "state": state})
        if restored is not None:
            trainable, state = restored[0]["trainable"], restored[0]["state"]
            self.shared = Progress(**restored[1]["shared"])
            self.runs = [Progress(**run) for run in restored[1]["runs"]]
            for member, run in zip(self.members, self.runs, strict=True):
                member.on_resume(run)
        return trainable, state

    def open_logs(self) -> None:
        """Opens metrics.jsonl of every member; what will be written again is cut off."""
        self._logs = [
            MetricsLog(member.folder, run.diverged or self.shared.step, member.settings.lines(run))
            for member, run in zip(self.members, self.runs, strict=True)
        ]

    def log(self, metrics: Mapping[str, ArrayLike]) -> None:
        """Writes the newest step of every live run."""
        self._count()
        step = Step(self.shared, metrics)
        for i in self.live:
            self._log_step(i, step)
        self.tell()

    def end_diverged(self, step: Step) -> None:
        """Ends the live runs whose numbers were not finite at a step."""
        bad = [i for i in self.live if not step.finite[i]]
        self._count(bad, step.progress)
        for i in bad:
            late = step.number < self.shared.step  # then it was written if it was to be
            if step.number % self.members[i].settings.log_every or not late:
                self._log_step(i, step)
            self.runs[i].diverged = step.number

    def _log_step(self, i: int, step: Step) -> None:
        values = {
            name: float(np.asarray(v)[i]) for name, v in step.metrics.items() if name != FINITE
        }
        self._losses[i] = values["loss"]
        rate = self.members[i].settings.learning_rate(step.number)
        self._logs[i].write(step.number, {**values, "learning_rate": rate})

    def finish_epoch(
        self, evaluate: Callable[[Params], Sequence[Metrics]], trainable: Params
    ) -> None:
        """Evaluates, and notes the metrics of the live members."""
        if not (which := self.live):
            self.tell()
            return
        begin = time.perf_counter()
        metrics = evaluate(trainable)
        self.shared.evaluation_seconds += time.perf_counter() - begin
        self._count(which)
        best = []
        for i in which:
            run = self.runs[i]
            named = {f"validation/{name}": value for name, value in metrics[i].items()}
            self._logs[i].write(run.step, named)
            if self.members[i].settings.note(run, metrics[i]):
                best.append(i)
        host = gather(trainable) if best else {}
        for i in best:
            best_of_run = {path: value[i] for path, value in host.items()}
            self.members[i].on_best(best_of_run, self.runs[i])
        self.tell()

    def _count(self, which: Sequence[int] | None = None, shared: Progress | None = None) -> None:
        """Takes the program's counters (or these) over into those of its live members (or of some)."""
        shared = self.shared if shared is None else shared
        share = len(self.members)
        for i in self.live if which is None else which:
            run = self.runs[i]
            kept = {name: getattr(run, name) for name in ("history", "best", "diverged")}
            counters = dataclasses.asdict(dataclasses.replace(shared, **kept))
            for name in TIMES:
                counters[name] /= share
            self.runs[i] = Progress(**counters)

    def tell(self) -> None:
        """Calls the watch."""
        self._watch(self.runs, self._losses)

    def save(self, trainable: Params, state: Any) -> None:
        """Writes a checkpoint."""
        self._count()
        record = {
            "shared": dataclasses.asdict(self.shared),
            "runs": [dataclasses.asdict(run) for run in self.runs],
        }
        self._checkpoints.save(self.shared.step, {"trainable": trainable, "state": state}, record)

    def close(self) -> None:
        """Ends the logs, and waits for the checkpoints."""
        for log in self._logs:
            log.close()
        self._checkpoints.close()
