"""Readers of E2E, WebNLG and DART: the real files row by row, and other formats."""

from __future__ import annotations

import collections
import json
import shutil

import numpy as np
import pytest
from corpus_files import dart_xml, entry, webnlg_json, webnlg_xml, write

from lora_jax.data import data_to_text, e2e
from lora_jax.data.pairs import Pairs, by_context
from lora_jax.errors import InputError

# Rows, different contexts, most references of one context; paper.md section 5.6 and SOURCES.md.
COUNTS = {
    ("e2e", "train"): (42061, 4862, 46),
    ("e2e", "valid"): (4672, 547, 43),
    ("e2e", "test"): (4693, 630, 45),
    ("webnlg", "train"): (18025, 6888, 12),
    ("webnlg", "valid"): (2258, 870, 8),
    ("webnlg", "test"): (4928, 1862, 8),
    ("dart", "train"): (51584, 19084, 48),  # partial
    ("dart", "valid"): (6980, 2721, 33),
}
FIRST = {
    ("e2e", "train"): (
        "name : The Vaults | Type : pub | price : more than £ 30 | customer rating : 5 out of 5 | "
        "near : Café Adriatic",
        "The Vaults pub near Café Adriatic has a 5 star rating . Prices start at £ 30 .",
    ),
    ("e2e", "valid"): (
        "name : Alimentum | area : city centre | family friendly : no",
        "There is a place in the city centre , Alimentum , that is not family - friendly .",
    ),
    ("e2e", "test"): (
        "name : Blue Spice | Type : coffee shop | area : city centre",
        "A coffee shop in the city centre area called Blue Spice .",
    ),
    ("webnlg", "train"): (
        'Aarhus_Airport : cityServed : "Aarhus, Denmark"',
        "The Aarhus is the airport of Aarhus, Denmark.",
    ),
    ("webnlg", "valid"): (
        "Aarhus : leaderName : Jacob_Bundsgaard",
        "The leader of Aarhus is Jacob Bundsgaard.",
    ),
    ("webnlg", "test"): (
        "Abilene_Regional_Airport : cityServed : Abilene,_Texas",
        "Abilene, Texas is served by the Abilene regional airport.",
    ),
    ("dart", "train"): (
        'Aarhus Airport : city_served : "Aarhus, Denmark"',
        "The Aarhus is the airport of Aarhus, Denmark.",
    ),
    ("dart", "valid"): (
        "Mars Hill College : joined : 1973 | Mars Hill College : location : "
        "Mars Hill, North Carolina",
        "A school from Mars Hill, North Carolina, joined in 1973.",
    ),
}
SOME = "name[Blue Spice], eatType[coffee shop], priceRange[£20-25], familyFriendly[no]"


def rows(pairs: Pairs) -> list[tuple[str, str, str]]:
    return list(zip(pairs.contexts, pairs.completions, pairs.subsets, strict=True))


# the real files


@pytest.mark.parametrize(("dataset", "split"), COUNTS)
def test_real_counts_and_first_rows(dataset, split, corpus):
    pairs = corpus(dataset, split)
    groups = by_context(pairs)
    most = max(map(len, groups.references))
    assert (len(pairs), len(groups), most) == COUNTS[dataset, split]
    assert (pairs.contexts[0], pairs.completions[0]) == FIRST[dataset, split]
    assert bool(pairs.notes) == (dataset == "dart" and split == "train")
    assert all(context == context.strip() for context in pairs.contexts)
    assert sum(text != text.strip() for text in pairs.completions) == {
        ("dart", "train"): 3,  # DART's texts are kept as they are
        ("dart", "valid"): 1,
    }.get((dataset, split), 0)
    assert all(all(texts) for texts in groups.references) and all(pairs.contexts)


def test_real_webnlg_subsets(corpus):
    for split in ("train", "valid"):
        assert set(corpus("webnlg", split).subsets) == {"seen"}
    test = corpus("webnlg", "test")
    assert collections.Counter(test.subsets) == {"seen": 2495, "unseen": 2433}
    assert collections.Counter(by_context(test).subsets) == {"seen": 971, "unseen": 891}


def test_real_e2e_rows_are_the_bytes_of_the_file(real_data):
    for split in data_to_text.SPLITS:
        pairs = data_to_text.read("e2e", split, str(real_data / "nlg" / "e2e"))
        lines = [f"{one}||{two} \n" for one, two, _ in rows(pairs)]
        assert "".join(lines).encode() == (real_data / f"nlg/e2e/{split}.txt").read_bytes()


