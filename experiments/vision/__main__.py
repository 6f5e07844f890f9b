"""A net pre-trained on upright digits, adapted to turned or coloured ones: methods in a table and a plot.

    python -m experiments.vision --config=configs/vision/digits.py:rotated,all --workdir=DIR
    python -m experiments.vision --config=configs/vision/digits.py:recoloured,lora_4 --workdir=DIR \\
        --config.model.kind=vit

Pre-trains a small ResNet or ViT on scikit-learn's digits, then adapts it with few examples by the head alone,
LoRA (on the convolutions of a ResNet, the linear layers of a ViT), norms, and full fine-tuning, each at the
best of some learning rates and with several seeds. Writes

    DIR/vision.md            the table: accuracy, trained values, FLOPs of a step, bytes of the adapter
    DIR/accuracy.png         accuracy against trained values
    DIR/result.json          the same numbers, and every run
    DIR/base, DIR/METHOD/... every run: adapter, metrics, checkpoints

A command that was killed goes on when it is given again. See docs/vision.md.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from experiments.runs import command_line
from experiments.vision import page
from experiments.vision.measure import cache_programs, measure
from lora_jax.errors import InputError
from lora_jax.reading import read_text
from lora_jax.run_folder import RESULT


def main(_: list[str]) -> None:
    """Runs the experiment, and prints its page."""
    with command_line.readable_errors(), tempfile.TemporaryDirectory() as programs:
        if not _WORKDIR.value:
            raise InputError("--workdir=DIR is needed: the folder for runs, table and plot")
        cache_programs(programs)
        workdir = Path(_WORKDIR.value)
        measure(_CONFIG.value, workdir)
        command_line.say(read_text(workdir / page.PAGE))
        command_line.say(f"written to {workdir}: {page.PAGE}, {page.PLOT}, {RESULT}")


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration of the experiment.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder for runs, table and plot.")
    flags.mark_flag_as_required("config")
    command_line.run(main)
