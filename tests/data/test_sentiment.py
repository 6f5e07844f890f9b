"""Checks of the generated sentiment task: its balance, its disjoint words and its labels."""

import collections
import re

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from lora_jax.data import sentiment


def words(text: str) -> list[str]:
    return re.findall("[a-z]+", text)


# Polarities written out a second time, so that the label rules are checked independently.
NEGATIVE = set(
    words(
        """
    bland blander stale staler greasy burnt dirty dirtier noisy cramped smelly dull duller silly
    boring predictable slow slower faulty unreliable outdated rude ruder lazy arrogant careless bad
    worse nasty nastier unpleasant disappointing annoying horrible terrible awful ridiculous
    worthless hate hated dislike disliked despise despised criticize criticized disappoint
    disappointed annoy annoyed bore bored bother bothered rotten disgusting filthy dusty tedious
    pointless defective obsolete hostile selfish irritating pathetic miserable dreadful disastrous
    hideous useless loathe loathed detest detested condemn condemned irritate irritated frustrate
    frustrated"""
    )
)
POSITIVE = set(
    words(
        """
    fresh fresher healthy healthier tasty delicious clean cleaner cozy comfortable spacious funny
    funnier clever exciting fascinating fast faster handy powerful reliable kind kinder friendly
    polite helpful good better nice nicer pleasant impressive delightful enjoyable wonderful
    excellent perfect superb love loved like liked enjoy enjoyed praise praised impress impressed
    please pleased delight delighted amuse amused juicy tender elegant luxurious entertaining
    hilarious efficient durable generous cheerful appealing satisfying remarkable charming
    fantastic outstanding magnificent adore adored appreciate appreciated admire admired satisfy
    satisfied thrill thrilled"""
    )
)
TURNING = (
    r"\b(not true|not|never|less|no longer|stopped being|hardly|barely|scarcely"
    r"|anything but|far from)\b"
)
LITERAL = (
    ("plain", 1, "the soup was delicious."),
    ("plain", 0, "the rooms annoyed us."),
    ("negation", 0, "it is not true that the film was excellent."),
    ("negation", 1, "it is not true that the film was not excellent."),
    ("contrast", 0, "although the hotel was clean, the bed was awful."),
    ("contrast", 1, "the hotel was clean, although the bed was awful."),
    ("comparison", 0, "the phone was less reliable than the laptop."),
    ("comparison", 1, "the phone was as reliable as the laptop was slow."),
    ("change", 1, "we used to hate the chefs, but now we love them."),
    ("change", 0, "the hotel is dirty now, but it was clean last year."),
    ("intensifier", 0, "the soup was anything but tasty."),
    ("intensifier", 1, "the soup was nothing but tasty."),
)


def stem(word: str) -> str:
    """Strips the usual endings, so that forms of one word agree."""
    for ending in ("ing", "est", "ier", "ies", "ful", "ive", "able", "er", "ed", "es", "s", "ly"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending)
            break
    return word.rstrip("aeiouy")


def deciding_part(text: str, phenomenon: str) -> str:
    """Returns the part of the sentence whose polarity is the label."""
    text = text.removesuffix(".")
    if phenomenon == "change":
        text = re.sub(r"from \w+ to ", "", text)
        past = r"used to|last year|before|in the past"
        parts = text.split(", but ")
        return next(part for part in parts if not re.search(past, part))
    if phenomenon == "contrast":
        text = re.sub(r"^((well|honestly|overall), )?(although|even though) [^,]+, ", "", text)
        text = re.sub(r", (although|even though) .*", "", text)
        return text.split(" but ")[-1]
    if phenomenon == "comparison":
        text = re.sub(r", unlike [^,]+,", "", text)
        text = re.sub(r"as (\w+) as the .*", r"as \1", text)
        return text.split(" than ")[0]
    return text.split(", not ")[0] if phenomenon == "negation" else text


def rule_label(text: str, phenomenon: str) -> int:
    """Computes the label of a sentence from the stated rules."""
    part = deciding_part(text, phenomenon)
    polarities = {word in POSITIVE for word in words(part) if word in POSITIVE | NEGATIVE}
    assert len(polarities) == 1, part
    return int(polarities.pop()) ^ (len(re.findall(TURNING, part)) % 2)


