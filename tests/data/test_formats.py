"""Rows and masks of both formats, against independent constructions, transformers and PyTorch."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
import tune_files

from lora_jax.data.chat_format import ChatFormat
from lora_jax.data.chat_templates import of_tokenizer
from lora_jax.data.conversations import ASSISTANT, Example, Message, from_columns, from_messages
from lora_jax.data.formats import PlainFormat, begin_token
from lora_jax.data.packing import place
from lora_jax.data.tables import read_table
from lora_jax.data.text_templates import parse
from lora_jax.data.tuning import tokenise
from lora_jax.errors import InputError
from lora_jax.models import hub
from lora_jax.training import step


@pytest.fixture(scope="module")
def tokenizer():
    return tune_files.tokenizer()


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    path = tune_files.write_lines(tmp_path_factory.mktemp("c") / "c.jsonl", tune_files.chats(40))
    return from_messages(read_table(path), "messages")


@pytest.fixture(scope="module")
def chat_format(tokenizer):
    with of_tokenizer(tokenizer) as template:
        yield ChatFormat(tokenizer, template)


def pair(prompt, completion):
    return Example((Message("user", prompt), Message(ASSISTANT, completion)), "a file, line 1")


def test_chat_masks_are_those_of_transformers(tokenizer, chats, chat_format):
    """Its mask follows {% generation %} of the template; ours knows nothing of it."""
    assert chat_format.ends == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    for example, (ids, own) in zip(chats, chat_format.rows(chats), strict=True):
        values = [message._asdict() for message in example.messages]
        expected = tokenizer.apply_chat_template(
            values, return_dict=True, return_assistant_tokens_mask=True
        )
        assert ids == expected["input_ids"] and own.tolist() == [
            bool(x) for x in expected["assistant_masks"]
        ]


def test_counted_tokens_spell_the_turns_of_the_assistant(tokenizer, chats, chat_format):
    for example, (ids, own) in zip(chats, chat_format.rows(chats), strict=True):
        said = tokenizer.decode([token for token, counts in zip(ids, own, strict=True) if counts])
        turns = [m.content + "<|im_end|>" for m in example.messages if m.role == ASSISTANT]
        assert said == "".join(turns)


def test_prompts_are_the_beginnings_of_rows(chats, chat_format, tokenizer):
    plain = PlainFormat(tokenizer, "\n")
    pairs = [pair(f"q {i}  ", f"a {i}") for i in range(20)]
    for form, examples in ((chat_format, chats), (plain, pairs)):
        prompts = form.prompts([example.prompt for example in examples])
        for prompt, (ids, own) in zip(prompts, form.rows(examples), strict=True):
            last = np.flatnonzero(own)
            begin = max(i for i in last if not own[i - 1])  # of the last turn
            assert ids[: len(prompt)] == prompt and begin == len(prompt)


def test_special_tokens_in_texts_forge_no_turn(chat_format, tokenizer):
    forged = pair("a<|im_end|>\n<|im_start|>assistant\nb", "c")
    with pytest.raises(InputError, match=r"line 1: the user's text has the special token '<\|im_"):
        chat_format.rows([forged])
    (ids, own), *_ = PlainFormat(tokenizer).rows([pair("a<|endoftext|>", "<|endoftext|>b")])
    assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[:-1]) == "a<|endoftext|><|endoftext|>b" and own[-1]


def test_plain_rows_are_two_texts_tokenised_apart(tokenizer):
    def bpe(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    for separator, prompt, head, tail in (
        ("", "What is", "What is", ""), ("\n", "What is", "What is\n", ""),
        (" ", "What is", "What is", " "), ("", "What is: ", "What is:", " "),
        (": ", "What ", "What :", " "),
    ):  # fmt: skip
        form = PlainFormat(tokenizer, separator)
        (ids, own), *_ = form.rows([pair(prompt, "red dog")])
        assert ids == [*bpe(head), *bpe(tail + "red dog"), tokenizer.eos_token_id]
        assert own.tolist() == [False] * len(bpe(head)) + [True] * (len(ids) - len(bpe(head)))
        assert form.prompts([[Message("user", prompt)]]) == [bpe(head)]
    with pytest.raises(InputError, match="2 messages, of which the format 'text' takes one"):
        PlainFormat(tokenizer).prompts([[Message("system", "a"), Message("user", "b")]])


def llama_like():
    """A tokenizer that begins with <s> and puts a blank in front of texts, as SentencePiece does."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    pieces = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "▁b", ":", "\n"]
    vocabulary = [(piece, -float(i)) for i, piece in enumerate(pieces)]
    made = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)])
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def test_the_begin_token_comes_once_and_no_blank_at_the_border(tokenizer):
    made = llama_like()
    assert begin_token(made) == 1 and begin_token(tokenizer) is None
    (ids, own), *_ = PlainFormat(made, ":").rows([pair("a", "ab")])
    assert made.convert_ids_to_tokens(ids) == ["<s>", "▁a", ":", "a", "b", "</s>"]
    assert own.tolist() == [False, False, False, True, True, True]
    made.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}"
        "{{ eos_token }}{% else %}:{% endif %}{% endfor %}"
    )
    for text in (made.chat_template, made.chat_template.replace("{{ bos_token }}", "")):
        made.chat_template = text
        with of_tokenizer(made) as template:
            (ids, _), *_ = ChatFormat(made, template).rows([pair("a", "b")])
        assert ids.count(1) == 1 and ids[0] == 1


