"""Tokenizers made of the vocabulary of a GGUF file, against independent ones of the same vocabulary."""

from __future__ import annotations

import itertools
import json
import pathlib

import gguf
import gguf_models
import numpy as np
import pytest
import regex
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_jax.data.pre_tokenizers import SPLITTINGS
from lora_jax.data.tokenizers import DECODER, ENCODER, digest, load_tokenizer, size
from lora_jax.errors import FileError

TEXTS = [
    "", " ", "  two  spaces ", "\n\n\tdef f(x):\n    return x**2  # 1234567890\r\n", "it's WE'LL they'Ve",
    "a1b22c333 ½ ² Ⅳ ٣٤", "naïve café œuvre Straße", "日本語のテキスト、漢字", "🦄👩‍👩‍👧 ok",
    "<|im_start|>user\nhi<|im_end|>\n", "x" * 300, "e\u0301 \u00e9 \u1e9b\u0323", "...?!\"'`~^|<>=+$",
]  # fmt: skip


@pytest.fixture(scope="module")
def smollm2():
    return load_tokenizer(gguf_models.smollm2(), DECODER, 49152)


@pytest.fixture(scope="module")
def reference():
    """SmolLM2's tokenizer.json as it was published, with the vocabulary as the gguf package reads it."""
    fields = gguf.GGUFReader(gguf_models.smollm2()).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = fields["tokenizer.ggml.merges"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    level = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    content = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [
            {"id": number, "content": token, "special": True, **flags}
            for number, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind == 3
        ],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", **level},
        ]},
        "post_processor": None, "decoder": {"type": "ByteLevel", **level},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in merges],
        },
    }  # fmt: skip
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def test_smollm2_is_its_published_tokenizer_on_real_texts(smollm2, reference, real_data):
    files = ["nlg/e2e/test.txt", "nlg/gsm8k/test.jsonl", "nlg/webnlg_2017/test.json"]
    texts = [*TEXTS, pathlib.Path(__file__).read_text()]
    for name in files:
        if (real_data / name).is_file():
            texts += (real_data / name).read_text().splitlines()[:2000]
    assert len(texts) > 1000
    ours = smollm2(texts)["input_ids"]
    assert ours == [encoded.ids for encoded in reference.encode_batch(texts)]
    assert [smollm2.decode(ids) for ids in ours] == texts


@given(text=st.text(max_size=60))
@settings(deadline=None, max_examples=200)
def test_smollm2_on_any_text(smollm2, reference, text):
    ids = smollm2(text)["input_ids"]
    assert ids == reference.encode(text).ids
    # Not always the text: the vocabulary lacks a few bytes, which stand for no character of real texts.
    assert smollm2.decode(ids) == reference.decode(ids, skip_special_tokens=False)


