"""How conversations become tokens, and which of the tokens the model learns to write.

Training and generation share a format, so that a model is asked as it was taught: the tokens of a prompt are
the first tokens of its row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool
from transformers import PreTrainedTokenizerBase

from lora_jax.data.conversations import Example, Message
from lora_jax.errors import InputError

_BREAK = "\n"


class Tokens(NamedTuple):
    """An example as tokens.

    Attributes:
      ids: of its tokens.
      own: whether a token is one that the assistant writes, the end of its turn included.
    """

    ids: list[int]
    own: Bool[np.ndarray, " tokens"]


@runtime_checkable
class Format(Protocol):
    """How conversations are written for a model.

    Attributes:
      ends: ids of the tokens that end a turn of the assistant; it is taught to write the first of them.
    """

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids of the tokens that end a turn of the assistant."""
        ...

    def rows(self, examples: Sequence[Example]) -> list[Tokens]:
        """The tokens of whole examples; what follows the last turn of the assistant is left out."""
        ...

    def prompts(self, conversations: Sequence[Sequence[Message]]) -> list[list[int]]:
        """The tokens of conversations in which the assistant is to speak next."""
        ...


class PlainFormat:
    """A prompt and its completion, one behind the other: bpe(prompt + separator) + bpe(completion) + [eos].

    The two are tokenised apart. Then the tokens of the prompt do not depend on what follows, and generation
    begins where training did; tokenised together a token could reach over the border, such as `:\\n\\n`, and
    the model would have learned to begin inside of it. The price: where a word would have been one token with
    the blank before it (GPT-2's ` word`), it is another when the blank stands alone. So blanks at the end of
    prompt and separator are put in front of the completion, and the model writes them.

    Texts are texts: `<|endoftext|>` in them is not the end token. The begin token is put in front if the
    tokenizer does that (Llama's and Gemma's do, GPT-2's does not).
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, separator: str = "", ends: Sequence[int] = ()
    ):
        """Takes the model's tokenizer.

        Args:
          tokenizer: with an end token.
          separator: between prompt and completion.
          ends: ids of tokens that end a text besides the tokenizer's, see `end_tokens`.
        """
        self._tokenizer, self._separator = tokenizer, separator
        end = tokenizer.eos_token_id
        assert isinstance(end, int), "load_tokenizer makes sure of it"
        self._end = end
        self.ends: tuple[int, ...] = tuple(dict.fromkeys((end, *ends)))
        self._begin = [begin] if (begin := begin_token(tokenizer)) is not None else []
        # SentencePiece puts a blank in front of a text; behind other text there is none.
        first, behind = encode(["a", f"{_BREAK}a"], tokenizer)
        lone = encode([_BREAK], tokenizer)[0]
        self._anchored = behind[: len(lone)] == lone and behind[len(lone) :] != first

    def rows(self, examples: Sequence[Example]) -> list[Tokens]:
        """See `Format`."""
        heads = [self._head(example.prompt) for example in examples]
        prompts = self._encode([head for head, _ in heads])
        texts = [b + example.reference for (_, b), example in zip(heads, examples, strict=True)]
        rows = []
        for prompt, completion in zip(prompts, self._continued(texts), strict=True):
            ids = [*prompt, *completion, self._end]
            rows.append(Tokens(ids, np.arange(len(ids)) >= len(prompt)))
        return rows

    def prompts(self, conversations: Sequence[Sequence[Message]]) -> list[list[int]]:
        """See `Format`; a conversation is one message here."""
        return self._encode([self._head(messages)[0] for messages in conversations])

    def _head(self, messages: Sequence[Message]) -> tuple[str, str]:
        """The text before a completion, and the blanks at its end."""
        if len(messages) != 1:
            raise InputError(
                f"{len(messages)} messages, of which the format 'text' takes one: it has no roles. Set "
                "config.data.format='chat'"
            )
        whole = messages[0].content + self._separator
        head = whole.rstrip(" ")
        return (head, whole[len(head) :]) if head else (whole, "")

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [[*self._begin, *ids] for ids in encode(texts, self._tokenizer)]

    def _continued(self, texts: list[str]) -> list[list[int]]:
        if not self._anchored:
            return encode(texts, self._tokenizer)
        anchor = encode([_BREAK], self._tokenizer)[0]
        behind = encode([_BREAK + text for text in texts], self._tokenizer)
        alone = encode(texts, self._tokenizer)
        return [
            ids[len(anchor) :] if ids[: len(anchor)] == anchor else other
            for ids, other in zip(behind, alone, strict=True)
        ]


def begin_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Id of the token that the tokenizer puts in front of a text, None if it puts none."""
    begin = tokenizer.bos_token_id
    plain, whole = (
        tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True)
    )
    return begin if begin is not None and whole[:1] == [begin] != plain[:1] else None


def encode(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of texts in which special tokens are plain text."""
    if not texts:
        return []
    rows: list[list[int]] = tokenizer(
        texts, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False,
        verbose=False,
    )["input_ids"]  # fmt: skip
    return rows
