"""Sweeps: every point of a grid over rank, alpha, learning rate, seed, ... as runs of few programs.

    python -m experiments.sweep --config=configs/sweep/rank_glue.py:mrpc --workdir=DIR \\
        --config.run.data.source=FOLDER_WITH_GLUE_TSV_FILES

Points that differ in LoRA's numbers, learning rate and seed are one program over one frozen base:
factors, optimizer state, hyperparameters and random keys have an axis of runs. As many run together
as fit (`config.runs_per_program`; 0 measures it), the rest after. Other differences (targets, other
methods, batch size) form groups of their own. Every point leaves in DIR/points/NAME what
experiments.glue or experiments.nlg would; DIR/report.md shows all. A sweep that was killed goes on
with the same command and repeats nothing finished; grids may grow.

Several devices or hosts: `--config.run.mesh.run=-1` splits the runs over them, together with data,
fsdp and model. Separate machines: `--engine=ray`, see experiments.sweep_ray.
"""

from __future__ import annotations

from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from experiments.report import document, records
from experiments.runs import command_line
from experiments.runs.classification import Preparation as Classification
from experiments.runs.data_to_text import Preparation as DataToText
from experiments.sweep.group import method_of
from experiments.sweep.live_table import LiveTable, summary
from experiments.sweep.local import run_sweep
from experiments.sweep.points import points
from lora_jax.data import glue_tasks
from lora_jax.metrics import glue as metrics
from lora_jax.sharding.hosts import is_main


def headline_of(config: ConfigDict) -> tuple[str, bool]:
    """The score that chooses a run's best epoch, and whether less of it is better."""
    if config.experiment == "nlg":
        return DataToText.headline, DataToText.smaller_is_better
    return metrics.headline(glue_tasks.task(config.run.task)), Classification.smaller_is_better


def write_report(workdir: Path) -> None:
    """DIR/report.md and DIR/report: tables and curves of all finished points."""
    if is_main():
        command = f"python -m experiments.report {workdir.name}/points"
        found = records.find([workdir / "points"])
        document.write(found, command, workdir / "report.md", only_ours=True)


def main(_: list[str]) -> None:
    """Command line."""
    logging.set_verbosity(logging.WARNING)  # Orbax and JAX tell a lot at INFO
    config = _CONFIG.value
    with command_line.readable_errors():
        machines = _MACHINES()
        command_line.join_hosts(_HOSTS.value)
        if not _WORKDIR.value:
            raise ValueError("--workdir=DIR is needed: the folder of the sweep")
        workdir = Path(_WORKDIR.value)
        found = points(config)
        method_of(config.experiment, found[0].config)  # refuses what is no experiment
        headline, smaller = headline_of(config)
        table = LiveTable(headline, len(found), smaller_is_better=smaller)
        if machines:
            folder = ray.run_sweep(config, workdir, machines, table)
        else:
            folder = run_sweep(config, workdir, table if is_main() else None)
        write_report(workdir)
        found = folder.named(found)  # on all hosts
        if is_main():
            print(summary(folder.statuses(found), smaller))
            print(f"runs: {workdir}/points   report: {workdir}/report.md")


if __name__ == "__main__":
    from experiments.sweep import ray, ray_cluster

    _CONFIG = config_flags.DEFINE_config_file("config", None, "Sweep configuration.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the sweep.")
    _HOSTS = command_line.hosts_flag()
    _MACHINES = ray_cluster.define_flags()
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=command_line.parse_flags)
