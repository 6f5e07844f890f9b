"""Templates and words of the generated sentiment task, see `lora_jax.data.sentiment`."""

from __future__ import annotations

# In a template, `_same` marks a word whose polarity is the label and `_flip` the opposite.
TEMPLATES: dict[str, tuple[str, ...]] = {
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

FUNCTION_SLOTS: dict[str, tuple[str, ...]] = {
    "open": ("", "well, ", "honestly, ", "overall, "),
    "who": ("i", "we", "they"),
    "whom": ("me", "us", "them"),
    "much": ("much", "far", "a lot"),
    "before": ("last year", "before", "in the past"),
    "very": ("very", "extremely", "really", "truly"),
    "hardly": ("hardly", "barely", "scarcely"),
}
# Slots that agree with the noun in number; `owas` agrees with the other noun instead.
SINGULAR = {"was": "was", "is": "is", "they": "it", "them": "it", "owas": "was"}
PLURAL = {"was": "were", "is": "are", "they": "they", "them": "them", "owas": "were"}
# Slots that draw from the pool of an earlier slot and must differ from its choice.
SECOND: dict[str, str] = {"other": "noun", "adj2_same": "adj_same"}

# A domain reads "negative / positive / nouns", the other entries "negative / positive"; "a:b" adds
# the comparative of an adjective or the past of a verb. Degree words take `mild` adjectives and
# those of a domain, but no `absolute` ones. Plural nouns end in "s", singular ones do not.
DOMAINS: tuple[str, ...] = ("food", "place", "story", "device", "people")
LEXICON: dict[str, dict[str, str]] = {
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
