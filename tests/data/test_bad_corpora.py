"""Bad or missing files of E2E, WebNLG and DART: the errors say where and what to do."""

from __future__ import annotations

import gzip

import pytest
from corpus_files import entry, webnlg_json, webnlg_xml, write

from lora_jax.data import data_to_text


@pytest.mark.parametrize(
    ("dataset", "name", "content", "message"),
    [
        ("e2e", "train.txt", "a||b\nc|d\n", r"train\.txt, line 2: found 'c\|d', expected 'context"),
        ("e2e", "train.txt", "a||b\na||b||c", r"line 2: found 'a\|\|b\|\|c'"),
        ("e2e", "train.txt", "a|| \n", r"line 1: found 'a\|\| '"),
        ("e2e", "train.txt", "", r"line 1: found ''"),
        ("e2e", "trainset.csv", "MR\na[b]\n", r"line 1: found the columns \['MR'\], expected.*ref"),
        ("e2e", "trainset.csv", "mr,ref\n", "line 2: found no rows"),
        ("e2e", "trainset.csv", "mr,ref\na[b],c\na[b]\n", r"line 3: found \['a\[b\]'\], expected"),
        ("e2e", "trainset.csv", "mr,ref\na(b),c\n", r"line 2: found mr 'a\(b\)', expected 'key\["),
        ("e2e", "trainset.csv", 'mr,ref\n"a[b] c[d]",c\n', r"line 2: found mr 'a\[b\] c\[d\]'"),
        ("e2e", "trainset.csv", 'mr,ref\na[b],"c"d\n', "line 2: found invalid csv"),
        ("webnlg", "train.json", '{"entries": [', r"train\.json, line 1: found invalid JSON"),
        ("webnlg", "train.json", [], r"top: found 'entries': \[\], expected a list under"),
        ("webnlg", "train.json", {"entries": [{}]}, "entry 1: found {}, expected one object"),
        (
            "webnlg",
            "train.json",
            webnlg_json([entry(), entry() | {"category": 3}]),
            "entry 2: found 'category': 3, expected a str under 'category'",
        ),
        (
            "webnlg",
            "train.json",
            webnlg_json([entry() | {"modifiedtripleset": [{"subject": "a", "object": "b"}]}]),
            "entry 1: found 'property': None",
        ),
        ("webnlg", "train.json", webnlg_json([entry(texts=[("toFix", "t")])]), "no text with comm"),
        ("dart", "train.json", {"entries": 1}, r"top: found {'entries': 1}, expected a list"),
        ("dart", "train.json", [{"annotations": []}], "entry 1: found 'tripleset': None"),
        ("dart", "train.json", [{"tripleset": [["a", "b"]]}], r"entry 1: found \['a', 'b'\], exp"),
        (
            "dart",
            "train.json",
            [{"tripleset": [["a", "b", "c"]], "annotations": [{"source": "s"}]}],
            "entry 1: found 'text': None",
        ),
    ],
)
def test_bad_content_is_located(dataset, name, content, message, tmp_path):
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message) as error:
        data_to_text.read(dataset, "train", str(tmp_path))
    assert str(path) in str(error.value) and "Get the file again" in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<benchmark>", '<!DOCTYPE x [<!ENTITY e "e">]><benchmark>', "head: found <!DOCTYPE"),
        ("</benchmark>", "", "line 13: found invalid XML"),
        ("a | b | c", "a | b", r"entry 1 \(eid Id1\): found mtriple 'a \| b', expected 'subject"),
        ("mtriple>", "striple>", "found no modifiedtripleset/mtriple"),
        (' category="Food"', "", "found no category"),
        (">t<", "><text>t</text><", "found an empty <lex>, expected .*2017"),
    ],
)
def test_bad_xml_is_located(old, new, message, tmp_path):
    text = webnlg_xml([entry()])
    assert old in text
    write(tmp_path / "testdata_with_lex.xml", text.replace(old, new))
    with pytest.raises(ValueError, match=f"testdata_with_lex.xml, .*{message}"):
        data_to_text.read("webnlg", "test", str(tmp_path))


def test_bad_bytes_are_located(tmp_path):
    path = tmp_path / "train.txt"
    path.write_bytes(b"a||b\ncaf\xe9||c\n")
    with pytest.raises(ValueError, match=r"train\.txt, line 2: found bytes that are not UTF-8"):
        data_to_text.read("e2e", "train", str(tmp_path))
    path.unlink()
    for content in (b"plain text", gzip.compress(b"a||b\n" * 99)[:-9]):
        (tmp_path / "train.txt.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"train\.txt\.gz, bytes: found broken gzip data"):
            data_to_text.read("e2e", "train", str(tmp_path))


@pytest.mark.parametrize(
    ("dataset", "split", "parts"),
    [
        ("e2e", "valid", ("valid.txt, devset.csv", "microsoft/LoRA", "tuetschek/e2e-dataset")),
        ("webnlg", "train", ("train.json, train/*triples/*.xml", "ThiagoCF05/webnlg")),
        ("dart", "test", ("dart-v1.1.1-full-test.json", "Yale-LILY/dart")),
    ],
)
def test_missing_files_say_where_to_look_and_where_to_get_them(dataset, split, parts, tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(FileNotFoundError) as error:
        data_to_text.read(dataset, split, str(tmp_path))
    for part in (*parts, f"No {dataset} {split} file", f"{tmp_path} holds: other"):
        assert part in str(error.value)
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        data_to_text.read(dataset, split, str(tmp_path / "nowhere"))


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Unknown dataset 'E2E'. Use one of: e2e, webnlg, dart"):
        data_to_text.read("E2E", "train", str(tmp_path))
    with pytest.raises(ValueError, match="e2e has no split 'dev'. Use one of: train, valid, test"):
        data_to_text.read("e2e", "dev", str(tmp_path))
