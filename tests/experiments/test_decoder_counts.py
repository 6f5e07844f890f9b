"""Counts of published decoders: literals, and transformers' models with shapes only."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from experiments import parameters
from experiments.paper import decoder_counts
from lora_jax.models import llama_json
from lora_jax.models.llama_sizes import SIZES

# What the files of the weights hold (of Gemma 3's larger models the part that reads texts).
TOTALS = {
    "smollm2-135m": 134_515_008, "llama-2-7b": 6_738_415_616, "llama-2-13b": 13_015_864_320,
    "llama-65b": 65_285_660_672,
    "llama-2-70b": 68_976_648_192, "llama-3-8b": 8_030_261_248, "llama-3-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400, "mistral-7b": 7_241_732_096, "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304, "qwen2.5-3b": 3_085_938_688, "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664, "qwen2.5-32b": 32_763_876_352, "qwen2.5-72b": 72_706_203_648,
    "qwen3-8b": 8_190_735_360, "gemma-2-2b": 2_614_341_888, "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320, "gemma-3-1b": 999_885_952,
}  # fmt: skip


@pytest.mark.parametrize("name", TOTALS)
def test_totals(name):
    assert decoder_counts.count(name, 8).total == TOTALS[name]


@pytest.mark.parametrize("name", SIZES)
def test_transformers_makes_as_many_values_of_the_same_file(name):
    published = llama_json.published(SIZES[name])
    kind = transformers.CONFIG_MAPPING[published.pop("model_type")]
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(kind(**published))
    distinct = {id(p): p.numel() for p in theirs.parameters()}
    assert sum(distinct.values()) == decoder_counts.count(name, 8).total


def test_lora_per_rank():
    """Llama-3.2-1B: 212,992 values of attention and 491,520 of the feed-forward layers per rank."""
    found = decoder_counts.count("llama-3.2-1b", 3).lora
    assert found["attention"] == 3 * 212_992
    assert found["all matrices"] == 3 * (212_992 + 491_520)
    assert found["q, v"] == 3 * 16 * (2048 + 2048 + 2048 + 512)
    assert decoder_counts.count("gpt2-medium", 4).lora["q, v"] == 393_216  # the paper's 0.35M


@pytest.mark.slow
def test_the_commands_output():
    text = parameters.models_report(["gemma-2-2b", "llama-2-7b", "gemma-2-2b"], 16, "markdown")
    lines = text.splitlines()
    assert len(lines) == 4 and "r = 16: all matrices" in lines[0]
    assert "| llama-2-7b | 6,738,415,616 | 12.6 GiB | 8,388,608 (0.12%) |" in lines[3]
    values = json.loads(parameters.models_report(["all"], 8, "json"))
    assert [v["model"] for v in values] == list(decoder_counts.DECODERS)


@pytest.mark.parametrize(
    "names, rank, message",
    [(["llama-9b"], 8, r"unknown models \['llama-9b'\]; known are all, gpt2"),
     (["gpt2"], 0, "--rank must be an integer from 1"),
     (["gemma-3-270m"], 300, "rank")],
)  # fmt: skip
def test_bad_arguments(names, rank, message):
    with pytest.raises(ValueError, match=message):
        parameters.models_report(names, rank, "json")
