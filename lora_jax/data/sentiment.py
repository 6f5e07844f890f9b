"""A two-class sentiment task generated from a small grammar, as in CheckList.

Every sentence belongs to one phenomenon, and its label follows from one stated rule:

- `plain`: the evaluating word decides.
- `negation`: each negation turns the polarity of what it negates; two cancel out.
- `contrast`: the clause after "but" decides; beside "although" or "even though" the main
  clause decides, whether it comes first or last.
- `comparison`: the opinion is about the grammatical subject of the sentence; "more" keeps
  the polarity of the adjective, "less" and "not as" turn it.
- `change`: the present state decides over the earlier one, also against "but"; "no longer"
  and "stopped being" turn the polarity.
- `intensifier`: "very" and its like keep the polarity; "hardly", "barely", "scarcely",
  "anything but" and "far from" turn it.

The two splits share all function words and no adjective, noun or verb. A model therefore
has to know word meanings already and can learn only the composition from the train split.
Each template is used equally often with either label, so function words alone say nothing.

Ribeiro et al. (2020), "Beyond Accuracy: Behavioral Testing of NLP Models with CheckList".
"""

import dataclasses
import math
import re

import numpy as np

# In a template, `_same` marks a word whose polarity is the label and `_flip` the opposite.
_TEMPLATES: dict[str, tuple[str, ...]] = {
    "plain": (
        "the {noun} {was} {adj_same}",
        "i found the {noun} {adj_same}",
        "we thought that the {noun} {was} {adj_same}",
        "everyone said that the {noun} {was} {adj_same}",
        "the {noun} {was} {adj_same} and {adj2_same}",
        "the {noun} {was} {adj_same} and the {other} {owas} {adj2_same}",
        "{who} {verbed_same} the {noun}",
        "the {noun} {effected_same} {whom}",
    ),
    "negation": (
        "the {noun} {was} not {adj_flip}",
        "the {noun} {was} not {adj_flip} at all",
        "{who} would never call the {noun} {adj_flip}",
        "it is not true that the {noun} {was} {adj_flip}",
        "{who} did not {verb_flip} the {noun}",
        "the {noun} did not {effect_flip} {whom}",
        "the {noun} {was} {adj_same}, not {adj_flip}",
        "it is not true that the {noun} {was} not {adj_same}",
        "nobody can deny that the {noun} {was} {adj_same}",
    ),
    "contrast": (
        "the {noun} {was} {adj_flip}, but the {other} {owas} {adj_same}",
        "the {noun} {was} {adj_flip} but {adj_same}",
        "{who} {verbed_flip} the {noun}, but the {other} {owas} {adj_same}",
        "although the {noun} {was} {adj_flip}, the {other} {owas} {adj_same}",
        "even though the {noun} {was} {adj_flip}, {who} {verbed_same} the {other}",
        "the {noun} {was} {adj_same}, although the {other} {owas} {adj_flip}",
        "the {noun} {effected_same} {whom}, even though the {other} {owas} {adj_flip}",
        "{who} {verbed_same} the {noun}, although the {other} {owas} {adj_flip}",
    ),
    "comparison": (
        "the {noun} {was} {more_same} than the {other}",
        "the {noun} {was} {much} {more_same} than the {other}",
        "i found the {noun} {more_same} than the {other}",
        "the {noun} {was} less {mild_flip} than the {other}",
        "the {noun} {was} {much} less {mild_flip} than the {other}",
        "the {noun} {was} not as {mild_flip} as the {other}",
        "the {noun} {was} as {adj_same} as the {other} {owas} {adj_flip}",
        "the {noun}, unlike the {adj_flip} {other}, {was} {adj_same}",
    ),
    "change": (
        "{who} used to {verb_flip} the {noun}, but now {who2} {verb_same} {them}",
        "the {noun} {was} {adj_flip} {before}, but now {they} {is} {adj_same}",
        "the {noun} {was} {adj_flip} {before}, now {they} {is} {adj_same}",
        "the {noun} {is} {adj_same} now, but {they} {was} {adj_flip} {before}",
        "{who} {verb_same} the {noun} now, but {who2} used to {verb_flip} {them}",
        "the {noun} {is} no longer {adj_flip}",
        "the {noun} stopped being {adj_flip}",
        "the {noun} went from {adj_flip} to {adj_same}",
    ),
    "intensifier": (
        "the {noun} {was} {very} {mild_same}",
        "i found the {noun} {very} {mild_same}",
        "the {noun} {was} nothing but {adj_same}",
        "{who} really {verbed_same} the {noun}",
        "the {noun} {was} {hardly} {mild_flip}",
        "i found the {noun} {hardly} {mild_flip}",
        "the {noun} {was} anything but {adj_flip}",
        "the {noun} {was} far from {adj_flip}",
    ),
}
PHENOMENA: tuple[str, ...] = tuple(_TEMPLATES)

