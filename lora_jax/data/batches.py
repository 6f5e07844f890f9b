"""Tokenised examples, and the batches of a run: determined by the seed, resumable at any step."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import grain
import jax
import numpy as np
from jaxtyping import Int
from transformers import PreTrainedTokenizerBase

from lora_jax import digests
from lora_jax.data.batch import Batch
from lora_jax.data.counts import Counts, count_packed
from lora_jax.data.glue import Examples
from lora_jax.data.packing import Integers, Packable, Shape, TokenisedExamples, place
from lora_jax.data.shapes import ShapeMenu, cheapest, choose_menu, rounded_up
from lora_jax.errors import InputError
from lora_jax.ranges import SEED, check

_SAMPLED = 256  # number of batches from which a run's shapes are chosen


def tokenise(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> TokenisedExamples:
    """Turns sentences or pairs into token ids, with the special tokens of the model.

    Args:
      examples: texts and labels.
      tokenizer: the model's, from `transformers`.
      max_length: most tokens of an example; longer ones are cut, the longer sentence of a pair
        first.
    """
    encoded = tokenizer(
        examples.first,
        examples.second,
        truncation="longest_first" if examples.second else True,
        max_length=max_length,
        return_token_type_ids=True,
        return_attention_mask=False,
    )
    ids = [np.asarray(row, np.int32) for row in encoded["input_ids"]]
    # RoBERTa has one token type; its tokenizer returns zeros.
    types = [np.asarray(row, np.int32) for row in encoded["token_type_ids"]]
    return TokenisedExamples(ids, types, examples.labels)


class TrainingBatches:
    """The batches of every epoch of a run.

    Epoch e is a permutation of the examples given by (seed, e), cut into batches of `batch_size`; the
    last batch may be smaller. Which examples batch b of epoch e has depends on these numbers alone;
    how it is laid out in rows depends also on `parts`.

    With a `row_length` all rows are that long. Then dropout masks depend on the batch alone, not on
    how many rows other batches need: runs with different orders can share a program, and each gives
    the same results as when it runs alone.

    Attributes:
      per_epoch: number of batches of an epoch.
      menu: shapes of the batches.
      slots: size of the slot arrays of a batch, unless it has more outputs.
    """

    def __init__(
        self,
        examples: Packable,
        *,
        batch_size: int,
        epochs: int,
        seed: int,
        hidden_size: int,
        max_length: int,
        parts: int = 1,
        row_length: int = 0,
    ):
        """Chooses the shapes of the run from a sample of its first epoch.

        Args:
          examples: tokenised examples.
          batch_size: number of examples of a batch.
          epochs: number of epochs of the run; more of them make more shapes worth their compilation.
          seed: decides the order of the examples.
          hidden_size: width of the model, for the choice of shapes.
          max_length: longest possible example, in tokens.
          parts: number of equal parts in which the devices share the rows out.
          row_length: length of all rows in tokens; 0 leaves it to the choice of shapes.

        Raises:
          ValueError: there are no examples, `batch_size` is not positive, or an example is longer
            than `row_length`.
        """
        if batch_size < 1 or not len(examples):
            raise InputError(f"need examples and a positive batch size, got {len(examples)} examples "
                             f"and batch_size {batch_size}")  # fmt: skip
        self.examples = examples
        self.batch_size = batch_size
        self.seed = check("seed", seed, SEED)
        self.per_epoch = -(-len(examples) // batch_size)
        lengths = examples.lengths
        order = self.order(0, seed)
        sample = [order[number] for number in range(min(self.per_epoch, _SAMPLED))]
        if row_length and max(lengths) > row_length:
            raise InputError(
                f"rows of {row_length} tokens cannot hold the longest example, which has "
                f"{max(lengths)}; set config.data.row_length (or data.max_length) to that at least"
            )
        self.menu: ShapeMenu = choose_menu(
            [lengths[indices] for indices in sample],
            steps=self.per_epoch * epochs,
            hidden_size=hidden_size,
            max_length=row_length or max_length,
            parts=parts,
            fixed=row_length > 0,
        )
        self.slots = examples.slots(sample)
        self._lengths = lengths

    @functools.cached_property
    def digest(self) -> str | None:
        """What tells these batches from those of other examples; None if the examples have no digest."""
        of_examples = getattr(self.examples, "digest", None)
        settings = [self.batch_size, self.seed, self.menu.shapes]
        return of_examples and digests.of_texts([of_examples, *map(str, settings)])

    def order(self, epoch: int, seed: int) -> grain.MapDataset:
        """The indices of the examples of every batch of an epoch."""
        shuffling = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
        order = grain.MapDataset.range(len(self.examples)).shuffle(seed=shuffling)
        return order.batch(self.batch_size, drop_remainder=False)

    def _layout(self, indices: Integers) -> tuple[Shape, int]:
        """Shape and number of slots of a batch of these examples."""
        shape = self.menu.choose(self._lengths[indices].tolist())
        enough = self.examples.outputs(indices) <= self.slots
        return shape, self.slots if enough else self.examples.slots([indices])

    def _packed(self, indices: Integers) -> Batch:
        return self.examples.pack(indices, *self._layout(indices))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Iterates over the batches of an epoch.

        Args:
          epoch: number of the epoch, from 0.
          start: number of the first batch wanted.
        """
        order = self.order(epoch, self.seed)
        for number in range(start, self.per_epoch):
            yield self._packed(order[number])

    def count(self, batch: Batch) -> Counts:
        """Examples and tokens of a batch, see `count_packed`."""
        return count_packed(batch)


