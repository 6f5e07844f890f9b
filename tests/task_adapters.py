"""Random classification and regression adapters of a tiny BERT, and what each of them gives alone."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pool_adapters

import lora_jax
from lora_jax import partition
from lora_jax.data import batches, tokenizers
from lora_jax.data.batch import Inputs
from lora_jax.data.glue import Examples
from lora_jax.models import hub

ROWS, ROOM = 16, 64  # of the expected outputs; the model has 64 positions
METHOD = lora_jax.lora(".*/attention/(query|value)", rank=3, alpha=6, head=hub.HEAD)
# Name: outputs, notes.
KINDS = {
    "two": (2, {}),
    "three": (3, {}),
    "one": (1, {}),
    "rte": (2, {"task": "rte"}),
    "stsb": (1, {"task": "stsb"}),
    "sst2": (2, {"task": "sst2"}),
}
TEXTS = [
    "a film", "it was not what i had hoped for , and i left early", "good",
    "the second half of this story is as slow as the first one was quick , " * 2, "why ?",
]  # fmt: skip


class Tasks:
    """A base of its folder, with a head of any width, and adapters."""

    def __init__(self, folder):
        self.folder, self.config = folder, hub.read_config(folder)
        self.tokenizer = tokenizers.load_tokenizer(folder, tokenizers.ENCODER)
        self._bases, self._models = {}, {}

    def base(self, outputs):
        if outputs not in self._bases:
            self._bases[outputs] = hub.load_classifier(
                self.folder, self.config, outputs, jax.random.key(0)
            )
        return self._bases[outputs]

    def adapter(self, name, seed=0):
        """An adapter of a kind; `two-1` is another one of the kind `two`."""
        outputs, notes = KINDS[name.partition("-")[0]]
        made = pool_adapters.adapter(self.base(outputs), METHOD, 100 * len(name) + seed, 0.4)
        return dataclasses.replace(made, notes=notes)

    def tokens(self, items, room=ROOM):
        """Token ids and types of texts or pairs."""
        pairs = [item if isinstance(item, list) else [item] for item in items]
        first, *second = map(list, zip(*pairs, strict=True))
        examples = Examples(first, second[0] if second else None, np.zeros(len(items), np.int32))
        made = batches.tokenise(examples, self.tokenizer, room)
        return list(zip(made.ids, made.types, strict=True))

    def outputs(self, name, items, seed=0, room=ROOM):
        """The outputs of an adapter alone, text by text."""
        if (name, seed) not in self._models:
            adapter = self.adapter(name, seed)
            model = pool_adapters.alone(self.base(KINDS[name.partition("-")[0]][0]), adapter)
            self._models[name, seed] = model
        structure, params = partition.all_frozen(self._models[name, seed])
        arrays, count = np.zeros((4, ROWS, ROOM), np.int32), len(items)
        for row, (ids, types) in enumerate(self.tokens(items, room)):
            arrays[:, row, : len(ids)] = ids, np.ones_like(ids), np.arange(len(ids)), types
        return np.asarray(_outputs(structure, params, *arrays))[:count]


@functools.partial(jax.jit, static_argnums=0)
def _outputs(structure, params, *arrays):
    model = partition.join(structure, {}, params)
    return model(Inputs(*arrays), np.arange(ROWS), np.zeros(ROWS, np.int32))
