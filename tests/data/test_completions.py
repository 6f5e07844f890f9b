"""Rows as token ids: the stream of the public code, exactly, and what is cut."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import transformers

from lora_jax.data import completions, data_to_text
from lora_jax.data.pairs import EvaluationSet, Pairs, clean

END = 50256
SOME = Pairs(
    ["name : Blue Spice | Type : coffee shop | area : city centre", "a : b"],
    ["A coffee shop in the city centre area called Blue Spice .", "<|endoftext|>"],
    ["", ""],
)


@pytest.fixture(scope="module")
def tokenizer(real_data):
    return transformers.AutoTokenizer.from_pretrained(real_data / "tokenizers/gpt2")


def test_stream_of_the_example_in_the_paper_notes(tokenizer):
    rows = completions.tokenise_pairs(SOME, tokenizer)
    ids, start = rows.ids[0], rows.starts[0]
    assert ids.dtype == np.int32 == rows.starts.dtype and rows.cut == 0 and len(rows) == 2
    assert ids[:3].tolist() == [3672, 1058, 4518]
    assert ids[start : start + 3].tolist() == [317, 6891, 6128]
    assert ids[start - 1] == ids[-1] == END
    assert tokenizer.decode(ids[: start - 1]) == SOME.contexts[0]
    assert tokenizer.decode(ids[start:-1]) == " " + SOME.completions[0]


def test_end_marker_inside_a_text_is_no_end_token(tokenizer):
    rows = completions.tokenise_pairs(SOME, tokenizer)
    for ids, start in zip(rows.ids, rows.starts, strict=True):
        assert np.flatnonzero(ids == END).tolist() == [start - 1, len(ids) - 1]
    # The tokenizer itself is as before.
    assert tokenizer("<|endoftext|>")["input_ids"] == [END]


@pytest.mark.parametrize("dataset", [*data_to_text.DATA_TO_TEXT, "wikisql", "mnli_text"])
def test_batch_equals_one_by_one_and_decodes_back(dataset, tokenizer, corpus):
    pairs = corpus(dataset, "valid")
    chosen = np.random.default_rng(1).choice(len(pairs), 60, replace=False)
    pairs = Pairs(
        *([column[i] for i in chosen] for column in (pairs.contexts, pairs.completions)), [""] * 60
    )
    rows = completions.tokenise_pairs(pairs, tokenizer)
    prompts = completions.prompts(EvaluationSet(pairs.contexts, [[]] * 60, [""] * 60), tokenizer)
    for i, (ids, start) in enumerate(zip(rows.ids, rows.starts, strict=True)):
        context = tokenizer.encode(pairs.contexts[i], add_special_tokens=False)
        completion = tokenizer.encode(" " + pairs.completions[i], add_special_tokens=False)
        assert ids.tolist() == [*context, END, *completion, END] and start == len(context) + 1
        assert prompts[i].dtype == np.int32 and prompts[i].tolist() == ids[:start].tolist()
        assert clean(tokenizer.decode(ids[start:])) == pairs.completions[i].strip()


# Rows, mean and most tokens, longest prompt, longest completion (with the end tokens).
LENGTHS = {
    ("e2e", "test"): (4693, 67.00, 133, 47, 90),
    ("e2e", "train"): (42061, 53.33, 115, 44, 77),
    ("webnlg", "test"): (4928, 75.90, 233, 162, 93),
    ("webnlg", "train"): (18025, 76.58, 259, 183, 106),
    ("dart", "valid"): (6980, 69.52, 229, 134, 104),
    ("e2e", "valid"): (4672, 59.15, 125, 41, 84),
}  # by default every second: of each data set a small part


@pytest.mark.parametrize(("dataset", "split"), LENGTHS)
def test_real_lengths_and_nothing_is_lost(dataset, split, tokenizer, corpus):
    pairs = corpus(dataset, split)
    rows = completions.tokenise_pairs(pairs, tokenizer)
    lengths, starts = rows.lengths, rows.starts
    assert lengths.dtype == np.int32 and rows.cut == 0
    counted = len(rows), round(float(lengths.mean()), 2), lengths.max(), starts.max()
    assert (*counted, (lengths - starts).max()) == LENGTHS[dataset, split]
    if (dataset, split) == ("e2e", "test"):
        assert ((lengths - starts) > 64).sum() == 4  # paper.md section 5.6


def test_long_rows_lose_their_end_and_are_counted(tokenizer, caplog):
    whole = completions.tokenise_pairs(SOME, tokenizer)
    with caplog.at_level(logging.WARNING, logger="lora_jax.data.completions"):
        rows = completions.tokenise_pairs(SOME, tokenizer, max_length=20)
        assert completions.tokenise_pairs(SOME, tokenizer, len(whole.ids[0])).cut == 0
    assert rows.cut == 1 and rows.lengths.tolist() == [20, len(whole.ids[1])]
    np.testing.assert_array_equal(rows.ids[0], whole.ids[0][:20])
    np.testing.assert_array_equal(rows.starts, whole.starts)
    assert [record.getMessage() for record in caplog.records] == [
        "1 of 2 rows are longer than max_length=20 and lost the end of their completion."
    ]


def test_context_without_room_for_a_completion_is_refused(tokenizer):
    start = int(completions.tokenise_pairs(SOME, tokenizer).starts[0])
    assert completions.tokenise_pairs(SOME, tokenizer, start + 1).lengths[0] == start + 1
    with pytest.raises(ValueError, match=rf"Row 0: .*Blue Spice.* has {start} tokens.*Raise max"):
        completions.tokenise_pairs(SOME, tokenizer, start)


def test_long_prompts_lose_their_beginning(tokenizer, caplog):
    groups = EvaluationSet(SOME.contexts, [["x"], ["y"]], ["", ""])
    whole = completions.prompts(groups, tokenizer)
    with caplog.at_level(logging.WARNING, logger="lora_jax.data.completions"):
        cut = completions.prompts(groups, tokenizer, max_length=8)
    np.testing.assert_array_equal(cut[0], whole[0][-8:])
    np.testing.assert_array_equal(cut[1], whole[1])
    assert cut[0][-1] == END and "1 of 2 rows" in caplog.text and "beginning" in caplog.text
    with pytest.raises(ValueError, match="max_length=0"):
        completions.prompts(groups, tokenizer, max_length=0)


@pytest.mark.wrong_types
def test_tokenizer_without_end_token_is_refused(tokenizer):
    class NoEnd:
        eos_token_id = None

    with pytest.raises(ValueError, match="NoEnd has no end token.*Use a GPT-2 tokenizer"):
        completions.tokenise_pairs(SOME, NoEnd())


def test_no_rows(tokenizer):
    rows = completions.tokenise_pairs(Pairs([], [], []), tokenizer)
    assert len(rows) == 0 and rows.starts.shape == (0,) and rows.lengths.shape == (0,)
    assert completions.prompts(EvaluationSet([], [], []), tokenizer) == []
