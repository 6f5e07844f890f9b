"""The files of a tokenizer, checked before transformers reads them: which are there, what they hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lora_jax.errors import FileError, MissingFileError
from lora_jax.reading import MOST_JSON, Record, read_object, read_text

WHOLE = "tokenizer.json"  # has everything
# The files that hold a vocabulary: one of these sets is needed. Others only configure.
SETS = ((WHOLE,), ("vocab.txt",), ("vocab.json", "merges.txt"))
_CONFIGURE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
FILES = (*dict.fromkeys(name for names in SETS for name in names), *_CONFIGURE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What the files of a tokenizer hold.

    Attributes:
      tokens: all of them, the added ones too.
      whole: whether there is a tokenizer.json.
      model: its kind of model, such as WordPiece; "" without such a file.
    """

    tokens: frozenset[str]
    whole: bool
    model: str


def read_vocabulary(folder: Path) -> Vocabulary:
    """Reads the files of a folder's tokenizer.

    Raises:
      MissingFileError: there are none, or not all that belong together.
      FileError, OSError: one of them is broken, too large, or asks for code of its own.
    """
    if not any(all((folder / name).is_file() for name in names) for names in SETS):
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
    tokens = {line.rstrip("\r") for line in texts.get("vocab.txt", "").split("\n")}
    for name in ("vocab.json", "added_tokens.json"):
        if (record := objects.get(name)) is not None:
            tokens.update(_ids(record))
    if config is not None and "added_tokens_decoder" in config.values:
        tokens.update(_contents(config, config.get("added_tokens_decoder", dict).values()))
    if (whole := objects.get(WHOLE)) is None:
        return Vocabulary(tokens=frozenset(tokens), whole=False, model="")
    model = whole.record("model")
    added = _contents(whole, whole.get("added_tokens", list, []))
    return Vocabulary(
        tokens=frozenset({*tokens, *added, *_model_tokens(model)}), whole=True,
        model=model.get("type", str, ""),
    )  # fmt: skip


def _ids(record: Record) -> Iterable[str]:
    """The tokens of an object of ids."""
    for token in record.values:
        record.integer(token, 0)
    return record.values


def _contents(record: Record, tokens: Iterable[Any]) -> set[str]:
    """The texts of added tokens, each an object or a string."""
    found = set()
    for token in tokens:
        text = token.get("content") if isinstance(token, dict) else token
        if not isinstance(text, str):
            raise record.error("added tokens", repr(token)[:80], "an object with a content")
        found.add(text)
    return found


def _model_tokens(model: Record) -> Iterable[str]:
    """The vocabulary in tokenizer.json: ids by token, or pairs of token and score."""
    vocabulary = model.values.get("vocab")
    if isinstance(vocabulary, dict):
        return _ids(model.record("vocab"))
    if isinstance(vocabulary, list):
        return [str(pair[0]) for pair in vocabulary if isinstance(pair, list) and pair]
    raise FileError(model.path, "model.vocab", repr(vocabulary)[:80], "the tokens and their ids")
