"""The tokenizer of a GGUF file: made of its vocabulary, without any file of a tokenizer.

Two kinds are read: byte-level BPE (`tokenizer.ggml.model` gpt2) and SentencePiece with scores (llama, which
Gemma has too). The tokenizers of transformers and tokenizers do the work.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lora_jax.data.pre_tokenizers import SPLITTINGS
from lora_jax.data.tokenizer_files import Vocabulary
from lora_jax.gguf.container import Container
from lora_jax.reading import Record

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # `tokenizer.ggml.token_type`
_SPACE = "\u2581"  # how SentencePiece writes a space
_LONGEST = 1000  # characters of a piece of SentencePiece that others are merged into
_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # so in llama.cpp
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}
_LLAMA_IDS = {"bos_token": 1, "eos_token": 2, "unk_token": 0}  # where the file does not say
_PREFIX = "tokenizer.ggml."
_FOLDER = "Take the model from a folder with the files of its tokenizer"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pieces:
    """The checked vocabulary of a file.

    Attributes:
      record: the metadata.
      tokens: by id, without those that only fill up the embedding.
      types: of every token, see llama.cpp's `llama_token_type`.
      special: ids of special tokens, by transformers' names.
    """

    record: Record
    tokens: list[str]
    types: list[int]
    special: Mapping[str, int]

    def of_type(self, kind: int) -> list[str]:
        """The tokens of a type."""
        return [token for token, of in zip(self.tokens, self.types, strict=True) if of == kind]

    def flag(self, name: str, default: bool) -> bool:
        """A setting that is true or false."""
        return self.record.get(_PREFIX + name, bool, default)


def vocabulary(container: Container) -> Vocabulary:
    """The tokens of the file.

    Raises:
      FileError: no vocabulary, or a broken one.
    """
    return Vocabulary(tokens=frozenset(_pieces(container).tokens), whole=True, model="BPE")


def build(container: Container) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file.

    Raises:
      FileError: no vocabulary, a broken one, or a kind of tokenizer that is not implemented; what
        tokenizers raises for merges that do not fit has other kinds.
    """
    pieces = _pieces(container)
    record = pieces.record
    kind = record.get(f"{_PREFIX}model", str)
    begins = True
    if kind == "gpt2":
        tokenizer, begins = _byte_level(pieces)
    elif kind == "llama":
        tokenizer = _sentencepiece(pieces)
    else:
        raise record.error(f"{_PREFIX}model", repr(kind)[:80], f"'gpt2' or 'llama'. {_FOLDER}")
    if pieces.flag("add_sep_token", False):
        raise record.error(f"{_PREFIX}add_sep_token", "true", f"false. {_FOLDER}")
    control = pieces.of_type(_CONTROL)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in pieces.of_type(_USER_DEFINED)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        name_or_path=str(container.path),
        chat_template=_chat_template(record),
        clean_up_tokenization_spaces=False,
        add_bos_token=pieces.flag("add_bos_token", begins) and "bos_token" in pieces.special,
        add_eos_token=pieces.flag("add_eos_token", False) and "eos_token" in pieces.special,
        **{name: pieces.tokens[number] for name, number in pieces.special.items()},
    )


def _pieces(container: Container) -> Pieces:
    """The vocabulary, checked."""
    record = Record(container.path, container.metadata)
    key = f"{_PREFIX}tokens"
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(record.strings(key))]
    spaced = str(record.values.get(f"{_PREFIX}model")) == "llama"
    ids = _LLAMA_IDS if spaced else {}
    special = {name: number for name, number in ids.items() if number < len(tokens)}
    for name, of_file in _SPECIAL.items():
        if (where := _PREFIX + of_file) in record.values:
            special[name] = record.integer(where, 0, len(tokens) - 1)
    types = _numbers(record, "token_type", len(tokens), "iu")
    kinds = [_NORMAL] * len(tokens) if types is None else [int(x) for x in types]
    if spaced:  # newer files have spaces in these, older ones SentencePiece's sign
        tokens = [
            token.replace(_SPACE, " ") if of == _USER_DEFINED else token
            for token, of in zip(tokens, kinds, strict=True)
        ]
    least = max(special.values(), default=-1)
    while len(tokens) - 1 > least and tokens[-1] == f"[PAD{len(tokens) - 1}]":
        tokens.pop()  # a row of the embedding that no text leads to
    if len(set(tokens)) != len(tokens):
        twice = Counter(tokens).most_common(1)[0][0]
        raise record.error(key, f"{twice!r} twice"[:80], "each token once")
    return Pieces(record=record, tokens=tokens, types=kinds[: len(tokens)], special=special)


