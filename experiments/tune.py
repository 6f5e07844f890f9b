"""Supervised fine-tuning of a decoder on your own texts, with any method.

    python -m experiments.tune --config=configs/tune/smollm2.py --workdir=DIR --config.data.train=FILE.jsonl

FILE is JSON lines, JSON, CSV, TSV or Parquet with chat messages, with prompts and completions, or with other
columns that a template puts together: docs/tune.md has an example of each. Every seed is trained; after
every epoch the loss of held-out examples is measured and a few of their prompts are continued (also before
training), and the best epoch answers the test prompts. The run record is DIR/result.json; DIR/seed_S holds
samples.jsonl, answers.jsonl and the adapter. A run that was killed goes on with the same command. To use the
tuned model: `python -m experiments.generate --run=DIR`. To evaluate an adapter: `--config.eval_only=True
--config.adapter=DIR`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.runs import command_line, evaluation
from experiments.runs.record import check_converged, parameters_text, shown, speed
from experiments.runs.run import Run, run_all
from experiments.runs.samples import SampledRun
from experiments.runs.tune import TuneTask
from lora_jax.errors import InputError
from lora_jax.partition import Params


def tune(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains all seeds of a config, or reads a finished run back; the run record. See `run_all`."""
    return run_all(TuneTask, config, workdir, SampledRun)


def evaluate(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """The held-out loss of an adapter, and its answers; writes evaluation.json and answers.jsonl."""

    def scores(task: TuneTask, run: Run, trainable: Params) -> dict[str, Any]:
        validation = task.metrics(run.outputs(trainable))
        return {"validation": validation, **task.finish(lambda: run.trained(trainable))}

    return evaluation.recorded(TuneTask, config, workdir, scores)


def table(result: dict[str, Any]) -> str:
    """A short text of a run record."""
    form = result["format"]["format"]
    lines = [f"{result['task']} ({form})  {result['method']}  {result['model']}"]
    for split in ("train", "validation"):
        counts = result["examples"][split]
        lines.append(
            f"  {split}: {counts['examples']:,} examples ({counts['cut']:,} cut, {counts['dropped']:,} "
            f"dropped), {counts['tokens']:,} tokens, {counts['learned']:,} of them counted"
        )
    for name, value in result["test"].items():
        spread = f" ±{100 * shown(value['std']):.2f}" if len(value["values"]) > 1 else ""
        lines.append(
            f"  {name:12s} {100 * shown(value['mean']):.2f}{spread} % of the answers are right"
        )
    lines += [f"  {name:12s} missing: {why}" for name, why in result["missing"].items()]
    lines += [f"  note on {name}: {text}" for name, text in result["notes"].items() if text]
    lines.append(f"  {parameters_text(result)}")
    if "best" in result:
        scores = [f"{k} {shown(spread['mean']):.4f}" for k, spread in result["best"].items()]
        lines.append(f"  held-out {', '.join(scores)}; {speed(result)}")
    for seed, record in result["seeds"].items():
        if (decode := record.get("decode")) is not None:
            lines.append(
                f"  seed {seed}: answered {decode['prompts']} prompts in {decode['seconds']:.0f} s, "
                f"{decode['tokens_per_second']:.0f} tokens/s"
            )
    return "\n".join(lines)


def main(_: list[str]) -> None:
    """Runs the command."""
    config, workdir = _CONFIG.value, _WORKDIR.value
    with command_line.readable_errors():
        command_line.join_hosts(_HOSTS.value)
        if not workdir:
            raise InputError(
                "--workdir=DIR is needed: the folder for samples, checkpoints and results"
            )
        if config.eval_only:
            result = evaluate(config, Path(workdir))
            for name, value in result["validation"].items():
                command_line.say(f"{name:12s} {value:.12g}")
            for name, value in result["test"].items():
                command_line.say(f"{name:12s} {100 * value:.2f} % of the answers are right")
            for name, why in result["missing"].items():
                command_line.say(f"{name:12s} missing: {why}")
            return
        result = tune(config, Path(workdir))
        command_line.say(table(result))
        check_converged(result, Path(workdir))
        command_line.say(f"record: {workdir}/result.json   samples: {workdir}/seed_*/samples.jsonl")
        command_line.say(f"talk to it: python -m experiments.generate --run={workdir}")


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "Run configuration.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run.")
    _HOSTS = command_line.hosts_flag()
    flags.mark_flag_as_required("config")
    command_line.run(main)
