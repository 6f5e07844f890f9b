"""Decoding token by token, for a person who reads along; the tokens are those of `sample`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Array, Int, Key

from lora_jax import partition
from lora_jax.decoding import sampling
from lora_jax.decoding.sampling import Sampling, State
from lora_jax.errors import InputError
from lora_jax.models.decoder import Decoder
from lora_jax.partition import Params

_PROMPT_STEP = (
    64  # prompts are padded to a multiple of this: a growing conversation compiles few programs
)


class Stream:
    """A model that continues one prompt at a time.

    Attributes:
      settings: of the choice of tokens.
      longest: tokens of the longest prompt that leaves room for what is to be generated.
    """

    def __init__(self, model: Decoder, settings: Sampling):
        """Takes the model; programs are compiled when they are first needed.

        Args:
          model: merged, or with an adapter in it.
          settings: one sample is drawn.

        Raises:
          InputError: the model has too few positions for as many new tokens.
        """
        self.settings = dataclasses.replace(settings, samples=1)
        self.longest = model.config.max_length - settings.max_tokens + 1
        if self.longest < 1:
            raise InputError(
                f"max_tokens={settings.max_tokens:,} leaves no room for a prompt in the model's "
                f"{model.config.max_length:,} positions; lower it"
            )
        structure, self._params = partition.all_frozen(model)

        def joined(params: Params) -> Decoder:
            whole = partition.join(structure, {}, params)
            assert isinstance(whole, Decoder)
            return whole

        def first(
            params: Params, prompt: Array, length: Array, key: Key[Array, ""]
        ) -> tuple[Int[Array, "1 1"], State]:
            state = sampling.begin(joined(params), prompt, length, self.settings)
            return sampling.choose(state, self.settings, key)

        def following(
            params: Params, tokens: Array, state: State, key: Key[Array, ""]
        ) -> tuple[Int[Array, "1 1"], State]:
            state = sampling.feed(joined(params), tokens, state)
            return sampling.choose(state, self.settings, key)

        self._first, self._following = jax.jit(first), jax.jit(following, donate_argnums=2)

    def tokens(self, prompt: Sequence[int], key: Key[Array, ""]) -> Iterator[int]:
        """Yields the tokens of a continuation as they are chosen; an end token is not among them.

        Args:
          prompt: token ids; one that is too long loses its beginning.
          key: of the random choices.
        """
        ids = list(prompt)[-self.longest :]
        padded = min(-(-len(ids) // _PROMPT_STEP) * _PROMPT_STEP, self.longest)
        row = np.zeros((1, padded), np.int32)
        row[0, : len(ids)] = ids
        tokens, state = self._first(self._params, row, np.array([len(ids)], np.int32), key)
        for number in range(self.settings.max_tokens):
            if number:
                tokens, state = self._following(self._params, tokens, state, key)
            token = int(tokens[0, 0])
            if token in self.settings.end_tokens:
                return
            yield token
