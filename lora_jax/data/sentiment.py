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

from __future__ import annotations

import dataclasses
import functools
import math
import re

import numpy as np
from jaxtyping import Int32

from lora_jax.data import sentiment_grammar as grammar
from lora_jax.errors import InputError
from lora_jax.ranges import SEED, check

PHENOMENA: tuple[str, ...] = tuple(grammar.TEMPLATES)


@dataclasses.dataclass(frozen=True)
class SentimentExamples:
    """Generated sentences with their labels.

    Attributes:
        texts: Sentences in lower case.
        labels: 0 for negative, 1 for positive.
        phenomena: One of `PHENOMENA` for each sentence.
    """

    texts: list[str]
    labels: Int32[np.ndarray, " sentences"]
    phenomena: list[str]

    def __len__(self) -> int:
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
    check("seed", seed, SEED)
    limit = _largest_size(split)
    if not 0 <= size <= limit:
        raise InputError(f"size must be between 0 and {limit} for split {split!r}, got {size}")
    rng = np.random.default_rng([seed, list(grammar.LEXICON).index(split)])
    cells = [(phenomenon, label) for phenomenon in PHENOMENA for label in (0, 1)]
    rows: list[tuple[str, int, str]] = []
    for (phenomenon, label), share in zip(cells, _shares(size, len(cells)), strict=True):
        templates = grammar.TEMPLATES[phenomenon]
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
    if split not in grammar.LEXICON:
        raise InputError(f"split must be one of {sorted(grammar.LEXICON)}, got {split!r}")
    return grammar.LEXICON[split]


def _shares(total: int, parts: int) -> list[int]:
    return [total // parts + (i < total % parts) for i in range(parts)]


def _largest_size(split: str) -> int:
    cells = [
        len(templates) * min(_capacity(template, split, label) for template in templates)
        for templates in grammar.TEMPLATES.values()
        for label in (0, 1)
    ]
    return min(cells) * len(cells)


def _capacity(template: str, split: str, label: int) -> int:
    return sum(
        math.prod(_choices(template, split, domain, label).values()) for domain in grammar.DOMAINS
    )


@functools.cache
def _choices(template: str, split: str, domain: str, label: int) -> dict[str, int]:
    """Returns the number of choices for each slot that does not follow from another one."""
    slots = [s for s in re.findall(r"{(\w+)}", "{open}" + template) if s not in grammar.SINGULAR]
    return {s: len(_pool(s, split, domain, label)) - (s in grammar.SECOND) for s in slots}


@functools.cache
def _pool(slot: str, split: str, domain: str, label: int) -> tuple[str, ...]:
    """Returns what a slot can take; a second slot may not repeat the choice of the first."""
    if slot in grammar.FUNCTION_SLOTS:
        return grammar.FUNCTION_SLOTS[slot]
    lexicon = _lexicon(split)
    if slot in ("noun", "other"):
        return tuple(lexicon[domain].split(" / ")[2].split())
    kind, role = slot.split("_")
    if kind.startswith(("verb", "effect")):
        keys = [kind.removesuffix("ed")]
    else:
        keys = ["mild", domain, "absolute"] if kind.startswith("adj") else ["mild", domain]
    polarity = label if role == "same" else 1 - label
    entries = [e for key in keys for e in lexicon[key].split(" / ")[polarity].split()]
    if kind == "more":
        return tuple(e.split(":")[1] if ":" in e else f"more {e}" for e in entries)
    return tuple(entry.split(":")[kind.endswith("ed")] for entry in entries)


def _fill(template: str, split: str, label: int, number: int) -> str:
    """Returns one filling of a template; the fillings of all domains are numbered from 0."""
    for domain in grammar.DOMAINS:
        choices = _choices(template, split, domain, label)
        if number < math.prod(choices.values()):
            break
        number -= math.prod(choices.values())
    chosen: dict[str, str] = {}
    for slot, radix in choices.items():
        number, digit = divmod(number, radix)
        first = chosen.get(grammar.SECOND.get(slot, ""))
        chosen[slot] = [w for w in _pool(slot, split, domain, label) if w != first][digit]
    forms = dict(grammar.PLURAL if chosen["noun"].endswith("s") else grammar.SINGULAR)
    forms["owas"] = "were" if chosen.get("other", "").endswith("s") else "was"
    return chosen["open"] + template.format(**chosen, **forms) + "."
