"""The tokens that a model ends its texts with, besides the end token of its tokenizer.

A model that was tuned to chat often has two: one for the end of a turn, one for the end of a text
(Llama 3: `<|eot_id|>` and `<|end_of_text|>`). Folders name them in generation_config.json, GGUF files as
`tokenizer.ggml.eot_token_id` and `eom_token_id`; transformers and llama.cpp end at any of them.
"""

from __future__ import annotations

from pathlib import Path

from lora_jax.errors import brief
from lora_jax.gguf.container import SUFFIX, Container
from lora_jax.reading import Record, read_object

_KEY = "eos_token_id"
_OF_GGUF = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))


def end_tokens(folder: Path, vocab_size: int) -> tuple[int, ...]:
    """The ids of all tokens that end a text of the model, without repetitions.

    Args:
      folder: of the model, or a GGUF file.
      vocab_size: of the model.

    Returns:
      What generation_config.json says, or else config.json, as in transformers; () if neither does. Of a
      GGUF file the ends of a text, of a turn and of a message, where it has them.

    Raises:
      FileError, OSError: a broken file, or an id that the model has no row for.
    """
    if folder.suffix == SUFFIX:
        container = Container(folder)
        packed = Record(container.path, container.metadata)
        keys = [key for key in _OF_GGUF if key in packed.values]
        return tuple(dict.fromkeys(packed.integer(key, 0, vocab_size - 1) for key in keys))
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        record = read_object(path) if path.is_file() else Record(path, {})
        if (value := record.values.get(_KEY)) is not None:
            return _checked(record, value, vocab_size)
    return ()


def _checked(record: Record, value: object, vocab_size: int) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [value]
    for number in ids:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < vocab_size:
            expected = f"ids of tokens, from 0 to {vocab_size - 1}"
            raise record.error(_KEY, brief(value), expected)
    return tuple(dict.fromkeys(ids))
