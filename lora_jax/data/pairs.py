"""Pairs of data and text: what models are trained on and scored by in every data-to-text corpus."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lora_jax.data.balanced import first_of_each
from lora_jax.errors import InputError

_END = "<|endoftext|>"


class Row(NamedTuple):
    """One reference text of a corpus, with its data; see `Pairs` for the columns."""

    context: str
    completion: str
    subset: str = ""


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The rows of a corpus by column: one row for each reference text, in the order of the file.

    Attributes:
      contexts: the data as one line, as the paper's public code feeds it to the model.
      completions: one reference text each, without the blank that the token stream puts in front.
      subsets: 'seen' or 'unseen' (WebNLG: whether the category is in the training set), '' elsewhere.
      notes: what a reader of the results must know about the data, '' if nothing: a train set that
        is only a part, or text derived from another format.
      classes: what the completions are where they are names of classes, in the order of the data set's
        class ids; () elsewhere.

    Raises:
      ValueError: the lists differ in length.
    """

    contexts: list[str]
    completions: list[str]
    subsets: list[str]
    notes: str = ""
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sizes = len(self.contexts), len(self.completions), len(self.subsets)
        if len(set(sizes)) > 1:
            raise InputError(
                "Pairs need one context, completion and subset a row: got "
                f"{sizes[0]} contexts, {sizes[1]} completions and {sizes[2]} subsets."
            )

    def __len__(self) -> int:
        return len(self.contexts)

    def take(self, limit: int) -> Pairs:
        """Returns the first `limit` rows, or all when `limit` is not positive."""
        if limit <= 0:
            return self
        return self._rows(range(min(limit, len(self))))

    def balanced(self, limit: int) -> Pairs:
        """Returns the first rows of each class, `limit` in all and as many of each, in order.

        So are the small training sets of the paper's Table 16; see `balanced.first_of_each`.

        Args:
          limit: number of rows; if it is not positive, as many as the rarest class has of each.

        Raises:
          ValueError: the completions are no classes, or a class has too few rows.
        """
        if not self.classes:
            raise InputError(
                "Balanced examples need classes, and the texts of this data set are not labels: leave "
                "data.balanced out"
            )
        ids = {name: number for number, name in enumerate(self.classes)}
        labels = np.array([ids[name] for name in self.completions], np.int32)
        return self._rows(first_of_each(labels, limit, self.classes).tolist())

    def _rows(self, indices: Sequence[int]) -> Pairs:
        contexts, completions, subsets = (
            [column[i] for i in indices]
            for column in (self.contexts, self.completions, self.subsets)
        )
        return dataclasses.replace(
            self, contexts=contexts, completions=completions, subsets=subsets
        )


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """What models are evaluated on: every different context once, with all its references.

    Attributes:
      contexts: in order of first appearance.
      references: all completions of each context, in order, as `clean` leaves them.
      subsets: 'seen', 'unseen' or '', one for each context.
    """

    contexts: list[str]
    references: list[list[str]]
    subsets: list[str]

    def __len__(self) -> int:
        return len(self.contexts)

    def take(self, limit: int) -> EvaluationSet:
        """Returns the first `limit` contexts, or all when `limit` is not positive."""
        if limit <= 0:
            return self
        return EvaluationSet(self.contexts[:limit], self.references[:limit], self.subsets[:limit])


def by_context(pairs: Pairs) -> EvaluationSet:
    """Gathers the references of every context, as the public code does before it scores (gpt2_decode.py).

    Blank references are left out, as the scorers do.

    Raises:
      ValueError: a context is both in the seen and in the unseen subset, or has blank references
        only, which holds for no row of the official data.
    """
    references: dict[str, list[str]] = {}
    subsets: dict[str, str] = {}
    for context, completion, subset in zip(
        pairs.contexts, pairs.completions, pairs.subsets, strict=True
    ):
        texts = references.setdefault(context, [])
        texts += [text] if (text := clean(completion)) else []
        if subsets.setdefault(context, subset) != subset:
            raise InputError(
                f"The context {context[:80]!r} is in the subsets {subsets[context]!r} and "
                f"{subset!r}; a context must be in one. Give each a category of one subset."
            )
    if blank := [context for context, texts in references.items() if not texts]:
        raise InputError(f"The context {blank[0][:80]!r} has no reference but blank ones.")
    return EvaluationSet(list(references), list(references.values()), list(subsets.values()))


def clean(text: str) -> str:
    """Cuts a decoded text at its end marker, then at its first empty line, and strips it.

    The public code (gpt2_decode.py) does this to outputs and to references.
    """
    return text.split(_END)[0].split("\n\n")[0].strip()
