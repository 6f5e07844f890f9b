"""RoBERTas of other names, XLM-R and CamemBERT, against PyTorch `transformers`, and saved again."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from lora_jax.data.packing import TokenisedExamples
from lora_jax.models import hub

KINDS = {
    "xlm-roberta": (
        transformers.XLMRobertaConfig,
        transformers.XLMRobertaForSequenceClassification,
    ),
    "camembert": (transformers.CamembertConfig, transformers.CamembertForSequenceClassification),
}
SIZES = {
    "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 20, "max_position_embeddings": 24, "type_vocab_size": 1, "num_labels": 3,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_pytorch_and_a_saved_model_is_the_same_folder(kind, tmp_path):
    of_config, of_model = KINDS[kind]
    torch.manual_seed(0)
    theirs = of_model(of_config(**SIZES)).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.normal_(float(name.endswith("LayerNorm.weight")), 0.3)
    theirs.save_pretrained(tmp_path / "base")
    config = hub.read_config(tmp_path / "base")
    assert config.architecture == kind and config.position_offset == 2
    ours = hub.load_classifier(tmp_path / "base", config, 3, jax.random.key(0), head="published")

    random = np.random.default_rng(0)
    ids = [random.integers(3, 50, n).astype(np.int32) for n in (5, 22, 9)]
    padded = np.ones((3, 22), np.int64)
    for row, tokens in enumerate(ids):
        padded[row, : len(tokens)] = tokens
    expected = theirs(torch.tensor(padded), attention_mask=torch.tensor(padded != 1)).logits
    examples = TokenisedExamples(ids, [np.zeros_like(x) for x in ids], np.zeros(3, np.int32))
    batch = examples.pack(range(3), (2, 24), 3)
    found = jax.jit(lambda model: model(batch.inputs, batch.rows, batch.columns))(ours)
    # Sums in another order: 5e-7 is reached.
    expected = expected.detach().numpy()
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()

    hub.save_classifier(tmp_path / "again", ours)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "again"))
    assert one.keys() == other.keys()
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written["model_type"] == kind and written["architectures"] == [of_model.__name__]
    assert type(transformers.AutoConfig.from_pretrained(tmp_path / "again")) is of_config
