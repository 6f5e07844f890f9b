"""Sampling and greedy decoding."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from lora_jax.decoding.beam import Continuations
from lora_jax.decoding.ngrams import ban_repeats
from lora_jax.models.cache import Cache
from lora_jax.models.decoder import Decoder


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings of sampling.

    Attributes:
      end_tokens: tokens that end a continuation.
      temperature: 0 takes the most probable token (greedy).
      top_k: sample among the k most probable tokens; 0 is all.
      top_p: sample among the most probable tokens whose probabilities reach p together.
      samples: continuations per prompt; they share the prompt's keys and values.
      no_repeat_ngram: size of n-grams that may not occur twice; 0 is off.
      max_tokens: longest continuation.
    """

    end_tokens: tuple[int, ...]
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    samples: int = 1
    no_repeat_ngram: int = 0
    max_tokens: int = 64

    def __post_init__(self) -> None:
        for name, least in (
            ("samples", 1),
            ("max_tokens", 1),
            ("no_repeat_ngram", 0),
            ("top_k", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)!r}")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature must not be negative and top_p must be in (0, 1], got "
                f"{self.temperature!r} and {self.top_p!r}"
            )


class _State(NamedTuple):
    cache: Cache
    logits: Float[Array, "n samples vocab"]
    out: Continuations
    ended: Bool[Array, "n samples"]
    step: Int[Array, ""]


def sample(
    model: Decoder,
    prompts: Int[Array, "n prompt"],
    lengths: Int[Array, " n"],
    settings: Sampling,
    key: Key[Array, ""],
) -> Continuations:
    """Continuations of every prompt, (n, samples, ...).

    Args:
      model: a decoder.
      prompts: token ids, padded behind.
      lengths: tokens of each prompt.
      settings: static.
      key: of the random choices; greedy decoding does not use it.
    """
    shape = (len(prompts), settings.samples)
    logits, cache = model.prefill(prompts, lengths, settings.samples, settings.max_tokens)
    nothing = Continuations(
        jnp.zeros((*shape, settings.max_tokens), jnp.int32),
        jnp.zeros(shape, jnp.int32),
        jnp.zeros(shape, jnp.float32),
    )
    logits = jnp.broadcast_to(logits[:, None], (*shape, logits.shape[-1]))
    ends = jnp.asarray(settings.end_tokens, jnp.int32)

    def choose(state: _State) -> tuple[Array, _State]:
        logits = ban_repeats(state.logits, state.out.tokens, state.step, settings.no_repeat_ngram)
        tokens = _draw(logits, settings, jax.random.fold_in(key, state.step))
        value = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
        alive = ~state.ended
        out = Continuations(
            state.out.tokens.at[..., state.step].set(jnp.where(alive, tokens, 0)),
            state.out.lengths + alive,
            state.out.scores + jnp.where(alive, value, 0),
        )
        ended = state.ended | jnp.isin(tokens, ends)
        return tokens, state._replace(out=out, ended=ended, step=state.step + 1)

    def more(state: _State) -> Bool[Array, ""]:
        return (state.step < settings.max_tokens) & ~jnp.all(state.ended)

    def advance(state: _State) -> _State:
        tokens, state = choose(state)
        logits, cache = model.decode_step(tokens, state.cache)
        return state._replace(logits=logits, cache=cache)

    start = _State(cache, logits, nothing, jnp.zeros(shape, bool), jnp.int32(0))
    return jax.lax.while_loop(more, advance, start).out


def _draw(
    logits: Float[Array, "n samples vocab"], settings: Sampling, key: Array
) -> Int[Array, "n samples"]:
    if settings.temperature == 0:
        return jnp.argmax(logits, axis=-1)
    logits = logits / settings.temperature
    if 0 < settings.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, settings.top_k)[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if settings.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        before = jnp.cumsum(jax.nn.softmax(ordered), axis=-1) - jax.nn.softmax(ordered)
        # The last token that is still needed to reach p.
        least = jnp.min(
            jnp.where(before < settings.top_p, ordered, jnp.inf), axis=-1, keepdims=True
        )
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.random.categorical(key, logits)
