"""Scores generated text on E2E, WebNLG and DART (paper Tables 3, 13, 14, 18; paper.md 8.4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from lora_jax.errors import InputError
from lora_jax.metrics import meteor, mteval, ptb
from lora_jax.metrics import webnlg as nlg
from lora_jax.metrics.files import MOST, half_of_pair, one_line
from lora_jax.metrics.java import JavaError

TIMEOUT = 1800.0  # seconds for each Java program; the E2E test set takes under a minute
LORA = "lora"
BLEUS = (LORA, *nlg.TOKENIZERS)  # what `webnlg` can compute as BLEU


@dataclasses.dataclass(frozen=True)
class Scores:
    """The metrics that could be computed, and why others could not.

    Attributes:
      values: metric -> score as its program gives it: BLEU, METEOR and ROUGE-L in [0, 1], NIST and
        CIDEr from 0 up, TER from 0 up with 0 the best.
      missing: metric -> why it has no value, and the remedy.
      notes: metric -> what a reader of its value must know.
    """

    values: dict[str, float]
    missing: dict[str, str]
    notes: dict[str, str]


def e2e(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], timeout: float = TIMEOUT
) -> Scores:
    """Scores E2E outputs as e2e-metrics does (measure_scores.py -p).

    BLEU-4 and NIST-5 are over mteval-v13a tokens of the texts as they are; METEOR 1.5, ROUGE-L and
    CIDEr are over Penn Treebank tokens in lower case without punctuation. Without Java METEOR is
    missing, and ROUGE-L and CIDEr use a tokenizer in Python, as a note then says.

    Args:
      hypotheses: N texts; an empty one is scored as such.
      references: N lists of texts, any number each; blank ones are left out.
      timeout: seconds for each of two Java programs.

    Returns:
      Scores of 'bleu', 'nist', 'meteor', 'rouge_l' and 'cider'.

    Raises:
      ValueError: the numbers of texts differ, there are none, an instance has no reference, no
        reference has a word, or something is not a text.
    """
    hypotheses, references = _checked(hypotheses, references)
    values = {
        "bleu": mteval.bleu(hypotheses, references),
        "nist": mteval.nist(hypotheses, references),
    }
    missing: dict[str, str] = {}
    notes: dict[str, str] = {}
    texts = [*hypotheses, *(text for instance in references for text in instance)]
    try:
        tokens = ptb.stanford_tokens(texts, timeout)
    except JavaError as error:
        missing["meteor"] = str(error)
        tokens = ptb.python_tokens(texts)
        note = "tokenised in Python instead of by Stanford's program, which needs Java"
        notes = dict.fromkeys(("rouge_l", "cider"), note)
    if short := sum(len(mteval.tokenize(text)) < 3 for text in hypotheses):
        note = (
            f"{short} of {len(hypotheses)} texts have fewer than 3 tokens, which pymteval counts as "
            "negative numbers of n-grams: BLEU can exceed 1"
        )
        notes |= dict.fromkeys(("bleu", "nist"), note)
    outputs = tokens[: len(hypotheses)]
    rest = iter(tokens[len(hypotheses) :])
    targets = [[next(rest) for _ in instance] for instance in references]
    if not any(map(any, targets)):
        raise InputError("the references have no word, only punctuation")
    if not missing:
        try:
            values["meteor"] = meteor.score(outputs, targets, timeout)[0]
        except JavaError as error:
            missing["meteor"] = str(error)
    by_number = dict(enumerate(targets)), {i: [text] for i, text in enumerate(outputs)}
    values["rouge_l"] = float(Rouge().compute_score(*by_number)[0])
    values["cider"] = float(Cider().compute_score(*by_number)[0])
    if values["rouge_l"] > 0 and values["cider"] == 0:
        note = (
            "words match, but only such as are in the references of every instance: these weigh 0, so "
            "CIDEr of a single instance is always 0"
        )
        notes["cider"] = "; ".join(filter(None, (notes.get("cider"), note)))
    return Scores(values, missing, notes)


def webnlg(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    timeout: float = TIMEOUT,
    corpus_ter: bool = False,
    bleu: str = LORA,
) -> Scores:
    """Scores WebNLG and DART outputs as microsoft/LoRA does; see lora_jax.metrics.webnlg.

    Texts are lower-cased and tokenised here; of each instance the first 6 references count.
    (GenerationEval fills up fewer with copies of the first, which changes none of these scores.)

    Args:
      hypotheses: N texts as decoded; an empty one is scored as such.
      references: N lists of texts, any number each; blank ones are left out, see `bleu`.
      timeout: seconds for METEOR, and for TER.
      corpus_ter: whether to compute TER as TERCOM does in addition; it takes a minute or two on
        WebNLG's test set.
      bleu: `lora` for BLEU as microsoft/LoRA computes it, or `multi-bleu` for what the scripts of DART
        and WebNLG print: multi-bleu.perl takes all texts as they are, and a blank reference counts
        as one of length 0, which a short hypothesis is nearer to. `multi-bleu-detok` is the same
        with the tokens of mteval-v13a.

    Returns:
      Scores of 'bleu', 'meteor', 'ter' (the mean over instances, as in the paper's Tables 13 and
      14) and, if asked for, 'ter_corpus'.

    Raises:
      ValueError: the numbers of texts differ, there are none, an instance has no reference, or
        something is not a text; or an unknown `bleu`.
    """
    if bleu not in BLEUS:
        raise InputError(f"unknown bleu {bleu!r}. Use one of: {', '.join(BLEUS)}")
    whole = references
    hypotheses, references = _checked(hypotheses, references)
    blank = sum(map(len, whole)) - sum(map(len, references))
    as_they_are = hypotheses, [[one_line(text) for text in instance] for instance in whole]
    hypotheses = [nlg.decoded(text) for text in hypotheses]
    references = [[nlg.decoded(text) for text in x[: nlg.MAX_REFERENCES]] for x in references]
    values: dict[str, float] = {}
    missing: dict[str, str] = {}
    notes: dict[str, str] = {}
    if bleu == LORA:
        values["bleu"] = nlg.bleu(hypotheses, references)
        if blank:
            notes["bleu"] = f"as microsoft/LoRA: {blank:,} blank references left out"
    else:
        values["bleu"] = nlg.script_bleu(*as_they_are, bleu)
        notes["bleu"] = f"as {bleu}.perl: {blank:,} blank references count as texts of length 0"
    if not values["bleu"]:
        zero = "0 because n-grams of some length have no match: it is not smoothed"
        notes["bleu"] = "; ".join(filter(None, (notes.get("bleu"), zero)))
    outputs = [nlg.words(text) for text in hypotheses]
    targets = [[nlg.words(text) for text in instance] for instance in references]
    try:
        values["meteor"] = meteor.score(outputs, targets, timeout)[0]
    except JavaError as error:
        missing["meteor"] = str(error)
    try:
        values["ter"] = nlg.sentence_ter(outputs, targets, timeout)
    except TimeoutError as error:
        missing["ter"] = f"did not end in {timeout:g} s: {error}"
    try:
        if corpus_ter:
            values["ter_corpus"] = nlg.corpus_ter(outputs, targets)
    except TimeoutError as error:
        missing["ter_corpus"] = f"would take too long: {error}"
    return Scores(values, missing, notes)


def _checked(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """Puts each text on one line and drops blank references; raises ValueError on bad input."""
    if isinstance(hypotheses, str) or any(isinstance(instance, str) for instance in references):
        raise InputError("hypotheses must be a list of texts, references a list of lists of texts")
    if len(hypotheses) != len(references):
        raise InputError(
            f"{len(hypotheses)} hypotheses for {len(references)} instances with references: each "
            "instance needs one hypothesis"
        )
    if not hypotheses:
        raise InputError("there are no hypotheses to score")
    for number, texts in enumerate(zip(hypotheses, references, strict=True)):
        for text in (texts[0], *texts[1]):
            if not isinstance(text, str):
                raise InputError(f"instance {number} has {text!r} where a text is expected")
            if len(text) > MOST:
                raise InputError(
                    f"instance {number} has a text of {len(text):,} characters, {text[:40]!r}...; at "
                    f"most {MOST:,} can be scored in reasonable time. Cut it"
                )
            if half_of_pair(text):
                raise InputError(f"instance {number} has half of a surrogate pair: {text[:80]!a}")
        if not any(text.strip() for text in texts[1]):
            raise InputError(f"instance {number} has no reference, or only blank ones")
    return (
        [one_line(text).strip() for text in hypotheses],
        [[one_line(t).strip() for t in instance if t.strip()] for instance in references],
    )
