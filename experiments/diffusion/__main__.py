"""Trains a small diffusion model of digits, and teaches one a style or a subject from few pictures by LoRA.

    python -m experiments.diffusion --config=configs/diffusion/digits.py --workdir=runs/digits
    python -m experiments.diffusion --config=configs/diffusion/digits_style.py:slanted --workdir=runs/slanted

A killed run goes on with the same command. DIR/samples has a grid of pictures for every epoch,
DIR/result.json the record. A model of digits is DIR/model, and DIR/judge a classifier that scores what models
draw. A style has a run for every rank, DIR/rank_R, with its adapter and grids of before and after, and
DIR/styles.md compares them. To draw: `python -m experiments.sample_images`. See docs/diffusion.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.diffusion import page, tasks
from experiments.diffusion.scores import VARIETY
from experiments.runs import command_line
from experiments.runs.record import check_converged, parameters_text, shown
from lora_jax.errors import InputError


def said(result: dict[str, Any]) -> str:
    """A short text of a run record."""
    lines = [
        f"{result['task']}  {result['method']}  {result['model']}: {result['pictures']:,} pictures"
    ]
    lines.append(f"  {parameters_text(result)}")
    scores = [f"{name} {shown(spread['mean']):.4f}" for name, spread in result["best"].items()]
    lines.append(f"  best epoch: {', '.join(scores)}; {result['seconds']:.0f} s of training")
    for when, of in result.get("scores", {}).items():
        if of:
            texts = [
                f"{k} {v:.2f}" if k == VARIETY else f"{k} {100 * v:.1f} %" for k, v in of.items()
            ]
            lines.append(f"  {when}: {', '.join(texts)}")
    return "\n".join(lines)


def run(config: ConfigDict, workdir: Path) -> None:
    """Trains what a config says."""
    if "method" not in config:
        result = tasks.learn(config, workdir)
        command_line.say(said(result))
        check_converged(result, workdir)
        command_line.say(f"model: {workdir}/model   record: {workdir}/result.json")
        return
    results = tasks.adapt_all(config, workdir)
    for folder, result in results.items():
        command_line.say(said(result))
        check_converged(result, folder)
        command_line.say(f"  adapter: {folder}   pictures: {folder}/before.png, {folder}/after.png")
    if config.ranks:
        page.write(workdir, results)
        command_line.say(f"compared: {workdir / page.PAGE}")


def main(_: list[str]) -> None:
    """Runs the command."""
    with command_line.readable_errors():
        if not _WORKDIR.value:
            raise InputError("--workdir=DIR is needed: the folder for checkpoints and results")
        run(_CONFIG.value, Path(_WORKDIR.value))


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "Run configuration.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run.")
    flags.mark_flag_as_required("config")
    command_line.run(main)
