"""Conversations as a chat template writes them, as tokens; which of them are the assistant's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from lora_jax.data.chat_templates import ChatTemplate, Job
from lora_jax.data.conversations import ASSISTANT, USER, Example, Message
from lora_jax.data.formats import Tokens, begin_token
from lora_jax.errors import FileError, InputError


class ChatFormat:
    """Conversations as a chat template writes them; the model learns all turns of the assistant.

    A turn of the assistant is what the template adds between the text up to its turn, with the generation
    prompt, and the text with it: its words, and the special token that ends the turn. Each of these texts
    must begin with the one before, as text and as tokens, or generation would not begin where training did.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: ChatTemplate,
        ends: Sequence[int] = (),
    ):
        """Takes the tokenizer and finds out by which token the template ends a turn.

        Args:
          tokenizer: the model's.
          template: its own or another one.
          ends: ids of tokens that end a text besides the template's, see `end_tokens`.

        Raises:
          FileError: the template cannot be used.
        """
        self._tokenizer, self._template = tokenizer, template
        added = tokenizer.added_tokens_decoder
        named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
        self._special = {i: str(t) for i, t in added.items() if t.special} | dict(named)
        begin = begin_token(tokenizer)
        self._begin = [] if begin is None else [begin]
        probe = Example((Message(USER, "a"), Message(ASSISTANT, "b")), template.source)
        ids, own = self.rows([probe])[0]
        end = ids[int(np.flatnonzero(own)[-1])]
        self.ends: tuple[int, ...] = tuple(dict.fromkeys((end, *ends)))

    def rows(self, examples: Sequence[Example]) -> list[Tokens]:
        """See `Format`.

        Raises:
          FileError: the template cannot be used.
          InputError: a text has one of the special tokens.
        """
        jobs: list[Job] = []
        counts = []
        for example in examples:
            turns = [i for i, m in enumerate(example.messages) if m.role == ASSISTANT]
            for i in turns:
                jobs += [(example.messages[:i], True), (example.messages[: i + 1], False)]
            counts.append(2 * len(turns))
            self._check_texts(example.messages, f"{example.where}: ")
        texts = self._template.render(jobs)
        tokens = self._encode(texts)
        rows, at = [], 0
        for example, count in zip(examples, counts, strict=True):
            here = slice(at, at + count)
            rows.append(self._row(texts[here], tokens[here], example.where))
            at += count
        return rows

    def prompts(self, conversations: Sequence[Sequence[Message]]) -> list[list[int]]:
        """See `Format`."""
        for messages in conversations:
            self._check_texts(messages, "")
        return self._encode(self._template.render([(m, True) for m in conversations]))

    def _row(self, texts: list[str], tokens: list[list[int]], where: str) -> Tokens:
        """The tokens of the last text, and where the assistant's are in it."""
        for number in range(1, len(texts)):
            before, after = number - 1, number
            if not texts[after].startswith(texts[before]):
                raise self._unstable(where, "words", texts[before], texts[after])
            if tokens[after][: len(tokens[before])] != tokens[before]:
                raise self._unstable(where, "tokens", texts[before], texts[after])
        ids = tokens[-1]
        own = np.zeros(len(ids), bool)
        for prompt, turn in zip(tokens[::2], tokens[1::2], strict=True):
            marks = [i for i in range(len(prompt), len(turn)) if turn[i] in self._special]
            behind = str(self._tokenizer.decode(turn[marks[-1] + 1 :])) if marks else "all"
            if behind.strip():
                raise FileError(
                    self._template.source, "the chat template",
                    f"no special token at the end of the assistant's turn ({where})",
                    "one, by which the model ends it, such as {{ eos_token }}",
                    "Give another template in config.data.chat_template, or set config.data.format='text'",
                )  # fmt: skip
            own[len(prompt) : marks[-1] + 1] = True
        return Tokens(ids, own)

    def _unstable(self, where: str, what: str, before: str, after: str) -> FileError:
        pairs = enumerate(zip(before, after, strict=False))
        same = next((i for i, (a, b) in pairs if a != b), min(len(before), len(after)))
        was, becomes = (text[max(0, same - 20) : same + 30] for text in (before, after))
        return FileError(
            self._template.source, "the chat template",
            f"{what} that change when the conversation goes on: {was!r} becomes {becomes!r} ({where})",
            "a template whose text only gets longer, so that a model is asked as it was taught",
            "Give another template in config.data.chat_template; where a text begins or ends with a line "
            "break, take it away",
        )  # fmt: skip

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        rows: list[list[int]] = self._tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]
        begin = self._begin
        return [ids if ids[: len(begin)] == begin else [*begin, *ids] for ids in rows]

    def _check_texts(self, messages: Sequence[Message], where: str) -> None:
        for message in messages:
            for token in self._special.values():
                if token in message.content:
                    raise InputError(
                        f"{where}the {message.role}'s text has the special token {token!r}, which would end "
                        "or forge a turn; write it in another way, such as with a blank in it"
                    )
