"""Times forward passes: a model, LoRA merged, unmerged and in a pool, Adapter H and L (Table 1, Figure 5).

    python -m experiments.latency --config=configs/latency/gpt2_small.py --workdir=DIR
    python -m experiments.latency --config=configs/latency/gpt2_medium.py --workdir=DIR
    python -m experiments.latency --config=configs/latency/gpt2_medium.py --workdir=DIR \\
        --config.base_dtype=bfloat16 --config.batch_sizes="(1,16)" --config.trials=20

Every contender is timed at every batch size and length, in rounds in which each of them runs once. Writes

    DIR/latency.md        Table 1 with the paper's numbers beside, all points, the figures
    DIR/figures/*.png     slow-down by batch size and bottleneck (Figure 5), and of each contender by length
    DIR/latency.json      the same numbers, the config, the device, and whether merged is the base's program
    DIR/trials.jsonl      every trial; the same command goes on with the points that are missing
"""

from __future__ import annotations

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from experiments.latency import page, trials
from experiments.latency.measure import measure
from experiments.runs import command_line
from lora_jax.errors import InputError
from lora_jax.reading import read_text


def main(_: list[str]) -> None:
    """Runs the measurement, and prints its page."""
    with command_line.readable_errors():
        if not _WORKDIR.value:
            raise InputError("--workdir=DIR is needed: the folder for trials, tables and figures")
        workdir = Path(_WORKDIR.value)
        measure(_CONFIG.value, workdir)
        command_line.say(read_text(workdir / page.PAGE))
        command_line.say(
            f"written to {workdir}: {page.PAGE}, figures/, {page.RECORD}, {trials.TRIALS}"
        )


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "Measurement configuration.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder for trials, tables and figures.")
    flags.mark_flag_as_required("config")
    command_line.run(main)
