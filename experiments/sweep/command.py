"""What commands that train a sweep share: their flags, and the training with its live table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.runs import command_line
from experiments.sweep import ray, ray_cluster
from experiments.sweep.experiment import Experiment, experiment
from experiments.sweep.folder import SweepFolder
from experiments.sweep.live_table import LiveTable, summary
from experiments.sweep.local import run_sweep
from experiments.sweep.points import Point, points
from lora_jax.errors import InputError
from lora_jax.sharding.hosts import is_main


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A sweep after its training.

    Attributes:
      config: of the sweep.
      folder: of it.
      members: all points, under the names that their folders have.
      varied: the experiment whose runs they are.
    """

    config: ConfigDict
    folder: SweepFolder
    members: list[Point]
    varied: Experiment

    @property
    def workdir(self) -> Path:
        """The sweep's folder."""
        return self.folder.path

    def say_summary(self) -> None:
        """Prints how many runs ended how, and the best one."""
        if is_main():
            statuses = self.folder.statuses(self.members)
            print(summary(statuses, self.varied.smaller_is_better))


class SweepCommand:
    """The flags of a command, which must be defined before any are read; `train` does the work."""

    def __init__(self) -> None:
        self._config = config_flags.DEFINE_config_file("config", None, "Sweep configuration.")
        self._workdir = flags.DEFINE_string("workdir", None, "Folder of the sweep.")
        self._hosts = command_line.hosts_flag()
        self._machines = ray_cluster.define_flags()
        flags.mark_flag_as_required("config")

    def train(self, check: Callable[[ConfigDict], None] = lambda config: None) -> Trained:
        """Trains all points that have no result yet, here or through Ray, and shows them.

        Args:
          check: raises InputError for a config that the command cannot use; nothing is trained then.

        Raises:
          ValueError, OSError: bad flags, config or data.
        """
        config = self._config.value
        machines = self._machines()
        command_line.join_hosts(self._hosts.value)
        if not self._workdir.value:
            raise InputError("--workdir=DIR is needed: the folder of the sweep")
        workdir = Path(self._workdir.value)
        members = points(config)
        check(config)
        varied = experiment(config.experiment)
        table = LiveTable(
            varied.headline(config.run), len(members), smaller_is_better=varied.smaller_is_better
        )
        if machines:
            folder = ray.run_sweep(config, workdir, machines, table)
        else:
            folder = run_sweep(config, workdir, table if is_main() else None)
        # On all hosts, which look into the folder together.
        named = folder.named(members)
        return Trained(config=config, folder=folder, members=named, varied=varied)
