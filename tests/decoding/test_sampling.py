"""Greedy decoding against PyTorch `transformers`; sampling against probabilities and masks."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch
import transformers

from lora_jax.decoding import sampling
from lora_jax.decoding.sampling import Sampling, sample
from lora_jax.models import hub

torch.set_num_threads(1)

VOCAB = 13
PROMPTS = [[4], [1, 2, 3, 1, 2], [7, 7, 0, 12, 5, 6, 9], [11, 3]]
LENGTHS = np.array([len(p) for p in PROMPTS])
PADDED = np.array([p + [8] * (7 - len(p)) for p in PROMPTS])


def model(folder, std):
    """PyTorch's model and ours; a small `std` gives probabilities that are all far from 0."""
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=32,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            p.normal_(0, std, generator=generator)
            if "ln_" in name and name.endswith("weight"):
                p.add_(1)
    theirs.save_pretrained(folder)
    return theirs, hub.load_decoder(folder, hub.read_decoder_config(folder))


@pytest.fixture(scope="module")
def peaked(tmp_path_factory):
    return model(tmp_path_factory.mktemp("peaked"), 0.4)


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    return model(tmp_path_factory.mktemp("flat"), 0.15)


def run(ours, settings, prompts=PADDED, lengths=LENGTHS, seed=0):
    prompts, lengths = jnp.asarray(prompts), jnp.asarray(lengths)
    return jax.jit(lambda m, key: sample(m, prompts, lengths, settings, key))(
        ours, jax.random.key(seed)
    )


def next_log_probabilities(theirs, tokens):
    """After each whole text of equal lengths, without a cache; float64."""
    with torch.no_grad():
        logits = theirs(torch.tensor(tokens)).logits[:, -1].double()
    return torch.log_softmax(logits, dim=-1).numpy()


def assert_plausible(tokens, probabilities):
    """Chi-square of drawn tokens; keys are fixed, so a level of 1e-3 never fails by chance."""
    counts = np.bincount(np.ravel(tokens), minlength=len(probabilities))
    assert not counts[probabilities == 0].any()
    allowed = probabilities > 0
    expected = probabilities[allowed] * counts.sum()
    assert expected.min() > 5
    assert scipy.stats.chisquare(counts[allowed], expected).pvalue > 1e-3


@pytest.mark.parametrize("ends", [(5, 3), (2,), ()])
def test_greedy_equals_transformers(peaked, ends):
    theirs, ours = peaked
    found = run(ours, Sampling(ends, max_tokens=12))
    for i, prompt in enumerate(PROMPTS):
        tokens = torch.tensor([prompt])
        config = transformers.GenerationConfig(
            do_sample=False, max_new_tokens=12, eos_token_id=list(ends) or None, pad_token_id=0
        )
        with torch.no_grad():
            full = theirs.generate(
                tokens, attention_mask=torch.ones_like(tokens), generation_config=config
            )
        expected = full[0, len(prompt) :].tolist()
        n = int(found.lengths[i, 0])
        assert n == len(expected)
        np.testing.assert_array_equal(found.tokens[i, 0], expected + [0] * (12 - n))
        assert not set(expected[:-1]) & set(ends)

        score, text = 0.0, list(prompt)
        for token in expected:  # and the best of the full forward pass of each step
            values = next_log_probabilities(theirs, [text])[0]
            assert values.argmax() == token
            score += values[token]
            text.append(token)
        np.testing.assert_allclose(found.scores[i, 0], score, rtol=0, atol=1e-4)


def test_greedy_without_repeats(peaked):
    theirs, ours = peaked
    found = run(ours, Sampling((), no_repeat_ngram=2, max_tokens=12))
    for i, prompt in enumerate(PROMPTS):
        generated, score = [], 0.0
        for _ in range(12):
            values = next_log_probabilities(theirs, [prompt + generated])[0]
            banned = [b for a, b in itertools.pairwise(generated) if a == generated[-1]]
            values[banned] = -np.inf
            score += values.max() - np.log(np.exp(values).sum())
            generated.append(int(values.argmax()))
        np.testing.assert_array_equal(found.tokens[i, 0], generated)
        np.testing.assert_allclose(found.scores[i, 0], score, rtol=0, atol=1e-4)


# Many samples as copies of a prompt: `samples` of one prompt attend over each other's tokens, and
# the cost grows with their square.
COPIES, SAMPLES = 64, 256


def many(ours, settings, prompt=PROMPTS[1], seed=0):
    prompts = np.tile(prompt, (COPIES, 1))
    return run(ours, settings, prompts, np.full(COPIES, len(prompt)), seed)


def test_first_and_second_token_follow_the_model(flat):
    theirs, ours = flat
    found = many(ours, Sampling((), temperature=1.0, samples=SAMPLES, max_tokens=2))
    first = np.exp(next_log_probabilities(theirs, [PROMPTS[1]])[0])
    then = next_log_probabilities(theirs, [[*PROMPTS[1], token] for token in range(VOCAB)])
    joint = (first[:, None] * np.exp(then)).ravel()
    tokens = np.asarray(found.tokens).reshape(-1, 2)
    assert_plausible(tokens[:, 0], first)
    assert_plausible(tokens @ [VOCAB, 1], joint)
    # Each sample's score is that of its tokens.
    scores = np.log(joint)[tokens @ [VOCAB, 1]]
    np.testing.assert_allclose(np.ravel(found.scores), scores, rtol=0, atol=1e-5)
    # Two samples of a prompt are independent: all pairs of first tokens occur as their product.
    pairs = np.asarray(found.tokens)[:, :, 0].reshape(-1, 2) // 3 @ [5, 1]
    thirds = np.add.reduceat(first, [0, 3, 6, 9, 12])
    assert_plausible(pairs, np.outer(thirds, thirds).ravel())