_FUNCTION_SLOTS: dict[str, tuple[str, ...]] = {
    "open": ("", "well, ", "honestly, ", "overall, "),
    "who": ("i", "we", "they"),
    "whom": ("me", "us", "them"),
    "much": ("much", "far", "a lot"),
    "before": ("last year", "before", "in the past"),
    "very": ("very", "extremely", "really", "truly"),
    "hardly": ("hardly", "barely", "scarcely"),
}
# Slots that follow from an earlier choice: (slot they follow, form if singular, if plural).
_AGREEMENT: dict[str, tuple[str, str, str]] = {
    "was": ("noun", "was", "were"),
    "is": ("noun", "is", "are"),
    "they": ("noun", "it", "they"),
    "them": ("noun", "it", "them"),
    "owas": ("other", "was", "were"),
}
# Slots that draw from the pool of an earlier slot and must differ from its choice.
_SECOND: dict[str, str] = {"other": "noun", "adj2_same": "adj_same"}

# Word lists by split. Adjectives and verbs come as (negative, positive); "a:b" adds the
# comparative of an adjective or the past of a verb. Mild adjectives, those of a domain
# included, take degree words; `absolute` ones do not. Plural nouns end in "s", others do not.
_NOUNS: dict[str, dict[str, str]] = {
    "train": {
        "food": "soup pizza dinner dessert burger salad fries",
        "place": "hotel rooms bathroom bed lobby lounge pool",
        "story": "film book novel plot ending movie songs",
        "device": "phone laptop camera screen battery tablet headphones",
        "people": "waiter manager guide driver chef nurse doctors",
    },
    "dev": {
        "food": "steak chicken beef sandwiches",
        "place": "apartment cabin kitchen offices",
        "story": "story script album comedies",
        "device": "printer keyboard television speakers",
        "people": "teacher clerk receptionist assistants",
    },
}
_ADJECTIVES: dict[str, dict[str, tuple[str, str]]] = {
    "train": {
        "mild": (
            "bad:worse nasty:nastier unpleasant disappointing annoying horrible",
            "good:better nice:nicer pleasant impressive delightful enjoyable",
        ),
        "absolute": (
            "terrible awful ridiculous hopeless worthless",
            "wonderful excellent perfect superb amazing",
        ),
        "food": (
            "bland:blander stale:staler greasy burnt",
            "fresh:fresher healthy:healthier delicious tasty",
        ),
        "place": ("dirty:dirtier noisy cramped smelly", "clean:cleaner cozy comfortable spacious"),
        "story": ("dull:duller silly boring predictable", "funny:funnier clever exciting fascinating"),
        "device": ("slow:slower faulty unreliable outdated", "fast:faster handy powerful reliable"),
        "people": ("rude:ruder lazy arrogant careless", "kind:kinder friendly polite helpful"),
    },
    "dev": {
        "mild": (
            "irritating pathetic miserable dreadful",
            "appealing satisfying remarkable charming",
        ),
        "absolute": ("disastrous hideous useless", "fantastic outstanding magnificent"),
        "food": ("rotten disgusting", "juicy tender"),
        "place": ("filthy dusty", "elegant luxurious"),
        "story": ("tedious pointless", "entertaining hilarious"),
        "device": ("defective obsolete", "efficient durable"),
        "people": ("hostile selfish", "generous cheerful"),
    },
}
_VERBS: dict[str, dict[str, tuple[str, str]]] = {
    "train": {
        "verb": (
            "hate:hated dislike:disliked despise:despised criticize:criticized",
            "love:loved like:liked enjoy:enjoyed praise:praised",
        ),
        "effect": (
            "disappoint:disappointed annoy:annoyed bore:bored bother:bothered",
            "impress:impressed please:pleased delight:delighted amuse:amused",
        ),
    },
    "dev": {
        "verb": (
            "loathe:loathed detest:detested resent:resented",
            "adore:adored appreciate:appreciated admire:admired",
        ),
        "effect": (
            "irritate:irritated frustrate:frustrated",
            "satisfy:satisfied thrill:thrilled",
        ),
    },
}


@dataclasses.dataclass(frozen=True)
class SentimentExamples:
    """Sentences with their labels.

    Attributes:
        texts: Lower-case sentences, each ending in a period.
        labels: int32 array of the same length, 0 for negative and 1 for positive.
        phenomena: For every sentence its entry of `PHENOMENA`.
    """

    texts: list[str]
    labels: np.ndarray
    phenomena: list[str]

    def __len__(self) -> int:
        """Returns the number of sentences."""
        return len(self.texts)


