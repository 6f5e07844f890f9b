"""How byte-level vocabularies split a text before they merge: by llama.cpp's names, `tokenizer.ggml.pre`.

A GGUF file has this name alone. What each one means is in llama.cpp's llama-vocab.cpp and in the
tokenizer.json of the models that it is named after; where llama.cpp's expressions had to be written
otherwise, here are the published ones. Names that are not here are refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Splitting:
    """What a name stands for.

    Attributes:
      make: the pre-tokenizer.
      normalised: whether the text is brought to Unicode's form NFC before.
      whole: whether a piece that is a token is taken whole, whatever the merges say.
      begins: whether a text begins with the token for that, where the file does not say.
    """

    make: Callable[[], PreTokenizer]
    normalised: bool = False
    whole: bool = False
    begins: bool = False

    def normalizer(self) -> normalizers.Normalizer | None:
        """What is done with the text before it is split."""
        return normalizers.NFC() if self.normalised else None


def _one_by_one(*expressions: str) -> Callable[[], PreTokenizer]:
    """Each expression splits the pieces that the one before it left."""
    return lambda: pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(text), behavior="isolated") for text in expressions),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _gpt2() -> PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _single_digits() -> PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


_AS_LLAMA3 = Splitting(make=_one_by_one(_LLAMA3), whole=True, begins=True)
_AS_GPT2 = Splitting(make=_gpt2)
_AS_STARCODER = Splitting(make=_single_digits)
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|]+"

SPLITTINGS: Mapping[str, Splitting] = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3"), _AS_LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), Splitting(make=_one_by_one(_LLAMA3))),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "gigachat", "mellum"), _AS_GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "minerva-7b"), _AS_STARCODER),
    "qwen2": Splitting(make=_one_by_one(_QWEN2), normalised=True),
    "deepseek-r1-qwen": Splitting(make=_one_by_one(_QWEN2)),
    "tekken": Splitting(make=_one_by_one(_TEKKEN), whole=True, begins=True),
    "falcon": Splitting(
        make=_one_by_one(r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")
    ),
    "deepseek-coder": Splitting(
        make=_one_by_one(
            "[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}"
        )
    ),
    # What llama.cpp does with files that say no more, which their makers may not have meant.
    "default": Splitting(make=_one_by_one(_PUNCTUATION, _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}  # fmt: skip
