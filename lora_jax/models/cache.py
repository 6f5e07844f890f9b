"""The key/value cache of decoding, and one step of attention against it."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lora_jax.models.attention.scores import PLAIN, Scores
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
      kind: of the layer, where the layers of a model differ in what they attend to.
    """

    layer: Int[Array, "*layers"]
    prompt: KeysValues
    kind: Int[Array, "*layers"] | None = None


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
    k: Float[Array, "n shared beams size"],
    v: Float[Array, "n shared beams size"],
    layer_cache: LayerCache,
    cache: Cache,
    scores: Scores = PLAIN,
    window: Int[Array, ""] | int | None = None,
) -> Float[Array, "n heads beams size"]:
    """Attention of one new token per beam to its prompt, its beam's past and itself.

    The past is read in chunks with a running softmax (Milakov and Gimelshein 2018). Query heads that
    share keys and values lie together, and are read like further beams.

    Args:
      q: queries of the new tokens.
      k: keys of the new tokens.
      v: values of the new tokens.
      layer_cache: the layer's part of the cache.
      cache: the whole cache, before this step.
      scores: how products of queries and keys become scores.
      window: only the last tokens count, this many with the new one itself.
    """
    layer, (prompt_k, prompt_v), _ = layer_cache
    n, heads, beams, size = q.shape
    shared = k.shape[1]
    groups = heads // shared
    q = (q * scores.of_size(size)).reshape(n, shared, groups * beams, size)

    def score(keys: Array) -> Array:
        return scores.capped(
            jnp.einsum("nhks,nhps->nhkp", q, keys, preferred_element_type=jnp.float32)
        )

    mix = partial(jnp.einsum, "nhkp,nhps->nhks", preferred_element_type=jnp.float32)
    tokens, position = jnp.arange(prompt_k.shape[2]), cache.lengths[:, None] + cache.step
    in_prompt = tokens < cache.lengths[:, None]
    if window is not None:
        in_prompt &= position - tokens < window
    of_prompt = jnp.where(in_prompt[:, None, None], score(prompt_k), _LOWEST)
    own_k, own_v = (jnp.tile(x, (1, 1, groups, 1)) for x in (k, v))
    itself = scores.capped(
        jnp.einsum("nhks,nhks->nhk", q, own_k, preferred_element_type=jnp.float32)[..., None]
    )
    top = jnp.maximum(jnp.max(of_prompt, axis=-1, keepdims=True), itself)
    weights, weight = jnp.exp(of_prompt - top), jnp.exp(itself - top)
    total = jnp.sum(weights, axis=-1, keepdims=True) + weight
    mixed = mix(weights.astype(v.dtype), prompt_v) + weight * own_v

    def add(chunk: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top, total, mixed = carry
        first = chunk * _CHUNK
        past_k, past_v = (
            jax.lax.dynamic_slice(
                entries, (layer, 0, 0, first, 0, 0), (1, n, shared, _CHUNK, beams, size)
            ).reshape(n, shared, _CHUNK * beams, size)
            for entries in cache.generated
        )
        paths = jax.lax.dynamic_slice_in_dim(cache.paths, first, _CHUNK, axis=2)
        in_past = paths[..., None] == jnp.arange(beams)
        steps = first + jnp.arange(_CHUNK)
        counts = steps < cache.step if window is None else _within(steps, cache.step, window)
        in_past = (in_past & counts[:, None]).reshape(n, 1, beams, -1)
        of_past = jnp.where(jnp.tile(in_past, (1, 1, groups, 1)), score(past_k), _LOWEST)
        higher = jnp.maximum(top, jnp.max(of_past, axis=-1, keepdims=True))
        weights, shrink = jnp.exp(of_past - higher), jnp.exp(top - higher)
        total = total * shrink + jnp.sum(weights, axis=-1, keepdims=True)
        return higher, total, mixed * shrink + mix(weights.astype(v.dtype), past_v)

    chunks = (cache.step + _CHUNK - 1) // _CHUNK
    _, total, mixed = jax.lax.fori_loop(0, chunks, add, (top, total, mixed))
    out: Array = mixed / total
    return out.astype(v.dtype).reshape(n, heads, beams, size)


def _within(
    steps: Int[Array, " chunk"], step: Int[Array, ""], window: Int[Array, ""] | int
) -> Bool[Array, " chunk"]:
    """Which of the generated tokens are written and still in the window of the new one."""
    return (steps < step) & (step - steps < window)
