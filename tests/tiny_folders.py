"""Tiny model folders with tokenizers, as the hub has them: BERT, RoBERTa, DeBERTa and GPT-2."""

from __future__ import annotations

import json
import pathlib

import torch
import transformers
from tokenizers import ByteLevelBPETokenizer

WORDS = "the a cat dog tree runs sleeps near under red blue old new house river".split()  # noqa: SIM905
_TEXTS = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
_ENCODER = {
    "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
    "max_position_embeddings": 20,
}  # fmt: skip
BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


def _randomise(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


def write_bert(folder: pathlib.Path, kind=transformers.BertModel, **config) -> None:
    """A BERT with vocab.txt and tokenizer.json; every word of `WORDS` is a token."""
    values = {"vocab_size": len(BERT_TOKENS), "pad_token_id": 0, **_ENCODER, **config}
    _randomise(kind(transformers.BertConfig(**values))).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(BERT_TOKENS) + "\n")
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)


def _bpe(special: list[str]) -> ByteLevelBPETokenizer:
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        _TEXTS, vocab_size=280, special_tokens=special, show_progress=False
    )
    return tokenizer


def write_roberta(folder: pathlib.Path, kind=transformers.RobertaForMaskedLM, **config) -> None:
    """A RoBERTa with vocab.json and merges.txt, and the head of a language model."""
    tokenizer = _bpe(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    values = {
        "vocab_size": tokenizer.get_vocab_size(), "type_vocab_size": 1, "pad_token_id": 1, **_ENCODER,
        **config,
    }  # fmt: skip
    _randomise(kind(transformers.RobertaConfig(**values))).save_pretrained(folder)
    tokenizer.save_model(str(folder))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "RobertaTokenizer", "model_max_length": 18})
    )


def write_deberta(folder: pathlib.Path, kind=transformers.DebertaV2Model, **config) -> None:
    """A DeBERTa as v2-xxlarge is, with tokenizer.json; every word of `WORDS` is a token."""
    tokens = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"▁{word}" for word in WORDS), "[MASK]"]
    values = {
        "vocab_size": len(tokens), "pad_token_id": 0, "relative_attention": True, "position_buckets": 4,
        "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": "p2c|c2p",
        "conv_kernel_size": 3, "conv_act": "gelu", "position_biased_input": False, "type_vocab_size": 0,
        **_ENCODER, **config,
    }  # fmt: skip
    _randomise(kind(transformers.DebertaV2Config(**values))).save_pretrained(folder)
    vocabulary = [(token, 0.0 if token.startswith("[") else -1.0) for token in tokens]
    transformers.DebertaV2Tokenizer(vocab=vocabulary).save_pretrained(folder)


def write_gpt2(folder: pathlib.Path, kind=transformers.GPT2LMHeadModel, **config) -> None:
    """A GPT-2 with tokenizer.json."""
    tokenizer = _bpe(["<|endoftext|>"])
    values = {
        "vocab_size": tokenizer.get_vocab_size(), "n_embd": 8, "n_layer": 2, "n_head": 2,
        "n_positions": 20, "bos_token_id": 0, "eos_token_id": 0, **config,
    }  # fmt: skip
    _randomise(kind(transformers.GPT2Config(**values))).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    ).save_pretrained(folder)


WRITE = {
    "bert": write_bert, "roberta": write_roberta, "deberta-v2": write_deberta, "gpt2": write_gpt2,
}  # fmt: skip


def write_all(root: pathlib.Path) -> pathlib.Path:
    """A folder of each kind in `root`, under its name; returns `root`."""
    for kind, write in WRITE.items():
        write(root / kind)
    return root
