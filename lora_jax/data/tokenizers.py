"""The tokenizer of a model folder, and whether it belongs to the model and to the text.

transformers makes a tokenizer of a few special tokens where a folder has no files of one, and adds
tokens that an embedding has no row for. Both train without an error, so both are refused here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lora_jax import digests
from lora_jax.data import gguf_tokenizer
from lora_jax.data.packing import TokenisedExamples
from lora_jax.data.tokenizer_files import FILES, Vocabulary, read_vocabulary
from lora_jax.errors import FileError, InputError
from lora_jax.gguf.container import SUFFIX, Container
from lora_jax.reading import Record, read_object

# Special tokens without which a task cannot be done.
ENCODER = ("cls_token", "sep_token", "pad_token", "unk_token")
DECODER = ("eos_token",)

_SAMPLED = 1000  # texts of a split that are looked at
_SPARE_ROWS, _SPARE_SHARE = 128, 0.05  # of an embedding, without a token
_PROBED = 2000  # tokens that `behaviour` looks at
_PROBES = (
    "The quick brown fox JUMPS over the lazy dog's 1,234.50 naïve café; it isn't\there yet!",
    "  two  spaces\nand a new line | name : Blue Spice, food : Café-crème (50 €) 中文 \U0001f600",
)  # fmt: skip
_BELONGS = (
    "The tokenizer is not the model's: copy the model's tokenizer files into the folder, or save it "
    "there with tokenizer.save_pretrained(folder)"
)


def load_tokenizer(
    folder: Path, needed: Sequence[str] = (), vocab_size: int | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, if it belongs to the model; no code of the folder is run.

    Args:
      folder: with the tokenizer's files, and config.json if it is of a model; or a GGUF file.
      needed: special tokens that a task cannot do without: `ENCODER` or `DECODER`.
      vocab_size: of the model; None where there is none yet.

    Raises:
      MissingFileError: no tokenizer files.
      FileError, OSError: broken files, a tokenizer of another model, or code of its own.
    """
    packed = Container(folder) if folder.suffix == SUFFIX else None
    vocabulary = read_vocabulary(folder) if packed is None else gguf_tokenizer.vocabulary(packed)
    wanted = _wanted_ids(folder) if packed is None else {}
    try:
        tokenizer = _read(folder) if packed is None else gguf_tokenizer.build(packed)
        _check(folder, tokenizer, vocabulary, needed)
        _try(tokenizer, pairs="cls_token" in needed)
    except (FileError, KeyboardInterrupt, SystemExit):
        raise
    except (
        BaseException
    ) as error:  # what they raise has many kinds; a panic in Rust is no Exception
        raise FileError(
            folder, "", f"tokenizer files that cannot be used ({type(error).__name__}: {error})",
            "the files of a tokenizer", "Copy them again from where the model is from",
        ) from error  # fmt: skip
    ids = tokenizer.get_vocab()
    last = max(ids, key=lambda token: ids[token], default="")
    if vocab_size is not None and ids.get(last, 0) >= vocab_size:
        raise FileError(
            folder, "the tokenizer", f"the token {last!r} with id {ids[last]}",
            f"ids below the model's vocab_size, {vocab_size}",
            f"{_BELONGS}. If tokens were added on purpose, give the model rows for them: "
            "model.resize_token_embeddings(len(tokenizer)), then save it",
        )  # fmt: skip
    if vocab_size is not None:
        _check_count(folder, len(set(ids.values())), vocab_size)
    _check_ids(folder, tokenizer, wanted, "cls_token" in needed)
    return tokenizer


def _read(folder: Path) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        str(folder), trust_remote_code=False, local_files_only=True
    )
    return tokenizer


def _check_count(folder: Path, tokens: int, vocab_size: int) -> None:
    """Raises FileError if far fewer tokens than the model has rows for show that a file was cut.

    Models have rows to spare: up to a multiple of 128, or some hundred of a large vocabulary.
    """
    if vocab_size - tokens > max(_SPARE_ROWS, _SPARE_SHARE * vocab_size):
        raise FileError(
            folder, "the tokenizer", f"{tokens:,} tokens",
            f"about as many as the model has rows for, {vocab_size:,} (vocab_size): its vocabulary was cut, "
            "or is another model's",
            f"{_BELONGS}. If the model really has so few tokens, give it as many rows: "
            "model.resize_token_embeddings(len(tokenizer)), then save it",
        )  # fmt: skip


