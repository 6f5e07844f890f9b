"""Scores a file of generated texts against references, as the paper does in Tables 3, 4, 13 and 14.

    python -m experiments.score REFS HYPS --metrics=e2e --json=scores.json
    python -m experiments.score REFS HYPS --metrics=samsum
    python -m experiments.score FOLDER HYPS --metrics=wikisql --split=valid

REFS is a file in the format of e2e-metrics (one reference per line, a blank line between instances), or
several line-aligned files joined by commas, whose lines are empty where an instance has fewer references.
HYPS has one text per line. --metrics=webnlg is for WebNLG and DART; it lower-cases and tokenises the texts,
and leaves empty references out as the paper's code does. With --bleu=multi-bleu BLEU is what the scripts of
DART and WebNLG print: it takes the texts as they are and an empty reference as one of length 0.
METEOR needs Java; the table says so where there is none.
--metrics=samsum is ROUGE of English summaries, of DialogSum too. --metrics=mnli_text is the share of texts
that are the name of the right class, and so for GLUE's other tasks as text (rte_text ...): all references of
an instance count, each must be a class of the task, and any other text is wrong.
--metrics=wikisql is logical form and execution. A query is judged on its table, so in the place of REFS
stands the folder of the data (config.data.source of the run), of which --split was decoded: one text for each
different context of the split, in their order, as experiments.nlg writes them; of the first N contexts alone
with --max_prompts=N, as the run had it (config.data.max_prompts).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.paper.scores import as_in_paper
from experiments.runs import command_line, scoring
from lora_jax.data import data_to_text, glue_text
from lora_jax.data.pairs import by_context
from lora_jax.errors import InputError
from lora_jax.files import check_output, write_json
from lora_jax.metrics import files, generation, summaries
from lora_jax.metrics.generation import Scores

_WITH_BLEU = ("e2e", "webnlg")
METRICS = (*_WITH_BLEU, "samsum", "wikisql", *glue_text.OF_GLUE)
_USAGE = (
    f"python -m experiments.score REFS HYPS [--metrics={'|'.join(METRICS)}] [--bleu=...] [--split=...] "
    "[--json=FILE]"
)


def score(
    references: str,
    hypotheses: str,
    metrics: str,
    corpus_ter: bool = False,
    bleu: str = generation.LORA,
    split: str = "valid",
    max_prompts: int = 0,
) -> dict[str, Any]:
    """Scores a file of texts.

    Args:
      references: path of the references, or several paths joined by commas; of 'wikisql' the folder of the
        data.
      hypotheses: path of the texts to score.
      metrics: one of `METRICS`.
      corpus_ter: adds 'ter_corpus' to the scores of 'webnlg'.
      bleu: which BLEU of 'webnlg', see `generation.webnlg`.
      split: of WikiSQL's data: 'train', 'valid' or 'test'.
      max_prompts: of WikiSQL: the texts are of so many first contexts of the split; 0 is all.

    Returns:
      JSON values: 'values', 'missing' and 'notes' of `generation.Scores`, and what was scored.

    Raises:
      OSError: a file cannot be read.
      ValueError: a file is malformed, or the numbers of instances and texts differ.
    """
    if metrics != "webnlg" and bleu != generation.LORA:
        own = "; that of e2e is pymteval's" if metrics == "e2e" else ""
        raise InputError(f"--bleu={bleu} belongs to --metrics=webnlg{own}")
    if split != "valid" and metrics != "wikisql":
        raise InputError(f"--split={split} belongs to --metrics=wikisql; REFS are of one split")
    if max_prompts and metrics != "wikisql":
        raise InputError(f"--max_prompts={max_prompts} belongs to --metrics=wikisql")
    if corpus_ter and metrics != "webnlg":
        raise InputError("--corpus_ter belongs to --metrics=webnlg")
    texts = files.read_hypotheses(hypotheses)
    if metrics == "wikisql":
        test = by_context(data_to_text.read("wikisql", split, references)).take(max_prompts)
        remedy = "; --max_prompts is the run's config.data.max_prompts"
        _check_count(f"the {split} split of {references}", len(test), hypotheses, texts, remedy)
        scores = scoring.scorer("wikisql", split, references, test)[0](texts)
    else:
        blank = metrics == "webnlg"
        targets = files.read_references(*references.split(","), keep_blank=blank)
        _check_count(references, len(targets), hypotheses, texts)
        if metrics == "e2e":
            scores = generation.e2e(texts, targets)
        elif metrics == "samsum":
            scores = summaries.rouge(texts, targets)
        elif metrics in glue_text.OF_GLUE:
            scores = _classes(texts, targets, metrics, references)
        else:
            scores = generation.webnlg(texts, targets, corpus_ter=corpus_ter, bleu=bleu)
    return {
        "metrics": metrics,
        **({"bleu": {"e2e": "pymteval"}.get(metrics, bleu)} if metrics in _WITH_BLEU else {}),
        "references": references,
        "hypotheses": hypotheses,
        "instances": len(texts),
        "values": scores.values,
        "missing": scores.missing,
        "notes": scores.notes,
    }


def _classes(
    texts: Sequence[str], targets: Sequence[Sequence[str]], task: str, references: str
) -> Scores:
    try:
        return scoring.classes(texts, targets, glue_text.classes(task))
    except InputError as error:
        remedy = f"Is --metrics={task} what these texts are of?"
        raise InputError(f"{references}: {error}. {remedy}") from error


def _check_count(
    where: str, instances: int, hypotheses: str, texts: Sequence[str], remedy: str = ""
) -> None:
    if instances != len(texts):
        raise InputError(
            f"{where} has {instances} instances and {hypotheses} has {len(texts)} lines: "
            f"each instance needs one hypothesis{remedy}"
        )


def table(result: dict[str, Any]) -> str:
    """A short text: every score as the paper shows it, and as computed."""
    bleu = f"  BLEU: {result['bleu']}" if "bleu" in result else ""
    lines = [f"{result['metrics']}  {result['instances']} instances{bleu}"]
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
        result = score(
            arguments[1], arguments[2], _METRICS.value, _CORPUS_TER.value, _BLEU.value, _SPLIT.value,
            _MAX_PROMPTS.value,
        )  # fmt: skip
        print(table(result))
        if _JSON.value:
            write_json(Path(_JSON.value), result)


if __name__ == "__main__":
    _METRICS = flags.DEFINE_enum("metrics", "e2e", METRICS, "Which scores.")
    _CORPUS_TER = flags.DEFINE_bool(
        "corpus_ter", False, "webnlg: also the corpus TER of TERCOM (slow)."
    )
    _BLEU = flags.DEFINE_enum(
        "bleu", generation.LORA, generation.BLEUS,
        "webnlg: BLEU as the paper's code computes it, or as the scripts of DART and WebNLG.",
    )  # fmt: skip
    _SPLIT = flags.DEFINE_enum(
        "split", "valid", ["train", "valid", "test"], "wikisql: the split that was decoded."
    )
    _MAX_PROMPTS = flags.DEFINE_integer(
        "max_prompts", 0, "wikisql: how many first contexts were decoded; 0 is all.", lower_bound=0
    )
    _JSON = flags.DEFINE_string("json", None, "JSON file for the result.")
    command_line.run(main)