# Rows of the csv whose reference equals that of the txt, out of all.
SAME = {"test": (4656, 4693), "train": (42008, 42061), "valid": (4671, 4672)}


@pytest.mark.parametrize("split", SAME)
def test_real_e2e_csv_gives_the_txt_but_for_some_blanks(split, real_data, corpus):
    txt = corpus("e2e", split)
    csv = data_to_text.read("e2e", split, str(real_data / "nlg" / "e2e" / "csv"))
    assert csv.contexts == txt.contexts
    same = [a == b for a, b in zip(csv.completions, txt.completions, strict=True)]
    assert (sum(same), len(same)) == SAME[split]
    for one, two in zip(csv.completions, txt.completions, strict=True):
        assert one.replace(" ", "") == two.replace(" ", "")
    assert "derived by rule" in csv.notes and ".csv.gz: " in csv.notes


def test_partial_dart_is_the_last_choice_and_says_so(real_data, tmp_path):
    folder = tmp_path / "dart"
    folder.mkdir()
    shutil.copy(real_data / "nlg/dart/train.partial.json.gz", folder)
    notes = data_to_text.read("dart", "train", str(tmp_path)).take(5).notes
    assert notes.startswith("partial train set: train.partial.json.gz has 51,584 of the 62,659")
    full = [{"tripleset": [["A", "IS_IN", "B"]], "annotations": [{"source": "s", "text": "t"}]}]
    write(tmp_path / "dart-v1.1.1-full-train.json.gz", full)  # even in a folder tried later
    pairs = data_to_text.read("dart", "train", str(tmp_path))
    assert rows(pairs) == [("A : is_in : B", "t", "")] and pairs.notes == ""


# formats


def test_real_webnlg_xml_gives_the_rows_of_the_json(real_data, tmp_path):
    content = json.loads((real_data / "nlg/webnlg_2017/test.json").read_bytes())
    entries = [next(iter(each.values())) for each in content["entries"]][::9]
    entries += [entry(texts=[("toFix", "no"), ("good", "a < b & 'c' é")])]
    write(tmp_path / "json/test.json", webnlg_json(entries))
    write(tmp_path / "xml/test/testdata_with_lex.xml", webnlg_xml(entries))
    expected = data_to_text.read("webnlg", "test", str(tmp_path / "json"))
    assert {"seen", "unseen"} == set(expected.subsets) and "no" not in expected.completions
    assert data_to_text.read("webnlg", "test", str(tmp_path / "xml")) == expected

    # Train and dev are a folder for each number of triples, a file for each category.
    cuts = (0, 40, 90, len(entries))
    names = ("1triples/1triple_A.xml", "1triples/1triple_B.xml.gz", "2triples/2triples_A.xml")
    for name, start, end in zip(names, cuts[:-1], cuts[1:], strict=True):
        write(tmp_path / "webnlg_2017/dev" / name, webnlg_xml(entries[start:end]))
    assert data_to_text.read("webnlg", "valid", str(tmp_path)) == expected
    # A plain file is taken instead of its packed copy, not beside it; one of other content is refused.
    copy = tmp_path / "webnlg_2017/dev" / f"{names[0]}.gz"
    write(copy, webnlg_xml(entries[:40]))
    assert data_to_text.read("webnlg", "valid", str(tmp_path)) == expected
    write(copy, webnlg_xml(entries[:39]))
    with pytest.raises(InputError, match="are both there, with different contents"):
        data_to_text.read("webnlg", "valid", str(tmp_path))


