"""A decoder on a corpus with any method: the paper's Tables 3 (E2E), 4, 13 (DART) and 14 (WebNLG).

    python -m experiments.nlg --config=configs/nlg/gpt2_medium_lora.py:e2e --workdir=DIR \\
        --config.data.source=FOLDER

FOLDER holds the original files of the data sets. Every seed is trained, its best epoch (validation
loss) decodes the test set by beam search, and the texts are scored; docs/data_to_text.md says how. The
run record is DIR/result.json; DIR/seed_S holds predictions.txt, references.txt (for experiments.score) and
the adapter. A run that was killed goes on with the same command. To decode and score an adapter:
`--config.eval_only=True --config.adapter=DIR`. `--config.epochs=0` scores the model unadapted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.paper.scores import as_in_paper
from experiments.runs import command_line, evaluation
from experiments.runs.data_to_text import DataToTextTask
from experiments.runs.record import check_converged, parameters_text, shown, speed
from experiments.runs.run import Run, run_all
from lora_jax.errors import InputError
from lora_jax.partition import Params


def evaluate(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Decodes and scores an adapter; writes evaluation.json and the texts."""

    def scores(task: DataToTextTask, run: Run, trainable: Params) -> dict[str, Any]:
        return task.finish(lambda: run.trained(trainable))

    return evaluation.recorded(DataToTextTask, config, workdir, scores)


def table(result: dict[str, Any]) -> str:
    """A short text of a run record."""
    split = result["split"] or "(nothing decoded)"
    lines = [f"{result['task']} {split}  {result['method']}  {result['model']}"]
    for name, value in result["test"].items():
        mean, std = (as_in_paper(name, shown(value[key])) for key in ("mean", "std"))
        spread = f" ±{std}   ({count} seeds)" if (count := len(value["values"])) > 1 else ""
        lines.append(f"  {name:18s} {mean:>8s}{spread}")
    lines += [f"  {name:18s}   missing: {why}" for name, why in result["missing"].items()]
    lines += [f"  note on {name}: {text}" for name, text in result["notes"].items() if text]
    lines.append(f"  {parameters_text(result)}")
    if "best" in result:
        loss = shown(result["best"]["loss"]["mean"])
        lines.append(f"  validation loss {loss:.4f}; {speed(result)}")
    for seed, record in result["seeds"].items():
        if record.get("diverged"):
            lines.append(f"  seed {seed}: diverged at step {record['diverged']}, not decoded")
        if (decode := record.get("decode")) is None:
            continue
        lines.append(
            f"  seed {seed}: decoded {decode['prompts']} inputs in {decode['seconds']:.0f} s, "
            f"{decode['tokens_per_second']:.0f} tokens/s"
        )
    return "\n".join(lines)


def main(_: list[str]) -> None:
    """Runs the command."""
    config, folder = _CONFIG.value, _WORKDIR.value
    with command_line.readable_errors():
        command_line.join_hosts(_HOSTS.value)
        if not folder:
            raise InputError(
                "--workdir=DIR is needed: the folder for texts, checkpoints and results"
            )
        if config.eval_only:
            result = evaluate(config, Path(folder))
            for name, value in result["test"].items():
                command_line.say(f"{name:18s} {as_in_paper(name, value):>8s}   {value:.12g}")
            for name, why in result["missing"].items():
                command_line.say(f"{name:18s} missing: {why}")
            return
        result = run_all(DataToTextTask, config, Path(folder))
        command_line.say(table(result))
        check_converged(result, Path(folder))
        texts = f"   texts: {folder}/seed_*/predictions.txt" if result["split"] else ""
        command_line.say(f"record: {folder}/result.json{texts}")


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "Run configuration.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run.")
    _HOSTS = command_line.hosts_flag()
    flags.mark_flag_as_required("config")
    command_line.run(main)
