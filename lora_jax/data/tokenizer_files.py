"""The files of a tokenizer, checked before transformers reads them: which are there, what they hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lora_jax.errors import FileError, MissingFileError
from lora_jax.reading import MOST_JSON, Record, read_object, read_text

WHOLE = "tokenizer.json"  # has everything
# The files that hold a vocabulary: one of these sets is needed. Others only configure.
SETS = ((WHOLE,), ("vocab.txt",), ("vocab.json", "merges.txt"))
_SENTENCE_PIECE = ("spm.model", "sentencepiece.bpe.model", "tokenizer.model", "spiece.model")
_CONFIGURE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_AGAIN = "Copy the tokenizer's files again from where the model is from"
FILES = (*dict.fromkeys(name for names in SETS for name in names), *_CONFIGURE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What the files of a tokenizer hold.

    Attributes:
      tokens: all of them, the added ones too.
      whole: whether there is a tokenizer.json.
      model: its kind of model, such as WordPiece; "" without such a file.
      around: the special tokens that tokenizer.json puts first and last into a text, if it says so.
      unknown: the token that tokenizer.json makes of unknown words, if it says so.
    """

    tokens: frozenset[str]
    whole: bool
    model: str
    around: tuple[str, str] | None = None
    unknown: str | None = None


def read_vocabulary(folder: Path) -> Vocabulary:
    """Reads the files of a folder's tokenizer.

    Raises:
      MissingFileError: there are none, or not all that belong together.
      FileError, OSError: one of them is broken, too large, or asks for code of its own; a token or an id
        occurs twice, or two files give a token different ids.
    """
    if not any(all((folder / name).is_file() for name in names) for names in SETS):
        for name in _SENTENCE_PIECE:
            if (folder / name).is_file():
                raise MissingFileError(
                    f"{folder} holds its tokenizer as {name} alone, which is not read here. Make a "
                    "tokenizer.json of it once, with the packages sentencepiece and protobuf: "
                    "transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(new), and copy the "
                    "files to where the model is"
                )
        held = ", ".join(sorted(p.name for p in folder.iterdir())[:12]) if folder.is_dir() else ""
        raise MissingFileError(
            f"{folder} holds no tokenizer (it holds {held or 'nothing'}), expected tokenizer.json, or "
            "vocab.txt (BERT), or vocab.json and merges.txt (RoBERTa, GPT-2), with "
            "tokenizer_config.json if there is one. Copy them from where the model is from, or save "
            "them with tokenizer.save_pretrained(folder)"
        )
    objects = {
        name: read_object(folder / name)
        for name in (WHOLE, "vocab.json", *_CONFIGURE)
        if (folder / name).is_file()
    }
    texts = {
        name: read_text(folder / name, MOST_JSON)
        for name in ("vocab.txt", "merges.txt")
        if (folder / name).is_file()
    }
    config = objects.get("tokenizer_config.json")
    if config is not None and config.values.get("auto_map"):
        raise config.error(
            "auto_map",
            repr(config.values["auto_map"])[:80],
            "none: no code of a model folder is run",
        )
    lines = _lines(folder / "vocab.txt", texts.get("vocab.txt", ""))
    tokens = set(lines)
    for name in ("vocab.json", "added_tokens.json"):
        if (record := objects.get(name)) is not None:
            tokens.update(_ids(record))
    if config is not None and "added_tokens_decoder" in config.values:
        tokens.update(_contents(config, config.get("added_tokens_decoder", dict).values()))
    if (whole := objects.get(WHOLE)) is None:
        return Vocabulary(tokens=frozenset(tokens), whole=False, model="")
    model = whole.record("model")
    added = _contents(whole, whole.get("added_tokens", list, []))
    of_model = _model_tokens(model)
    _check_agree(folder / "vocab.txt", lines, of_model)
    unknown = model.values.get("unk_token")
    return Vocabulary(
        tokens=frozenset({*tokens, *added, *of_model}), whole=True,
        model=model.get("type", str, ""), around=_around(whole.values.get("post_processor")),
        unknown=unknown if isinstance(unknown, str) and unknown else None,
    )  # fmt: skip


def _lines(path: Path, text: str) -> dict[str, int]:
    """The tokens of a vocab.txt with their ids, which are the numbers of their lines from 0."""
    lines = [line.rstrip("\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    ids: dict[str, int] = {}
    for number, token in enumerate(lines):
        if (first := ids.setdefault(token, number)) != number:
            raise FileError(
                path, f"lines {first + 1} and {number + 1}", f"the token {token!r} twice",
                "every token once: its line is the row of its embedding", _AGAIN,
            )  # fmt: skip
    return ids


def _check_agree(path: Path, lines: Mapping[str, int], ids: Mapping[str, int]) -> None:
    """Raises FileError if a vocab.txt gives tokens other ids than the tokenizer.json beside it."""
    for token, number in lines.items():
        if ids.get(token, number) != number:
            raise FileError(
                path, f"line {number + 1}", f"the token {token!r} with id {number}",
                f"id {ids[token]}, as in {WHOLE}, which is what counts",
                f"Delete the file that is not the model's. {_AGAIN}",
            )  # fmt: skip


def _around(processor: Any) -> tuple[str, str] | None:
    """The first and last special token of a text in a post-processor of tokenizer.json, if it names them."""
    if not isinstance(processor, dict):
        return None
    if isinstance(several := processor.get("processors"), list):
        return next((found for one in several if (found := _around(one))), None)
    names: list[Any]
    if isinstance(template := processor.get("single"), list):
        parts = [part.get("SpecialToken") for part in template if isinstance(part, dict)]
        names = [part.get("id") for part in parts if isinstance(part, dict)]
    else:  # BertProcessing, RobertaProcessing
        pairs = [processor.get(name) for name in ("cls", "sep")]
        names = [pair[0] for pair in pairs if isinstance(pair, list) and pair]
    if len(names) < 2 or not all(isinstance(name, str) for name in names):
        return None
    return names[0], names[-1]


def _ids(record: Record) -> dict[str, int]:
    """The tokens of an object of ids, each of which is of one token."""
    ids = {token: record.integer(token, 0) for token in record.values}
    if len(set(ids.values())) < len(ids):
        owners: dict[int, str] = {}
        for token, number in ids.items():
            if (other := owners.setdefault(number, token)) != token:
                raise FileError(
                    record.path, f"{record.where}{token}", f"the id {number}, that of {other!r}",
                    "an id of its own: it is the row of its embedding", _AGAIN,
                )  # fmt: skip
    return ids


def _contents(record: Record, tokens: Iterable[Any]) -> set[str]:
    """The texts of added tokens, each an object or a string."""
    found = set()
    for token in tokens:
        text = token.get("content") if isinstance(token, dict) else token
        if not isinstance(text, str):
            raise record.error("added tokens", repr(token)[:80], "an object with a content")
        found.add(text)
    return found


def _model_tokens(model: Record) -> dict[str, int]:
    """The vocabulary in tokenizer.json, which has ids by token, or pairs of token and score in order."""
    vocabulary = model.values.get("vocab")
    if isinstance(vocabulary, dict):
        return _ids(model.record("vocab"))
    if isinstance(vocabulary, list):
        tokens = [str(pair[0]) for pair in vocabulary if isinstance(pair, list) and pair]
        return {token: number for number, token in enumerate(tokens)}
    raise FileError(model.path, "model.vocab", repr(vocabulary)[:80], "the tokens and their ids")
