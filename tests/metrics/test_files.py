"""Tests of the files of references and hypotheses."""

from __future__ import annotations

import pytest

from lora_jax.metrics import files


def test_what_was_written_is_read(tmp_path):
    references = [["Café « Zoë »", "b"], ["one\nline"], ["日本 \x85 c"]]
    files.write_references(tmp_path / "new" / "refs.txt", references)
    assert (tmp_path / "new/refs.txt").read_text(encoding="utf-8") == (
        "Café « Zoë »\nb\n\none line\n\n日本   c\n\n"
    )
    found = files.read_references(tmp_path / "new" / "refs.txt")
    assert found == [["Café « Zoë »", "b"], ["one line"], ["日本   c"]]
    files.write_hypotheses(tmp_path / "hyps.txt", ["a", "", " b\r\nc "])
    assert files.read_hypotheses(tmp_path / "hyps.txt") == ["a", "", "b c"]


@pytest.mark.parametrize("references", [[["a"], []], [["a", " "]]])
def test_what_the_format_cannot_hold_is_refused(tmp_path, references):
    with pytest.raises(ValueError, match=r"instance \d has no reference or a blank one"):
        files.write_references(tmp_path / "refs.txt", references)
    assert not (tmp_path / "refs.txt").exists()


def test_forms_of_references(tmp_path):
    path = tmp_path / "refs.txt"
    path.write_bytes("\ufeffa\r\nb\r\n\r\nc\r\n\r\n\r\n".encode())
    assert files.read_references(path) == [["a", "b"], ["c"]]
    path.write_text("a\nb\nc")  # without a blank line: one reference each, as measure_scores.py
    assert files.read_references(path) == [["a"], ["b"], ["c"]]
    path.write_text("a\x85b\nc\u2028d\n", encoding="utf-8")
    assert files.read_references(path) == [["a\x85b"], ["c\u2028d"]]


def test_aligned_references(tmp_path):
    for name, text in (("0", "a\nb\n"), ("1", "c\n\n"), ("2", "\nd\n")):
        (tmp_path / name).write_text(text)
    paths = [tmp_path / name for name in "012"]
    assert files.read_references(*paths) == [["a", "c"], ["b", "d"]]
    kept = files.read_references(*paths, keep_blank=True)
    assert kept == [["a", "c", ""], ["b", "", "d"]]
    (tmp_path / "1").write_text("c\n")
    with pytest.raises(ValueError, match=r"1: found 1 lines, expected 2 as in .*0"):
        files.read_references(*paths)
    for path in paths:
        path.write_text("a\n\n")
    with pytest.raises(
        ValueError, match="line 2: found a blank line, expected a text in one of .*0, .*1, .*2"
    ):
        files.read_references(*paths)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "refs.txt: found an empty file, expected one text a line"),
        (b"\n \n", "only blank lines"),
        (
            b"a\n" + b"b" * 10_001,
            "line 2: found a text of 10,001 characters, expected at most 10,0",
        ),
        (b"a\n\n\nb\n", "line 3: found a second blank line"),
        (b"\n\na\n", "line 1: found a second blank line"),
        (b"a\nb\n\xffc\n", "refs.txt, line 3: found bytes that are not UTF-8"),
        ("a\n".encode("utf-16-le"), "line 1: found a NUL character, expected UTF-8"),
        ("a\n".encode("utf-16"), "line 1: found bytes that are not UTF-8"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    path = tmp_path / "refs.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        files.read_references(path)


def test_missing_files():
    with pytest.raises(FileNotFoundError, match="nowhere"):
        files.read_hypotheses("nowhere.txt")
    with pytest.raises(ValueError, match="no reference file"):
        files.read_references()


def test_carriage_returns_alone_end_no_line(tmp_path):
    path = tmp_path / "hyps.txt"
    path.write_bytes(b"a cheap pub\ra pub\r")
    with pytest.raises(ValueError, match="hyps.txt: found carriage returns as the ends of lines"):
        files.read_hypotheses(path)
    path.write_bytes(b"a cheap\rpub\r\nb\r\nc\r\n")  # one inside a text
    assert files.read_hypotheses(path) == ["a cheap\rpub", "b", "c"]
