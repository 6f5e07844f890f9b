"""Analyses the rank deficiency of trained adapters: Figures 3, 4, 6, 7, 8 and Table 7 of the paper.

    python -m experiments.subspace --config=configs/subspace/minilm_sst2.py:runs/subspace --workdir=DIR

`--config=configs/subspace/folders.py:NAME=DIR,NAME=DIR` analyses any adapters. The command line can set
fields of the config: --config.comparisons="(('r8','r64'),)", --config.layers="(1,6)". Writes

    DIR/analysis.md     tables over layers and all figures
    DIR/figures/*.png   similarity maps (with chance beside, and minus chance), spectra, amplification
    DIR/tables/*.csv    every number, one row per weight and layer
    DIR/analysis.json   the same rows and the config
"""

from __future__ import annotations

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from experiments.runs import command_line
from experiments.subspace.analysis import analyse
from lora_jax.errors import InputError
from lora_jax.reading import read_text


def main(_: list[str]) -> None:
    """Runs the analysis, and prints its page."""
    with command_line.readable_errors():
        if not _WORKDIR.value:
            raise InputError("--workdir=DIR is needed: the folder for figures and tables")
        workdir = Path(_WORKDIR.value)
        analyse(_CONFIG.value, workdir)
        command_line.say(read_text(workdir / "analysis.md"))
        command_line.say(f"written to {workdir}: analysis.md, figures/, tables/, analysis.json")


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "Analysis configuration.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder for figures and tables.")
    flags.mark_flag_as_required("config")
    command_line.run(main)