def test_smollm2_has_its_special_tokens_and_template(smollm2):
    named = {name: getattr(smollm2, f"{name}_token") for name in ("bos", "eos", "unk", "pad")}
    assert named == {
        "bos": "<|im_start|>", "eos": "<|im_end|>", "unk": "<|endoftext|>", "pad": "<|im_end|>"
    }  # fmt: skip
    assert size(smollm2) == 49152
    text = smollm2.apply_chat_template(
        [{"role": "user", "content": "2 + 2?"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n")
    ids = smollm2(text)["input_ids"]
    assert ids.count(1) == 3 and ids.count(2) == 2
    assert "<|im_" not in smollm2.decode(ids, skip_special_tokens=True)


def test_smollm2_can_be_saved_for_the_hub(smollm2, tmp_path):
    smollm2.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path, DECODER)
    assert again(TEXTS)["input_ids"] == smollm2(TEXTS)["input_ids"]
    assert again.chat_template == smollm2.chat_template


@pytest.fixture
def write(tmp_path):
    def one(**changes):
        changes = {f"tokenizer__ggml__{name}": value for name, value in changes.items()}
        gguf_models.write(tmp_path / "model.gguf", "llama", **changes)
        return tmp_path / "model.gguf"

    return one


def test_the_published_gpt2_in_a_gguf_file(write, real_data):
    theirs = load_tokenizer(real_data / "tokenizers" / "gpt2", DECODER)
    vocabulary = theirs.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    merges = json.loads(theirs.backend_tokenizer.to_str())["model"]["merges"]
    path = write(
        tokens=tokens, token_type=[1] * 50256 + [3], merges=[" ".join(pair) for pair in merges],
        bos_token_id=50256, eos_token_id=50256, padding_token_id=None,
    )  # fmt: skip
    ours = load_tokenizer(path, DECODER)
    texts = [*TEXTS, *(real_data / "nlg/e2e/test.txt").read_text().splitlines()[:200]]
    assert ours(texts)["input_ids"] == theirs(texts)["input_ids"]
    assert digest(path) != digest(real_data / "tokenizers" / "gpt2")


_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_CASELESS = "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
_ENDS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
EXPRESSIONS = {
    "smollm": [r"\p{N}", _GPT2],
    "gpt-2": [_GPT2],
    "qwen2": [rf"(?:{_CASELESS})|{_LETTERS}|\p{{N}}|{_ENDS}"],
    "llama-bpe": [rf"(?:{_CASELESS})|{_LETTERS}|\p{{N}}{{1,3}}|{_ENDS}"],
    "falcon": [r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9]{3}"],
    "default": [r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9]{3}"],
}


def split(text, expressions):
    """The pieces of a text, as llama.cpp cuts them: each expression after the other, gaps are pieces."""
    pieces = [text]
    for expression in expressions:
        cut = []
        for piece in pieces:
            last = 0
            for match in regex.finditer(expression, piece):
                cut += [piece[last : match.start()], match.group()]
                last = match.end()
            cut.append(piece[last:])
        pieces = [piece for piece in cut if piece]
    return pieces


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_texts_are_split_as_llama_cpp_splits_them(name):
    spelling = {
        chr(code): byte for byte, code in gguf_bytes().items()
    }  # the byte-level alphabet, reversed
    pre_tokenizer = SPLITTINGS[name].make()

    @given(text=st.text(st.sampled_from("aZ é日1٣½²'\"sSt.,$<|`\t\n\r -_🦄e\u0301"), max_size=30))
    @settings(deadline=None, max_examples=300)
    def check(text):
        pieces = [piece for piece, _ in pre_tokenizer.pre_tokenize_str(text)]
        found = [bytes(spelling[char] for char in piece).decode() for piece in pieces]
        assert found == split(text, EXPRESSIONS[name])

    check()
    for text in TEXTS:
        check.hypothesis.inner_test(text)


def gguf_bytes():
    """Code points of the byte-level alphabet: printable ones stay, the others follow from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {**{b: b for b in plain}, **{byte: 256 + i for i, byte in enumerate(others)}}


def test_digits_of_smollm_and_llama_3_are_told_apart(write):
    digits = [f"{a}{b}" for a in range(10) for b in range(10)]
    tokens, merges = gguf_models.byte_level()
    tokens = [*tokens, *(d for d in digits if d not in tokens)]
    merges = list(dict.fromkeys([*merges, *(f"{d[0]} {d[1]}" for d in digits)]))
    common = {"tokens": tokens, "token_type": [3] * 3 + [1] * (len(tokens) - 3), "merges": merges}
    pieces = {}
    for name in ("smollm", "llama-bpe", "qwen2", "gpt-2"):
        tokenizer = load_tokenizer(write(pre=name, add_bos_token=False, **common), DECODER)
        pieces[name] = tokenizer.tokenize("56789")
    assert pieces["smollm"] == pieces["qwen2"] == list("56789")
    assert pieces["llama-bpe"] == ["56", "7", "89"] and pieces["gpt-2"] == ["56", "78", "9"]


def test_texts_begin_with_a_token_where_the_file_or_its_kind_says_so(write):
    first = lambda **changes: load_tokenizer(write(**changes), DECODER)("the cat")["input_ids"][0]  # noqa: E731
    assert first(pre="llama-bpe") == first(pre="gpt-2", add_bos_token=True) == 1
    assert first(pre="gpt-2") > 2 and first(pre="llama-bpe", add_bos_token=False) > 2
    ids = load_tokenizer(write(add_eos_token=True), DECODER)("the cat")["input_ids"]
    assert ids[-1] == 2 and ids[0] > 2


def test_qwens_texts_are_normalised(write):
    tokenizer = load_tokenizer(write(pre="qwen2"), DECODER)
    assert tokenizer("e\u0301")["input_ids"] == tokenizer("\u00e9")["input_ids"]
    tokenizer = load_tokenizer(write(pre="llama-bpe"), DECODER)
    assert tokenizer("e\u0301")["input_ids"] != tokenizer("\u00e9")["input_ids"]


def test_tokens_of_the_user_stay_whole_and_are_not_special(write):
    tokens, _ = gguf_models.byte_level()
    kinds = [3] * 3 + [1] * (len(tokens) - 3) + [4]
    tokenizer = load_tokenizer(write(tokens=[*tokens, "<think> it"], token_type=kinds), DECODER)
    ids = tokenizer("cats<think> it</s>")["input_ids"]
    assert ids[-2:] == [len(tokens), 2]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "cats<think> it"


def test_templates_by_name(write, tmp_path):
    gguf_models.write(
        tmp_path / "model.gguf", "llama", tokenizer__chat_template="a{{ messages[0].content }}",
        tokenizer__chat_template__tool_use="b{{ messages[0].content }}",
    )  # fmt: skip
    tokenizer = load_tokenizer(tmp_path / "model.gguf", DECODER)
    chat = [{"role": "user", "content": "x"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "ax"
    assert tokenizer.apply_chat_template(chat, chat_template="tool_use", tokenize=False) == "bx"


# SentencePiece


def pieces_of_text():
    """A vocabulary as SentencePiece's: special tokens, bytes, then pieces by falling score."""
    trained = tokenizers.SentencePieceBPETokenizer()
    corpus = ["the cat runs near the old river", "cats sleep in the house  near trees", "é日本"]
    trained.train_from_iterator(corpus, vocab_size=200, min_frequency=1, show_progress=False)
    model = json.loads(trained.to_str())["model"]
    letters = {x for x in model["vocab"] if len(x) == 1}
    merged = ["".join(pair) for pair in model["merges"]]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "  ", "   "]
    special = len(tokens)
    tokens += [*dict.fromkeys(merged), *sorted(letters - set(merged) - {" "})]
    kinds = [2, 3, 3, *[6] * 256, 4, 4, *[1] * (len(tokens) - special)]
    scores = [0.0] * 259 + [-1000.0] * 2 + [-float(i) for i in range(len(tokens) - special)]
    return tokens, kinds, scores


def greedy(text, tokens, kinds, scores, prefix):
    """The ids of a text by SentencePiece's rule: the pair of neighbours whose union scores best, first."""
    user = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 4]
    number = {token: i for i, token in enumerate(tokens)}
    parts = regex.split(f"({'|'.join(sorted(user, key=len, reverse=True))})", text)
    ids = []
    for part in parts:
        if part in user:
            ids.append(number[part])
            continue
        symbols = list((prefix if part else "") + part.replace(" ", "\u2581"))
        while True:
            unions = [a + b for a, b in itertools.pairwise(symbols)]
            known = [i for i, x in enumerate(unions) if x in number and kinds[number[x]] == 1]
            if not known:
                break
            best = max(known, key=lambda i: (scores[number[unions[i]]], -i))
            symbols[best : best + 2] = [unions[best]]
        for symbol in symbols:
            known = symbol in number
            ids += [number[symbol]] if known else [b + 3 for b in symbol.encode()]
    return ids


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_merges_by_score(tmp_path, prefix):
    tokens, kinds, scores = pieces_of_text()
    settings_of = {
        "model": "llama", "pre": "default", "tokens": tokens, "token_type": kinds, "scores": scores,
        "merges": None, "add_space_prefix": prefix, "unknown_token_id": 0, "padding_token_id": None,
    }  # fmt: skip
    gguf_models.write(
        tmp_path / "model.gguf", "llama",
        **{f"tokenizer__ggml__{name}": value for name, value in settings_of.items()},
    )  # fmt: skip
    tokenizer = load_tokenizer(tmp_path / "model.gguf", DECODER)
    assert size(tokenizer) == len(tokens)

    @given(text=st.text(st.sampled_from("theca runsiold vp é日本🦄\n"), max_size=40))
    @settings(deadline=None, max_examples=300)
    def check(text):
        ids = tokenizer(text)["input_ids"]
        assert ids == [1, *greedy(text, tokens, kinds, scores, "\u2581" if prefix else "")]
        again = tokenizer.decode(ids, skip_special_tokens=True)
        if "  " not in text:  # the prefix comes again behind a token of the user's
            assert again == text

    check()
    assert len(tokenizer("the cat runs near the old river")["input_ids"]) <= 9


