"""A decoder with a run's adapter merged into it: what other programs take as a model like any other."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
from flax import nnx
from transformers import PreTrainedTokenizerBase

from experiments.runs import origins, tuned
from lora_jax.adapters import Adapter, adapter_folder, attach, load_adapter
from lora_jax.data import tokenizers
from lora_jax.errors import InputError
from lora_jax.low_rank.layers import adapted_layers
from lora_jax.low_rank.merge import merge
from lora_jax.methods.added_biases import BiasInsertion
from lora_jax.methods.bottleneck import BottleneckInsertion
from lora_jax.methods.cuts import CutInsertion
from lora_jax.methods.prefix import SpecialTokensInsertion
from lora_jax.methods.token_rows import RowsInsertion
from lora_jax.models import hub
from lora_jax.models.architectures import AnyDecoderConfig
from lora_jax.models.decoder import Decoder
from lora_jax.models.parts import FLOAT
from lora_jax.quantisation.layers import quantised_layers
from lora_jax.quantisation.quantise import dequantise
from lora_jax.sharding.placement import in_host_memory

_LEFT: Mapping[type, str] = {
    BottleneckInsertion: "bottleneck adapters",
    SpecialTokensInsertion: "special tokens of its own (a prefix or an infix)",
    BiasInsertion: "biases that the base's layers do not have",
    RowsInsertion: "rows of tokens of their own",
    CutInsertion: "layers cut off the stack of the others",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A model and an adapter that fit together, by what can be known before weights are read.

    Attributes:
      folder: of the model, or its GGUF file.
      config: of the model, in the form that the adapter was trained on.
      tokenizer: of the model.
      adapter: to be merged; None for the model alone.
      where: name of the adapter, for messages.
      chat_template: of the run, where it is not the tokenizer's own; "" else.
    """

    folder: Path
    config: AnyDecoderConfig
    tokenizer: PreTrainedTokenizerBase
    adapter: Adapter | None
    where: str
    chat_template: str

    @property
    def form(self) -> str:
        """How the base was held when the adapter was trained, see `models.base_formats`."""
        return self.config.base_format


def source(run: str, adapter: str, model: str) -> Source:
    """What the flags of a command name.

    Args:
      run: folder of a run of experiments.tune; "" for none.
      adapter: folder of an adapter, or of another run; "" for none.
      model: name of the base, see `hub.find`; "" for the one that run or adapter name.

    Raises:
      FileNotFoundError, ValueError: something is missing, broken or does not fit; the adapter has parts
        that cannot be merged.
    """
    origin = _origin(run, adapter, model)
    loaded = load_adapter(adapter_folder(Path(origin.adapter))) if origin.adapter else None
    if loaded:
        _check_merges(loaded, origin.adapter)
    folder = hub.find(origin.model)
    config = hub.read_decoder_config(folder, base_format=origins.base_format(loaded))
    tuned.check_unchanged(origin, folder)
    tokenizer = tokenizers.load_tokenizer(folder, tokenizers.DECODER, config.vocab_size)
    if loaded:
        origins.check(loaded, origins.origin(config, tokenizer), origin.adapter)
    there = tokenizer.chat_template
    own = there.get("default") if isinstance(there, Mapping) else there
    template = origin.data["chat_template"]
    return Source(
        folder=folder, config=config, tokenizer=tokenizer, adapter=loaded, where=origin.adapter,
        chat_template="" if template == own else template,
    )  # fmt: skip


def _origin(run: str, adapter: str, model: str) -> tuned.Origin:
    if run and adapter:
        raise InputError("name --run or --adapter, not both")
    if run:
        origin = tuned.of_run(Path(run))
        return dataclasses.replace(origin, model=model or origin.model)
    if adapter and not model:
        noted = load_adapter(adapter_folder(Path(adapter))).notes.get("model")
        if not isinstance(noted, str):
            raise InputError(f"{adapter} does not say what its base was: name it, --model=NAME")
        model = noted
    if not model:
        raise InputError("name --run=DIR, --adapter=DIR, or --model=NAME for a model without one")
    return tuned.of_names(model, adapter)


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


def load(source: Source) -> Decoder:
    """The model with its adapter merged, in float32; a packed base is unpacked first."""
    with in_host_memory():
        model: nnx.Module = hub.load_decoder(source.folder, source.config)
        if source.adapter:
            attached = attach(model, source.adapter, None, source.where)
            model = merge(attached, jnp.float32) if adapted_layers(attached) else attached
        if quantised_layers(model):
            model = dequantise(model, jnp.float32)
    assert isinstance(model, Decoder)
    model.eval()
    return model


def described(source: Source) -> str:
    """What is merged, in words."""
    if not source.adapter:
        return f"{source.folder}, without an adapter"
    packed = "" if source.form == FLOAT else f", held as {source.form} and unpacked"
    return f"{source.where} merged into {source.folder}{packed}"
