"""Penn Treebank tokens as coco-caption makes them before METEOR, ROUGE-L and CIDEr.

That is Stanford's PTBTokenizer 3.4.1 in lower case, with punctuation dropped (pycocoevalcap,
tokenizer/ptbtokenizer.py; paper.md 8.4). It needs Java. `python_tokens` does not: its rules
follow Stanford's PTBLexer.flex as far as restaurant descriptions need. Measured on the different
texts of each file, its tokens differ on 3 of the 40,782 E2E training references, on none of the E2E
development and test references and of the TGen outputs, on 2.3% of WebNLG's test references and on
1.0% of DART's development references (which are scored without this tokenizer).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pycocoevalcap.tokenizer import ptbtokenizer

from lora_jax.metrics import java

_JAR = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
# Brackets are lower-cased before this list is applied, so '-lrb-' stays, here as there.
_PUNCTUATION = frozenset(ptbtokenizer.PUNCTUATIONS)

_CHARACTERS = str.maketrans(
    {"£": "#", "€": "$", "’": "'", "‘": "`", "“": '"', "”": '"', "–": "-- ", "—": "--", "…": "..."}
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_FUSED = {
    "cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na",
    "gimme": "gim me", "lemme": "lem me",
}  # fmt: skip
_LETTER, _WORD = r"[^\W\d_]", r"[^\W_]+"
_DECIMAL, _NUMBER = r"\d*(?:[.,:]\d+)+", r"(?:\d*(?:[.,:]\d+)+|\d+)"
# The first alternative that fits wins.
_TOKEN = re.compile(
    rf"""
    (?:{"|".join(_FUSED)})\b
    | {_LETTER}+(?=n't\b) | n't\b                      # is n't
    | '(?:s|m|d|re|ve|ll|em|n)\b                       # it 's
    | (?:{_LETTER}\.)+{_LETTER}\b\.?(?!\w)             # U.S.
    | [dol]'{_LETTER}{{2,}}                            # O'Connor
    | (?:mr|mrs|ms|dr|jr|sr|st|rd|inc|etc|co|univ|{_LETTER})\.(?!\w)
    | no\.(?=\s*\d)
    | {_WORD}(?:/{_WORD})+                             # 3/5
    | {_WORD}(?:[-_]{_WORD}(?!'t\b))+                  # family-friendly, 20-25
    | [-+]?{_DECIMAL}(?!-\d)                           # 10.50, also before a unit: 8.3m
    | [-+]?{_NUMBER}(?:-{_NUMBER})*(?![^\W_])
    | {_WORD}(?:\.(?=[,;:]))?                          # 'center.,' keeps its period
    | \.\.+ | --+
    | [^\w\s] | _
    """,
    re.VERBOSE | re.IGNORECASE,
)
_DROPPED = re.compile(r'"|\.+|-+')  # quotes become `` and '', dots and dashes ... and --


def stanford_tokens(texts: Sequence[str], timeout: float) -> list[str]:
    """Splits texts into Penn Treebank tokens with Stanford's program.

    Args:
      texts: N texts without line breaks.
      timeout: seconds for all texts.

    Returns:
      N texts of tokens joined by single spaces.

    Raises:
      JavaError: Java is missing or fails, or its output does not fit the input.
    """
    if not texts:
        return []
    program = ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    arguments = ["-cp", str(_JAR), *program]
    lines = java.run(arguments, "".join(text + "\n" for text in texts), timeout).split("\n")[:-1]
    if len(lines) != len(texts):
        raise java.JavaError(
            f"the Stanford tokenizer gave {len(lines)} lines for {len(texts)} texts"
        )
    return [_join(line.split(" ")) for line in lines]


def python_tokens(texts: Sequence[str]) -> list[str]:
    """Splits texts into Penn Treebank tokens nearly as `stanford_tokens`, without Java."""
    return [_join(_tokens(text)) for text in texts]


def _tokens(text: str) -> list[str]:
    tokens = [match[0].lower() for match in _TOKEN.finditer(text.translate(_CHARACTERS))]
    kept = [token for token in tokens if not _DROPPED.fullmatch(token)]
    return " ".join(_BRACKETS.get(t, _FUSED.get(t, t)) for t in kept).split(" ")


def _join(tokens: Sequence[str]) -> str:
    return " ".join(token for token in tokens if token and token not in _PUNCTUATION)
