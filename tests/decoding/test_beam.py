"""Beam search against the slow reference."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from slow_beam_search import slow_beam_search

from lora_jax.decoding import beam
from lora_jax.decoding.beam import BeamSearch, beam_search
from lora_jax.decoding.sampling import Sampling, sample
from lora_jax.models import hub

torch.set_num_threads(1)

# A case in which the reference itself decides by less than this is not compared: our sums are in
# float32, the reference's in float64.
MARGIN = 1e-4
PROMPT = 9  # longest


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """PyTorch's model in float64 and ours, by vocabulary size and seed."""
    loaded = {}

    def get(vocab, seed):
        if (vocab, seed) not in loaded:
            config = transformers.GPT2Config(
                vocab_size=vocab, n_embd=16, n_layer=2, n_head=2, n_positions=32
            )
            theirs = transformers.GPT2LMHeadModel(config).eval()
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for name, p in theirs.named_parameters():
                    p.normal_(0, 0.4, generator=generator)
                    if "ln_" in name and name.endswith("weight"):
                        p.add_(1)
            folder = tmp_path_factory.mktemp("model")
            theirs.save_pretrained(folder)
            ours = hub.load_decoder(folder, hub.read_decoder_config(folder))
            loaded[vocab, seed] = theirs.double(), ours
        return loaded[vocab, seed]

    return get


