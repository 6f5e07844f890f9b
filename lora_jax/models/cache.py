"""The key/value cache of decoding, and one step of attention against it."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lora_jax.sharding.axes import constrain

_CHUNK = 16  # steps; attention reads the chunks that are written, not the whole cache
_LOWEST = jnp.finfo(jnp.float32).min


class KeysValues(NamedTuple):
    """Attention keys and values of tokens, both of one shape: ([layers,] n, heads, tokens..., size).

    With the heads in front a step's attention is a plain batched product: four times faster on a CPU.
    """

    keys: Float[Array, "... size"]
    values: Float[Array, "... size"]


class Cache(NamedTuple):
    """Keys and values of all layers while `beams` continuations per prompt are generated.

    Continuations do not move in memory when a beam search reorders them: the entry of step t and beam
    j stays where it was written, and `paths` says which entries are the past of a beam.

    Attributes:
      prompt: of the prompts' tokens, (layers, n, heads, prompt, size).
      lengths: tokens of each prompt; entries of `prompt` beyond them are padding.
      generated: of the tokens generated so far, (layers, n, heads, steps, beams, size).
      paths: the beam in which the token of that step of a continuation was written.
      step: number of steps written.
    """

    prompt: KeysValues
    lengths: Int[Array, " n"]
    generated: KeysValues
    paths: Int[Array, "n beams steps"]
    step: Int[Array, ""]

    def extended(self, new: KeysValues) -> Cache:
        """The cache with one more step.

        Args:
          new: of the step's tokens, (layers, n, heads, beams, size), each written in its own beam.
        """
        n, beams, _ = self.paths.shape
        write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=self.step)
        generated = KeysValues(
            *(
                write(old, entry[:, :, :, None], axis=3)
                for old, entry in zip(self.generated, new, strict=True)
            )
        )
        numbers = jnp.broadcast_to(jnp.arange(beams, dtype=jnp.int32)[:, None], (n, beams, 1))
        paths = write(self.paths, numbers, axis=2)
        return self._replace(generated=generated, paths=paths, step=self.step + 1)


class LayerCache(NamedTuple):
    """The part of a cache that one layer reads; for a stack of layers, with a leading layer axis.

    The generated tokens' entries are not in it: a scan over layers would copy all of them, while
    attention reads only the chunks that are written.

    Attributes:
      layer: the layer's number, its index in `Cache.generated`.
      prompt: the layer's slice of `Cache.prompt`.
    """

    layer: Int[Array, "*layers"]
    prompt: KeysValues


def empty_cache(prompt: KeysValues, lengths: Int[Array, " n"], beams: int, steps: int) -> Cache:
    """A cache with room for at least `steps` steps.

    Args:
      prompt: of the prompts' tokens, (layers, n, heads, prompt, size).
      lengths: tokens of each prompt.
      beams: continuations per prompt.
      steps: largest number of tokens to be generated.
    """
    layers, n, heads, _, size = prompt.keys.shape
    room = -(-steps // _CHUNK) * _CHUNK
    empty = jnp.zeros((layers, n, heads, room, beams, size), prompt.keys.dtype)
    empty = constrain(empty, "layers", "batch", "heads", None, None, None)
    paths = jnp.zeros((n, beams, room), jnp.int32)
    return Cache(prompt, lengths, KeysValues(empty, empty), paths, jnp.int32(0))


def attend_cached(
    q: Float[Array, "n heads beams size"],
    k: Float[Array, "n heads beams size"],
    v: Float[Array, "n heads beams size"],
    layer_cache: LayerCache,
    cache: Cache,
) -> Float[Array, "n heads beams size"]:
    """Attention of one new token per beam to its prompt, its beam's past and itself.

    The past is read in chunks with a running softmax (Milakov and Gimelshein 2018).

    Args:
      q: queries of the new tokens.
      k: keys of the new tokens.
      v: values of the new tokens.
      layer_cache: the layer's part of the cache.
      cache: the whole cache, before this step.
    """
    layer, (prompt_k, prompt_v) = layer_cache
    n, heads, beams, size = q.shape
    q = q * size**-0.5
    score = partial(jnp.einsum, "nhks,nhps->nhkp", preferred_element_type=jnp.float32)
    mix = partial(jnp.einsum, "nhkp,nhps->nhks", preferred_element_type=jnp.float32)

    in_prompt = jnp.arange(prompt_k.shape[2]) < cache.lengths[:, None]
    scores = jnp.where(in_prompt[:, None, None], score(q, prompt_k), _LOWEST)
    itself = jnp.einsum("nhks,nhks->nhk", q, k, preferred_element_type=jnp.float32)[..., None]
    top = jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), itself)
    weights, weight = jnp.exp(scores - top), jnp.exp(itself - top)
    total = jnp.sum(weights, axis=-1, keepdims=True) + weight
    mixed = mix(weights.astype(v.dtype), prompt_v) + weight * v

    def add(chunk: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top, total, mixed = carry
        first = chunk * _CHUNK
        past_k, past_v = (
            jax.lax.dynamic_slice(
                entries, (layer, 0, 0, first, 0, 0), (1, n, heads, _CHUNK, beams, size)
            ).reshape(n, heads, _CHUNK * beams, size)
            for entries in cache.generated
        )
        paths = jax.lax.dynamic_slice_in_dim(cache.paths, first, _CHUNK, axis=2)
        in_past = paths[..., None] == jnp.arange(beams)
        in_past &= (first + jnp.arange(_CHUNK) < cache.step)[:, None]
        scores = score(q, past_k)
        scores = jnp.where(in_past.reshape(n, 1, beams, -1), scores, _LOWEST)
        higher = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
        weights, shrink = jnp.exp(scores - higher), jnp.exp(top - higher)
        total = total * shrink + jnp.sum(weights, axis=-1, keepdims=True)
        return higher, total, mixed * shrink + mix(weights.astype(v.dtype), past_v)

    chunks = (cache.step + _CHUNK - 1) // _CHUNK
    _, total, mixed = jax.lax.fori_loop(0, chunks, add, (top, total, mixed))
    out: Array = mixed / total
    return out.astype(v.dtype)
