"""The scores of WebNLG and DART in the paper's Tables 13 and 14, except METEOR.

Source: microsoft/LoRA, examples/NLG: gpt2_decode.py --tokenize --lower writes lower-cased text with
6 references, then eval/eval.py -nr 6 -m bleu,meteor,ter (WebNLG/GenerationEval) scores it:
* BLEU: multi-bleu-detok.perl on that text, which is mteval-v13a tokens, closest reference length
  and no smoothing; sacrebleu computes the same.
* METEOR: meteor-1.5.jar -l en -norm -r 6 on the text after nltk.word_tokenize.
* TER: on the same tokens pyter.ter against each reference, the least of them, then the mean over
  instances. Long and short texts weigh the same and each text is divided by the length of its best
  reference. `ter.least` gives the same values in less time.
Where an input has fewer references than others, that pipeline repeats its first one, which changes nothing.
The scripts of DART and WebNLG 2017 themselves read aligned files with blank lines there, and
multi-bleu.perl counts a blank line as a reference of length 0: `script_bleu` is that.
TERCOM, which the scripts of DART and WebNLG 2017 run, divides the edits of the whole corpus by
the mean reference length instead; `corpus_ter` is that, by sacrebleu. It is within one edit of TERCOM
0.7.25 on that program's sample (1786 of 1787 edits).

eval.py also splits the file's last line break off as one more, empty instance: this adds an
instance of TER 1, at most 1/(N+1) on the score, and makes METEOR refuse the files ("not same
length", microsoft/LoRA issue 138). No such instance is counted here.
"""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Sequence
from typing import cast

from nltk.tokenize import NLTKWordTokenizer
from sacrebleu.metrics import BLEU, TER
from sacrebleu.metrics.base import Metric

from lora_jax.metrics import ter

MAX_REFERENCES = 6
TOKENIZERS = {"multi-bleu": "none", "multi-bleu-detok": "13a"}  # sacrebleu's names, by script
_MOST_PAIRS = 250_000  # of tokens, which sacrebleu's TER compares in a minute
_WORDS = NLTKWordTokenizer()


def decoded(text: str) -> str:
    """Writes a text as gpt2_decode.py --tokenize --lower does: in lower case, marks set apart."""
    return " ".join(" ".join(re.split(r"(\W)", text.lower())).split())


def words(text: str) -> str:
    """Splits a text of `decoded` into tokens of nltk.word_tokenize, joined by spaces.

    The split into sentences that word_tokenize does first, and needs a download for, changes
    nothing here: it matters only to periods that touch a word.
    """
    return " ".join(_WORDS.tokenize(text))


def bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Computes corpus BLEU-4 of `decoded` texts, in [0, 1]; 0.0 if an order has no match."""
    scorer = BLEU(tokenize="13a", smooth_method="none", force=True)
    return _corpus_score(scorer, hypotheses, references)


def script_bleu(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], script: str
) -> float:
    """Computes corpus BLEU-4 as a script of Moses prints it, in [0, 1].

    Args:
      hypotheses: N texts on one line each, which are taken as they are: case counts.
      references: N lists of texts; a blank one is a reference of length 0.
      script: `multi-bleu`, which splits texts at blanks only, or `multi-bleu-detok`, whose tokens are
        those of mteval-v13a.
    """
    if script == "multi-bleu":
        hypotheses = [_only_blanks(text) for text in hypotheses]
        references = [[_only_blanks(text) for text in instance] for instance in references]
    scorer = BLEU(tokenize=TOKENIZERS[script], smooth_method="none", force=True)
    return _corpus_score(scorer, hypotheses, references)


def _only_blanks(text: str) -> str:
    """Hides whatever Unicode has besides as blanks: the script reads bytes and does not split there."""
    return re.sub(r"[^\S \t]", "\ue000", text)


def sentence_ter(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], timeout: float = math.inf
) -> float:
    """Computes the mean over instances of the least TER against a reference.

    Tokens are split at spaces. 0 is a perfect match; the value can exceed 1.

    Raises:
      ValueError: a reference has no token.
      TimeoutError: it takes more than `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    return sum(
        ter.least(text.split(), [x.split() for x in dict.fromkeys(instance)], deadline)
        for text, instance in zip(hypotheses, references, strict=True)
    ) / len(hypotheses)


def corpus_ter(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Computes corpus TER as TERCOM does: the least edits over the mean reference lengths.

    Raises:
      TimeoutError: texts are so long that it would take minutes for each.
    """
    for text, instance in zip(hypotheses, references, strict=True):
        sizes = len(text.split()), max(len(reference.split()) for reference in instance)
        if sizes[0] * sizes[1] > _MOST_PAIRS:
            raise TimeoutError(f"a text of {sizes[0]} tokens against one of {sizes[1]}")
    return _corpus_score(TER(), hypotheses, references)


def _corpus_score(
    metric: Metric, hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> float:
    """Computes a metric of sacrebleu, as a fraction."""
    # Columns of references, None where an instance has fewer; sacrebleu's annotation omits the None.
    columns = cast(list[list[str]], [list(x) for x in itertools.zip_longest(*references)])
    return float(metric.corpus_score(hypotheses, columns).score) / 100
