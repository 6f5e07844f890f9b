"""A command as the items of experiments.reproduce have it: leaves a run's record, or fails."""

import pathlib
import sys

from tests.experiments.report_records import glue_record

given = dict(argument.removeprefix("--").partition("=")[::2] for argument in sys.argv[1:])
workdir = pathlib.Path(given["workdir"])
workdir.mkdir(parents=True, exist_ok=True)
if given["config"] == "fails":
    sys.exit(3)
glue_record(workdir, values=(0.8, 0.9))
(workdir / "arguments.txt").write_text("\n".join(sys.argv[1:]))
