"""The E2E NLG challenge (Novikova et al. 2017): the public LoRA code's txt, or the official csv.

The txt is the csv with other attribute names and with blanks around punctuation. Measured on all
rows, in order: `tokenised` gives 100% of the contexts and, of the references, 42,008 of 42,061
(train), 4,671 of 4,672 (valid) and 4,656 of 4,693 (test) exactly as the txt has them. The others
differ in blanks only ('5-star' or '5 - star', '5.' or '5 .' inside a sentence, quotes), and the
txt itself is not consistent there.
"""

from __future__ import annotations

import csv
import io
import pathlib
import re
from collections.abc import Iterator

from lora_jax.data.pairs import Row
from lora_jax.data.text_files import malformed, read_text

_NAMES = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}
_ATTRIBUTE = re.compile(r"(?:^|, )([^\[\],]+)\[([^\[\]]*)\]")
_BLANKS = (
    (r"(?<=\w)-(?=\w)", " - "),
    (r"([,;:?!£$/\"]|\.{3,})", r" \1 "),
    (r"(?<!\S)'(?=\w)(?!'s\b)", "' "),  # an opening quote, but not a lone 's
    (r"(?<=\w)'", " '"),
    (r"(?<![\s.])(\.+)(?!\S)", r" \1"),
    (r"\bSt \.(?= )", "St."),
)


def rows(path: pathlib.Path, split: str) -> list[Row]:
    """Reads one E2E file.

    Args:
      path: .txt of `context||reference` lines, or .csv with the columns mr and ref; either .gz.
      split: 'train', 'valid' or 'test', see `tokenised`.

    Raises:
      ValueError: a line is not written like that.
    """
    text = read_text(path)
    return _csv(text, path, split) if ".csv" in path.suffixes else _txt(text, path)


def contexts(path: pathlib.Path, split: str) -> list[str]:
    """The contexts of the rows of a csv file alone; raises as `rows`."""
    return [context for context, _ in _csv_rows(read_text(path), path, split)]


def tokenised(text: str, split: str) -> str:
    """Puts the blanks around the punctuation of a csv text that the txt has.

    The test txt comes from another tokeniser than train and valid: it writes "is n't", they write
    "isn 't".
    """
    if split == "test":
        text = re.sub(r"n't\b", " n\0t", text)  # hides the quote from the rules below
    for pattern, blanks in _BLANKS:
        text = re.sub(pattern, blanks, text)
    return " ".join(text.replace("\0", "'").split())


def _txt(text: str, path: pathlib.Path) -> list[Row]:
    result = []
    # str.splitlines would also cut at characters such as U+0085.
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        parts = line.strip().split("||")
        if len(parts) != 2 or not all(parts):
            raise malformed(path, f"line {number}", repr(line[:60]), "'context||reference'")
        result.append(Row(parts[0], parts[1]))
    return result


def _csv(text: str, path: pathlib.Path, split: str) -> list[Row]:
    result = [
        Row(context, tokenised(reference, split))
        for context, reference in _csv_rows(text, path, split)
    ]
    if not result:
        raise malformed(path, "line 2", "no rows", "rows of mr and ref")
    return result


def _csv_rows(text: str, path: pathlib.Path, split: str) -> Iterator[tuple[str, str]]:
    """Context and reference of every row."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if header != ["mr", "ref"]:
            raise malformed(path, "line 1", f"the columns {header}", "the columns mr, ref")
        for row in reader:
            where = f"line {reader.line_num}"
            if len(row) != 2 or not row[1].strip():
                raise malformed(path, where, repr(row)[:80], "a row of mr and ref")
            yield _context(row[0], split, path, where), row[1]
    except csv.Error as error:
        where = f"line {reader.line_num}"
        raise malformed(path, where, f"invalid csv ({error})", "rows of mr and ref") from error


def _context(representation: str, split: str, path: pathlib.Path, where: str) -> str:
    """Turns 'name[Blue Spice], eatType[pub]' into 'name : Blue Spice | Type : pub'."""
    attributes = _ATTRIBUTE.findall(representation)
    if (
        ", ".join(f"{key}[{value}]" for key, value in attributes) != representation
        or not attributes
    ):
        raise malformed(path, where, f"mr {representation[:60]!r}", "'key[value], key[value]'")
    return " | ".join(
        f"{_NAMES.get(key, key)} : {tokenised(value, split)}" for key, value in attributes
    )
