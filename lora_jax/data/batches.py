"""Tokenising, and the batches of a run: deterministic from the seed, resumable at any step."""

from __future__ import annotations

from collections.abc import Iterator

import grain
import numpy as np
from transformers import PreTrainedTokenizerBase

from lora_jax.data.glue import Examples
from lora_jax.data.packing import (
    Batch,
    Packable,
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
        steps = self.per_epoch * epochs
        sampled = [lengths[indices] for indices in sample]
        self.menu: ShapeMenu = choose_menu(sampled, steps, hidden_size, max_length, parts=parts)
        self.slots = examples.slots(sample)
        self._lengths = lengths

    def _indices(self, epoch: int) -> grain.MapDataset:
        seed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
        order = grain.MapDataset.range(len(self.examples)).shuffle(seed=seed)
        return order.batch(self.batch_size, drop_remainder=False)

    def _packed(self, indices: np.ndarray) -> Batch:
        shape = self.menu.choose(self._lengths[indices].tolist())
        enough = self.examples.outputs(indices) <= self.slots
        slots = self.slots if enough else self.examples.slots([indices])
        return self.examples.pack(indices, shape, slots)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number `start` on, packed ahead in a thread."""
        batches = self._indices(epoch)[start:].map(self._packed)
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
