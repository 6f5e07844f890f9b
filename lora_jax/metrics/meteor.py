"""METEOR 1.5 (Denkowski and Lavie 2014): the authors' program, as the package pycocoevalcap ships it.

It runs as both e2e-metrics and GenerationEval run it: English, -norm, default weights, exact, stem,
synonym and paraphrase matches. On the example of its README it gives the scores printed there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pycocoevalcap.meteor import meteor

from lora_jax.metrics.java import Dialogue, JavaError

_JAR = Path(meteor.__file__).with_name(meteor.METEOR_JAR)
_ARGUMENTS = ["-Xmx2G", "-jar", str(_JAR), "-", "-", "-stdio", "-l", "en", "-norm"]
_STATISTICS = 23  # numbers per segment: lengths, matches of each stage, chunks


def score(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], timeout: float
) -> tuple[float, list[float]]:
    """Scores a corpus with METEOR.

    Args:
      hypotheses: N texts without line breaks; an empty one matches nothing.
      references: N lists of one or more texts, any number each. '|||', which separates texts in
        the program's input, is dropped from all.
      timeout: seconds for the whole corpus.

    Returns:
      The corpus score and the N segment scores, in [0, 1].

    Raises:
      JavaError: Java is missing or fails, takes too long, or does not answer with scores.
    """
    with Dialogue(_ARGUMENTS, timeout) as program:
        statistics: list[str] = []
        for hypothesis, instance in zip(hypotheses, references, strict=True):
            texts = [text.replace("|||", "").replace("  ", " ") for text in (*instance, hypothesis)]
            answer = program.ask(" ||| ".join(["SCORE", *texts]))
            if len(answer.split()) != _STATISTICS:
                raise JavaError(f"METEOR answered {answer!r} to hypothesis {len(statistics)}")
            statistics.append(answer)
        answers = [program.ask(" ||| ".join(["EVAL", *statistics]))]
        answers += [program.read() for _ in hypotheses]
    *segments, corpus = [_number(answer) for answer in answers]
    return corpus, segments


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise JavaError(f"METEOR answered {text!r} where a number was expected") from None
