"""A model and one or several adapters that fit together, by what can be known before weights are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from experiments.runs import origins, tuned
from lora_jax.adapters import Adapter, load_adapter
from lora_jax.combination import combine
from lora_jax.data import tokenizers
from lora_jax.data.glue_tasks import TASKS
from lora_jax.errors import InputError, brief
from lora_jax.methods.added_biases import BiasInsertion
from lora_jax.methods.bottleneck import BottleneckInsertion
from lora_jax.methods.prefix import SpecialTokensInsertion
from lora_jax.models import architectures, hub
from lora_jax.models.architectures import AnyConfig
from lora_jax.models.encoder import EncoderConfig
from lora_jax.patterns import some
from lora_jax.reading import read_object
from lora_jax.run_folder import RESULT

_LEFT: Mapping[type, str] = {
    BottleneckInsertion: "bottleneck adapters",
    SpecialTokensInsertion: "special tokens of its own (a prefix or an infix)",
    BiasInsertion: "biases that the base's layers do not have",
}
_HEADS = ("head/output/kernel", "head/score/kernel")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Named:
    """What a command line names.

    Attributes:
      run: folder of a run of experiments.tune, glue or classify; "" for none.
      adapter: folder of an adapter, or of another run; "" for none.
      model: name of the base, see `hub.find`; "" for the one that run or adapter name.
      adapters: several adapters by name, in place of run and adapter.
      weights: of these, by name; 1 where there is none.
      rest: the one of them whose head and biases are taken.
    """

    run: str = ""
    adapter: str = ""
    model: str = ""
    adapters: Mapping[str, Adapter] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    rest: str | None = None


def outputs_of(adapter: Adapter) -> int | None:
    """Outputs of an adapter's head; None if it has none."""
    found = (adapter.values[path].shape[-1] for path in _HEADS if path in adapter.values)
    return next(found, None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A model and an adapter that fit together.

    Attributes:
      folder: of the model, or its GGUF file.
      config: of the model, in the form that the adapter was trained on.
      tokenizer: of the model.
      adapter: to be merged; None for the model alone.
      where: name of the adapter, for messages.
      chat_template: of the run, where it is not the tokenizer's own; "" else.
      max_length: tokens to which a classifier's run cuts its texts; None where that is not known.
    """

    folder: Path
    config: AnyConfig
    tokenizer: PreTrainedTokenizerBase
    adapter: Adapter | None
    where: str
    chat_template: str
    max_length: int | None

    @property
    def form(self) -> str:
        """How the base was held when the adapter was trained, see `models.base_formats`."""
        return self.config.base_format

    @property
    def outputs(self) -> int | None:
        """Outputs of the adapter's head; None if it has none."""
        return outputs_of(self.adapter) if self.adapter else None

    @property
    def is_decoder(self) -> bool:
        """Whether it is a decoder that writes text; else it classifies, or encodes."""
        return not isinstance(self.config, EncoderConfig) and self.outputs is None

    def classes(self) -> tuple[tuple[str, ...], str]:
        """The names of the classes, where the adapter says them or its task does, and what is wrong."""
        notes = self.adapter.notes if self.adapter else {}
        labels, task = notes.get("labels"), TASKS.get(str(notes.get("task")))
        named = labels.get("classes") if isinstance(labels, Mapping) else None
        found = list(task.labels) if named is None and task else named
        if found is None or self.outputs is None:
            return (), ""
        texts = isinstance(found, list) and all(isinstance(name, str) for name in found)
        if texts and len(set(found)) == len(found) == self.outputs:
            return tuple(found), ""
        if texts and not found and self.outputs == 1:
            return (), ""  # numbers
        return (), (
            f"the classes that the adapter names ({brief(found)}) are not {self.outputs} different names: "
            "config.json calls them LABEL_0, LABEL_1, ..."
        )


def source(named: Named) -> Source:
    """Finds model, tokenizer and adapter.

    Raises:
      FileNotFoundError, ValueError: something is missing, broken or does not fit; the adapter has parts
        that cannot be merged.
    """
    origin, loaded = _origin(named)
    if loaded:
        _check_merges(loaded, origin.adapter)
    folder = hub.find(origin.model)
    config = architectures.read_config(folder, base_format=origins.base_format(loaded))
    tuned.check_unchanged(origin, folder)
    needed = tokenizers.ENCODER if isinstance(config, EncoderConfig) else tokenizers.DECODER
    tokenizer = tokenizers.load_tokenizer(folder, needed, config.vocab_size)
    if loaded:
        origins.check(loaded, origins.origin(config, tokenizer), origin.adapter)
    there = tokenizer.chat_template
    own = there.get("default") if isinstance(there, Mapping) else there
    template = origin.data["chat_template"]
    return Source(
        folder=folder, config=config, tokenizer=tokenizer, adapter=loaded, where=origin.adapter,
        chat_template="" if template == own else template,
        max_length=_max_length(Path(named.run or named.adapter)) if loaded else None,
    )  # fmt: skip


def _max_length(place: Path) -> int | None:
    """The length to which a run cuts texts, by its record; None for an adapter that is not in its run."""
    for folder in (place, place.parent):
        if (folder / RESULT).is_file():
            config = read_object(folder / RESULT).values.get("config")
            data = config.get("data") if isinstance(config, Mapping) else None
            found = data.get("max_length") if isinstance(data, Mapping) else None
            return found if type(found) is int and found > 0 else None
    return None


def _origin(named: Named) -> tuple[tuned.Origin, Adapter | None]:
    """Where the model comes from, and what is merged into it."""
    if sum(map(bool, (named.run, named.adapter, named.adapters))) > 1:
        raise InputError("name --run, --adapter or --adapters, not several of them")
    if not named.adapters and (named.weights or named.rest is not None):
        raise InputError(
            "--weights and --rest are of several adapters: name them, --adapters=DIR,DIR"
        )
    if named.run:
        origin, loaded = _of_run(Path(named.run))
        return dataclasses.replace(origin, model=named.model or origin.model), loaded
    loaded, where = None, named.adapter
    if named.adapters:
        loaded = combine(named.adapters, named.weights, rest=named.rest)
        where = f"the sum of {some(list(named.adapters))}"
    elif named.adapter:
        loaded = load_adapter(named.adapter)
    model = named.model
    if loaded and not model:
        noted = loaded.notes.get("model")
        if not isinstance(noted, str):
            raise InputError(f"{where} does not say what its base was: name it, --model=NAME")
        model = noted
    if not model:
        raise InputError("name --run=DIR, --adapter=DIR, or --model=NAME for a model without one")
    return tuned.of_names(model, where), loaded


def _of_run(run: Path) -> tuple[tuned.Origin, Adapter | None]:
    """What a run names; those of classifiers say nothing of a format of prompts."""
    record = read_object(run / RESULT) if (run / RESULT).is_file() else None
    if record and "format" not in record.values and record.values.get("adapter"):
        loaded = load_adapter(run)
        if outputs_of(loaded) is not None:
            origin = tuned.of_names(record.get("model", str), str(run))
            return dataclasses.replace(origin, made_from=record.text_by_name("inputs")), loaded
    origin = tuned.of_run(run)
    return origin, load_adapter(origin.adapter) if origin.adapter else None


def _check_merges(adapter: Adapter, where: str) -> None:
    """Raises InputError for an adapter with parts that no weight of the base can take in."""
    for insertion in adapter.method.insertions:
        for kind, what in _LEFT.items():
            if isinstance(insertion, kind):
                raise InputError(
                    f"{where} ({adapter.method}) has {what}: they cannot be merged into the weights of the "
                    "base, and files of other programs have no place for them. Low-rank updates and trained "
                    "weights of the base can be exported"
                )
