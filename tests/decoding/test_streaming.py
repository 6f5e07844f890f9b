"""Token by token decoding gives the tokens of `sample`, for every prompt and setting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lora_jax.decoding.sampling import Sampling, sample
from lora_jax.decoding.streaming import Stream
from lora_jax.errors import InputError
from lora_jax.models.gpt2 import GPT2, GPT2Config


@pytest.fixture(scope="module")
def model():
    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=96)
    made = GPT2(config, nnx.Rngs(0))
    graph, state = nnx.split(made)
    keys = iter(jax.random.split(jax.random.key(1), 100))
    draw = lambda x: 0.4 * jax.random.normal(next(keys), x.shape, x.dtype)  # noqa: E731
    return nnx.merge(graph, jax.tree.map(draw, state))


SETTINGS = [
    {"temperature": 0.0},
    {"temperature": 0.0, "no_repeat_ngram": 2},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 5},
    {"temperature": 1.2, "top_p": 0.8},
]


@pytest.mark.parametrize("values", SETTINGS)
def test_tokens_are_those_of_sample(model, values):
    settings = Sampling((3, 7), max_tokens=20, **values)
    stream, draw = Stream(model, settings), np.random.default_rng(0)
    seen = set()
    for length in (1, 64, 65):
        prompt = draw.integers(0, 40, length).astype(np.int32)
        key = jax.random.key(length)
        found = list(stream.tokens(prompt.tolist(), key))
        row, count = jnp.asarray(prompt[None]), jnp.array([length])
        batch = sample(model, row, count, settings, key)
        expected = batch.tokens[0, 0, : batch.lengths[0, 0]].tolist()
        ended = expected[-1] in settings.end_tokens
        assert found == (expected[:-1] if ended else expected)
        seen.add(tuple(found))
    assert len(seen) > 1


def test_a_seed_decides_and_long_prompts_lose_their_beginning(model):
    settings = Sampling((), temperature=1.0, max_tokens=10)
    stream = Stream(model, settings)
    assert stream.longest == 96 - 10 + 1
    prompt = np.random.default_rng(0).integers(0, 40, 200).tolist()
    one, again, other = (list(stream.tokens(prompt, jax.random.key(s))) for s in (0, 0, 1))
    assert one == again != other and len(one) == 10
    assert one == list(stream.tokens(prompt[-stream.longest :], jax.random.key(0)))
    with pytest.raises(InputError, match="max_tokens=97 leaves no room"):
        Stream(model, Sampling((), max_tokens=97))
