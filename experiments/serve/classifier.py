"""An encoder that is served: each adapter is a task with a head, and reads texts as its run did."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runs import meanings
from experiments.runs.bases import head_outputs
from experiments.runs.classification import tokens
from experiments.serve.heads import classifier, numbered
from experiments.serve.served import BASE, Base, Served, Sizes
from lora_jax.adapters import DESCRIPTION, Adapter, adapter_folder
from lora_jax.data import tokenizers
from lora_jax.data.glue import Examples
from lora_jax.data.labels import Labels
from lora_jax.errors import InputError
from lora_jax.models import hub
from lora_jax.models.encoder import EncoderConfig
from lora_jax.reading import Record
from lora_jax.run_folder import setting
from lora_jax.serving.adapters import Version
from lora_jax.serving.classifier import ClassifierEngine
from lora_jax.serving.examples import Example

Texts = tuple[str, ...]  # one, or the two of a pair


@dataclasses.dataclass(frozen=True)
class About:
    """What the server knows of an adapter.

    Attributes:
      labels: what its outputs stand for.
      pair: whether it reads pairs of texts; None where nothing says so: it is given either.
      room: tokens of the longest example; longer ones are cut.
    """

    labels: Labels
    pair: bool | None
    room: int


class ServedClassifier(Served):
    """An encoder with the adapters of a folder, each of them a classifier or a regression."""

    engine: ClassifierEngine
    special_tokens = tokenizers.ENCODER
    head = hub.HEAD

    def __init__(self, base: Base[EncoderConfig], adapters: str, sizes: Sizes):
        """Reads the base and the adapters that are there, see `load`."""
        super().__init__(base, adapters)
        self._config = base.config
        found = list(self._loaded().values())
        width = max([sizes.outputs, *(head_outputs(adapter.values) for adapter in found)])
        model, own = classifier(base.folder, base.config, width)
        self.engine = ClassifierEngine(
            self._pool(model, found, sizes), rows=sizes.rows, room=sizes.room,
            waiting=sizes.waiting or 4096,
        )  # fmt: skip
        self._has_head = own is not None
        if own is None:
            self.refused[BASE] = "the model without an adapter has no head; name an adapter"
        else:
            self.engine.base.outputs = own.num_outputs
            length = min(self.tokenizer.model_max_length, self.engine.room)
            self.engine.base.about = About(own, None, length)
        self.scan()
        self.engine.prepare(max((about.room for _, about in self._served()), default=1))

    def _served(self) -> list[tuple[str, About]]:
        versions = self.engine.versions
        of_base = dict.fromkeys((self.model, BASE) if self._has_head else (), self.engine.base)
        return [(name, version.about) for name, version in {**of_base, **versions}.items()]

    def _about(self, adapter: Adapter, folder: Path) -> About:
        notes = Record(adapter_folder(folder) / DESCRIPTION, dict(adapter.notes))
        known = meanings.of_task(adapter.notes.get("task"), notes)
        width, data = head_outputs(adapter.values), setting(folder, "data")
        length = data.get("max_length") if isinstance(data, dict) else None
        room = min(length if isinstance(length, int) else self.engine.room, self._config.max_length)
        if room > self.engine.room:
            raise InputError(
                f"its run reads texts of up to {room} tokens, and this server of {self.engine.room}; "
                f"start it with --room={room}"
            )
        if known is None:
            return About(numbered(width), None, room)
        if known.labels.num_outputs != width:
            raise InputError(
                f"its notes name {known.labels.num_outputs} outputs, and its head has {width}"
            )
        return About(known.labels, bool(known.columns.pair), room)

    @property
    def names(self) -> list[str]:
        """The names that requests may use: the adapters', and the base's two if it has a head."""
        return [name for name, _ in self._served()]

    def described(self) -> list[dict[str, Any]]:
        """What clients are told of each name: its labels, whether it reads pairs, and its length."""
        return [
            {
                "id": name, "labels": list(about.labels.classes), "regression": about.labels.regression,
                "pair": about.pair, "max_length": about.room,
            }
            for name, about in self._served()
        ]  # fmt: skip

    def examples(self, version: Version, texts: Sequence[Texts]) -> list[Example]:
        """Texts as an adapter's run would read them.

        Raises:
          InputError: pairs for one that reads single texts or the other way round, or texts of which the
            tokenizer does not know most.
        """
        about: About = version.about
        pair = len(texts[0]) > 1
        if about.pair not in (None, pair):
            wanted, got = (
                ("pairs of texts", "single ones") if about.pair else ("single texts", "pairs")
            )
            raise InputError(
                f"this model reads {wanted}, and 'input' has {got}; a pair is written "
                '[["first text", "second text"]], also a single one'
            )
        first, *second = map(list, zip(*texts, strict=True))
        examples = Examples(first, second[0] if second else None, np.zeros(len(texts), np.int32))
        with self.tokenizing:
            made = tokens(examples, self.tokenizer, about.room, self._config, "'input'")
        return [Example(ids, types) for ids, types in zip(made.ids, made.types, strict=True)]
