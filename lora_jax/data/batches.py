"""Tokenising, and the batches of a run: deterministic from the seed, resumable at any step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import grain
import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from lora_jax.data.batch import Batch
from lora_jax.data.counts import Counts, count_packed
from lora_jax.data.glue import Examples
from lora_jax.data.packing import (
    Packable,
    Shape,
    ShapeMenu,
    TokenisedExamples,
    choose_menu,
    place,
    rounded_up,
    smallest,
)

_SAMPLED = 256  # batches from which a run's shapes are chosen


def tokenise(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> TokenisedExamples:
    """Token ids of sentences or pairs, with the special tokens of the model.

    Args:
      examples: texts and labels.
      tokenizer: from `transformers`.
      max_length: longer examples are cut, the longer sentence of a pair first.
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

    Order: epoch e is a permutation given by (seed, e), cut into batches of `batch_size`; the last
    one may be smaller. Batch b of epoch e is a function of these numbers alone; how it is laid out in
    rows depends also on `parts`, in which the devices share the rows out.

    With a `row_length` all rows are that long. Then dropout masks depend on the batch alone, not on
    how many rows other batches need: runs with different orders can share a program and be those alone.
    """

    def __init__(
        self,
        examples: Packable,
        batch_size: int,
        epochs: int,
        seed: int,
        hidden_size: int,
        max_length: int,
        parts: int = 1,
        row_length: int = 0,
    ):
        if batch_size < 1 or not len(examples):
            raise ValueError(f"need examples and a positive batch size, got {len(examples)} examples "
                             f"and batch_size {batch_size}")  # fmt: skip
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        self.per_epoch = -(-len(examples) // batch_size)
        lengths = examples.lengths
        first = self._indices(0)
        sample = [first[i] for i in range(min(self.per_epoch, _SAMPLED))]
        if row_length and max(lengths) > row_length:
            raise ValueError(
                f"rows of {row_length} tokens cannot hold the longest example, which has "
                f"{max(lengths)}; set config.data.row_length (or data.max_length) to that at least"
            )
        steps = self.per_epoch * epochs
        sampled = [lengths[indices] for indices in sample]
        self.menu: ShapeMenu = choose_menu(
            sampled, steps, hidden_size, row_length or max_length, parts=parts, fixed=row_length > 0
        )
        self.slots = examples.slots(sample)
        self._lengths = lengths

    def _indices(self, epoch: int, seed: int | None = None) -> grain.MapDataset:
        own = self.seed if seed is None else seed
        shuffling = int(np.random.SeedSequence([own, epoch]).generate_state(1)[0])
        order = grain.MapDataset.range(len(self.examples)).shuffle(seed=shuffling)
        return order.batch(self.batch_size, drop_remainder=False)

    def _layout(self, indices: np.ndarray) -> tuple[Shape, int]:
        """Shape and slots of a batch of these examples."""
        shape = self.menu.choose(self._lengths[indices].tolist())
        enough = self.examples.outputs(indices) <= self.slots
        return shape, self.slots if enough else self.examples.slots([indices])

    def _packed(self, indices: np.ndarray) -> Batch:
        return self.examples.pack(indices, *self._layout(indices))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number `start` on, packed ahead in a thread."""
        return _ahead(self._indices(epoch)[start:].map(self._packed))

    def count(self, batch: Batch) -> Counts:
        """Examples and tokens of a batch, see `count_packed`."""
        return count_packed(batch)


class BatchesOfRuns(TrainingBatches):
    """The batches of several runs, each in the order of its own seed: arrays have an axis of runs.

    Run i's examples, their slots and their places in the rows are those of `TrainingBatches` with its
    seed and the same `row_length`. There are as many rows as the run that needs most of them asks
    for, by the shapes of the first seed.
    """

    def __init__(self, examples: Packable, batch_size: int, epochs: int, seeds: Sequence[int],
                 hidden_size: int, row_length: int, parts: int = 1):  # fmt: skip
        super().__init__(
            examples, batch_size, epochs, seeds[0], hidden_size, row_length, parts, row_length
        )
        self.seeds = tuple(dict.fromkeys(seeds))
        self._order_of_run = [self.seeds.index(seed) for seed in seeds]

    def _stacked(self, orders: Sequence[np.ndarray]) -> Batch:
        layouts = [self._layout(indices) for indices in orders]
        shape, slots = max(shape for shape, _ in layouts), max(own for _, own in layouts)
        packed = [self.examples.pack(indices, shape, slots) for indices in orders]
        runs = [packed[order] for order in self._order_of_run]
        return jax.tree.map(lambda *fields: np.stack(fields), *runs)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """As `TrainingBatches.epoch`."""
        orders = [self._indices(epoch, seed) for seed in self.seeds]
        numbers = grain.MapDataset.range(start, self.per_epoch)
        return _ahead(numbers.map(lambda number: self._stacked([own[number] for own in orders])))


def _ahead(batches: grain.MapDataset) -> Iterator[Batch]:
    """Packed ahead in a thread."""
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(batches.to_iter_dataset(options))


def evaluation_batches(
    examples: Packable, hidden_size: int, max_length: int, tokens: int = 4096, parts: int = 1
) -> list[tuple[np.ndarray, Batch]]:
    """All examples once, in batches of one shape.

    Args:
      examples: the data.
      hidden_size: width of the model.
      max_length: longest possible example.
      tokens: size of a batch.
      parts: of equal size in which the devices share the rows out.

    Returns:
      (indices of the examples, batch) pairs; the batch's first slots are those examples' outputs.
    """
    lengths = examples.lengths
    length = smallest(lengths, hidden_size, max_length)[1]
    where, used = place(lengths, length)
    rows = rounded_up(max(1, min(tokens // length, used)), parts)
    groups: list[list[int]] = [[] for _ in range(-(-used // rows))]
    for index, (row, _) in enumerate(where):
        groups[row // rows].append(index)
    slots = examples.slots(groups)
    return [(np.array(group), examples.pack(group, (rows, length), slots)) for group in groups]
