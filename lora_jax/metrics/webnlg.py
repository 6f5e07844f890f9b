"""The scores of WebNLG and DART in the paper's Tables 13 and 14, except METEOR.

Source: microsoft/LoRA, examples/NLG: gpt2_decode.py --tokenize --lower writes lower-cased text with
6 references, then eval/eval.py -nr 6 -m bleu,meteor,ter (WebNLG/GenerationEval) scores it:
* BLEU: multi-bleu-detok.perl on that text, which is mteval-v13a tokens, closest reference length
  and no smoothing; sacrebleu computes the same.
* METEOR: meteor-1.5.jar -l en -norm -r 6 on the text after nltk.word_tokenize.
* TER: on the same tokens pyter.ter against each reference, the least of them, then the mean over
  instances. Long and short texts weigh the same and each text is divided by the length of its best
  reference.
TERCOM, which DART's and WebNLG 2017's own scripts run, instead divides the edits of the whole corpus
by the mean reference length; `corpus_ter` is that, by sacrebleu. It is within one edit of TERCOM
0.7.25 on that program's sample (1786 of 1787 edits).

eval.py also splits the file's last line break off as one more, empty instance: this adds an
instance of TER 1, at most 1/(N+1) on the score, and makes METEOR refuse the files ("not same
length", microsoft/LoRA issue 138). No such instance is counted here.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import cast

import pyter
from nltk.tokenize import NLTKWordTokenizer
from sacrebleu.metrics import BLEU, TER

MAX_REFERENCES = 6
_WORDS = NLTKWordTokenizer()


def decoded(text: str) -> str:
    """Text as gpt2_decode.py --tokenize --lower writes it: lower case, each mark on its own."""
    return " ".join(" ".join(re.split(r"(\W)", text.lower())).split())


def words(text: str) -> str:
    """The tokens of nltk.word_tokenize, joined by spaces, for text of `decoded`.

    The split into sentences that word_tokenize does before, and needs a download for, changes
    nothing there: it matters only to periods that touch a word.
    """
    return " ".join(_WORDS.tokenize(text))


def bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU-4 of `decoded` texts, a fraction; 0.0 when an order has no match."""
    scorer = BLEU(tokenize="13a", smooth_method="none", force=True)
    return scorer.corpus_score(hypotheses, _columns(references)).score / 100


def sentence_ter(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean over instances of the least TER against a reference, over tokens split at spaces.

    0 is a perfect match; it can exceed 1.
    """
    return sum(
        min(pyter.ter(text.split(), other.split()) for other in dict.fromkeys(others))
        for text, others in zip(hypotheses, references, strict=True)
    ) / len(hypotheses)


def corpus_ter(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus TER as TERCOM: least edits of each instance over the mean reference lengths."""
    return TER().corpus_score(hypotheses, _columns(references)).score / 100


def _columns(references: Sequence[Sequence[str]]) -> list[list[str]]:
    """References by column, as sacrebleu takes them; None where an instance has fewer."""
    columns = [list(column) for column in itertools.zip_longest(*references)]
    return cast(list[list[str]], columns)  # sacrebleu's annotation knows no None, its code does
