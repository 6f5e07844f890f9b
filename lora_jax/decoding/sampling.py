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
from lora_jax.ranges import Number, Whole, check


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings of sampling.

    Attributes:
      end_tokens: ids of the tokens that end a continuation.
      temperature: divides the logits; 0 takes the most probable token (greedy).
      top_k: sample among the k most probable tokens; 0 is all.
      top_p: sample among the most probable tokens whose probabilities reach p together.
      samples: number of continuations per prompt; they share the prompt's keys and values.
      no_repeat_ngram: size of the n-grams that may not occur twice; 0 allows all.
      max_tokens: length of the longest continuation.

    Raises:
      ValueError: a setting is out of its range.
    """

    end_tokens: tuple[int, ...]
    _: dataclasses.KW_ONLY
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    samples: int = 1
    no_repeat_ngram: int = 0
    max_tokens: int = 64

    def __post_init__(self) -> None:
        limits = {"samples": 1, "max_tokens": 1, "no_repeat_ngram": 0, "top_k": 0}
        for name, least in limits.items():
            check(name, getattr(self, name), Whole(least=least))
        check("temperature", self.temperature, Number(least=0))
        check("top_p", self.top_p, Number(above=0, most=1))


class State(NamedTuple):
    """State of n prompts after `step` tokens of every sample.

    Attributes:
      cache: keys and values of the prompts and of the tokens generated.
      logits: of the next token.
      tokens: tokens generated so far.
      lengths: number of tokens of each sample.
      scores: summed log-probabilities.
      ended: whether a sample has had its end token.
      step: number of tokens generated.
    """

    cache: Cache
    logits: Float[Array, "n samples vocab"]
    tokens: Int[Array, "n samples steps"]
    lengths: Int[Array, "n samples"]
    scores: Float[Array, "n samples"]
    ended: Bool[Array, "n samples"]
    step: Int[Array, ""]


def sample(
    model: Decoder,
    prompts: Int[Array, "n prompt"],
    lengths: Int[Array, " n"],
    settings: Sampling,
    key: Key[Array, ""],
) -> Continuations:
    """Draws continuations of every prompt.

    Args:
      model: a decoder.
      prompts: token ids, padded behind.
      lengths: number of tokens of each prompt.
      settings: static under `jax.jit`.
      key: of the random choices; greedy decoding does not use it.

    Returns:
      Tokens (n, samples, max_tokens), lengths and scores (n, samples).

    Raises:
      ValueError: the model has too few positions for the prompts and their continuations.
    """

    def unfinished(state: State) -> Bool[Array, ""]:
        return (state.step < settings.max_tokens) & ~jnp.all(state.ended)

    def advance(state: State) -> State:
        return feed(model, *choose(state, settings, key))

    end = jax.lax.while_loop(unfinished, advance, begin(model, prompts, lengths, settings))
    return Continuations(end.tokens, end.lengths, end.scores)


def begin(
    model: Decoder,
    prompts: Int[Array, "n prompt"],
    lengths: Int[Array, " n"],
    settings: Sampling,
) -> State:
    """Reads the prompts; arguments as of `sample`."""
    shape = (len(prompts), settings.samples)
    logits, cache = model.prefill(prompts, lengths, settings.samples, settings.max_tokens)
    return State(
        cache,
        logits=jnp.broadcast_to(logits[:, None], (*shape, logits.shape[-1])),
        tokens=jnp.zeros((*shape, settings.max_tokens), jnp.int32),
        lengths=jnp.zeros(shape, jnp.int32),
        scores=jnp.zeros(shape, jnp.float32),
        ended=jnp.zeros(shape, bool),
        step=jnp.int32(0),
    )


def choose(
    state: State, settings: Sampling, key: Key[Array, ""]
) -> tuple[Int[Array, "n samples"], State]:
    """Draws the next token of every sample, and writes it into the state."""
    ends = jnp.asarray(settings.end_tokens, jnp.int32)
    logits = ban_repeats(state.logits, state.tokens, state.step, settings.no_repeat_ngram)
    tokens = _draw(logits, settings, jax.random.fold_in(key, state.step))
    value = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
    alive = ~state.ended
    return tokens, state._replace(
        tokens=state.tokens.at[..., state.step].set(jnp.where(alive, tokens, 0)),
        lengths=state.lengths + alive,
        scores=state.scores + jnp.where(alive, value, 0),
        ended=state.ended | jnp.isin(tokens, ends),
        step=state.step + 1,
    )


def feed(model: Decoder, tokens: Int[Array, "n samples"], state: State) -> State:
    """Reads the tokens chosen: the state with the logits of the next ones."""
    logits, cache = model.decode_step(tokens, state.cache)
    return state._replace(logits=logits, cache=cache)


def _draw(
    logits: Float[Array, "n samples vocab"], settings: Sampling, key: Key[Array, ""]
) -> Int[Array, "n samples"]:
    """Draws the next token of every sample."""
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
