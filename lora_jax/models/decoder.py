"""What all decoders share: packed rows in, logits of the requested tokens out, and decoding with a cache.

Training batches are packed: several examples share a row, attention is causal inside a segment, and
logits are computed for the requested tokens only. For decoding see `lora_jax.decoding`.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from lora_jax.data.batch import Inputs
from lora_jax.dropout import DropoutKey, split_key
from lora_jax.errors import InputError
from lora_jax.models.attention.spans import Spans, of_segments
from lora_jax.models.cache import Cache, empty_cache
from lora_jax.models.sublayer import Context
from lora_jax.sharding.axes import constrain


class Decoder(nnx.Module):
    """A language model: embeddings, a stack of blocks, a norm, and an output embedding.

    Attributes:
      layers: a `Stack` or `SplitStack`.
      norm: before the output embedding.
      config: sizes and settings.
    """

    per_output = ("norm", "lm_head")  # see `lora_jax.pool.route`
    layers: Any
    norm: Any
    config: Any  # a dataclass, an `architectures.ModelConfig` with a `vocab_size`

    def embed(
        self,
        tokens: Int[Array | np.ndarray, "*rows"],
        positions: Int[Array | np.ndarray, "*#rows"],
        key: DropoutKey = None,
    ) -> Float[Array, "*rows embd"]:
        """The input of the first block; `key` switches dropout on."""
        raise NotImplementedError

    def output_logits(self, hidden: Float[Array, "... embd"]) -> Float[Array, "... vocab"]:
        """Logits (float32) from what the last norm gives."""
        raise NotImplementedError

    def context(
        self,
        tokens: Int[Array, "rows length"],
        positions: Int[Array, "#rows length"],
        spans: Spans,
    ) -> Context:
        """What the blocks read of the batch.

        Args:
          tokens: token ids.
          positions: of every token in its example.
          spans: which tokens attend to which: those of the same example, and not later.
        """
        return Context(spans, tokens)

    def __call__(
        self,
        inputs: Inputs,
        rows: Int[Array | np.ndarray, " n"],
        columns: Int[Array | np.ndarray, " n"],
        *,
        key: DropoutKey = None,
    ) -> Float[Array, "n vocab"]:
        """Logits (float32) of the token that follows each requested one.

        Args:
          inputs: packed token rows.
          rows: row of each requested token.
          columns: its column.
          key: switches dropout on.
        """
        hidden = self.hidden(inputs, rows, columns, key=key)
        return self._logits(constrain(hidden, "batch", "width"))

    def hidden(
        self,
        inputs: Inputs,
        rows: Int[Array | np.ndarray, "*n"],
        columns: Int[Array | np.ndarray, "*n"],
        *,
        key: DropoutKey = None,
    ) -> Float[Array, "*n embd"]:
        """What the blocks give for each requested token, of which `logits` makes its logits.

        Args:
          inputs: packed token rows.
          rows: row of each requested token.
          columns: its column.
          key: switches dropout on.
        """
        embeddings_key, layers_key = split_key(key, 2)
        tokens, segments, positions = (jnp.asarray(field) for field in inputs[:3])
        context = self.context(tokens, positions, of_segments(segments, causal=True))
        x = self.embed(tokens, positions, embeddings_key)
        hidden: Array = self.layers(x, context, key=layers_key)[rows, columns]
        return hidden

    def logits(self, hidden: Float[Array, "... embd"]) -> Float[Array, "... vocab"]:
        """Logits (float32) from what the blocks give: the last norm and the output embedding."""
        return self.output_logits(self.norm(hidden))

    def _logits(self, hidden: Float[Array, "n ... embd"]) -> Float[Array, "n ... vocab"]:
        logits = self.logits(hidden)
        return constrain(logits, "batch", *[None] * (logits.ndim - 2), "logits")

    def prefill(
        self,
        prompts: Int[Array | np.ndarray, "n prompt"],
        lengths: Int[Array | np.ndarray, " n"],
        beams: int,
        steps: int,
    ) -> tuple[Float[Array, "n vocab"], Cache]:
        """Reads the prompts.

        Args:
          prompts: token ids, padded at the end.
          lengths: tokens of each prompt, at least 1.
          beams: continuations per prompt.
          steps: largest number of tokens to be generated.

        Returns:
          Logits of the first generated token, and the cache for `decode_step`.

        Raises:
          ValueError: the padded prompts and the new tokens are more than the model's positions.
        """
        length = prompts.shape[1]
        if length + steps - 1 > self.config.max_length:
            raise InputError(
                f"prompts of {length} tokens (with padding) and {steps} new ones do not fit the "
                f"model's {self.config.max_length} positions"
            )
        prompts, lengths = jnp.asarray(prompts), jnp.asarray(lengths)
        positions = jnp.broadcast_to(jnp.arange(length), prompts.shape)
        whole = of_segments(jnp.zeros((1, length), jnp.int32), causal=True)
        context = self.context(prompts, positions[:1], whole)
        x, prompt = self.layers.prefill(self.embed(prompts, positions), context)
        cache = empty_cache(prompt, lengths, beams, steps)
        last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0]
        return self._logits(last), cache

    def decode_step(
        self, tokens: Int[Array | np.ndarray, "n beams"], cache: Cache
    ) -> tuple[Float[Array, "n beams vocab"], Cache]:
        """Reads the newest token of each continuation: the logits of the next, and the new cache.

        Args:
          tokens: token ids.
          cache: its `paths` must name, for every beam, the beams that hold its earlier tokens.
        """
        x = self.embed(tokens, cache.lengths[:, None] + jnp.full_like(tokens, cache.step))
        x, new = self.layers.decode_step(x, cache)
        return self._logits(x), cache.extended(new)