def test_real_dart_xml_gives_the_rows_of_the_json(real_data, tmp_path):
    entries = json.loads((real_data / "nlg/dart/dev.json").read_bytes())[::9]
    odd = {"source": "s", "text": " a < b & 'c' é \t"}, {"source": "s", "text": ""}
    entries += [
        {"tripleset": [["", "IS  IN", " x"]], "annotations": list(odd)},
        {"tripleset": [["a", "B", "c"]], "annotations": []},  # no text, no row
    ]
    write(tmp_path / "json/dart-v1.1.1-full-dev.json", entries)
    write(tmp_path / "xml/dart/data/v1.1.1/dart-v1.1.1-full-dev.xml", dart_xml(entries))
    expected = data_to_text.read("dart", "valid", str(tmp_path / "json"))
    assert rows(expected)[-2:] == [(" : is  in :  x", text["text"], "") for text in odd]
    assert data_to_text.read("dart", "valid", str(tmp_path / "xml")) == expected
    # The json is taken if both are there, the part of the train set only if nothing else is.
    write(tmp_path / "xml/dev.json", entries[:1])
    assert len(data_to_text.read("dart", "valid", str(tmp_path / "xml"))) < len(expected)
    write(tmp_path / "train.partial.json", entries[:1])
    write(tmp_path / "data/v1.1.1/dart-v1.1.1-full-train.xml.gz", dart_xml(entries))
    pairs = data_to_text.read("dart", "train", str(tmp_path))
    assert rows(pairs) == rows(expected) and pairs.notes == ""


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_folders_under_every_usual_name(suffix, tmp_path):
    contents = {
        ("e2e", "train.txt"): "a : b||c d \r\n",
        ("webnlg", "train.json"): webnlg_json([entry()]),
        ("dart", "train.json"): [{"tripleset": [["a", "B", "c"]], "annotations": [{"text": "t"}]}],
    }
    expected = {
        "e2e": ("a : b", "c d", ""),
        "webnlg": ("a : b : c", "t", "seen"),
        "dart": ("a : b : c", "t", ""),
    }
    folders = {
        "e2e": ("", "e2e", "nlg/e2e"),
        "webnlg": ("", "webnlg_challenge_2017", "webnlg_2017", "nlg/webnlg_2017"),
        "dart": ("", "dart", "data/v1.1.1", "nlg/dart"),
    }
    for (dataset, name), content in contents.items():
        for number, folder in enumerate(folders[dataset]):
            root = tmp_path / f"{dataset}{number}"
            write(root / folder / f"{name}{suffix}", content)
            assert rows(data_to_text.read(dataset, "train", str(root))) == [expected[dataset]]


def test_txt_and_json_are_preferred(tmp_path):
    write(tmp_path / "e2e/csv/trainset.csv", f'mr,ref\n"{SOME}",From csv.\n')
    assert data_to_text.read("e2e", "train", str(tmp_path)).completions == ["From csv ."]
    write(tmp_path / "train.txt", "a : b||From txt .")
    assert data_to_text.read("e2e", "train", str(tmp_path)).completions == ["From txt ."]
    write(tmp_path / "webnlg/test/testdata_with_lex.xml", webnlg_xml([entry()]))
    assert data_to_text.read("webnlg", "test", str(tmp_path)).completions == ["t"]
    write(tmp_path / "webnlg/test.json", webnlg_json([entry(texts=[("good", "json")])]))
    assert data_to_text.read("webnlg", "test", str(tmp_path)).completions == ["json"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's family-friendly, at £20.50!", "It 's family - friendly , at £ 20.50 !"),
        (
            "Near  the\nriver... 'The Mill' is (cheap).",
            "Near the river ... ' The Mill ' is (cheap) .",
        ),
        ("St. John's. Riverside;Open?", "St. John 's . Riverside ; Open ?"),
    ],
)
def test_blanks_around_punctuation(text, expected):
    assert e2e.tokenised(text, "train") == expected
    assert e2e.tokenised(text, "test") == expected


def test_contractions_are_cut_as_each_txt_cuts_them():
    assert e2e.tokenised("It isn't.", "train") == "It isn 't ."
    assert e2e.tokenised("It isn't.", "test") == "It is n't ."


def test_random_e2e_and_dart_round_trips(tmp_path):
    generator = np.random.default_rng(0)
    letters = [*"abc é£.,:|'\"[]{}\\\u0085\u2028\x0b", "||"]

    def text(avoid=""):
        chosen = generator.choice([c for c in letters if c not in avoid], generator.integers(1, 9))
        return f"x{''.join(chosen)}y".replace("||", "|" if "||" in avoid else "||")

    pairs = [(text(("||", "|")), text(("||", "|")), "") for _ in range(300)]
    write(tmp_path / "e2e/test.txt", "".join(f"{a}||{b} \n" for a, b, _ in pairs))
    assert rows(data_to_text.read("e2e", "test", str(tmp_path))) == pairs
    entries, expected = [], []
    for _ in range(100):
        triples = [[text(), text(), text()] for _ in range(generator.integers(1, 4))]
        texts = [text() for _ in range(generator.integers(0, 4))]
        entries.append({"tripleset": triples, "annotations": [{"text": each} for each in texts]})
        context = " | ".join(f"{a} : {b.lower()} : {c}" for a, b, c in triples)
        expected += [(context, each, "") for each in texts]
    write(tmp_path / "dart/test.json.gz", entries)
    assert rows(data_to_text.read("dart", "test", str(tmp_path))) == expected