def _check(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
    needed: Sequence[str],
) -> None:
    """Raises FileError if the files are not those of this tokenizer, or special tokens are missing."""
    kind = type(tokenizer).__name__
    if not vocabulary.whole:
        files = {n for k, n in tokenizer.vocab_files_names.items() if k != "tokenizer_file"}
        if missing := sorted(name for name in files if not (folder / name).is_file()):
            raise FileError(
                folder, "", f"no {' and no '.join(missing)}", f"the files of a {kind}", _BELONGS
            )
    backend = getattr(tokenizer, "backend_tokenizer", None)  # of Rust; a few are of Python alone
    model = "" if backend is None else type(backend.model).__name__
    if model and vocabulary.model and model != vocabulary.model:
        raise FileError(
            folder / "tokenizer.json", "model.type", vocabulary.model,
            f"{model}, which a {kind} has", _BELONGS,
        )  # fmt: skip
    for name in needed:
        token = getattr(tokenizer, name)
        if token is None:
            raise FileError(folder, "the tokenizer", f"no {name}", "one, as the task needs it")
        if str(token) not in vocabulary.tokens:
            raise FileError(
                folder, "the tokenizer", f"no token {str(token)!r} in its files",
                f"one, as the {name} of a {kind}", _BELONGS,
            )  # fmt: skip
    _check_named(folder, tokenizer, vocabulary, "cls_token" in needed)
    if "cls_token" in needed:
        ids = tokenizer("a")["input_ids"]
        if ids[0] != tokenizer.cls_token_id or ids[-1] != tokenizer.sep_token_id:
            raise FileError(
                folder, "the tokenizer", f"the text 'a' as {tokenizer.convert_ids_to_tokens(ids)}",
                f"{tokenizer.cls_token} before and {tokenizer.sep_token} behind it", _BELONGS,
            )  # fmt: skip


def _check_named(
    folder: Path, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, encoder: bool
) -> None:
    """Raises FileError if the configuring files name other special tokens than tokenizer.json."""
    named = {"unk_token": vocabulary.unknown}
    if encoder and vocabulary.around:
        named |= dict(zip(("cls_token", "sep_token"), vocabulary.around, strict=True))
    for name, expected in named.items():
        token = getattr(tokenizer, name)
        if expected is not None and token is not None and str(token) != expected:
            raise FileError(
                folder / "tokenizer_config.json", name, repr(str(token)),
                f"{expected!r}, as in tokenizer.json (or no such key)", _BELONGS,
            )  # fmt: skip


# Ids that are used here although a config.json may leave them out, by model_type.
_DEFAULTS: dict[str, dict[str, Any]] = {
    name: {"pad_token_id": 1} for name in ("roberta", "xlm-roberta", "camembert")
}
_IDS = tuple(f"{name}_token_id" for name in ("pad", "bos", "eos", "cls", "sep", "unk", "mask"))


def _try(tokenizer: PreTrainedTokenizerBase, pairs: bool) -> None:
    """Raises whatever it likes if the tokenizer cannot do what runs do; its settings are unchecked."""
    texts = ["a b c", "a" * 40]
    for special in (True, False):
        ids = tokenizer(texts, add_special_tokens=special, split_special_tokens=True)["input_ids"]
        tokenizer.batch_decode(ids)
    if pairs:
        for second, cut in ((texts, "longest_first"), (None, True)):
            tokenizer(texts, second, truncation=cut, max_length=8, return_token_type_ids=True)


def _wanted_ids(folder: Path) -> dict[str, list[int]]:
    """The ids of special tokens that config.json names, if there is one; any of a list is right."""
    path = folder / "config.json"
    config = read_object(path) if path.is_file() else Record(path, {})
    values = {**_DEFAULTS.get(str(config.values.get("model_type")), {}), **config.values}
    wanted = {}
    for key in _IDS:
        if (value := values.get(key)) is not None:
            wanted[key] = value if isinstance(value, list) and key == "eos_token_id" else [value]
            if not all(isinstance(i, int) and not isinstance(i, bool) for i in wanted[key]):
                raise config.error(key, repr(value)[:80], "an integer")
    return wanted


