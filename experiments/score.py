"""Scores a file of generated texts against references, as the paper does in Tables 3, 13 and 14.

    python -m experiments.score REFS HYPS --metrics=e2e --json=scores.json

REFS is a file in the format of e2e-metrics (one reference per line, a blank line between instances), or
several line-aligned files joined by commas, whose lines are empty where an instance has fewer references.
HYPS has one text per line. --metrics=webnlg is for WebNLG and DART; it lower-cases and tokenises the texts,
and leaves empty references out as the paper's code does. With --bleu=multi-bleu BLEU is what the scripts of
DART and WebNLG print: it takes the texts as they are and an empty reference as one of length 0.
METEOR needs Java; the table says so where there is none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from experiments.paper.scores import as_in_paper
from experiments.runs import command_line
from lora_jax.errors import InputError
from lora_jax.files import check_output, write_json
from lora_jax.metrics import files, generation

_USAGE = "python -m experiments.score REFS HYPS [--metrics=e2e|webnlg] [--bleu=...] [--json=FILE]"


def score(
    references: str,
    hypotheses: str,
    metrics: str,
    corpus_ter: bool = False,
    bleu: str = generation.LORA,
) -> dict[str, Any]:
    """Scores a file of texts.

    Args:
      references: path of the references, or several paths joined by commas.
      hypotheses: path of the texts to score.
      metrics: 'e2e' or 'webnlg'.
      corpus_ter: adds 'ter_corpus' to the scores of 'webnlg'.
      bleu: which BLEU of 'webnlg', see `generation.webnlg`.

    Returns:
      JSON values: 'values', 'missing' and 'notes' of `generation.Scores`, and what was scored.

    Raises:
      OSError: a file cannot be read.
      ValueError: a file is malformed, or the numbers of instances and texts differ.
    """
    if metrics == "e2e" and bleu != generation.LORA:
        raise InputError(f"--bleu={bleu} belongs to --metrics=webnlg; that of e2e is pymteval's")
    targets = files.read_references(*references.split(","), keep_blank=metrics == "webnlg")
    texts = files.read_hypotheses(hypotheses)
    if len(targets) != len(texts):
        raise InputError(
            f"{references} has {len(targets)} instances and {hypotheses} has {len(texts)} lines: "
            "each instance needs one hypothesis"
        )
    if metrics == "e2e":
        scores = generation.e2e(texts, targets)
    else:
        scores = generation.webnlg(texts, targets, corpus_ter=corpus_ter, bleu=bleu)
    return {
        "metrics": metrics,
        "bleu": "pymteval" if metrics == "e2e" else bleu,
        "references": references,
        "hypotheses": hypotheses,
        "instances": len(texts),
        "values": scores.values,
        "missing": scores.missing,
        "notes": scores.notes,
    }


def table(result: dict[str, Any]) -> str:
    """A short text: every score as the paper shows it, and as computed."""
    lines = [f"{result['metrics']}  {result['instances']} instances  BLEU: {result['bleu']}"]
    for name, value in result["values"].items():
        shown = as_in_paper(name, value)
        note = f"   ({result['notes'][name]})" if name in result["notes"] else ""
        lines.append(f"  {name:10s} {shown:>8s}   {value:.12g}{note}")
    lines += [f"  {name:10s}  missing   {why}" for name, why in result["missing"].items()]
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Runs the command."""
    with command_line.readable_errors():
        if len(arguments) != 3:
            raise InputError(f"two files are needed, got {len(arguments) - 1}; usage: {_USAGE}")
        if _JSON.value:
            read = [*arguments[1].split(","), arguments[2]]
            check_output(Path(_JSON.value), read, "--json")
        result = score(arguments[1], arguments[2], _METRICS.value, _CORPUS_TER.value, _BLEU.value)
        print(table(result))
        if _JSON.value:
            write_json(Path(_JSON.value), result)


if __name__ == "__main__":
    _METRICS = flags.DEFINE_enum("metrics", "e2e", ["e2e", "webnlg"], "Which scores.")
    _CORPUS_TER = flags.DEFINE_bool(
        "corpus_ter", False, "webnlg: also the corpus TER of TERCOM (slow)."
    )
    _BLEU = flags.DEFINE_enum(
        "bleu", generation.LORA, generation.BLEUS,
        "webnlg: BLEU as the paper's code computes it, or as the scripts of DART and WebNLG.",
    )  # fmt: skip
    _JSON = flags.DEFINE_string("json", None, "JSON file for the result.")
    command_line.run(main)
