"""Beam search by the rules of the paper's GPT-2 experiments (public gpt2_beam.py; Table 11).

* Step 0 expands the prompt into its `beams` most probable tokens. Each later step keeps, of all
  continuations of all beams, the `beams` best by summed log-probability.
* Tokens that would repeat an n-gram of the generated tokens have probability 0, and the others'
  probabilities are renormalised.
* A beam that ends in an end token is finished. It scores its summed log-probability divided by
  length^penalty, where the length includes the end token. Only the best finished beam of a prompt is
  kept; the place it took in the search goes on with probability 0.
* After `max_tokens` steps the beams still alive compete with their length-normalised sums.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from lora_jax.decoding.ngrams import ban_repeats
from lora_jax.errors import InputError
from lora_jax.models.cache import Cache
from lora_jax.models.decoder import Decoder
from lora_jax.ranges import Number, Whole, check


@dataclasses.dataclass(frozen=True)
class BeamSearch:
    """Settings of beam search; the defaults are the paper's for E2E (Table 11).

    End tokens and length penalty may be traced: searches that differ in them can share a program.

    Attributes:
      end_tokens: ids of the tokens that finish a beam.
      beams: number of continuations that are searched at once.
      length_penalty: exponent; larger favours longer texts. The public README uses 0.8.
      no_repeat_ngram: size of the n-grams that may not occur twice; 0 allows all.
      max_tokens: length of the longest continuation.

    Raises:
      ValueError: a number is too small.
    """

    end_tokens: tuple[int | Int[Array, ""], ...]
    _: dataclasses.KW_ONLY
    beams: int = 10
    length_penalty: float | Float[Array, ""] = 0.9
    no_repeat_ngram: int = 4
    max_tokens: int = 64

    def __post_init__(self) -> None:
        for name, least in (("beams", 1), ("max_tokens", 1), ("no_repeat_ngram", 0)):
            check(name, getattr(self, name), Whole(least=least))
        if not isinstance(self.length_penalty, jax.Array):
            check("length_penalty", self.length_penalty, Number())


class Continuations(NamedTuple):
    """Generated continuations of n prompts, or of (n, samples).

    Attributes:
      tokens: token ids; those behind a continuation's end are 0.
      lengths: number of tokens, the end token included.
      scores: length-normalised log-probability (beam search), log-probability (sampling).
    """

    tokens: Int[Array | np.ndarray, "*shape steps"]
    lengths: Int[Array | np.ndarray, "*shape"]
    scores: Float[Array | np.ndarray, "*shape"]


class _State(NamedTuple):
    """State of a search of n prompts after `step` tokens.

    Attributes:
      cache: keys and values of the prompts and of the tokens generated.
      tokens: tokens generated so far.
      scores: summed log-probabilities; -inf for finished beams.
      best: the best finished continuation of every prompt; score -inf where there is none yet.
      step: number of tokens generated.
    """

    cache: Cache
    tokens: Int[Array, "n beams steps"]
    scores: Float[Array, "n beams"]
    best: Continuations
    step: Int[Array, ""]


def beam_search(
    model: Decoder,
    prompts: Int[Array, "n prompt"],
    lengths: Int[Array, " n"],
    settings: BeamSearch,
) -> Continuations:
    """Searches the best continuation of every prompt.

    The search stops early only when no living beam can still win, so the result is that of all steps.

    Args:
      model: a decoder.
      prompts: token ids, padded behind.
      lengths: number of tokens of each prompt.
      settings: static under `jax.jit`.

    Returns:
      One continuation per prompt: tokens (n, max_tokens), lengths and scores (n,).

    Raises:
      ValueError: there are more beams than tokens in the vocabulary, or the model has too few
        positions for the prompts and their continuations.
    """
    if settings.beams > model.config.vocab_size:
        raise InputError(
            f"{settings.beams} beams are more than the {model.config.vocab_size} tokens"
        )

    def unfinished(state: _State) -> Bool[Array, ""]:
        return (state.step < settings.max_tokens) & jnp.any(_may_win(state, settings))

    def advance(state: _State) -> _State:
        newest = jax.lax.dynamic_index_in_dim(state.tokens, state.step - 1, axis=2, keepdims=False)
        logits, cache = model.decode_step(newest, state.cache)
        logits = ban_repeats(logits, state.tokens, state.step, settings.no_repeat_ngram)
        # The best `beams` overall are among the best `beams` of each.
        values, tokens = jax.lax.top_k(jax.nn.log_softmax(logits), settings.beams)
        total = state.scores[..., None] + values
        scores, flat = jax.lax.top_k(total.reshape(len(total), -1), settings.beams)
        parents, chosen = flat // settings.beams, _take(tokens.reshape(len(total), -1), flat)
        history, paths = (_take(x, parents[..., None]) for x in (state.tokens, cache.paths))
        history = history.at[:, :, state.step].set(chosen)
        state = state._replace(
            cache=cache._replace(paths=paths), tokens=history, scores=scores, step=state.step + 1
        )
        return _collect(state, _ended(chosen, settings), settings)

    state = jax.lax.while_loop(unfinished, advance, _first(model, prompts, lengths, settings))
    # Beams still alive compete too, at full length only.
    done = state.step == settings.max_tokens
    return _collect(state, jnp.broadcast_to(done, state.scores.shape), settings).best


def _first(
    model: Decoder, prompts: Int[Array, "n prompt"], lengths: Int[Array, " n"], settings: BeamSearch
) -> _State:
    """Reads the prompts and takes the first token of every beam."""
    n, beams, steps = len(prompts), settings.beams, settings.max_tokens
    logits, cache = model.prefill(prompts, lengths, beams, steps)
    scores, chosen = jax.lax.top_k(jax.nn.log_softmax(logits), beams)
    tokens = jnp.zeros((n, beams, steps), jnp.int32).at[:, :, 0].set(chosen)
    none = Continuations(
        jnp.zeros((n, steps), jnp.int32), jnp.zeros(n, jnp.int32), jnp.full(n, -jnp.inf)
    )
    state = _State(cache, tokens, scores, none, jnp.int32(1))
    return _collect(state, _ended(chosen, settings), settings)


def _ended(tokens: Int[Array, "n beams"], settings: BeamSearch) -> Bool[Array, "n beams"]:
    return jnp.isin(tokens, jnp.asarray(settings.end_tokens, jnp.int32))


def _collect(state: _State, ended: Bool[Array, "n beams"], settings: BeamSearch) -> _State:
    """Keeps the best finished continuation of each prompt and takes the finished beams out."""
    scores = jnp.where(
        ended, state.scores / state.step ** jnp.float32(settings.length_penalty), -jnp.inf
    )
    winner = jnp.argmax(scores, axis=1)
    score = jnp.max(scores, axis=1)
    better = score > state.best.scores
    newest = Continuations(
        _take(state.tokens, winner[:, None, None])[:, 0], jnp.full_like(winner, state.step), score
    )
    best = jax.tree.map(
        lambda new, old: jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old),
        newest,
        state.best,
    )
    return state._replace(best=best, scores=jnp.where(ended, -jnp.inf, state.scores))


def _may_win(state: _State, settings: BeamSearch) -> Bool[Array, " n"]:
    """Whether a living beam could still beat the best: sums only fall, lengths are bounded."""
    alive = jnp.max(state.scores, axis=1)
    lengths = jnp.stack([state.step + 1.0, jnp.float32(settings.max_tokens)])
    return (
        jnp.max(alive[:, None] / lengths ** jnp.float32(settings.length_penalty), axis=1)
        > state.best.scores
    )


def _take(values: Shaped[Array, "n items ..."], indices: Int[Array, "n taken ..."]) -> Array:
    """Takes values along axis 1 of every prompt."""
    return jnp.take_along_axis(values, indices, axis=1)
