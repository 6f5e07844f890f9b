"""Files of examples in every format, changed at random: read as they are, or refused by name and place."""

from __future__ import annotations

import collections
import io
import json
import random

import pyarrow
import pytest
import tune_files
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from lora_jax.data.conversations import from_columns, from_messages
from lora_jax.data.formats import PlainFormat
from lora_jax.data.tables import read_table
from lora_jax.data.text_templates import parse
from lora_jax.data.tuning import tokenise
from tests.fuzz.fixed_settings import fixed_settings
from tests.fuzz.test_data_files import changed, changed_bytes, refused

PAIRS, CHATS = tune_files.pairs(3), tune_files.chats(3)
FILES = {
    "pairs.json": json.dumps(PAIRS),
    "pairs.jsonl": "".join(json.dumps(row) + "\n" for row in PAIRS),
    "pairs.jsonl.gz": "".join(json.dumps(row) + "\n" for row in PAIRS),
    "pairs.csv": "prompt,completion\n" + "".join('"{prompt}","{completion}"\n'.format(**r) for r in PAIRS),
    "pairs.tsv": "prompt\tcompletion\n" + "".join('{prompt}\t"{completion}"\n'.format(**r) for r in PAIRS),
    "chats.json": json.dumps(CHATS),
}  # fmt: skip
TOKENIZER = tune_files.tokenizer(chat=False)


def parquet_bytes(rows):
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def content(name: str, draw: random.Random) -> bytes:
    if name.endswith(".parquet"):
        return changed_bytes(parquet_bytes(CHATS if name.startswith("chats") else PAIRS), draw)
    if name.endswith("l") or "l.gz" in name:  # the changes of JSON are of one value
        return changed(name.replace("json", "txt"), FILES[name], draw)
    return changed(name, FILES[name], draw)


def result(path, data: bytes) -> str:
    path.write_bytes(data)
    try:
        table = read_table(path)
        if path.name.startswith("chats"):
            examples = from_messages(table, "messages")
        else:
            examples = from_columns(table, parse("{prompt}"), "completion")
    except Exception as error:
        return refused(error, path)
    assert len(examples) == len(table) > 0
    texts = [message.content for example in examples for message in example.messages]
    assert all("\0" not in text and isinstance(text.encode(), bytes) for text in texts)
    if not path.name.startswith("chats"):
        form = PlainFormat(TOKENIZER)
        rows, counted = tokenise(examples, form, max_length=64, long="cut", loss="completions")
        assert counted.dropped + len(rows) == len(examples) and max(rows.lengths) <= 64
    return "read"


def fuzz(root, examples: int, first: int) -> None:
    counts = collections.Counter()
    names = (*FILES, "pairs.parquet", "chats.parquet")

    @fixed_settings(examples)
    @given(st.integers(first, first + 2**32))
    def every_format(seed):
        for name in names:
            counts[name, result(root / name, content(name, random.Random(seed)))] += 1

    every_format()
    for name in names:
        assert {r.split(":")[0] for n, r in counts if n == name} >= {"refused"}, name
    print(sorted(counts.items()))


def test_changed_tables(tmp_path):
    fuzz(tmp_path, 100, 0)


@pytest.mark.slow
def test_thousands_of_changed_tables(tmp_path):
    fuzz(tmp_path, 2000, 2**40)