def generate(split: str, size: int, seed: int = 0) -> SentimentExamples:
    """Draws unique sentences with equal shares of every phenomenon and label.

    Within a phenomenon and label, the templates have equal shares as well, so the largest
    possible size is set by the template with the fewest sentences. Shares are equal up to
    the remainder of the division.

    Args:
        split: "train" or "dev".
        size: Number of sentences.
        seed: Seed of the choice and the order of the sentences.

    Returns:
        The sentences in random order.

    Raises:
        ValueError: If the split is unknown, the size is negative, or the size is above what
            the grammar can give.
    """
    _check_split(split)
    limit = _largest_size(split)
    if not 0 <= size <= limit:
        raise ValueError(f"size must be between 0 and {limit} for split {split!r}, got {size}")
    rng = np.random.default_rng([seed, list(_NOUNS).index(split)])
    cells = [(phenomenon, label) for phenomenon in PHENOMENA for label in (0, 1)]
    rows: list[tuple[str, int, str]] = []
    for (phenomenon, label), share in zip(cells, _shares(size, len(cells)), strict=True):
        templates = _TEMPLATES[phenomenon]
        for template, count in zip(templates, _shares(share, len(templates)), strict=True):
            texts = _draw(template, split, label, count, rng)
            rows.extend((text, label, phenomenon) for text in texts)
    rows = [rows[i] for i in rng.permutation(len(rows))]
    return SentimentExamples(
        texts=[text for text, _, _ in rows],
        labels=np.array([label for _, label, _ in rows], dtype=np.int32),
        phenomena=[phenomenon for _, _, phenomenon in rows],
    )


def content_words(split: str) -> frozenset[str]:
    """Returns every adjective, noun and verb form that belongs to a split.

    Raises:
        ValueError: If the split is unknown.
    """
    _check_split(split)
    pairs = [*_ADJECTIVES[split].values(), *_VERBS[split].values()]
    lists = [*_NOUNS[split].values(), *(words for pair in pairs for words in pair)]
    return frozenset(word for words in lists for word in words.replace(":", " ").split())


def _check_split(split: str) -> None:
    if split not in _NOUNS:
        raise ValueError(f"split must be one of {sorted(_NOUNS)}, got {split!r}")


def _shares(total: int, parts: int) -> list[int]:
    return [total // parts + (i < total % parts) for i in range(parts)]


def _largest_size(split: str) -> int:
    cells = [
        len(templates) * min(_capacity(template, split, label) for template in templates)
        for templates in _TEMPLATES.values()
        for label in (0, 1)
    ]
    return min(cells) * len(cells)


def _capacity(template: str, split: str, label: int) -> int:
    return sum(math.prod(_radices(template, split, domain, label)) for domain in _NOUNS[split])


def _slots(template: str) -> list[str]:
    """Returns the slots of a template that leave a choice."""
    return ["open", *(s for s in re.findall(r"{(\w+)}", template) if s not in _AGREEMENT and s != "who2")]


def _radices(template: str, split: str, domain: str, label: int) -> list[int]:
    """Returns the number of choices for each slot."""
    return [
        len(_pool(slot, split, domain, label)) - (slot in _SECOND) for slot in _slots(template)
    ]


def _pool(slot: str, split: str, domain: str, label: int) -> list[str]:
    """Returns the words or phrases that a slot can take, including that of an earlier slot."""
    if slot in _FUNCTION_SLOTS:
        return list(_FUNCTION_SLOTS[slot])
    if slot in ("noun", "other"):
        return _NOUNS[split][domain].split()
    kind, role = slot.split("_")
    polarity = label if role == "same" else 1 - label
    if kind in ("verb", "verbed", "effect", "effected"):
        entries = _VERBS[split][kind.removesuffix("ed")][polarity].split()
        return [entry.split(":")[kind.endswith("ed")] for entry in entries]
    names = ["mild", domain] if kind in ("mild", "more") else ["mild", "absolute", domain]
    entries = " ".join(_ADJECTIVES[split][name][polarity] for name in names).split()
    if kind == "more":
        return [e.split(":")[1] if ":" in e else f"more {e}" for e in entries]
    return [entry.split(":")[0] for entry in entries]


def _draw(
    template: str, split: str, label: int, count: int, rng: np.random.Generator
) -> list[str]:
    """Draws different fillings of one template."""
    numbers = rng.choice(_capacity(template, split, label), size=count, replace=False)
    return [_fill(template, split, label, int(number)) for number in numbers]


def _fill(template: str, split: str, label: int, number: int) -> str:
    """Returns the filling of a template with the given number, counted over all domains."""
    for domain in _NOUNS[split]:
        radices = _radices(template, split, domain, label)
        if number < math.prod(radices):
            break
        number -= math.prod(radices)
    chosen: dict[str, str] = {}
    for slot, radix in zip(_slots(template), radices, strict=True):
        number, digit = divmod(number, radix)
        earlier = chosen.get(_SECOND.get(slot, ""))
        chosen[slot] = [w for w in _pool(slot, split, domain, label) if w != earlier][digit]
    for slot, (source, singular, plural) in _AGREEMENT.items():
        if source in chosen:
            chosen[slot] = plural if chosen[source].endswith("s") else singular
    chosen["who2"] = chosen.get("who", "")
    return chosen["open"] + template.format(**chosen) + "."
