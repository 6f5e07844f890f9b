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
        "{who} found the {noun} {adj_same}",
        "everyone said that the {noun} {was} {adj_same}",
        "the {noun} {was} {adj_same} and {adj2_same}",
        "the {noun} {was} {adj_same} and the {other} {owas} {adj2_same}",
        "{who} {verbed_same} the {noun}",
        "the {noun} {effected_same} {whom}",
    ),
    "negation": (
        "the {noun} {was} not {adj_flip}",
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
    ),
    "comparison": (
        "the {noun} {was} {more_same} than the {other}",
        "the {noun} {was} {much} {more_same} than the {other}",
        "{who} found the {noun} {more_same} than the {other}",
        "the {noun} {was} less {mild_flip} than the {other}",
        "the {noun} {was} not as {mild_flip} as the {other}",
        "the {noun} {was} as {adj_same} as the {other} {owas} {adj_flip}",
        "the {noun}, unlike the {adj_flip} {other}, {was} {adj_same}",
    ),
    "change": (
        "{who} used to {verb_flip} the {noun}, but now {who} {verb_same} {them}",
        "the {noun} {was} {adj_flip} {before}, but now {they} {is} {adj_same}",
        "the {noun} {is} {adj_same} now, but {they} {was} {adj_flip} {before}",
        "{who} {verb_same} the {noun} now, but {who} used to {verb_flip} {them}",
        "the {noun} {is} no longer {adj_flip}",
        "the {noun} stopped being {adj_flip}",
        "the {noun} went from {adj_flip} to {adj_same}",
    ),
    "intensifier": (
        "the {noun} {was} {very} {mild_same}",
        "the {noun} {was} nothing but {adj_same}",
        "{who} really {verbed_same} the {noun}",
        "the {noun} {was} {hardly} {mild_flip}",
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
# Slots that agree with the noun in number; `owas` agrees with the other noun instead.
_SINGULAR = {"was": "was", "is": "is", "they": "it", "them": "it", "owas": "was"}
_PLURAL = {"was": "were", "is": "are", "they": "they", "them": "them", "owas": "were"}
# Slots that draw from the pool of an earlier slot and must differ from its choice.
_SECOND: dict[str, str] = {"other": "noun", "adj2_same": "adj_same"}

# A domain reads "negative / positive / nouns", the other entries "negative / positive"; "a:b" adds
# the comparative of an adjective or the past of a verb. Degree words take `mild` adjectives and
# those of a domain, but no `absolute` ones. Plural nouns end in "s", singular ones do not.
_DOMAINS: tuple[str, ...] = ("food", "place", "story", "device", "people")
_LEXICON: dict[str, dict[str, str]] = {
    "train": {
        "food": "bland:blander stale:staler greasy burnt / fresh:fresher healthy:healthier tasty"
        " delicious / soup pizza dinner dessert burger salad fries",
        "place": "dirty:dirtier noisy cramped smelly / clean:cleaner cozy comfortable spacious"
        " / hotel rooms bathroom bed lobby lounge pool",
        "story": "dull:duller silly boring predictable / funny:funnier clever exciting fascinating"
        " / film book novel plot ending movie songs",
        "device": "slow:slower faulty unreliable outdated / fast:faster handy powerful reliable"
        " / phone laptop camera screen battery tablet headphones",
        "people": "rude:ruder lazy arrogant careless / kind:kinder friendly polite helpful"
        " / waiters managers guides drivers chefs nurses doctors",
        "mild": "bad:worse nasty:nastier unpleasant disappointing annoying horrible"
        " / good:better nice:nicer pleasant impressive delightful enjoyable",
        "absolute": "terrible awful ridiculous worthless / wonderful excellent perfect superb",
        "verb": "hate:hated dislike:disliked despise:despised criticize:criticized"
        " / love:loved like:liked enjoy:enjoyed praise:praised",
        "effect": "disappoint:disappointed annoy:annoyed bore:bored bother:bothered"
        " / impress:impressed please:pleased delight:delighted amuse:amused",
    },
    "dev": {
        "food": "rotten disgusting / juicy tender / steak chicken beef sandwiches",
        "place": "filthy dusty / elegant luxurious / apartment cabin kitchen offices",
        "story": "tedious pointless / entertaining hilarious / story script album comedies",
        "device": "defective obsolete / efficient durable / printer keyboard television speakers",
        "people": "hostile selfish / generous cheerful / teachers clerks neighbors assistants",
        "mild": "irritating pathetic miserable dreadful / appealing satisfying remarkable charming",
        "absolute": "disastrous hideous useless / fantastic outstanding magnificent",
        "verb": "loathe:loathed detest:detested condemn:condemned"
        " / adore:adored appreciate:appreciated admire:admired",
        "effect": "irritate:irritated frustrate:frustrated / satisfy:satisfied thrill:thrilled",
    },
}


@dataclasses.dataclass(frozen=True)
class SentimentExamples:
    """Lower-case sentences, int32 labels (0 negative, 1 positive) and their `PHENOMENA`."""

    texts: list[str]
    labels: np.ndarray
    phenomena: list[str]

    def __len__(self) -> int:
        """Returns the number of sentences."""
        return len(self.texts)


def generate(split: str, size: int, seed: int = 0) -> SentimentExamples:
    """Draws unique sentences with equal shares of every phenomenon and label.

    Within a phenomenon and label the templates have equal shares as well, so the template
    with the fewest sentences sets the largest possible size. Shares are equal up to rounding.

    Args:
        split: "train" or "dev".
        size: Number of sentences.
        seed: Seed of the choice and the order of the sentences.

    Returns:
        The sentences in random order.

    Raises:
        ValueError: If the split is unknown or the grammar cannot give that many sentences.
    """
    limit = _largest_size(split)
    if not 0 <= size <= limit:
        raise ValueError(f"size must be between 0 and {limit} for split {split!r}, got {size}")
    rng = np.random.default_rng([seed, list(_LEXICON).index(split)])
    cells = [(phenomenon, label) for phenomenon in PHENOMENA for label in (0, 1)]
    rows: list[tuple[str, int, str]] = []
    for (phenomenon, label), share in zip(cells, _shares(size, len(cells)), strict=True):
        templates = _TEMPLATES[phenomenon]
        for template, count in zip(templates, _shares(share, len(templates)), strict=True):
            numbers = rng.choice(_capacity(template, split, label), size=count, replace=False)
            rows.extend((_fill(template, split, label, int(n)), label, phenomenon) for n in numbers)
    rows = [rows[i] for i in rng.permutation(size)]
    return SentimentExamples(
        texts=[text for text, _, _ in rows],
        labels=np.array([label for _, label, _ in rows], dtype=np.int32),
        phenomena=[phenomenon for _, _, phenomenon in rows],
    )


def content_words(split: str) -> frozenset[str]:
    """Returns every adjective, noun and verb form of a split; raises ValueError if unknown."""
    return frozenset(re.findall("[a-z]+", " ".join(_lexicon(split).values())))


def _lexicon(split: str) -> dict[str, str]:
    if split not in _LEXICON:
        raise ValueError(f"split must be one of {sorted(_LEXICON)}, got {split!r}")
    return _LEXICON[split]


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
    return sum(math.prod(_choices(template, split, domain, label).values()) for domain in _DOMAINS)


def _choices(template: str, split: str, domain: str, label: int) -> dict[str, int]:
    """Returns the number of choices for each slot that does not follow from another one."""
    slots = [s for s in re.findall(r"{(\w+)}", "{open}" + template) if s not in _SINGULAR]
    return {s: len(_pool(s, split, domain, label)) - (s in _SECOND) for s in slots}


def _pool(slot: str, split: str, domain: str, label: int) -> list[str]:
    """Returns what a slot can take; a second slot may not repeat the choice of the first."""
    if slot in _FUNCTION_SLOTS:
        return list(_FUNCTION_SLOTS[slot])
    lexicon = _lexicon(split)
    if slot in ("noun", "other"):
        return lexicon[domain].split(" / ")[2].split()
    kind, role = slot.split("_")
    if kind.startswith(("verb", "effect")):
        keys = [kind.removesuffix("ed")]
    else:
        keys = ["mild", domain, "absolute"] if kind.startswith("adj") else ["mild", domain]
    polarity = label if role == "same" else 1 - label
    entries = [e for key in keys for e in lexicon[key].split(" / ")[polarity].split()]
    if kind == "more":
        return [e.split(":")[1] if ":" in e else f"more {e}" for e in entries]
    return [entry.split(":")[kind.endswith("ed")] for entry in entries]


def _fill(template: str, split: str, label: int, number: int) -> str:
    """Returns one filling of a template; the fillings of all domains are numbered from 0."""
    for domain in _DOMAINS:
        choices = _choices(template, split, domain, label)
        if number < math.prod(choices.values()):
            break
        number -= math.prod(choices.values())
    chosen: dict[str, str] = {}
    for slot, radix in choices.items():
        number, digit = divmod(number, radix)
        first = chosen.get(_SECOND.get(slot, ""))
        chosen[slot] = [w for w in _pool(slot, split, domain, label) if w != first][digit]
    forms = dict(_PLURAL if chosen["noun"].endswith("s") else _SINGULAR)
    forms["owas"] = "were" if chosen.get("other", "").endswith("s") else "was"
    return chosen["open"] + template.format(**chosen, **forms) + "."
