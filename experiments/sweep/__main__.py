"""Sweeps: every point of a grid over rank, alpha, learning rate, seed, ... as runs of few programs.

    python -m experiments.sweep --config=configs/sweep/rank_glue.py:mrpc --workdir=DIR \\
        --config.run.data.source=FOLDER_WITH_GLUE_TSV_FILES

Points that differ in LoRA's numbers, learning rate and seed are one program over one frozen base:
factors, optimizer state, hyperparameters and random keys have an axis of runs. As many run together
as fit (`config.runs_per_program`; 0 measures it), the rest after. Points with other differences
(targets, other methods, batch size) are programs of their own. Every point leaves in DIR/points/NAME what
experiments.glue, .nlg or .tune would; DIR/report.md shows all. A sweep that was killed goes on
with the same command and repeats nothing finished; grids may grow. The command may be started several
times at once, here or on machines that share DIR: each trains the programs that no other trains.

Several devices or hosts: `--config.run.mesh.run=-1` splits the runs over them, together with data,
fsdp and model. Separate machines: `--engine=ray`, see experiments/sweep/ray.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.report import document, records
from experiments.runs import command_line, tune
from experiments.runs.record import shown
from experiments.runs.text_tables import markdown
from experiments.sweep.command import SweepCommand
from experiments.sweep.folder import planned_names
from experiments.sweep.points import Point
from lora_jax.files import write_text
from lora_jax.reading import read_object
from lora_jax.sharding.hosts import is_main


def write_report(workdir: Path, experiment_name: str, members: Sequence[Point] = ()) -> None:
    """DIR/report.md and DIR/report: tables and curves of all finished points of the sweep.

    Runs of experiments.tune are of no table of the paper: theirs is a table of the scores of every point.

    Args:
      workdir: of the sweep.
      experiment_name: of its runs.
      members: its points; those that were planned before count too, and no others that lie there.
    """
    if not is_main():
        return
    own = {*planned_names(workdir), *(point.name for point in members)}
    if experiment_name == tune.NAME:
        paths = sorted(workdir.glob("points/*/result.json"))
        finished = [(p.parent.name, read_object(p)) for p in paths if p.parent.name in own]
        rows = [
            {"run": name, **{key: shown(spread["mean"]) for key, spread in scores.items()}}
            for name, record in finished
            for scores in [{**record.get("best", dict), **record.get("test", dict)}]
        ]
        write_text(workdir / "report.md", f"# Runs of {workdir.name}\n\n{markdown(rows)}\n")
    else:
        command = f"python -m experiments.report {workdir.name}/points"
        foreign = [path for path in (workdir / "points").glob("*") if path.name not in own]
        why = "no point of this sweep: plan.json does not name it"
        found = records.find([workdir / "points"], dict.fromkeys(foreign, why))
        document.write(found, command, workdir / "report.md", only_ours=True)


def main(_: list[str]) -> None:
    """Runs the command."""
    with command_line.readable_errors():
        sweep = _SWEEP.train()
        write_report(sweep.workdir, sweep.config.experiment, sweep.members)
        sweep.say_summary()
        command_line.say(f"runs: {sweep.workdir}/points   report: {sweep.workdir}/report.md")


if __name__ == "__main__":
    _SWEEP = SweepCommand()
    command_line.run(main)
