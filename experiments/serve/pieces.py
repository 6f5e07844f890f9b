"""Tokens as text, piece by piece: whole characters only, and nothing of a text that ends the continuation."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_HALF = "\N{REPLACEMENT CHARACTER}"


class Pieces:
    """The text of a growing continuation.

    Attributes:
      text: that was given out.
      stopped: whether one of the texts that end it has come.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]):
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self.text, self.stopped = "", False

    def add(self, tokens: Sequence[int], *, ended: bool) -> str:
        """What is new in the text.

        Args:
          tokens: all of the continuation so far.
          ended: whether no more will come, so that nothing is held back.
        """
        if self.stopped:
            return ""
        whole = str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))
        found = [at for stop in self._stop if (at := whole.find(stop)) >= 0]
        if found:
            self.stopped, whole = True, whole[: min(found)]
        elif not ended:
            whole = whole[: len(whole) - self._held(whole)]
        new = whole[len(self.text) :]
        self.text += new
        return new

    def _held(self, whole: str) -> int:
        """Characters at the end that may turn out to be others, or the beginning of a stop."""
        certain = whole.rstrip(_HALF)
        held = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(certain)), 0, -1):
                if certain.endswith(stop[:size]):
                    held = max(held, size)
                    break
        return held + len(whole) - len(certain)