def _check_ids(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    wanted: Mapping[str, list[int]],
    encoder: bool,
) -> None:
    """Raises FileError if config.json gives a special token of the tokenizer another id."""
    for key, allowed in wanted.items():
        found = getattr(tokenizer, key, None)
        # experiments.pretrain wrote the end token of a decoder as both.
        both = key == "bos_token_id" and tokenizer.eos_token_id in allowed and not encoder
        if found is not None and found not in allowed and not both:
            raise FileError(
                folder / "config.json", key, ", ".join(map(str, allowed)),
                f"{found}, the id of {str(getattr(tokenizer, key.removesuffix('_id')))!r} in the "
                f"tokenizer of {folder}", _BELONGS,
            )  # fmt: skip


def digest(folder: Path) -> str:
    """What tells the tokenizer of a folder or GGUF file from others: a digest of its files."""
    if folder.suffix == SUFFIX:
        return digests.of_files([folder])
    return digests.of_files(path for name in FILES if (path := folder / name).is_file())


def behaviour(tokenizer: PreTrainedTokenizerBase) -> str:
    """What tells a tokenizer from others that make other ids of a text, whatever its files look like.

    It is a digest of all tokens with their ids, and of what becomes of some texts: of two thousand of the
    tokens, which shows merges, and of a line that normalisation and the splitting into words change.
    """
    ids = sorted(tokenizer.get_vocab().items())
    texts = [*_PROBES, *(token for token, _ in ids[:: -(-len(ids) // _PROBED) or 1])]
    whole = [[*tokenizer(text)["input_ids"]] for text in _PROBES]
    rows = [*_encoded(texts, tokenizer), *whole]
    return digests.of_texts(
        [*(f"{i} {token}" for token, i in ids), *(" ".join(map(str, row)) for row in rows)]
    )


def size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows that an embedding of all its tokens has; more than its tokens if ids are left out."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def check_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Raises InputError if most of the text is unknown to the tokenizer.

    Args:
      texts: of a split; a thousand of them are looked at.
      tokenizer: from `load_tokenizer`.
      where: name of the split, for messages.
    """
    step = max(1, -(-len(texts) // _SAMPLED))
    sample = [text for text in texts[::step] if text.strip()]
    if not sample:
        return
    rows = _encoded(sample, tokenizer)
    unknown = [row.count(tokenizer.unk_token_id) for row in rows]
    total, empty = sum(map(len, rows)), sum(not row for row in rows)
    if 2 * sum(unknown) <= total and 2 * empty <= len(rows):
        return
    token, worst = tokenizer.unk_token, max(
        range(len(rows)), key=lambda i: unknown[i] / len(rows[i]) if rows[i] else 1.0
    )  # fmt: skip
    words = sample[worst].split()
    encoded = _encoded(words, tokenizer)
    of_word = next(
        (i for i, row in enumerate(encoded) if all(x == tokenizer.unk_token_id for x in row)), 0
    )
    what = f"{sum(unknown):,} of {total:,} tokens are the unknown token {token!r}"
    if 2 * empty > len(rows):
        what = f"{empty:,} of {len(rows):,} texts have no token at all"
    becomes = tokenizer.convert_ids_to_tokens(encoded[of_word][:8])
    raise InputError(
        f"{where}: {what}, such as {words[of_word][:40]!r}, which becomes {becomes}. The tokenizer of "
        f"{tokenizer.name_or_path} does not belong to the text or to the model"
    )


def _encoded(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    rows: list[list[int]] = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, verbose=False
    )["input_ids"]
    return rows


def check_types(examples: TokenisedExamples, type_vocab_size: int, where: str) -> None:
    """Raises InputError if an example has a token type that the model has no embedding of.

    Args:
      examples: of a split.
      type_vocab_size: of the model; 0 for one that has no token types and does not read them.
      where: name of the split, for messages.
    """
    if not type_vocab_size:
        return
    most = max((int(types.max(initial=0)) for types in examples.types), default=0)
    if most >= type_vocab_size:
        raise InputError(
            f"{where}: the tokenizer gives token type {most}, the model knows {type_vocab_size} "
            f"(type_vocab_size): they do not belong together, or the model cannot read pairs"
        )
