"""Dropout on the LoRA branches is data, not hidden state.

`seed_dropout` writes one key per adapted layer (and per stacked layer) into a model, usually the copy
that a train step merges. A layer without a key is deterministic. So the user's model need not pass keys
to its Linear layers, and scan, vmap and remat see ordinary arrays. Flax's `model.eval()` switches the
dropout of a seeded model off, and `model.train()` on again.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from lora_jax.arguments import MODEL, takes
from lora_jax.low_rank.layers import adapted_layers, factor_path
from lora_jax.low_rank.updates import DropoutKey, DropoutRate


@takes(model=MODEL)
def seed_dropout(
    model: nnx.Module,
    key: Key[Array, ""] | None,
    rates: Mapping[str, Float[Array, ""]] | None = None,
) -> None:
    """Switches dropout on the LoRA branches on, in place, for the calls that follow.

    Without a key it takes the keys of earlier calls away, and the branches drop nothing.

    Every adapted layer gets a key of its own, derived from its path; a stack gets one per layer. Use
    it on the copy of the model that a train step builds, with a new key each step.

    Args:
      model: adapted.
      key: of this step, or None.
      rates: by path as in `layers.factor_pairs`, possibly traced; they replace the model's rates.
    """
    for path, layer in adapted_layers(model).items():
        stack = layer.stack_shape()
        for part, pair in layer.lora.members().items():
            for earlier in ("dropout_key", "dropout_rate"):
                if hasattr(pair, earlier):
                    delattr(pair, earlier)
            if key is None:
                continue
            rate = (rates or {}).get(factor_path(path, layer, part))
            if pair.dropout or rate is not None:
                layer_key = jax.random.fold_in(key, zlib.crc32(f"{path}/{part}".encode()))
                keys = jax.random.split(layer_key, stack) if stack else layer_key
                pair.dropout_key = DropoutKey(keys)
            if rate is not None:
                pair.dropout_rate = DropoutRate(jnp.broadcast_to(rate, stack))
