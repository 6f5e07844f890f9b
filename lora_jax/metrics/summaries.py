"""ROUGE of summaries (Lin 2004), by the package rouge-score: SAMSum in the paper's Table 4."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from lora_jax.errors import InputError
from lora_jax.metrics.generation import Scores

_WORD = re.compile("[a-z0-9]", re.IGNORECASE | re.ASCII)  # what rouge-score makes words of
_NAMES = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}


def rouge(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """The mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L over summaries, each in [0, 1].

    Words are stemmed (Porter), as is usual on SAMSum; the paper does not say which program it used. They are
    made of a to z and digits alone, so other scripts than English have none, which the notes tell. Of several
    references the best one counts, for each score by itself.

    Args:
      texts: N summaries; an empty one scores 0.
      references: N lists of summaries, at least one each.

    Raises:
      InputError: the numbers differ, there are none, or a text has no reference.
    """
    if len(texts) != len(references) or not texts or not all(references):
        raise InputError(
            f"{len(texts)} summaries for {len(references)} texts: each needs one, and at least one reference"
        )
    scorer = RougeScorer(list(_NAMES), use_stemmer=True)
    found = [
        scorer.score_multi(list(targets), text)
        for text, targets in zip(texts, references, strict=True)
    ]
    told = []
    if (most := max(map(len, references))) > 1:
        told.append(f"the best of up to {most} references")
    if wordless := sum(not any(map(_WORD.search, targets)) for targets in references):
        told.append(
            f"{wordless:,} of {len(texts):,} have no reference with a word of a to z or digits, so score 0"
        )
    notes = dict.fromkeys(_NAMES.values(), "; ".join(told)) if told else {}
    values = {
        name: float(np.mean([each[theirs].fmeasure for each in found]))
        for theirs, name in _NAMES.items()
    }
    return Scores(values, {}, notes)
