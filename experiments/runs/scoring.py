"""How the texts of each data set are scored: metrics of its tables in the paper."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

from lora_jax import digests
from lora_jax.data import data_to_text, glue_text
from lora_jax.data.pairs import EvaluationSet
from lora_jax.data.wikisql import Question
from lora_jax.errors import InputError
from lora_jax.files import to_json
from lora_jax.metrics import answers, generation, summaries, wikisql
from lora_jax.metrics.generation import Scores

ACCURACY = "accuracy"
Score = Callable[[Sequence[str]], Scores]  # of one text for each different input


def scorer(dataset: str, split: str, source: str, test: EvaluationSet) -> tuple[Score, str]:
    """What scores the texts of a decoded split.

    Args:
      dataset: one of `data_to_text.DATASETS`.
      split: that is decoded.
      source: of the data.
      test: its inputs and references, perhaps only the first.

    Returns:
      The scorer, and the digest of what it reads besides inputs and references: WikiSQL's tables, "" for
      other data sets.
    """
    if dataset == "wikisql":
        of_inputs = _by_input(data_to_text.questions(split, source), test)
        return functools.partial(wikisql.score, questions=of_inputs), _of_tables(of_inputs)
    if dataset in glue_text.OF_GLUE:
        names = glue_text.classes(dataset)
        return functools.partial(classes, references=test.references, names=names), ""
    if dataset in ("samsum", "dialogsum"):
        return functools.partial(summaries.rouge, references=test.references), ""
    if dataset == "e2e":
        return functools.partial(generation.e2e, references=test.references), ""
    return functools.partial(by_subset, test=test), ""


def classes(
    texts: Sequence[str], references: Sequence[Sequence[str]], names: Sequence[str]
) -> Scores:
    """The share of examples whose class is written, and nothing else; any other text is wrong.

    Args:
      texts: one for each different input.
      references: the class of every example with this input.
      names: of all classes.

    Raises:
      InputError: a reference is no class.
    """
    for number, reference in enumerate(itertools.chain(*references), start=1):
        if not any(answers.exact_match(reference, name) for name in names):
            raise InputError(
                f"reference {number} is {reference[:80]!r}, which is no class: expected one of "
                f"{', '.join(names)}"
            )
    pairs = [
        (text, reference)
        for text, several in zip(texts, references, strict=True)
        for reference in several
    ]
    notes: dict[str, str] = {}
    none = sum(not any(answers.exact_match(text, name) for name in names) for text in texts)
    if none:
        notes[ACCURACY] = f"{none:,} of {len(texts):,} texts are the name of no class"
    right = sum(answers.exact_match(text, reference) for text, reference in pairs)
    return Scores({ACCURACY: right / len(pairs)}, {}, notes)


def by_subset(texts: Sequence[str], test: EvaluationSet) -> Scores:
    """Scores of WebNLG and DART: of all texts, and of each subset if there are several."""
    scores = generation.webnlg(texts, test.references)
    values, missing, notes = dict(scores.values), dict(scores.missing), dict(scores.notes)
    subsets = sorted(set(test.subsets))
    for subset in subsets if len(subsets) > 1 else []:
        chosen = [i for i, name in enumerate(test.subsets) if name == subset]
        part = generation.webnlg([texts[i] for i in chosen], [test.references[i] for i in chosen])
        values |= {f"{name}_{subset}": value for name, value in part.values.items()}
        missing |= {f"{name}_{subset}": why for name, why in part.missing.items()}
        notes |= {f"{name}_{subset}": note for name, note in part.notes.items()}
    return Scores(values, missing, notes)


def _by_input(questions: Sequence[Question], test: EvaluationSet) -> list[list[Question]]:
    """The questions of every input, whose texts are its references."""
    found: dict[str, list[Question]] = {}
    for question in questions:
        found.setdefault(question.row.context, []).append(question)
    return [found[context] for context in test.contexts]


def _of_tables(questions: Sequence[Sequence[Question]]) -> str:
    """The digest of the rows of all tables; "" if they are not known."""
    tables = {id(each.table): each.table for alike in questions for each in alike}
    if any(table.rows is None for table in tables.values()):
        return ""
    return digests.of_texts(
        to_json([*table.rows], indent=None) for table in tables.values() if table.rows
    )