def _numbers(record: Record, name: str, length: int, kinds: str) -> np.ndarray | None:
    """An array of the vocabulary; None without the key."""
    values: Any = record.values.get(_PREFIX + name)
    if values is None:
        return None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in kinds:
        raise record.error(_PREFIX + name, type(values).__name__, "an array of numbers")
    if values.size != length or not np.isfinite(values).all():
        raise record.error(
            _PREFIX + name, f"{values.size:,} numbers", f"{length:,} finite ones, as tokens"
        )
    return values


def _merges(record: Record) -> list[tuple[str, str]]:
    """The merges as the file has them."""
    key = f"{_PREFIX}merges"
    pairs = []
    for number, merge in enumerate(record.strings(key)):
        space = merge.find(" ", 1)
        if space < 0 or space == len(merge) - 1:
            raise record.error(f"{key}[{number}]", repr(merge)[:80], "two tokens")
        pairs.append((merge[:space], merge[space + 1 :]))
    return pairs


def _byte_level(pieces: Pieces) -> tuple[Tokenizer, bool]:
    """Byte-level BPE, and whether texts begin with a token for that unless the file says other."""
    record = pieces.record
    name = record.get(f"{_PREFIX}pre", str)
    if name not in SPLITTINGS:
        raise record.error(
            f"{_PREFIX}pre", repr(name)[:80],
            f"one of {', '.join(SPLITTINGS)}: how others split a text is not implemented. {_FOLDER}",
        )  # fmt: skip
    splitting = SPLITTINGS[name]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(pieces.tokens)},
            merges=_merges(record),
            ignore_merges=splitting.whole,
        )
    )
    if (normalizer := splitting.normalizer()) is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitting.make()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, splitting.begins


def _sentencepiece(pieces: Pieces) -> Tokenizer:
    """SentencePiece's BPE, whose merges follow from the scores of what they make."""
    record, spaced = pieces.record, pieces.flag("add_space_prefix", True)
    for name in ("remove_extra_whitespaces", "precompiled_charsmap"):
        if np.size(value := record.values.get(_PREFIX + name, False)) and np.any(value):
            raise record.error(_PREFIX + name, "a normalisation of texts", f"none. {_FOLDER}")
    merges = _merges(record) if f"{_PREFIX}merges" in record.values else _merges_by_score(pieces)
    unknown = pieces.special.get("unk_token")
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(pieces.tokens)},
            merges=merges,
            unk_token=None if unknown is None else pieces.tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    replace = normalizers.Replace(" ", _SPACE)
    before = [normalizers.Prepend(_SPACE)] if spaced else []
    tokenizer.normalizer = normalizers.Sequence([*before, replace])
    after = [decoders.Strip(" ", 1, 0)] if spaced else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *after]
    )
    return tokenizer


def _merges_by_score(pieces: Pieces) -> list[tuple[str, str]]:
    """Every pair of tokens that makes up a token, those of the best score first."""
    record = pieces.record
    whole = len(record.values[f"{_PREFIX}tokens"])
    if (scores := _numbers(record, "scores", whole, "f")) is None:
        raise record.error(f"{_PREFIX}scores", "no scores and no merges", "either")
    made = {
        token: number
        for number, token in enumerate(pieces.tokens)
        if pieces.types[number] in (_NORMAL, _UNUSED)
    }
    pairs: list[tuple[float, int, str, str]] = []
    for token, number in made.items():
        if len(token) > _LONGEST:
            raise record.error(
                f"{_PREFIX}tokens[{number}]", f"{len(token):,} characters", f"at most {_LONGEST:,}"
            )
        score = -float(scores[number])
        pairs += [
            (score, number, token[:cut], token[cut:])
            for cut in range(1, len(token))
            if token[:cut] in made and token[cut:] in made
        ]
    pairs.sort(key=lambda pair: pair[:2])
    return [(left, right) for _, _, left, right in pairs]


def _chat_template(record: Record) -> str | dict[str, str] | None:
    """The template of chats, or all of them by name."""
    key = "tokenizer.chat_template"
    names: Sequence[str] = [x for x in record.values if x.startswith(f"{key}.")]
    default = record.get(key, str) if key in record.values else None
    if not names:
        return default
    named = {name.removeprefix(f"{key}."): record.get(name, str) for name in names}
    return named if default is None else {"default": default, **named}
