"""Which kernel computes attention, chosen in a config: it reaches every model, or is refused."""

from __future__ import annotations

import gguf_models
import jax
import pytest
import tune_files

from configs.glue import minilm
from configs.nlg import small as nlg_small
from configs.nlg import smollm2 as nlg_smollm2
from configs.tune import small, smollm2
from experiments.runs import settings
from experiments.runs.data_to_text import DataToTextTask
from experiments.runs.tune import TuneTask
from lora_jax.errors import InputError
from lora_jax.models import hub


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
    for made in (small, smollm2, nlg_small, nlg_smollm2, minilm):
        assert made.get_config().model.attention == "auto"


@pytest.mark.parametrize("name", ["gpt2", "llama.gguf"])
def test_it_reaches_the_model(config, monkeypatch, name):
    assert TuneTask(config(name))._decoder.attention == "auto"
    assert TuneTask(config(name, model__attention="xla"))._decoder.attention == "xla"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    given = {"attention": "cudnn", "attn_pdrop" if name == "gpt2" else "attention_dropout": 0.0}
    given = {f"model__{field}": value for field, value in given.items()}
    task = TuneTask(config(name, **given, base_dtype="bfloat16"))
    assert task._decoder.attention == "cudnn"
    with pytest.raises(
        InputError, match=r"config.base_dtype\) 'bfloat16', got 'float32'; set that, or"
    ):
        TuneTask(config(name, **given, base_dtype="float32"))


@pytest.mark.parametrize(
    ("kernel", "devices"), [("cudnn", "GPU"), ("triton", "GPU"), ("splash", "TPU")]
)
def test_it_is_refused_on_a_cpu(config, folder, kernel, devices):
    message = f"'{kernel}', which computes on {devices}s, and this is a cpu. Set .*'auto'"
    with pytest.raises(InputError, match=message):
        TuneTask(config("llama.gguf", model__attention=kernel, base_dtype="bfloat16"))
    other = nlg_small.get_config("e2e,lora")
    other.model.name, other.model.attention = str(folder / "gpt2"), kernel
    with pytest.raises(InputError, match=message):
        DataToTextTask(other)


def test_an_encoder_takes_it(tiny_model, monkeypatch):
    given = minilm.get_config("sst2,lora")
    given.model.name, given.model.attention = str(tiny_model), "xla"
    given.task, given.data.source = "sentiment", ""
    assert settings.model_arguments(given)["attention"] == "xla"
    there = hub.read_config(tiny_model, **settings.model_arguments(given))
    assert there.attention == "xla"
    given.model.attention = "cudnn"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(InputError, match="'cudnn' needs attention_probs_dropout_prob 0.0, got 0.1"):
        hub.read_config(tiny_model, **settings.model_arguments(given))