def test_two_spaces_of_gemma_are_one_token(tmp_path):
    """Files have such tokens with spaces, older ones as SentencePiece writes them."""
    tokens, kinds, scores = pieces_of_text()
    ids = []
    for space in (" ", "\u2581"):
        named = [token.replace(" ", space) for token in tokens]
        gguf_models.write(
            tmp_path / "model.gguf", "llama", tokenizer__ggml__model="llama",
            tokenizer__ggml__tokens=named, tokenizer__ggml__token_type=kinds,
            tokenizer__ggml__scores=scores, tokenizer__ggml__merges=None,
            tokenizer__ggml__add_space_prefix=False, tokenizer__ggml__padding_token_id=None,
        )  # fmt: skip
        tokenizer = load_tokenizer(tmp_path / "model.gguf", DECODER)
        ids.append(tokenizer("the  cat   runs")["input_ids"])
        assert tokenizer.decode(ids[-1], skip_special_tokens=True) == "the  cat   runs"
    assert ids[0] == ids[1] and {259, 260} <= set(ids[0])


REFUSED = {
    "model": ({"model": "t5"}, r"tokenizer\.ggml\.model.*'gpt2' or 'llama'"),
    "none": ({"model": None}, r"tokenizer\.ggml\.model.*found nothing"),
    "pre": ({"pre": "deepseek-llm"}, r"tokenizer\.ggml\.pre.*deepseek-llm.*smollm"),
    "no pre": ({"pre": None}, r"tokenizer\.ggml\.pre.*found nothing"),
    "no tokens": ({"tokens": None}, r"tokenizer\.ggml\.tokens.*found nothing"),
    "tokens": ({"tokens": [1, 2]}, r"tokenizer\.ggml\.tokens"),
    "twice": ({"tokens": ["a", "b", "a"], "token_type": [1, 1, 1]}, "'a' twice"),
    "types": ({"token_type": [1, 2]}, r"token_type.*2 numbers.*300"),
    "types text": ({"token_type": ["a"]}, "token_type.*array of numbers"),
    "merges": ({"merges": None}, r"merges.*found nothing"),
    "merge": ({"merges": ["t h", "nospace"]}, r"merges\[1\].*nospace.*two tokens"),
    "unknown merge": ({"merges": ["qq zz"]}, "cannot be used"),
    "id": ({"eos_token_id": 300}, r"eos_token_id.*300.*from 0 to 299"),
    "id text": ({"bos_token_id": "<s>"}, "bos_token_id.*an integer"),
    "no end": ({"eos_token_id": None}, "no eos_token"),
    "separator": ({"add_sep_token": True}, "add_sep_token"),
    "scores": ({"model": "llama", "merges": None}, "no scores and no merges"),
    "nan": ({"model": "llama", "merges": None, "scores": [float("nan")] * 300}, "300 finite ones"),
    "charsmap": ({"model": "llama", "precompiled_charsmap": [1, 2]}, "precompiled_charsmap"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_other_tokenizers_are_refused_by_name(write, case):
    changes, message = REFUSED[case]
    path = write(**changes)
    with pytest.raises(FileError, match=message) as caught:
        load_tokenizer(path, DECODER)
    assert str(path) in str(caught.value)


def test_what_the_task_and_the_model_need_is_checked_too(write):
    path = write()
    with pytest.raises(FileError, match="no cls_token"):
        load_tokenizer(path, ENCODER)
    with pytest.raises(FileError, match="ids below the model's vocab_size, 20"):
        load_tokenizer(path, DECODER, 20)
    assert size(load_tokenizer(path, DECODER, 300)) == len(gguf_models.byte_level()[0]) < 300


def test_tokens_that_only_fill_the_embedding_are_left_out(write):
    tokens = np.array(gguf_models.byte_level()[0])
    assert not any(
        token.startswith("[PAD") for token in load_tokenizer(write(), DECODER).get_vocab()
    )
    assert len(tokens) == len(load_tokenizer(write(), DECODER))
