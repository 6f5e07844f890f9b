"""ROUGE: by hand, and against calls of the package itself."""

import random

import pytest
from rouge_score import rouge_scorer

from lora_jax.errors import InputError
from lora_jax.metrics import summaries


def test_by_hand():
    # 4 words against 5, of which 3 are common, in order: P = 3/4, R = 3/5. Pairs: "the cat" of 3 and of 4.
    found = summaries.rouge(["the cat sat here"], [["The cat, on it, sat"]]).values
    assert found["rouge_1"] == pytest.approx(2 * 3 / (4 + 5))
    assert found["rouge_2"] == pytest.approx(2 * 1 / (3 + 4))
    assert found["rouge_l"] == pytest.approx(2 * 3 / (4 + 5))


def test_words_are_stemmed_and_an_empty_text_scores_nothing():
    found = summaries.rouge(["cats sleeping", ""], [["cat sleeps"], ["a dog"]])
    assert found.values == {"rouge_1": 0.5, "rouge_2": 0.5, "rouge_l": 0.5} and not found.missing


def test_texts_in_which_rouge_finds_no_words_are_told():
    found = summaries.rouge(["你好", "3 cats"], [["你好"], ["3 cats"]])
    assert found.values["rouge_1"] == 0.5
    assert found.notes["rouge_l"].startswith("1 of 2 have no reference with a word of a to z")


def test_random_texts_against_the_package():
    random_ = random.Random(0)
    words = [
        "Amanda",
        "bakes",
        "baked",
        "cookies",
        "Jerry",
        "will",
        "bring",
        "some",
        "meets",
        "at",
        "3",
        ".",
    ]
    text = lambda: " ".join(random_.choices(words, k=random_.randrange(1, 15)))  # noqa: E731
    texts, references = (
        [text() for _ in range(40)],
        [[text() for _ in range(random_.randrange(1, 4))] for _ in range(40)],
    )
    found = summaries.rouge(texts, references)
    for theirs, ours in (("rouge1", "rouge_1"), ("rouge2", "rouge_2"), ("rougeL", "rouge_l")):
        scorer = rouge_scorer.RougeScorer([theirs], use_stemmer=True)
        best = [
            max(scorer.score(target, text)[theirs].fmeasure for target in targets)
            for text, targets in zip(texts, references, strict=True)
        ]
        assert found.values[ours] == pytest.approx(sum(best) / len(best))
        assert found.notes[ours] == "the best of up to 3 references"


@pytest.mark.parametrize(
    ("texts", "references"), [([], []), (["a"], []), (["a"], [[]]), (["a"], [["a"], ["b"]])]
)
def test_unequal_numbers_are_refused(texts, references):
    with pytest.raises(InputError, match="each needs one, and at least one reference"):
        summaries.rouge(texts, references)