@pytest.mark.parametrize(
    "temperature, limits", [(1.6, {}), (0.5, {"top_k": 4}), (0.7, {"top_k": 7, "top_p": 0.6})]
)
def test_limits_and_temperature_of_drawn_tokens(flat, temperature, limits):
    theirs, ours = flat
    settings = Sampling((), temperature=temperature, samples=SAMPLES, max_tokens=1, **limits)
    found = many(ours, settings)
    values = next_log_probabilities(theirs, [PROMPTS[1]])[0]
    allowed = brute_force(values / temperature, **limits)
    probabilities = np.where(allowed, np.exp(values / temperature), 0)
    assert_plausible(found.tokens, probabilities / probabilities.sum())
    # The score is the log-probability of the model, without temperature and limits.
    np.testing.assert_allclose(
        np.ravel(found.scores), values[np.ravel(found.tokens)], rtol=0, atol=1e-5
    )


def brute_force(logits, top_k=0, top_p=1.0):
    """The tokens that may be drawn, in plain loops."""
    order = np.argsort(-logits)
    if top_k:
        order = order[:top_k]
    probabilities = np.exp(logits[order] - logits.max())
    probabilities /= probabilities.sum()
    allowed, reached = np.zeros(len(logits), bool), 0.0
    for token, probability in zip(order, probabilities, strict=True):
        if reached < top_p:
            allowed[token] = True
        reached += probability
    return allowed


@pytest.mark.parametrize("top_k", [0, 1, 3, 30, 31, 50])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5, 0.01])
def test_masks_are_exact(top_k, top_p, monkeypatch):
    seen = []
    categorical = jax.random.categorical
    monkeypatch.setattr(
        jax.random,
        "categorical",
        lambda key, logits: seen.append(logits) or categorical(key, logits),
    )
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (40, 5, 31)).astype(np.float32)
    logits[:, 0, ::4] = -np.inf  # banned tokens stay out
    settings = Sampling((), temperature=0.7, top_k=top_k, top_p=top_p)
    sampling._draw(jnp.asarray(logits), settings, jax.random.key(0))
    [masked] = seen
    for i in np.ndindex(40, 5):
        expected = brute_force(logits[i].astype(np.float64) / 0.7, top_k, top_p)
        np.testing.assert_array_equal(masked[i] > -np.inf, expected & (logits[i] > -np.inf))
        kept = np.asarray(masked[i])[expected]
        np.testing.assert_allclose(kept, logits[i][expected] / 0.7, rtol=1e-6)


def test_ended_samples_stay_ended(flat):
    theirs, ours = flat
    settings = Sampling((5, 3, 0), temperature=1.0, samples=40, max_tokens=9)
    found = run(ours, settings)
    lengths = np.asarray(found.lengths)
    assert lengths.min() == 1 and lengths.max() == 9 and len(np.unique(lengths)) > 5
    for i, j in np.ndindex(lengths.shape):
        tokens, n = found.tokens[i, j].tolist(), int(lengths[i, j])
        assert not set(tokens[: n - 1]) & {5, 3, 0} and not any(tokens[n:])
        assert n == 9 or tokens[n - 1] in (5, 3, 0)
    for i, j in np.ndindex(len(PROMPTS), 6):
        score, text = 0.0, list(PROMPTS[i])
        for token in found.tokens[i, j].tolist()[: lengths[i, j]]:
            score += next_log_probabilities(theirs, [text])[0, token]
            text.append(token)
        np.testing.assert_allclose(found.scores[i, j], score, rtol=0, atol=1e-4)


def test_keys(flat):
    rows = np.array([0, 2, 2])  # two are equal
    prompts, lengths = jnp.asarray(PADDED[rows]), jnp.asarray(LENGTHS[rows])

    @jax.jit
    def draw(model, seed):
        return [
            sample(model, prompts, lengths, settings, jax.random.key(seed))
            for settings in (
                Sampling((5,), temperature=temperature, samples=3, max_tokens=6)
                for temperature in (0.0, 1.0)
            )
        ]

    (greedy, one), again, (as_greedy, other) = (draw(flat[1], seed) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, [greedy, one], again)
    jax.tree.map(np.testing.assert_array_equal, greedy, as_greedy)
    np.testing.assert_array_equal(greedy.tokens[:, 0], greedy.tokens[:, 2])
    assert not np.array_equal(one.tokens, other.tokens)
    # The samples of a prompt differ, and so do those of equal prompts.
    assert len({tuple(t) for t in np.reshape(one.tokens[1:], (6, 6)).tolist()}) > 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples": 0}, {"max_tokens": 0}, {"no_repeat_ngram": -1}, {"top_k": -1},
        {"temperature": -0.1}, {"top_p": 0.0}, {"top_p": 1.1},
    ],
)  # fmt: skip
def test_wrong_settings_are_errors(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling((1,), **wrong)
