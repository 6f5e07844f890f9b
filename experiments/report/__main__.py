"""Gathers run records into the paper's Tables 2 to 6, 8, 13 to 16 and 18, ours beside the paper's.

    python -m experiments.report WORKDIR... --output=docs/results.md

A WORKDIR is the folder of one run, or a folder that holds many; what is inside of `seed_*` is skipped. It may
be a file reproduced.json of experiments.reproduce as well.
Beside NAME.md, the folder NAME has every table as CSV (one line per cell), plots of score against number of
trained values in the form of the paper's Figure 2 and, where there are rank sweeps, rank_sweeps.csv and
rank_curves.png. Without --output the Markdown is printed.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from experiments.paper.columns import TITLES
from experiments.report.document import command_text, document, tables, write
from experiments.report.records import find
from experiments.runs import command_line
from experiments.runs.folder import is_run
from lora_jax import files
from lora_jax.errors import InputError


def _check_output(path: Path) -> None:
    """Raises InputError if the page or the folder beside it cannot be written, or is that of a run."""
    files.check_output(path, flag="--output")
    beside = path.with_suffix("")
    files.check_folder(beside)
    for folder in (beside, path.absolute().parent):
        if is_run(folder):
            raise InputError(f"--output={path}: {folder} is the folder of a run; name another file")


def main(arguments: list[str]) -> None:
    """Runs the command."""
    folders, output = arguments[1:], _OUTPUT.value
    with command_line.readable_errors():
        if not folders:
            raise InputError("no WORKDIR: python -m experiments.report WORKDIR... [--output=X.md]")
        if output and not output.endswith(".md"):
            raise InputError(f"--output={output}: the file's name must end in .md")
        if output:
            _check_output(Path(output))
        runs, command = find(folders), command_text(folders, output)
        if not output:
            print(document(runs, tables(runs.records, runs.prompted), command, {}), end="")
            return
        write(runs, command, Path(output))
        folder = Path(output).with_suffix("")
        count = len(runs.records) + len(runs.prompted)
        print(f"wrote {output} and {folder}: {count} records, {len(TITLES)} tables")


if __name__ == "__main__":
    _OUTPUT = flags.DEFINE_string("output", None, "Markdown file; without it, print.")
    command_line.run(main)
