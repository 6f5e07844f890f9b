"""Few-shot prompting of a decoder on GLUE: the paper's Table 8 on models that can be had.

    python -m experiments.prompting --config=configs/prompting/smollm2.py:mnli --workdir=DIR \\
        --config.data.source=FOLDER_WITH_GLUE_TSV_FILES

Every prompt has `--config.shots` demonstrations of each class from the training set (0: zero-shot) and a
query from the dev set; of the texts of the classes the model chooses the one of the highest log likelihood
behind the prompt. Each of `--config.seeds` draws demonstrations of its own, the same for all queries. The run
record is DIR/result.json; DIR/seed_S/answers.jsonl has the log likelihoods of every query. A command that was
killed goes on when it is given again. `--config.adapter=DIR --config.form=text --config.shots=0` asks a
model that experiments.nlg has tuned on the same texts. docs/prompting.md says more.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.runs import command_line, folder
from experiments.runs.prompting import ACCURACY, Prompting, means
from experiments.runs.record import by_seed, scores_record
from lora_jax.errors import InputError
from lora_jax.training.records import environment, peak_memory


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Scores all draws of a config; writes and returns the run record.

    A finished run is read back, an unfinished one is resumed.

    Args:
      config: see `experiments.runs.prompting_fields`.
      workdir: gets result.json and a folder for each seed.

    Raises:
      FileNotFoundError, ValueError: bad input, named; it claims no folder. Or another program works in the
        folder (FolderInUseError).
    """

    def read() -> Prompting:
        asked = Prompting(config)
        folder.check_inputs(workdir, asked.inputs)
        return asked

    return folder.read_or_train(workdir, config, read, lambda asked: _score(asked, config, workdir))


def _score(asked: Prompting, config: ConfigDict, workdir: Path) -> dict[str, Any]:
    for what, note in asked.notes.items():
        command_line.say(f"{what}: {note}")
    asked.check_room()
    folder.claim(workdir, config, asked.inputs)
    runs = {seed: asked.score(seed, workdir / f"seed_{seed}") for seed in config.seeds}
    interval = means(runs, ACCURACY)
    return folder.write_record(
        workdir,
        {
            "task": asked.task.name,
            "method": asked.adapter.method.name if asked.adapter else "none",
            "model": config.model.name,
            "headline": ACCURACY,
            "split": asked.split,
            "prompting": asked.description,
            **scores_record(list(runs.values()), asked.notes),
            "interval": interval and interval._asdict(),
            "parameters": {"total": asked.parameters},
            "seconds": sum(run["seconds"] for run in runs.values()),
            "inputs": dict(asked.inputs),
            "seeds": by_seed(runs),
            "memory": peak_memory(),
            **environment(),
            "config": folder.plain(config),
        },
    )


def table(result: Mapping[str, Any]) -> str:
    """A short text of a run record."""
    asked = result["prompting"]
    adapter = "" if result["method"] == "none" else f" with {result['method']}"
    lines = [
        f"{result['task']} {result['split']}  {asked['demonstrations']} demonstrations, form "
        f"{asked['form']}  {result['model']}{adapter}"
    ]
    for name, value in result["test"].items():
        count = len(value["values"])
        spread = f" ±{100 * value['std']:.2f}   ({count} draws)" if count > 1 else ""
        note = f"   ({result['notes'][name]})" if name in result["notes"] else ""
        lines.append(f"  {name:24s} {100 * value['mean']:6.2f}{spread}{note}")
    if (over := result["interval"]) is not None:
        low, high = (100 * (over["value"] + sign * over["half"]) for sign in (-1, 1))
        lines.append(f"  95% interval of the mean over draws: {low:.1f} to {high:.1f}")
    for seed, record in result["seeds"].items():
        low, high = (100 * end for end in record["interval"])
        lines.append(
            f"  seed {seed}: {100 * record['test'][ACCURACY]:.2f}, 95% interval {low:.1f} to {high:.1f} of "
            f"{asked['examples']:,} examples; {record['tokens']:,} tokens read in {record['seconds']:.0f} s"
        )
    lines.append(
        f"  chance {100 / asked['classes']:.1f}, the most frequent class {100 * asked['majority']:.1f}"
    )
    return "\n".join(lines)


def main(_: list[str]) -> None:
    """Runs the command."""
    with command_line.readable_errors():
        if not _WORKDIR.value:
            raise InputError("--workdir=DIR is needed: the folder for answers and results")
        result = run(_CONFIG.value, Path(_WORKDIR.value))
        command_line.say(table(result))
        command_line.say(
            f"record: {_WORKDIR.value}/result.json   answers: {_WORKDIR.value}/seed_*/"
        )


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "Run configuration.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run.")
    flags.mark_flag_as_required("config")
    command_line.run(main)
