"""BLEU-4 and NIST-5 as e2e-metrics computes them (metrics/pymteval.py; paper.md 8.4).

Both are corpus level and case-insensitive over the tokens of mteval-v13a, which sacrebleu
provides. BLEU takes the closest reference length, the shorter one on ties. On hypotheses of four
tokens and more it equals sacrebleu's unsmoothed BLEU (a test holds them together); it is here
nevertheless, because it shares its counts with NIST and because pymteval differs on shorter ones.
NIST clips its matches against all references at once and takes their mean length, which
nltk's corpus_nist does not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

Tokens = list[str]
_SPLIT = Tokenizer13a()
_BETA = -math.log(0.5) / math.log(1.5) ** 2  # NIST: a penalty of 0.5 at 2/3 of the length


def tokenize(text: str) -> Tokens:
    """Splits a text into tokens of mteval-v13a in lower case; a blank one into [''], as pymteval."""
    tokens: Tokens = _SPLIT(text).lower().split(" ")
    return tokens


def bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]], order: int = 4) -> float:
    """Computes corpus BLEU (Papineni et al. 2002).

    Args:
      hypotheses: N texts.
      references: N lists of one or more texts.
      order: longest n-gram.

    Returns:
      A value in [0, 1]; tiny but not 0 when an order has no match, as in pymteval.
    """
    hits, lengths, reference_length = [0] * order, [0] * order, 0
    for text, instance in zip(hypotheses, references, strict=True):
        tokens, targets = tokenize(text), [tokenize(reference) for reference in instance]
        for n in range(order):
            hits[n] += sum(_clipped(n + 1, tokens, targets).values())
            lengths[n] += len(tokens) - n  # negative for a text shorter than n, as in pymteval
        sizes = [len(target) for target in targets]
        reference_length += min(sizes, key=lambda size: (abs(size - len(tokens)), size))
    logs = [
        math.log(max(hit, 1e-15) / max(length, 1e-9))
        for hit, length in zip(hits, lengths, strict=True)
    ]
    penalty = min(0.0, 1.0 - reference_length / lengths[0])
    return math.exp(penalty + sum(logs) / order)


def nist(hypotheses: Sequence[str], references: Sequence[Sequence[str]], order: int = 5) -> float:
    """Computes the corpus NIST score (Doddington 2002).

    Args:
      hypotheses: N texts.
      references: N lists of one or more texts.
      order: longest n-gram.

    Returns:
      A value of 0 or more.
    """
    hits: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(order)]
    counts: Counter[tuple[str, ...]] = Counter()  # of all references; the 0-gram counts all words
    lengths, reference_length = [0] * order, 0.0
    for text, instance in zip(hypotheses, references, strict=True):
        tokens, targets = tokenize(text), [tokenize(reference) for reference in instance]
        for n in range(order):
            hits[n] += _clipped(n + 1, tokens, targets)
            lengths[n] += len(tokens) - n
            for target in targets:
                counts.update(_ngrams(n + 1, target))
        words = sum(len(target) for target in targets)
        counts[()] += words
        reference_length += words / len(targets)

    def information(ngram: tuple[str, ...]) -> float:
        return math.log2(counts[ngram[:-1]] / counts[ngram])

    total = 0.0
    for matched, length in zip(hits, lengths, strict=True):
        if length > 0:  # otherwise no hypothesis is long enough for a match
            total += sum(information(ngram) * count for ngram, count in matched.items()) / length
    ratio = min(1.0, lengths[0] / reference_length)
    return total * math.exp(-_BETA * math.log(ratio) ** 2)


def _ngrams(n: int, tokens: Tokens) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))


def _clipped(n: int, tokens: Tokens, targets: list[Tokens]) -> Counter[tuple[str, ...]]:
    """Counts the matches of each n-gram, clipped at its largest count in a reference."""
    most: Counter[tuple[str, ...]] = Counter()
    for target in targets:
        most |= _ngrams(n, target)
    return _ngrams(n, tokens) & most