@pytest.fixture(scope="module")
def train() -> sentiment.SentimentExamples:
    return sentiment.generate("train", 8000)


@pytest.fixture(scope="module")
def dev() -> sentiment.SentimentExamples:
    return sentiment.generate("dev", 2000)


@pytest.mark.parametrize("split", ["train", "dev"])
def test_generation_is_deterministic(split):
    first, again = sentiment.generate(split, 100, seed=3), sentiment.generate(split, 100, seed=3)
    other = sentiment.generate(split, 100, seed=4)
    assert first.texts == again.texts
    assert first.phenomena == again.phenomena
    np.testing.assert_array_equal(first.labels, again.labels)
    assert first.texts != other.texts


def test_sentences_are_unique_and_lower_case(train, dev):
    for examples, size in ((train, 8000), (dev, 2000)):
        assert len(examples) == len(examples.labels) == len(examples.phenomena) == size
        assert len(set(examples.texts)) == size
        assert all(re.fullmatch(r"[a-z]+(,? [a-z]+)+\.", text) for text in examples.texts)
    assert train.labels.dtype == np.int32


@pytest.mark.parametrize("size", [0, 1, 12, 101, 1200])
def test_shares_of_phenomena_and_labels_are_equal(size):
    examples = sentiment.generate("dev", size)
    counts = collections.Counter(zip(examples.phenomena, examples.labels.tolist(), strict=True))
    shares = [counts[phenomenon, label] for phenomenon in sentiment.PHENOMENA for label in (0, 1)]
    assert sum(shares) == len(examples) == size
    assert max(shares) - min(shares) <= 1


def test_content_words_of_the_splits_are_disjoint(train, dev):
    train_content, dev_content = sentiment.content_words("train"), sentiment.content_words("dev")
    train_words = {word for text in train.texts for word in words(text)}
    dev_words = {word for text in dev.texts for word in words(text)}
    assert train_content <= train_words
    assert dev_content <= dev_words
    assert not train_words & dev_content
    assert dev_words <= (train_words - train_content) | dev_content
    train_stems = {stem(word) for word in train_content}
    assert not train_stems & {stem(word) for word in dev_content}


def test_content_words_are_polar_words_and_enough_nouns():
    content = sentiment.content_words("train") | sentiment.content_words("dev")
    assert not POSITIVE & NEGATIVE
    assert content > POSITIVE | NEGATIVE
    assert len(content - POSITIVE - NEGATIVE) >= 40


def test_labels_follow_the_stated_rules(train, dev):
    for examples in (train, dev):
        rows = zip(examples.texts, examples.labels, examples.phenomena, strict=True)
        wrong = [row for row in rows if rule_label(row[0], row[2]) != row[1]]
        assert not wrong


@pytest.mark.parametrize(("phenomenon", "label", "text"), LITERAL)
def test_the_rules_give_the_expected_labels(phenomenon, label, text):
    assert rule_label(text, phenomenon) == label


def test_function_words_do_not_give_the_label_away(train, dev):
    content = sentiment.content_words("train") | sentiment.content_words("dev")
    names = sorted({word for text in train.texts for word in words(text)} - content)

    def counts(texts: list[str]) -> np.ndarray:
        return np.array([[words(text).count(name) for name in names] for text in texts])

    probe = LogisticRegression(max_iter=500).fit(counts(train.texts), train.labels)
    assert probe.score(counts(dev.texts), dev.labels) <= 0.6


def test_largest_size_is_reported_and_reached():
    with pytest.raises(ValueError, match="between 0 and") as error:
        sentiment.generate("dev", 10**9)
    limit = int(re.search(r"and (\d+)", str(error.value)).group(1))
    assert limit >= 2000
    assert len(set(sentiment.generate("dev", limit).texts)) == limit
    with pytest.raises(ValueError, match=str(limit)):
        sentiment.generate("dev", limit + 1)
    with pytest.raises(ValueError, match="between 0 and"):
        sentiment.generate("dev", -1)


def test_unknown_split_is_an_error():
    with pytest.raises(ValueError, match="split"):
        sentiment.generate("test", 10)
    with pytest.raises(ValueError, match="split"):
        sentiment.content_words("test")
