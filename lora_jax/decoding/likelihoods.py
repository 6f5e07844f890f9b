"""Log likelihoods of given continuations of prompts: how multiple-choice questions are put to a decoder.

Of every prompt a few continuations are compared, such as the names of classes, each by the sum of its
tokens' log probabilities (GPT-3: Brown et al. 2020, section 2.4). The model reads as little as it can: a
continuation's last token is predicted but not read, and what a continuation shares with another one of the
same prompt is read once. Continuations of one token each cost one row a prompt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float64, Int64

from lora_jax.data.batch import Batch
from lora_jax.data.packing import Integers, Shape, TokenSequences, lay_out, with_slots
from lora_jax.errors import InputError

_STEP = 8  # the slots of a batch are a multiple of this


class Question(NamedTuple):
    """A prompt and the continuations that are compared, as token ids.

    Attributes:
      prompt: at least one token.
      choices: continuations of at least one token each.
    """

    prompt: Sequence[int]
    choices: Sequence[Sequence[int]]


@dataclasses.dataclass(frozen=True)
class ChoiceRows(TokenSequences):
    """The rows that a model reads to score all choices of some questions.

    Choices are numbered through, those of the first question first.

    Attributes:
      ids: tokens of every row: a prompt and the beginnings of its choices.
      places: of every row, the columns of the tokens whose next token is scored.
      targets: the scored tokens.
      choices: the choice that each scored token belongs to.
      count: number of choices.
    """

    places: list[np.ndarray]
    targets: list[np.ndarray]
    choices: list[np.ndarray]
    count: np.int64

    def outputs(self, indices: Integers) -> int:
        """Number of outputs of a batch: one per scored token."""
        return sum(len(self.targets[int(i)]) for i in indices)

    def slots(self, batches: Iterable[Integers]) -> int:
        """Number of slots with which every one of these batches has enough."""
        return -(-max(map(self.outputs, batches)) // _STEP) * _STEP

    def pack(self, indices: Integers, shape: Shape, slots: int) -> Batch:
        """Packs the rows at `indices`, see `packing.Packable`."""
        inputs, starts = lay_out([self.ids[int(i)] for i in indices], shape)
        rows, columns, targets = [], [], []
        for index, (row, column) in zip(indices, starts, strict=True):
            places = self.places[int(index)]
            rows.append(np.full(len(places), row, np.int32))
            columns.append(places + np.int32(column))
            targets.append(self.targets[int(index)])
        outputs = np.concatenate(rows), np.concatenate(columns), np.concatenate(targets)
        return with_slots(inputs, *outputs, slots)

    def owners(self, indices: Integers) -> Int64[np.ndarray, " outputs"]:
        """The choices that the first slots of such a batch belong to."""
        return np.concatenate([self.choices[int(i)] for i in indices])

    @property
    def tokens(self) -> Int64[np.ndarray, " choices"]:
        """Number of tokens of every choice."""
        return np.bincount(np.concatenate(self.choices), minlength=int(self.count))

    def sums(
        self, indices: Sequence[Integers], values: Sequence[Float[np.ndarray, " _"]]
    ) -> Float64[np.ndarray, " choices"]:
        """The log likelihood of every choice.

        Args:
          indices: rows of every batch; all rows once.
          values: log probabilities of the batches' scored tokens.
        """
        result = np.zeros(int(self.count))
        for rows, of_tokens in zip(indices, values, strict=True):
            np.add.at(result, self.owners(rows), np.asarray(of_tokens, np.float64))
        return result


def choice_rows(questions: Sequence[Question]) -> ChoiceRows:
    """Lays out the rows for some questions.

    Raises:
      ValueError: a prompt or a choice has no token.
    """
    rows: list[_Row] = []
    first = 0
    for number, (prompt, choices) in enumerate(questions):
        if not len(prompt) or not all(map(len, choices)):
            raise InputError(
                f"question {number}: a prompt and each of its choices need at least one token"
            )
        rows += _rows(tuple(prompt), [tuple(choice) for choice in choices], first)
        first += len(choices)
    ids, places, targets, owners = (list(column) for column in zip(*rows, strict=True))
    return ChoiceRows(ids, places, targets, owners, np.int64(first))


class _Row(NamedTuple):
    """A row of `ChoiceRows`."""

    ids: np.ndarray
    places: np.ndarray
    targets: np.ndarray
    choices: np.ndarray


def _rows(prompt: tuple[int, ...], choices: Sequence[tuple[int, ...]], first: int) -> list[_Row]:
    """The rows of one question, whose choices are numbered from `first`."""
    read = {choice[:-1] for choice in choices}
    kept = sorted(own for own in read if not any(_begins(other, own) for other in read - {own}))
    rows = []
    for beginning in kept:
        places: list[int] = []
        targets: list[int] = []
        owners: list[int] = []
        for number, choice in enumerate(choices):
            # Its tokens are scored in the first row that begins as it does.
            if next(own for own in kept if _begins(own, choice[:-1])) == beginning:
                places += range(len(prompt) - 1, len(prompt) - 1 + len(choice))
                targets += choice
                owners += [first + number] * len(choice)
        ids, at = np.array(prompt + beginning, np.int32), np.array(places, np.int32)
        rows.append(_Row(ids, at, np.array(targets, np.int32), np.array(owners, np.int64)))
    return rows


def _begins(whole: tuple[int, ...], beginning: tuple[int, ...]) -> bool:
    return whole[: len(beginning)] == beginning


def log_probabilities(model: nnx.Module, batch: Batch) -> Float[Array, " slots"]:
    """The log probability (float32) of the token of every slot of a packed batch; unused slots give 0."""
    logits = model(batch.inputs, batch.rows, batch.columns)  # type: ignore[operator]
    every = jax.nn.log_softmax(logits.astype(jnp.float32))
    return (
        jnp.take_along_axis(every, jnp.asarray(batch.labels)[:, None], axis=1)[:, 0] * batch.weights
    )


def split(question_ids: Sequence[int], whole: Sequence[Sequence[int]]) -> Question:
    """A question from a prompt's tokens and those of the prompt with each continuation behind it.

    A tokenizer may join the prompt's end and the continuation's beginning in one token: then the question's
    prompt ends before the first token in which any of the texts differs from the prompt.

    Args:
      question_ids: tokens of the prompt alone.
      whole: tokens of prompt and continuation.
    """
    shared = min(_common(question_ids, ids) for ids in whole)
    return Question(tuple(whole[0][:shared]), [tuple(ids[shared:]) for ids in whole])


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    differing = (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))