class BatchesOfRuns(TrainingBatches):
    """The batches of several runs, each in the order of its seed: arrays have a first axis of runs.

    Run i's examples, their slots and their places in the rows are those of `TrainingBatches` with
    the run's seed and the same `row_length`. The number of rows is the largest that a run asks for,
    with the shapes chosen for the first seed.
    """

    def __init__(
        self,
        examples: Packable,
        *,
        batch_size: int,
        epochs: int,
        seeds: Sequence[int],
        hidden_size: int,
        row_length: int,
        parts: int = 1,
    ):
        """Chooses the shapes from the order of the first seed.

        Args:
          examples: tokenised examples, the same for all runs.
          batch_size: number of examples of a batch.
          epochs: number of epochs of each run.
          seeds: of every run's order; runs with equal seeds have equal batches.
          hidden_size: width of the model, for the choice of shapes.
          row_length: length of all rows in tokens.
          parts: number of equal parts in which the devices share the rows out.
        """
        super().__init__(
            examples,
            batch_size=batch_size,
            epochs=epochs,
            seed=seeds[0],
            hidden_size=hidden_size,
            max_length=row_length,
            parts=parts,
            row_length=row_length,
        )
        self.seeds = tuple(dict.fromkeys(check("seed", seed, SEED) for seed in seeds))
        self._order_of_run = [self.seeds.index(seed) for seed in seeds]

    def _stacked(self, orders: Sequence[Integers]) -> Batch:
        """Packs one batch of every order into equal shapes and stacks those of all runs."""
        layouts = [self._layout(indices) for indices in orders]
        shape, slots = max(shape for shape, _ in layouts), max(slots for _, slots in layouts)
        packed = [self.examples.pack(indices, shape, slots) for indices in orders]
        runs = [packed[order] for order in self._order_of_run]
        stacked: Batch = jax.tree.map(lambda *fields: np.stack(fields), *runs)
        return stacked

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Iterates over the batches of an epoch; arguments as of `TrainingBatches.epoch`."""
        orders = [self.order(epoch, seed) for seed in self.seeds]
        for number in range(start, self.per_epoch):
            yield self._stacked([order[number] for order in orders])


def evaluation_batches(
    examples: Packable, hidden_size: int, max_length: int, tokens: int = 4096, parts: int = 1
) -> list[tuple[Int[np.ndarray, " _"], Batch]]:
    """Packs all examples once, in batches of one shape.

    Args:
      examples: tokenised examples.
      hidden_size: width of the model, for the choice of the row length.
      max_length: longest possible example, in tokens.
      tokens: size of a batch in tokens, at most (one row, if that is longer).
      parts: number of equal parts in which the devices share the rows out.

    Returns:
      (indices of the examples, batch) pairs; the batch's first slots are those examples' outputs.
    """
    lengths = examples.lengths
    length = cheapest(lengths, hidden_size, max_length)[1]
    places, used = place(lengths, length)
    rows = rounded_up(max(1, min(tokens // length, used)), parts)
    groups: list[list[int]] = [[] for _ in range(-(-used // rows))]
    for index, (row, _) in enumerate(places):
        groups[row // rows].append(index)
    slots = examples.slots(groups)
    return [(np.array(group), examples.pack(group, (rows, length), slots)) for group in groups]
