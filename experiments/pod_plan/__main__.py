"""Does a run fit a TPU slice, and on which mesh? Compiled for the TPU, without a TPU.

    pip install libtpu
    python -m experiments.pod_plan --config=configs/pod/gpt3_175b_lora.py --topology=v5p:4x4x4
    python -m experiments.pod_plan --config=configs/pod/gpt2_large_lora.py --topology=v5e:2x4 --search
    python -m experiments.pod_plan --config=configs/pod/gpt2_large_sweep.py --topology=v5e:8x8

Compiles the real train step, of the config's method and of full fine-tuning, for the named topology
(v4, v5e, v5p, v6e; the sizes are the slice's) and prints what each device needs. With `config.runs`
above 1 it is the step of a sweep's program, that many runs over one frozen base (experiments.sweep),
beside one run at a time. `--search` tries mesh shapes, batch sizes and numbers of runs for the config's
method and ranks those that fit. With `--workdir=DIR` the figures go to DIR/plans.jsonl, and what is
there already is not compiled again.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from experiments.pod_plan.abstract_step import head_pattern
from experiments.pod_plan.planner import Planner
from experiments.pod_plan.report import report, search
from experiments.pod_plan.tables import ranking
from experiments.runs import command_line
from experiments.runs.fields import OPEN, PLAN, check_config
from experiments.runs.folder import check_place
from lora_jax import locking, methods


def main(_: list[str]) -> None:
    """Runs the command."""
    logging.set_verbosity(logging.WARNING)
    # Nothing runs here: no accelerator is taken, and libtpu does not look for a TPU machine.
    jax.config.update("jax_platforms", "cpu")
    config = _CONFIG.value
    with command_line.readable_errors():
        check_config(config, PLAN, OPEN)
        workdir = Path(_WORKDIR.value) if _WORKDIR.value else None
        if workdir:
            check_place(workdir)
        head = head_pattern(config)
        with locking.exclusive(workdir) if workdir else contextlib.nullcontext():
            planner = Planner(config, _TOPOLOGY.value or "", workdir)
            if _SEARCH.value:
                method = methods.create(head=head, **config.method.to_dict())
                print(ranking(search(planner, method)))
            else:
                print(report(planner, config, head))


if __name__ == "__main__":
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # for libtpu where there is no TPU
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    _CONFIG = config_flags.DEFINE_config_file("config", None, "Plan.")
    _TOPOLOGY = flags.DEFINE_string("topology", None, "TPU topology, such as v5p:4x4x4.")
    _SEARCH = flags.DEFINE_bool("search", False, "Try meshes, batch sizes and numbers of runs.")
    _WORKDIR = flags.DEFINE_string("workdir", "", "Folder for the figures.")
    flags.mark_flags_as_required(["config", "topology"])
    app.run(main, flags_parser=command_line.parse_flags)
