"""Comparisons: all methods on one task at equal budgets, each at a learning rate of its own.

    python -m experiments.compare --config=configs/compare/glue.py:sst2 --workdir=DIR \\
        --config.run.data.source=FOLDER_WITH_GLUE_TSV_FILES

The config is a sweep's (see experiments.sweep) with a grid for each method, all with the same seeds; DIR is
the folder of the sweep, whose flags, live table and resuming this command has. When all runs have ended it
writes

DIR/comparison.md          the table, and how to read it
DIR/comparison.json        its numbers, and the scores of all runs
DIR/comparison/*.png       score against trained values, and against the learning rate
DIR/peft/METHOD.json       each method in the form of PEFT's method comparison

The same command on a finished folder writes them again. More methods, rates or seeds may be added to a
folder: what is finished stays.
"""

from __future__ import annotations

from experiments.compare import contenders, page
from experiments.compare.runs import unfinished
from experiments.runs import command_line
from experiments.sweep.command import SweepCommand, Trained
from lora_jax.sharding.hosts import is_main


def report(trained: Trained) -> None:
    """Prints how the runs ended, and writes the comparison if all have."""
    trained.say_summary()
    found = contenders.of(trained.config, trained.folder)
    if not is_main():
        return
    if missing := unfinished(found, trained.workdir):
        print(
            f"{len(missing)} runs have no result yet, such as {missing[0]}; another command trains them. "
            "Give this one again when they have ended: it writes the comparison"
        )
        return
    page.write(trained, found)
    print(f"runs: {trained.workdir}/points   comparison: {trained.workdir}/comparison.md")


def main(_: list[str]) -> None:
    """Runs the command."""
    with command_line.readable_errors():
        report(_SWEEP.train(contenders.check))


if __name__ == "__main__":
    _SWEEP = SweepCommand()
    command_line.run(main)