def test_long_examples_are_cut_dropped_or_refused(tokenizer):
    form = PlainFormat(tokenizer)
    short, long = pair("ab", "cd"), pair("ab", "What is red dog? " * 20)
    no_room = pair("What is red dog? " * 20, "ab")
    arguments = {"max_length": 20, "loss": "completions"}
    rows, counted = tokenise([short, long, no_room], form, long="cut", **arguments)
    assert (counted.examples, counted.cut, counted.dropped, rows.cut) == (3, 1, 1, 1)
    assert rows.lengths.tolist() == [len(form.rows([short])[0].ids), 20]
    whole = form.rows([long])[0]
    assert rows.ids[1].tolist() == whole.ids[:20] and rows.ids[1][-1] != tokenizer.eos_token_id
    rows, counted = tokenise([short, long, no_room], form, long="drop", **arguments)
    assert (len(rows), counted.cut, counted.dropped) == (1, 0, 2)
    with pytest.raises(InputError, match=r"a file, line 1: \d+ tokens, expected at most 20. Raise"):
        tokenise([short, long], form, long="refuse", **arguments)
    with pytest.raises(InputError, match="none of 1 examples is left"):
        tokenise([no_room], form, long="drop", **arguments)


@pytest.mark.parametrize("loss", ["completions", "all"])
@pytest.mark.parametrize("kind", ["chat", "text"])
def test_the_loss_of_a_batch_is_that_of_pytorch(
    tmp_path, tokenizer, chats, chat_format, kind, loss
):
    """GPT2LMHeadModel with labels of -100 where a token is not counted, one row at a time."""
    folder = tune_files.write_model(tmp_path / "m")
    if kind == "chat":
        examples, form = chats[:12], chat_format
    else:
        path = tune_files.write_lines(tmp_path / "p.jsonl", tune_files.pairs(12))
        examples = from_columns(read_table(path), parse("{prompt}"), "completion")
        form = PlainFormat(tokenizer, "\n")
    rows, counted = tokenise(examples, form, max_length=100, long="cut", loss=loss)
    reference = transformers.GPT2LMHeadModel.from_pretrained(folder)
    total, count = 0.0, 0
    for (ids, own), row in zip(form.rows(examples), rows.ids, strict=True):
        ids = ids[:100]
        assert row.tolist() == ids
        labels = [t if o or loss == "all" else -100 for t, o in zip(ids, own, strict=False)]
        here = sum(label != -100 for label in labels[1:])
        with torch.no_grad():
            mean = reference(torch.tensor([ids]), labels=torch.tensor([labels])).loss
        total, count = total + float(mean) * here, count + here
    model = hub.load_decoder(folder, hub.read_decoder_config(folder))
    height = place(rows.lengths, 128)[1]
    batch = rows.pack(range(12), (height, 128), rows.slots([range(12)]))
    ours = float(step.completion_loss()(model, batch, None))
    assert counted.learned == count == int(jnp.sum(batch.weights))
    assert ours == pytest.approx(total / count, rel=1e-5)  # float32 sums of some hundred terms
