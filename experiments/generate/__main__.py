"""What a tuned model writes: answers to a file of prompts, or a conversation at the terminal.

    python -m experiments.generate --run=DIR                                  # talk to it
    python -m experiments.generate --run=DIR --input=prompts.txt --output=answers.jsonl
    python -m experiments.generate --model=NAME [--adapter=DIR] [--format=chat|text]

DIR is the --workdir of a finished run of experiments.tune: its record names the model and the format. --input
is a .txt file with a prompt in every line, or a table (.jsonl, .json, .csv, .tsv, .parquet) with the columns
of the run. Answers are JSON lines, in --output or else on stdout. In a conversation the model writes word by
word; /reset begins a new one, /exit or Ctrl-D ends, Ctrl-C stops an answer. --system="Be brief." is a system
message for models with a chat template. Stdout has the texts alone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from absl import flags

from experiments.generate.answer import Request, answer_file
from experiments.generate.chat import talk
from experiments.runs import command_line
from experiments.runs.tuned import Origin, Tuned, of_names, of_run
from lora_jax.data.text_files import folder
from lora_jax.decoding.sampling import Sampling
from lora_jax.errors import InputError
from lora_jax.files import check_output
from lora_jax.ranges import SEED, Number, Range, Whole, check
from lora_jax.reading import check_file

_RANGES: dict[str, Range] = {
    "temperature": Number(least=0, most=100),
    "top_k": Whole(least=0),
    "top_p": Number(above=0, most=1),
    "no_repeat_ngram": Whole(least=0, most=1000),
    "max_tokens": Whole(most=2**16),
    "seed": SEED,
    "batch_size": Whole(most=10_000),
}


def origin(run: str, model: str, adapter: str) -> Origin:
    """What the flags name.

    Raises:
      InputError: neither a run nor a model, or both.
    """
    if bool(run) == bool(model) or (run and adapter):
        raise InputError(
            "name --run=DIR (the --workdir of a run of experiments.tune), or --model=NAME and, if there is "
            "one, --adapter=DIR"
        )
    return of_run(Path(run)) if run else of_names(model, adapter)


def sampling(values: dict[str, Any], ends: tuple[int, ...]) -> Sampling:
    """The settings that the flags give."""
    names = ("temperature", "top_k", "top_p", "no_repeat_ngram", "max_tokens")
    return Sampling(ends, **{name: values[name] for name in names})


def main(arguments: list[str]) -> None:
    """Runs the command."""
    with command_line.readable_errors():
        command_line.refuse_rest(arguments)
        values = {
            name: check(f"--{name}", flags.FLAGS[name].value, allowed)
            for name, allowed in _RANGES.items()
        }
        if _OUTPUT.value and not _INPUT.value:
            raise InputError("--output is for the answers to a file of prompts: name it in --input")
        if _OUTPUT.value:
            check_output(Path(_OUTPUT.value), [_INPUT.value], "--output")
        if _INPUT.value:
            check_file(folder(_INPUT.value))
        named = origin(_RUN.value, _MODEL.value, _ADAPTER.value)
        tuned = Tuned(named, _FORMAT.value, _SYSTEM.value)
        try:
            settings = sampling(values, tuned.format.ends)
            if _INPUT.value:
                seed, size = values["seed"], values["batch_size"]
                answer_file(tuned, Request(_INPUT.value, _OUTPUT.value, settings, seed, size))
            else:
                talk(tuned, settings, values["seed"], sys.stdin)
        finally:
            tuned.close()


def _define_numbers() -> None:
    flags.DEFINE_float("temperature", 0.0, "Divides the logits; 0 takes the most probable token.")
    flags.DEFINE_integer("top_k", 0, "Draw among the k most probable tokens; 0 is all.")
    flags.DEFINE_float("top_p", 1.0, "Draw among the most probable tokens that reach p together.")
    flags.DEFINE_integer(
        "no_repeat_ngram", 0, "Size of n-grams that may not occur twice; 0: any may."
    )
    flags.DEFINE_integer("max_tokens", 256, "Tokens of the longest answer.")
    flags.DEFINE_integer("seed", 0, "Of the draws.")
    flags.DEFINE_integer("batch_size", 16, "Prompts of a file that are answered at once.")


if __name__ == "__main__":
    _RUN = flags.DEFINE_string("run", "", "The --workdir of a run of experiments.tune.")
    _MODEL = flags.DEFINE_string(
        "model", "", "Without --run: a folder, package:NAME, or a hub name."
    )
    _ADAPTER = flags.DEFINE_string(
        "adapter", "", "With --model: folder of a run or of its adapter."
    )
    _FORMAT = flags.DEFINE_enum(
        "format", "", ["", "text", "chat"], "Instead of the run's: prompts as texts, or by the chat template."
    )  # fmt: skip
    _SYSTEM = flags.DEFINE_string(
        "system", None, "System message of a chat instead of the run's; empty: none."
    )
    _INPUT = flags.DEFINE_string("input", "", "File of prompts; without it the terminal is read.")
    _OUTPUT = flags.DEFINE_string("output", "", "File for the answers to --input.")
    _define_numbers()
    command_line.run(main)
