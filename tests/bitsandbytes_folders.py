"""Small random decoders, packed by bitsandbytes and saved by transformers."""

from __future__ import annotations

import functools
import json
import pathlib
import tempfile

import torch
import transformers
from decoder_parity import POSITIONS, VOCAB
from safetensors.numpy import load_file, save_file

WEIGHTS = "model.safetensors"
_LLAMA = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": POSITIONS,
    "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2,
}  # fmt: skip
_GPT2 = {
    "vocab_size": VOCAB, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS,
    "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2,
}  # fmt: skip
_NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
# By name: the configuration, how it is packed, and the type that bitsandbytes unpacks it to.
CASES = {
    "nf4": (transformers.LlamaConfig(**_LLAMA), _NF4, torch.float32),
    "nf4, tied, bfloat16": (
        transformers.LlamaConfig(**_LLAMA, tie_word_embeddings=True), _NF4, torch.bfloat16
    ),
    "fp4, single": (transformers.LlamaConfig(**_LLAMA), {"load_in_4bit": True}, torch.float32),
    "int8": (transformers.LlamaConfig(**_LLAMA), {"load_in_8bit": True}, torch.float32),
    "gpt2, nf4": (transformers.GPT2Config(**_GPT2), _NF4, torch.float32),
    "gpt2, int8": (transformers.GPT2Config(**_GPT2), {"load_in_8bit": True}, torch.float32),
    "narrow": (transformers.LlamaConfig(**{**_LLAMA, "hidden_size": 40}), _NF4, torch.float32),
}  # fmt: skip


@functools.cache
def root():
    """The folder of all of them, which goes with the process."""
    return tempfile.TemporaryDirectory(prefix="lora_jax_packed_")


@functools.cache
def folder(case) -> pathlib.Path:
    """The folder of a model."""
    config, packing, dtype = CASES[case]
    plain, packed = (pathlib.Path(root().name) / f"{case}, {kind}" for kind in ("plain", "packed"))
    torch.manual_seed(len(case))
    transformers.AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(plain)
    how = transformers.BitsAndBytesConfig(**packing)
    load(plain, dtype=dtype, quantization_config=how).save_pretrained(packed)
    return packed


def load(place, **arguments):
    """The model of a folder, whose packed layers compute with the numbers that they stand for.

    In evaluation, on CPUs that multiply in bfloat16, they do not.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(place, **arguments).eval()
    for module in model.modules():
        if type(module).__name__ in ("Linear4bit", "Linear8bitLt"):
            module.train()
    return model


def rewrite(case, place, tensors=lambda t: t, config=lambda c: c) -> pathlib.Path:
    """Writes the folder of a model with other tensors or another config.json."""
    old = folder(case)
    save_file(tensors(load_file(old / WEIGHTS)), place / WEIGHTS, {"format": "pt"})
    values = json.loads((old / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config(values)))
    return place
