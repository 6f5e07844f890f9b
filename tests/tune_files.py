"""A tiny GPT-2 that knows ChatML, and examples to tune it on."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import torch
import transformers
from tokenizers import ByteLevelBPETokenizer

END, BEGIN_TURN, END_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = "red blue green one two three cat dog tree house runs sleeps".split()  # noqa: SIM905


def tokenizer(chat: bool = True):
    """A byte-level BPE tokenizer."""
    bpe = ByteLevelBPETokenizer()
    texts = [
        f"What is {a} {b}?\nIt is {b} {a}. user assistant system" for a in WORDS for b in WORDS
    ]
    special = [END, BEGIN_TURN, END_TURN]
    bpe.train_from_iterator(texts, vocab_size=330, special_tokens=special, show_progress=False)
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token=END, bos_token=END,
        extra_special_tokens=[BEGIN_TURN, END_TURN],
    )  # fmt: skip
    if chat:
        made.chat_template = CHATML
    return made


def write_model(folder: pathlib.Path, chat: bool = True, width: int = 16) -> pathlib.Path:
    """A random two-layer GPT-2 with its tokenizer, as a model folder."""
    made = tokenizer(chat)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(made), n_embd=width, n_layer=2, n_head=2, n_positions=128, initializer_range=0.3,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def pairs(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Questions and answers of different words."""
    draw = np.random.default_rng(seed)
    rows = {}
    while len(rows) < count:
        a, b = draw.choice(WORDS, 2, replace=False)
        number = int(draw.integers(10, 99))
        rows[f"What is {a} {b} {number}?"] = f"It is {b} {a}.\n#### {number}"
    return [{"prompt": q, "completion": a} for q, a in rows.items()]


def chats(count: int, seed: int = 0) -> list[dict[str, list[dict[str, str]]]]:
    """Conversations of one to three turns, some with a system message."""
    draw = np.random.default_rng(seed)
    questions = iter(pairs(3 * count, seed))
    result = []
    for number in range(count):
        messages = [{"role": "system", "content": "Be brief."}] if number % 3 == 0 else []
        for _ in range(int(draw.integers(1, 4))):
            row = next(questions)
            messages += [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"].split("\n")[0]},
            ]
        result.append({"messages": messages})
    return result


def write_lines(path: pathlib.Path, rows: list) -> pathlib.Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
