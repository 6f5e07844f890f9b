"""Log likelihoods of given continuations, against PyTorch's Llama, and the file by which scoring resumes."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers

from lora_jax import partition
from lora_jax.decoding.likelihoods import Question, choice_rows, log_probabilities, split
from lora_jax.decoding.scored import score_all
from lora_jax.models import hub

VOCABULARY, LONGEST = 53, 48


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A random Llama in PyTorch, and what scores batches with the same weights here."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=LONGEST,
        tie_word_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(folder)
    structure, values = partition.all_frozen(
        hub.load_decoder(folder, hub.read_decoder_config(folder))
    )
    score = jax.jit(lambda batch: log_probabilities(partition.join(structure, {}, values), batch))
    return theirs, score


def random_questions(count=9, seed=0):
    """Prompts of different lengths; some choices begin alike, some are beginnings of others."""
    random = np.random.default_rng(seed)
    draw = lambda n: random.integers(0, VOCABULARY, n).tolist()  # noqa: E731
    result = []
    for _ in range(count):
        first, second = draw(3), draw(2)
        choices = [first, first[:1], [*first[:2], *draw(2)], second, draw(1), first]
        result.append(Question(draw(int(random.integers(1, 30))), choices))
    return result


def expected(theirs, question):
    """The sum of each choice's log probabilities, one whole text at a time."""
    sums = []
    for choice in question.choices:
        ids = torch.tensor([[*question.prompt, *choice]])
        with torch.no_grad():
            logs = theirs(ids).logits[0].log_softmax(-1)
        start = len(question.prompt)
        sums.append(sum(logs[start - 1 + n, token].item() for n, token in enumerate(choice)))
    return sums


def scored(score, questions, path, **settings):
    return score_all(
        score, choice_rows(questions), width=16, max_length=LONGEST, path=path, settings=settings
    )


def test_sums_are_pytorch_s(models, tmp_path):
    theirs, score = models
    questions = random_questions()
    rows = choice_rows(questions)
    found = scored(score, questions, tmp_path / "scores.jsonl")
    wanted = np.concatenate([expected(theirs, question) for question in questions])
    # Sums of up to five terms of about 10, in float32 on both sides.
    np.testing.assert_allclose(found.sums, wanted, rtol=2e-5, atol=2e-5)
    assert rows.tokens.tolist() == [len(c) for q in questions for c in q.choices]
    assert found.read == rows.lengths.sum() and found.seconds > 0


def test_nothing_is_read_that_need_not_be():
    """Choices of one token cost their prompt, once; beginnings that are shared are read once."""
    rows = choice_rows([Question([1, 2], [[3], [4], [5]]), Question([6], [[7, 8, 9], [7, 8], [7]])])
    assert [ids.tolist() for ids in rows.ids] == [[1, 2], [6, 7, 8]]
    assert rows.choices[0].tolist() == [0, 1, 2] and rows.count == 6
    assert rows.choices[1].tolist() == [3, 3, 3, 4, 4, 5]
    assert rows.places[1].tolist() == [0, 1, 2, 0, 1, 0]
    for prompt, choices in (([], [[1]]), ([1], [[2], []])):
        with pytest.raises(ValueError, match="question 0: a prompt and each of its choices need"):
            choice_rows([Question(prompt, choices)])


def test_a_token_across_the_border_belongs_to_the_choices():
    assert split([1, 2], [[1, 2, 3], [1, 2, 4, 5]]) == ((1, 2), [(3,), (4, 5)])
    # The tokenizer joins the prompt's last token and the first choice's beginning.
    assert split([1, 2], [[1, 9], [1, 2, 4]]) == ((1,), [(9,), (2, 4)])


class Killed(BaseException):
    pass


def test_scoring_goes_on_where_it_was_stopped(models, tmp_path, monkeypatch):
    _, score = models
    monkeypatch.setattr("lora_jax.decoding.scored._TOKENS", LONGEST)  # a row a batch
    questions, path = random_questions(), tmp_path / "scores.jsonl"
    whole = scored(score, questions, tmp_path / "whole.jsonl", base="b").sums
    calls = []

    def dying(batch):
        if len(calls) == 3:
            raise Killed
        calls.append(batch)
        return score(batch)

    with pytest.raises(Killed):
        scored(dying, questions, path, base="b")
    lines = path.read_text().splitlines()
    assert len(lines) == 4
    path.write_text("\n".join([*lines[:2], lines[2].replace("[", "[7,", 1), lines[3]]) + '\n{"ba')
    calls.clear()

    def counting(batch):
        calls.append(batch)
        return score(batch)

    assert scored(counting, questions, path, base="b").sums.tolist() == whole.tolist()
    batches = len(json.loads(lines[0])["settings"]["batches"])
    assert len(calls) == batches - 2  # the damaged line's batch again
    assert scored(counting, questions, path, base="b").sums.tolist() == whole.tolist()
    assert len(calls) == batches - 2
    with pytest.raises(ValueError, match=r"scores.jsonl was scored with other settings \(base\)"):
        scored(score, questions, path, base="c")
    with pytest.raises(ValueError, match=r"scores.jsonl was scored with other settings .*rows"):
        scored(score, random_questions(seed=1), path, base="b")


def test_a_prompt_that_is_too_long_says_so(models, tmp_path):
    with pytest.raises(ValueError, match="longest prompt has 49 tokens.*at most 48: give fewer"):
        scored(models[1], [Question([1] * 49, [[1], [2]])], tmp_path / "scores.jsonl")
    assert not (tmp_path / "scores.jsonl").exists()
