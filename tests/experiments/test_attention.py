"""Which kernel computes attention, chosen in a config: wired for Llama-kind decoders, refused elsewhere."""

from __future__ import annotations

import gguf_models
import jax
import pytest
import tune_files

from configs.nlg import small as nlg_small
from configs.nlg import smollm2 as nlg_smollm2
from configs.tune import small, smollm2
from experiments.runs.data_to_text import DataToTextTask
from experiments.runs.tune import TuneTask
from lora_jax.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("attention")
    tune_files.write_model(root / "gpt2", chat=False)
    gguf_models.write(root / "llama.gguf", "llama")
    tune_files.write_lines(root / "x.jsonl", tune_files.pairs(8))
    return root


@pytest.fixture(scope="module")
def config(folder):
    def make(name, **changes):
        values = small.get_config()
        values.update_from_flattened_dict(
            {
                "model.name": str(folder / name), "data.train": str(folder / "x.jsonl"), "data.held_out": 2,
                "data.max_length": 64, "samples.max_tokens": 4,
                **{key.replace("__", "."): value for key, value in changes.items()},
            }
        )  # fmt: skip
        return values

    return make


def test_every_config_has_the_field():
    for made in (small, smollm2, nlg_small, nlg_smollm2):
        assert made.get_config().model.attention == "xla"


@pytest.mark.parametrize("name", ["gpt2", "llama.gguf"])
def test_xla_is_for_every_model_and_the_model_is_the_same(config, name):
    task = TuneTask(config(name))
    assert getattr(task._decoder, "attention", "xla") == "xla"


def test_cudnn_reaches_the_model_on_a_gpu(config, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    task = TuneTask(config("llama.gguf", model__attention="cudnn", base_dtype="bfloat16"))
    assert task._decoder.attention == "cudnn"
    with pytest.raises(
        InputError, match=r"config.base_dtype\) 'bfloat16', got 'float32'; set that, or"
    ):
        TuneTask(config("llama.gguf", model__attention="cudnn", base_dtype="float32"))


def test_it_is_refused_on_a_cpu_and_for_gpt2(config, folder, tmp_path):
    given = config("llama.gguf", model__attention="cudnn", base_dtype="bfloat16")
    with pytest.raises(
        InputError, match="'cudnn', which computes on GPUs, and this is a cpu. Set .*'xla'"
    ):
        TuneTask(given)
    with pytest.raises(InputError, match="gpt2 is gpt2. Set config.model.attention='xla'"):
        TuneTask(config("gpt2", model__attention="cudnn"))
    other = nlg_small.get_config("e2e,lora")
    other.model.name, other.model.attention = str(folder / "gpt2"), "cudnn"
    with pytest.raises(InputError, match="decoders of the Llama kind have"):
        DataToTextTask(other)
