"""Bad or missing files of E2E, WebNLG and DART: the errors say where and what to do."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys

import pytest
from corpus_files import dart_xml, entry, webnlg_json, webnlg_xml, write

from lora_jax.data import data_to_text, text_files
from lora_jax.errors import FileError, InputError

DART = {"tripleset": [["a", "b", "c"]], "annotations": [{"source": "s", "text": "t"}]}


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
        ("dart", "train.json", [DART | {"annotations": []}], "all entries: found no annotation"),
        ("dart", "train.json", [DART | {"annotations": None}], "found 'annotations': None, expec"),
        (
            "dart",
            "train.json",
            [DART | {"annotations": ["t"]}],
            "found 'text': 't', expected a str",
        ),
        ("dart", "train.json", [DART | {"tripleset": []}], r"found 'tripleset': \[\], expected at"),
        ("dart", "train.json", [DART, 3, None], "entry 2: found 'tripleset': 3, expected a list"),
        ("dart", "train.json", "[" * 100_000 + "]" * 100_000, "found JSON nested too deep to read"),
        ("dart", "train.json", f"[{'9' * 10_000}]", "found a number that is too long"),
        ("dart", "train.json", "3", "top: found 3, expected a list of objects"),
        ("dart", "train.json", '["\\ud800"]', "found half of a surrogate pair"),
        (
            "dart",
            "train.json",
            [DART | {"tripleset": [["a\0", "b", "c"]]}],
            "expected three strings",
        ),
        ("dart", "train.json", [DART | {"annotations": [{"text": "a\0b"}]}], "without NUL charac"),
        ("dart", "train.xml", dart_xml([DART | {"annotations": []}]), "found no annotation"),
        ("dart", "train.xml", dart_xml([]), "top: found <benchmark> without any <entry>"),
        (
            "dart",
            "train.xml",
            dart_xml([DART | {"tripleset": []}]),
            "found no modifiedtripleset/mt",
        ),
        (
            "dart",
            "train.xml",
            dart_xml([DART | {"tripleset": [["a | b", "c", "d"]]}]),
            "found mtriple",
        ),
        ("webnlg", "train.json", webnlg_json([entry(triples=())]), "expected at least one triple"),
        (
            "e2e",
            "trainset.csv",
            f"mr,ref\na[b],{'c' * 140_000}\n",
            "line 2: found invalid csv .*limit",
        ),
        (
            "e2e",
            "train.txt",
            "a||b\nc\0||d\n",
            "line 2: found a NUL character, expected UTF-8 text",
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


BOMB = "".join(
    ['<!DOCTYPE x [<!ENTITY a0 "ha">']
    + [f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10)]
    + ["]>"]
)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<benchmark>", f"{BOMB}<benchmark>", "found <!DOCTYPE"),
        (">t<", ">&a9;<", "found invalid XML .undefined entity"),
        ("<benchmark>", '<!DOCTYPE x SYSTEM "file:///etc/passwd"><benchmark>', "found <!DOCTYPE"),
        (">t<", ">&#xD800;<", "reference to invalid character number"),
        (">t<", f">{'<a>' * 100_000}<", "found invalid XML"),
        ("benchmark>", "b>", None),  # whatever the root is called
        ("<benchmark>", f"<benchmark a='{'x' * 1_000_000}'>", None),
        ("</entries>", f"</entries>{'<a>' * 100_000}{'</a>' * 100_000}", None),
    ],
)
@pytest.mark.parametrize("dataset", ["dart", "webnlg"])
def test_xml_cannot_do_harm(dataset, old, new, message, tmp_path):
    text = dart_xml([DART]) if dataset == "dart" else webnlg_xml([entry()])
    name = "test.xml" if dataset == "dart" else "testdata_with_lex.xml"
    path = write(tmp_path / name, text.replace(old, new))
    if message is None:
        assert data_to_text.read(dataset, "test", str(tmp_path)).completions == ["t"]
        return
    with pytest.raises(FileError, match=f"{re.escape(str(path))}.*{message}"):
        data_to_text.read(dataset, "test", str(tmp_path))


def test_what_unpacks_to_more_than_the_bound_is_refused_in_little_memory(tmp_path):
    with gzip.open(tmp_path / "train.txt.gz", "wb", compresslevel=1) as file:
        for _ in range(3):
            file.write(b"\n" * text_files.MOST)
    program = (
        "import resource, sys; from lora_jax.data import data_to_text\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: data_to_text.read('e2e', 'train', sys.argv[1])\n"
        "except ValueError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    message, memory = done.stdout.splitlines()
    assert "train.txt.gz: found more than 67,108,864 bytes when unpacked" in message
    assert int(memory) * 1024 < 4 * text_files.MOST


@pytest.mark.parametrize("name", ["train.json", "train.xml"])
def test_files_above_the_bound_are_refused_unread(name, tmp_path):
    path = tmp_path / name
    with path.open("wb") as file:
        file.truncate(text_files.MOST + 1)
    with pytest.raises(FileError, match=f"{name}: found 67,108,865 bytes, expected at most"):
        data_to_text.read("dart", "train", str(tmp_path))


def test_what_is_no_file_is_passed_over(tmp_path):
    (tmp_path / "train.txt").mkdir()
    os.mkfifo(tmp_path / "trainset.csv")
    with pytest.raises(
        FileNotFoundError, match="No e2e train file.*holds: train.txt, trainset.csv"
    ):
        data_to_text.read("e2e", "train", str(tmp_path))


@pytest.mark.parametrize("source", ["~nobody-of-this-name/data", "a\0b"])
def test_names_that_are_no_folder(source):
    with pytest.raises(InputError, match="names no folder|NUL character"):
        data_to_text.read("e2e", "train", source)


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
        (
            "dart",
            "test",
            ("dart-v1.1.1-full-test.json, test.json, dart-v1.1.1-full-test.xml", "Yale"),
        ),
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