def random_prompts(vocab, n, seed):
    """Prompts of different lengths as lists, and padded with tokens that must not be read."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, PROMPT + 1, n)
    lengths[:2] = [1, PROMPT][:n]
    padded = rng.integers(0, vocab, (n, PROMPT))
    return [padded[i, :k].tolist() for i, k in enumerate(lengths)], padded, lengths


@pytest.fixture(scope="module")
def search():
    """Beam search compiled once for all penalties and end tokens of equal number."""

    def run(model, prompts, lengths, penalty, ends, settings):
        settings = dataclasses.replace(settings, length_penalty=penalty, end_tokens=ends)
        return beam_search(model, prompts, lengths, settings)

    compiled = jax.jit(run, static_argnums=5)

    def call(model, prompts, lengths, settings):
        plain = dataclasses.replace(settings, length_penalty=0.0, end_tokens=())
        return compiled(
            model, prompts, lengths, settings.length_penalty, settings.end_tokens, plain
        )

    return call


PENALTIES = (0.0, 0.8, 0.9, 1.5, -0.5)
# beams, no_repeat_ngram, max_tokens, vocabulary
CASES = [
    (1, 2, 12, 11), (2, 3, 12, 11), (2, 1, 7, 17), (3, 0, 1, 11), (3, 2, 5, 23), (4, 4, 12, 11),
    (5, 3, 9, 40), (5, 1, 10, 11), (10, 4, 12, 17), (10, 0, 6, 11),
]  # fmt: skip
SEEDS, PROMPTS = 5, 5


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c)))
def test_equals_the_slow_reference(case, models, search):
    beams, ngram, steps, vocab = case
    skipped, deviation, early = 0, 0.0, 0
    for seed in range(SEEDS):
        penalty = PENALTIES[(seed + CASES.index(case)) % len(PENALTIES)]
        theirs, ours = models(vocab, seed)
        ends = (5, 3) if seed % 2 else (7,)
        settings = BeamSearch(
            ends, beams=beams, length_penalty=penalty, no_repeat_ngram=ngram, max_tokens=steps
        )
        texts, prompts, lengths = random_prompts(vocab, PROMPTS, seed=100 * vocab + seed)
        found = search(ours, prompts, lengths, settings)
        for i, text in enumerate(texts):
            tokens, score, margin = slow_beam_search(theirs, text, settings)
            if margin < MARGIN:
                skipped += 1
                continue
            where = f"seed {seed}, prompt {i}, {settings}"
            expected = tokens + [0] * (steps - len(tokens))
            np.testing.assert_array_equal(found.tokens[i], expected, err_msg=where)
            assert found.lengths[i] == len(tokens), where
            deviation = max(deviation, abs(float(found.scores[i]) - score))
            early += len(tokens) < steps
    print(f"\n{case}: skipped {skipped} of {SEEDS * PROMPTS}, deviation {deviation:.1e}, "
          f"ended early {early}")  # fmt: skip
    assert skipped <= 2
    # Sums of up to 12 log-probabilities, in float32 against float64; 6e-6 is reached.
    assert deviation < 1e-4


def test_an_early_stop_changes_nothing(models, monkeypatch):
    """Also where longer texts score worse for their length: a living beam must not win halfway."""
    may_win, counted = beam._may_win, []

    def watched(state, settings):
        jax.debug.callback(counted.append, state.step)
        return may_win(state, settings)

    def run(replacement):
        monkeypatch.setattr(beam, "_may_win", replacement)
        search = jax.jit(
            lambda model, prompt, n, penalty: beam_search(
                model,
                prompt,
                n,
                BeamSearch(
                    (3, 7), beams=3, length_penalty=penalty, no_repeat_ngram=2, max_tokens=12
                ),
            )
        )
        # One prompt at a time: a batch runs until all its prompts are done.
        return {
            (penalty, seed, i): search(
                models(11, seed)[1], prompts[i : i + 1], lengths[i : i + 1], penalty
            )
            for penalty in PENALTIES
            for seed in range(SEEDS)
            for i in range(len(prompts))
        }

    _, prompts, lengths = random_prompts(11, 8, seed=0)
    stopped = run(watched)
    jax.effects_barrier()
    complete = run(lambda state, settings: jnp.ones(len(state.scores), bool))
    assert len(counted) < 0.8 * 12 * len(stopped)  # or hardly any was stopped
    different = [
        where
        for where, one in stopped.items()
        if not all(map(np.array_equal, one, complete[where]))
    ]
    print(f"\n{len(counted)} steps of {12 * len(stopped)}")
    assert not different


def test_one_beam_is_greedy(models):
    both = jax.jit(
        lambda m, p, n: (
            beam_search(m, p, n, BeamSearch((3, 7), beams=1, no_repeat_ngram=0, max_tokens=10)),
            sample(m, p, n, Sampling((3, 7), max_tokens=10), jax.random.key(0)),
        )
    )
    for seed in range(6):
        _, prompts, lengths = random_prompts(11, 8, seed)
        one, greedy = both(models(11, seed)[1], prompts, lengths)
        np.testing.assert_array_equal(one.tokens, greedy.tokens[:, 0])
        np.testing.assert_array_equal(one.lengths, greedy.lengths[:, 0])
        np.testing.assert_allclose(
            one.scores, greedy.scores[:, 0] / one.lengths**0.9, rtol=1e-6, atol=1e-6
        )


def test_neighbours_and_padding_do_not_matter(models):
    settings = BeamSearch((3, 7), beams=4, length_penalty=0.8, no_repeat_ngram=3, max_tokens=8)
    search = jax.jit(lambda m, p, n: beam_search(m, p, n, settings))
    _, ours = models(17, 3)
    texts, prompts, lengths = random_prompts(17, 6, 5)
    together = search(ours, prompts, lengths)
    turned = search(ours, prompts[::-1], lengths[::-1])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[::-1]), together, turned)
    for i, padded in ((0, 9), (1, 9), (3, 20)):
        row = np.array([texts[i] + [16] * (padded - lengths[i])])
        alone = search(ours, row, lengths[i : i + 1])
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[i])
        assert alone.lengths[0] == together.lengths[i]
        # Other shapes, so other orders of summation.
        np.testing.assert_allclose(alone.scores[0], together.scores[i], rtol=0, atol=2e-5)


@pytest.mark.parametrize("wrong", [{"beams": 0}, {"max_tokens": 0}, {"no_repeat_ngram": -1}])
def test_wrong_settings_are_errors(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BeamSearch((1,), **wrong)


def test_more_beams_than_tokens_are_an_error(models):
    with pytest.raises(ValueError, match="12 beams are more than the 11 tokens"):
        beam_search(
            models(11, 0)[1], jnp.ones((1, 2), int), jnp.array([2]), BeamSearch((1,), beams=12)
        )


@pytest.mark.parametrize("width, steps", [(9, 30), (33, 1)])  # of 32 positions
def test_more_tokens_than_positions_are_an_error(models, width, steps):
    prompts, settings = jnp.ones((1, width), int), BeamSearch((1,), beams=2, max_tokens=steps)
    with pytest.raises(ValueError, match="32"):
        beam_search(models(11, 0)[1], prompts, jnp.array([9]), settings)


def test_defaults_are_table_11s():
    assert dataclasses.asdict(BeamSearch((50256, 628))) == {
        "end_tokens": (50256, 628), "beams": 10, "length_penalty": 0.9, "no_repeat_ngram": 4,
        "max_tokens": 64,
    }  # fmt: skip
