"""Prints every field of every config with its range, as docs/settings.md has them.

python -m experiments.settings --output=docs/settings.md
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from absl import flags

from experiments.runs import command_line, fields
from experiments.runs.fields import Field, Fields
from experiments.runs.latency_fields import LATENCY
from experiments.runs.method_fields import METHOD
from experiments.runs.prompting_fields import PROMPTING
from experiments.runs.vision_fields import VISION
from lora_jax.files import check_output, write_text

_HEAD = """\
# Settings and their ranges

Every field of the configs, and what it may be. A field outside its range, an unknown one and a missing one
are refused before a folder is claimed or data are read, and the message names the field. Set fields on the
command line: `--config.learning_rate=1e-4`, `--config.data.max_length=128`. What methods do with their
arguments is in [methods.md](methods.md).

Made by `python -m experiments.settings --output=docs/settings.md`.
"""
_SECTIONS: Mapping[str, tuple[str, Fields]] = {
    "Runs of all experiments": ("experiments.glue, .nlg, .tune and .quickstart", {
        name: field for name, field in fields.GLUE.items()
        if fields.DATA_TO_TEXT.get(name) == field and fields.TUNE.get(name) == field
    }),
    "GLUE": ("experiments.glue", fields.GLUE),
    "Texts of your own": ("experiments.classify", fields.CLASSIFY),
    "Data to text": ("experiments.nlg", fields.DATA_TO_TEXT),
    "Tuning on one's own texts": ("experiments.tune", fields.TUNE),
    "Methods": ("`method`, by its name", METHOD),
    "Pre-training": ("experiments.pretrain", fields.PRETRAIN),
    "Diffusion models": ("experiments.diffusion without `method`", fields.DIFFUSION),
    "Styles and subjects": ("experiments.diffusion with `method`", fields.STYLE),
    "Sweeps": ("experiments.sweep; `run` has the fields of a run, `grids` tuples of values", fields.SWEEP),
    "Subspace analysis": ("experiments.subspace; `adapters` has a folder by name", fields.SUBSPACE),
    "Plans": ("experiments.plan", fields.PLAN),
    "Pictures": ("experiments.vision", VISION),
    "Latency": ("experiments.latency; `adapters` has a method by name", LATENCY),
    "Few-shot prompting": ("experiments.prompting", PROMPTING),
}  # fmt: skip


def page() -> str:
    """The page in Markdown: a table for each command; what was shown above is not repeated."""
    parts, shown = [_HEAD], dict[str, Field]()
    for title, (command, entries) in _SECTIONS.items():
        new = {name: field for name, field in entries.items() if shown.get(name) != field}
        same = ", and those above" if len(new) < len(entries) else ""
        lines = [
            f"| `{name}` | {_cell(str(f.allowed))} | {_cell(f.meaning)} |"
            for name, f in new.items()
        ]
        table = "\n".join(["| field | may be | meaning |", "|---|---|---|", *lines])
        parts.append(f"## {title}\n\nFields of {command}{same}.\n\n{table}\n")
        shown |= entries
    return "\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main(_: list[str]) -> None:
    """Prints the page, or writes it."""
    with command_line.readable_errors():
        if _OUTPUT.value:
            check_output(Path(_OUTPUT.value), flag="--output")
            write_text(_OUTPUT.value, page())
        else:
            print(page())


if __name__ == "__main__":
    _OUTPUT = flags.DEFINE_string("output", "", "File for the page.")
    command_line.run(main)
