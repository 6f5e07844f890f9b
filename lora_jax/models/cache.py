"""The key/value cache of decoding, and one step of attention against it."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lora_jax.sharding.axes import constrain

_CHUNK = 16  # steps; attention reads the chunks that are written, not the whole cache
_LOWEST = jnp.finfo(jnp.float32).min


class Cache(NamedTuple):
    """Keys and values of all layers while `beams` continuations per prompt are generated.

    Continuations do not move in memory when a beam search reorders them: the entry of step t and beam
    j stays where it was written, and `paths` says which entries are a beam's own past.

    Attributes:
      prompt: keys and values of the prompts, (layers, n, heads, prompt, size) each.
      lengths: tokens of each prompt; what lies behind is padding.
      generated: keys and values written so far, (layers, n, heads, steps, beams, size) each. With
        the heads in front a step's attention is a plain batched product: four times faster on a CPU.
      paths: (n, beams, steps): the beam in which a continuation's token of that step was written.
      step: number of steps written.
    """

    prompt: tuple[Float[Array, "layers n heads prompt size"], ...]
    lengths: Int[Array, " n"]
    generated: tuple[Float[Array, "layers n heads steps beams size"], ...]
    paths: Int[Array, "n beams steps"]
    step: Int[Array, ""]

    def extended(self, new: tuple[Float[Array, "layers n heads beams size"], ...]) -> Cache:
        """The cache with one more step, which every beam wrote at its own place."""
        n, beams, _ = self.paths.shape
        put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=self.step)
        generated = tuple(
            put(old, entry[:, :, :, None], axis=3)
            for old, entry in zip(self.generated, new, strict=True)
        )
        own = jnp.broadcast_to(jnp.arange(beams, dtype=jnp.int32)[:, None], (n, beams, 1))
        paths = put(self.paths, own, axis=2)
        return self._replace(generated=generated, paths=paths, step=self.step + 1)


def empty_cache(prompt: Any, lengths: Int[Array, " n"], beams: int, steps: int) -> Cache:
    """A cache with room for at least `steps` steps.

    Args:
      prompt: as in `Cache`.
      lengths: tokens of each prompt.
      beams: continuations per prompt.
      steps: tokens to be generated at most.
    """
    layers, n, heads, _, size = prompt[0].shape
    room = -(-steps // _CHUNK) * _CHUNK
    empty = jnp.zeros((layers, n, heads, room, beams, size), prompt[0].dtype)
    empty = constrain(empty, "layers", "batch", "heads", None, None, None)
    paths = jnp.zeros((n, beams, room), jnp.int32)
    return Cache(prompt, lengths, (empty, empty), paths, jnp.int32(0))


def attend_cached(
    q: Float[Array, "n heads beams size"],
    k: Float[Array, "n heads beams size"],
    v: Float[Array, "n heads beams size"],
    own: tuple[Int[Array, ""], tuple[Float[Array, "n heads prompt size"], ...]],
    cache: Cache,
) -> Float[Array, "n heads beams size"]:
    """Attention of one new token per beam to its prompt, its beam's past and itself.

    The past is read in chunks with a running softmax (Milakov and Gimelshein 2018).

    Args:
      q, k, v: of the new tokens.
      own: the layer's number, and its slice of `cache.prompt`.
      cache: what was written before.
    """
    layer, (prompt_k, prompt_v) = own
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
    return (mixed / total).astype(v.dtype)
