"""Does a run fit these TPUs or GPUs, and on which mesh? Compiled for them, without having one.

    pip install -e ".[tpu-plans]"
    python -m experiments.plan --config=configs/pod/gpt3_175b_lora.py --topology=v5p:4x4x4
    python -m experiments.plan --config=configs/pod/gpt2_large_lora.py --topology=v5e:2x4 --search
    python -m experiments.plan --config=configs/pod/gpt2_large_sweep.py --topology=v5e:8x8
    pip install -e ".[experiments,gpu-plans]"  # in an environment of its own, see docs/devices.md
    python -m experiments.plan --config=configs/plan/decoder_lora.py:llama-2-7b --topology=rtx4090:1

Compiles the real train step, of the config's method and of what it is compared with (full fine-tuning),
and prints what each device needs. `--topology` names a slice of TPUs (v4, v5e, v5p, v6e; the sizes are
the slice's) or a host with GPUs, `h100:8`, or several, `h100:2x8` (a100-40, a100-80, h100, h200, b200,
rtx4090, rtx3090, l40s, t4). With `config.runs` above 1 it is the step of a sweep's program, that many
runs over one frozen base (experiments.sweep), beside one run at a time. `--search` tries mesh shapes,
batch sizes and numbers of runs for the config's method and ranks those that fit. `--largest` finds the
largest batch of each variant that fits. With `--workdir=DIR` the figures go to DIR/plans.jsonl, and what
is there already is not compiled again.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

for _name, _value in {
    "TPU_SKIP_MDS_QUERY": "1",  # for libtpu where there is no TPU
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",  # for JAX's plugin for CUDA where there is no driver
    "TF_CPP_MIN_LOG_LEVEL": "3",  # XLA's words on what does not fit: the table says it
}.items():
    os.environ.setdefault(_name, _value)

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from experiments.plan.largest import report_largest
from experiments.plan.models import head_pattern
from experiments.plan.planner import Planner
from experiments.plan.report import report, search
from experiments.plan.tables import ranking
from experiments.plan.variants import compared, configured
from experiments.runs import command_line
from experiments.runs.fields import OPEN, PLAN, check_config
from experiments.runs.folder import check_place
from lora_jax import locking


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
                print(ranking(search(planner, configured(config, head))))
            elif _LARGEST.value:
                print(report_largest(planner, compared(config, head), config.mesh.to_dict()))
            else:
                print(report(planner, config, head))


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "Plan.")
    _TOPOLOGY = flags.DEFINE_string("topology", None, "TPUs or GPUs, such as v5p:4x4x4 or h100:8.")
    _SEARCH = flags.DEFINE_bool("search", False, "Try meshes, batch sizes and numbers of runs.")
    _LARGEST = flags.DEFINE_bool("largest", False, "The largest batch of each variant that fits.")
    _WORKDIR = flags.DEFINE_string("workdir", "", "Folder for the figures.")
    flags.mark_bool_flags_as_mutual_exclusive(["search", "largest"])
    flags.mark_flags_as_required(["config", "topology"])
    app.run(
        main, flags_parser=command_line.parse_flags
    )  # the compilers of TPUs refuse flags of CPUs
