"""A model with adapters merged into it: what other programs take as a model like any other."""

from __future__ import annotations

import re
from collections.abc import Collection

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.convert.sources import Source
from lora_jax.adapters import attach
from lora_jax.errors import InputError
from lora_jax.gguf.container import SUFFIX
from lora_jax.low_rank.merge import is_mergeable, merge
from lora_jax.models import hub
from lora_jax.models.encoder import EncoderConfig
from lora_jax.models.parts import FLOAT, STORED
from lora_jax.models.published import Published
from lora_jax.partition import Params, parameters
from lora_jax.quantisation.layers import quantised_layers
from lora_jax.quantisation.merging import Repacked, merge_packed
from lora_jax.quantisation.quantise import dequantise
from lora_jax.sharding.placement import in_host_memory

_HEAD = re.compile(hub.HEAD)


def load(source: Source) -> Published:
    """The model with its adapter merged, in float32; a packed base is unpacked first."""
    return _merged(source)[0]


def load_both(source: Source) -> tuple[Published, Params]:
    """The same, and the values of the base alone by path, without a head; equal arrays are shared."""
    model, base = _merged(source)
    with in_host_memory():
        before = parameters(_unpacked(base))
    return model, {path: v for path, v in before.items() if not _HEAD.fullmatch(path)}


def _merged(source: Source) -> tuple[Published, Published]:
    """The merged model, and its base as it was read."""
    with in_host_memory():
        base = _base(source)
        model: nnx.Module = base
        if source.adapter:
            attached = attach(base, source.adapter, hub.HEAD, source.where)
            model = merge(attached, jnp.float32) if is_mergeable(attached) else attached
        model = _unpacked(model)
    assert isinstance(model, Published)
    model.eval()
    return model, base


def _unpacked(model: nnx.Module) -> nnx.Module:
    return dequantise(model, jnp.float32) if quantised_layers(model) else model


def _base(source: Source) -> Published:
    """The model without the adapter; a head has random values, which are the adapter's afterwards."""
    folder, config, key = source.folder, source.config, jax.random.key(0)
    if isinstance(config, EncoderConfig):
        return hub.load_classifier(folder, config, source.outputs or 1, key)
    if source.outputs is not None:
        return hub.load_decoder_classifier(folder, config, source.outputs, key)
    return hub.load_decoder(folder, config)


def check_packed(source: Source, form: str | None, known: Collection[str]) -> None:
    """Checks whether the adapter can be merged into packed weights, before a weight is read.

    Args:
      source: of base and adapter.
      form: name of a packed form; None for that of the base.
      known: the names of the forms that the folder to be written can have.

    Raises:
      InputError: no adapter, the base is not packed, or is in a form that is not known.
    """
    if source.form == FLOAT or not source.adapter:
        lacks = "no adapter to merge" if not source.adapter else "a base that was not held packed"
        raise InputError(
            f"--packed merges an adapter into the packed base that it was trained over, and this is {lacks}. "
            "Leave --packed out, and pack the folder when it is read (config.model.base_format=nf4)"
        )
    of_gguf = source.form == STORED and source.folder.suffix == SUFFIX
    if form is None and (of_gguf or source.form not in (STORED, *known)):
        there = "GGUF's blocks" if of_gguf else repr(source.form)
        raise InputError(
            f"the base is packed in {there}, which folders of transformers do not have: name a form, "
            f"--packed={next(iter(known))} (or {', '.join(known)}), write a GGUF file (to_gguf), or leave "
            "--packed out"
        )


def load_packed(source: Source, form: str | None) -> tuple[Published, list[Repacked]]:
    """The model with its adapter merged into packed weights, and what packing them again did.

    Tables become floating-point numbers, as published folders have them.

    Args:
      source: of a base that was held packed, with an adapter.
      form: name of a packed form; None for that of the base.

    Raises:
      InputError: see `check_packed` and `merge_packed`.
    """
    assert source.adapter is not None
    with in_host_memory():
        attached = attach(_base(source), source.adapter, hub.HEAD, source.where)
        model, report = merge_packed(attached, form, tables=False)
    assert isinstance(model, Published)
    model.eval()
    return model, report


def described(source: Source, *, unpacked: bool = True) -> str:
    """What is merged, in words.

    Args:
      source: of it.
      unpacked: whether a packed base was unpacked.
    """
    if not source.adapter:
        return f"{source.folder}, without an adapter"
    packed = (
        ""
        if source.form == FLOAT
        else f", held as {source.form}{' and unpacked' if unpacked else ''}"
    )
    return f"{source.where} merged into {source.folder}{packed}"
