"""The format of a tuning run: made from its config, kept in its record, made again for generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from experiments.runs.tune_data import CHAT
from lora_jax.data.chat_format import ChatFormat
from lora_jax.data.chat_templates import ChatTemplate, of_tokenizer, special_tokens
from lora_jax.data.formats import Format, PlainFormat


def make(
    form: str,
    tokenizer: PreTrainedTokenizerBase,
    separator: str,
    template: ChatTemplate | None,
    ends: Sequence[int] = (),
) -> Format:
    """The format of a name.

    Args:
      form: `text` or `chat`.
      tokenizer: of the model.
      separator: between prompt and completion, of `text`.
      template: of `chat`.
      ends: the model's own end tokens, see `end_tokens`.

    Raises:
      FileError: the chat template cannot be used.
    """
    if form == CHAT:
        assert template is not None
        return ChatFormat(tokenizer, template, ends)
    return PlainFormat(tokenizer, separator, ends)


def chat_template(
    form: str, tokenizer: PreTrainedTokenizerBase, path: str, text: str = ""
) -> ChatTemplate | None:
    """The chat template that a format needs; None for `text`.

    Args:
      form: `text` or `chat`.
      tokenizer: of the model.
      path: of a file with a template; "" for the tokenizer's own.
      text: of the template, where a record has it.
    """
    if form != CHAT:
        return None
    if text:
        return ChatTemplate(text, "the run's record", special_tokens(tokenizer))
    return of_tokenizer(tokenizer, path)


def record(form: str, data: Mapping[str, Any], template: ChatTemplate | None) -> dict[str, str]:
    """What a run's record says of its format: all that generation needs."""
    names = ("template", "separator", "system", "messages", "completion")
    return {
        "format": form,
        **{name: str(data[name]) for name in names},
        "chat_template": "" if template is None else template.text,
    }
