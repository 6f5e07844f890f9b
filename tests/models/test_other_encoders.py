"""ELECTRA and DistilBERT against PyTorch `transformers`, and saved again."""

from __future__ import annotations

import json

import encoder_tensors
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers
from deberta_models import batches
from deviations import deviation
from safetensors.numpy import load_file

from lora_jax import partition
from lora_jax.errors import FileError
from lora_jax.models import architectures, hub
from lora_jax.models.encoder import Classifier

torch.set_num_threads(1)

# Reached on a CPU in float32, relative to the largest value of the tensor: 1e-6 and 2e-6. The order of
# summation differs; the tolerances are about ten times that.
LOGITS, GRADIENTS = 1e-5, 2e-5
LENGTHS = [13, 29, 1, 22, 2]  # in rows of 40: several in each, and padding behind them
ELECTRA = {
    "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 20, "max_position_embeddings": 30, "num_labels": 3,
}  # fmt: skip
DISTILBERT = {
    "vocab_size": 50, "dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 20,
    "max_position_embeddings": 30, "num_labels": 3,
}  # fmt: skip
MODELS = {
    "electra": lambda: transformers.ElectraForSequenceClassification(
        transformers.ElectraConfig(**ELECTRA, embedding_size=10)
    ),
    "distilbert": lambda: transformers.DistilBertForSequenceClassification(
        transformers.DistilBertConfig(**DISTILBERT, sinusoidal_pos_embds=True)
    ),
}
# transformers' names below the prefix, and our paths; written out again, so that it checks the layouts.
_BLOCK = "encoder/layers/block/"
_OF_BERT, _OF_DISTILBERT = r"encoder\.layer\.\d+\.", r"transformer\.layer\.\d+\."
NAMES = (
    (r"embeddings\.(word|position|token_type)_embeddings", r"encoder/embeddings/\1"),
    (r"embeddings\.LayerNorm", "encoder/embeddings/norm"),
    (r"embeddings_project", "encoder/embeddings/projection"),
    (_OF_BERT + r"attention\.self\.(\w+)", _BLOCK + r"attention/\1"),
    (_OF_BERT + r"attention\.output\.dense", _BLOCK + "attention/output"),
    (_OF_BERT + r"attention\.output\.LayerNorm", _BLOCK + "attention/norm"),
    (_OF_BERT + r"intermediate\.dense", _BLOCK + "feed_forward/up"),
    (_OF_BERT + r"output\.dense", _BLOCK + "feed_forward/down"),
    (_OF_BERT + r"output\.LayerNorm", _BLOCK + "feed_forward/norm"),
    (_OF_DISTILBERT + r"attention\.q_lin", _BLOCK + "attention/query"),
    (_OF_DISTILBERT + r"attention\.k_lin", _BLOCK + "attention/key"),
    (_OF_DISTILBERT + r"attention\.v_lin", _BLOCK + "attention/value"),
    (_OF_DISTILBERT + r"attention\.out_lin", _BLOCK + "attention/output"),
    (_OF_DISTILBERT + r"sa_layer_norm", _BLOCK + "attention/norm"),
    (_OF_DISTILBERT + r"ffn\.lin1", _BLOCK + "feed_forward/up"),
    (_OF_DISTILBERT + r"ffn\.lin2", _BLOCK + "feed_forward/down"),
    (_OF_DISTILBERT + r"output_layer_norm", _BLOCK + "feed_forward/norm"),
    (r"classifier\.dense|pre_classifier", "head/dense"),
    (r"classifier\.out_proj|classifier", "head/output"),
)


def reference(name):
    """transformers' classifier with random values everywhere."""
    model = MODELS[name]().eval()
    encoder_tensors.randomise(model, seed=len(name))
    return model


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_all_gradients_equal_pytorch_and_a_saved_model_is_the_same_folder(
    name, tmp_path
):
    theirs = reference(name)
    theirs.save_pretrained(tmp_path / "base")
    config = hub.read_config(tmp_path / "base")
    assert config.max_length == 30
    ours = hub.load_classifier(tmp_path / "base", config, 3, jax.random.key(0), head="published")
    structure, params, rest = partition.split(
        ours, dict.fromkeys(partition.parameters(ours), partition.TRAINABLE)
    )
    types = 2 if name == "electra" else 0
    inputs, batch = batches(LENGTHS, types)
    if not types:
        del inputs["token_type_ids"]
    labels = np.array([0, 2, 1, 1, 0])
    logits = theirs(**inputs).logits
    torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()

    @jax.jit
    def both(params):
        def loss(p):
            logits = partition.join(structure, p, rest)(*batch)
            of_batch = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return of_batch.mean(), logits

        return jax.grad(loss, has_aux=True)(params)

    gradients, found = both(params)
    expected = encoder_tensors.to_ours(
        {name: p.grad for name, p in theirs.named_parameters()}, NAMES
    )
    assert gradients.keys() == expected.keys()
    assert deviation({"": found}, {"": logits.detach().numpy()}) < LOGITS
    assert deviation(gradients, expected) < GRADIENTS

    hub.save_classifier(tmp_path / "again", ours)
    one, other = (load_file(tmp_path / at / "model.safetensors") for at in ("base", "again"))
    assert one.keys() == other.keys()
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)
    assert hub.read_config(tmp_path / "again") == config
    read = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
    assert type(read) is type(theirs)
    np.testing.assert_array_equal(read.eval()(**inputs).logits.detach(), logits.detach())
    hub.save_encoder(tmp_path / "encoder", ours)
    assert type(transformers.AutoModel.from_pretrained(tmp_path / "encoder")) is type(
        theirs.base_model
    )


@pytest.mark.parametrize(
    "kind, config",
    [
        (transformers.ElectraForPreTraining, transformers.ElectraConfig(**ELECTRA)),
        (transformers.ElectraForMaskedLM, transformers.ElectraConfig(**ELECTRA)),
        (
            transformers.ElectraForMultipleChoice,  # of one width: without a projection
            transformers.ElectraConfig(**ELECTRA, embedding_size=24),
        ),
        (transformers.DistilBertForMaskedLM, transformers.DistilBertConfig(**DISTILBERT)),
        (
            transformers.DistilBertForQuestionAnswering,
            transformers.DistilBertConfig(**{**DISTILBERT, "num_labels": 2}),
        ),
    ],
)
def test_heads_of_other_tasks_are_not_used(kind, config, tmp_path):
    kind(config).save_pretrained(tmp_path)
    assert hub.check(tmp_path, hub.read_config(tmp_path))


def test_a_published_head_has_the_dropout_of_its_kind(tmp_path):
    """DistilBERT's drops out behind its dense layer only; the classes in PyTorch show the same rates."""
    theirs = transformers.DistilBertConfig(**DISTILBERT, seq_classif_dropout=0.4)
    transformers.DistilBertModel(theirs).save_pretrained(tmp_path)
    config = hub.read_config(tmp_path)
    assert config.head_rates == (0.0, 0.4)
    keys = jax.random.split(jax.random.key(0), 2000)
    model = hub.load_classifier(tmp_path, config, 1, jax.random.key(0))
    assert isinstance(model, Classifier)
    x = np.random.default_rng(0).normal(size=(1, 24)).astype(np.float32)
    head = jax.jit(jax.vmap(lambda key: model.head(jnp.asarray(x), key)))
    dropped = head(keys)[:, 0, 0]
    with torch.no_grad():
        kernels = [
            torch.tensor(np.asarray(layer.kernel))
            for layer in (model.head.dense, model.head.output)
        ]
        hidden = torch.relu(torch.tensor(x) @ kernels[0]).expand(20_000, -1)
        expected = torch.nn.functional.dropout(hidden, 0.4) @ kernels[1]
    # Standard errors of the deviation: 1.6% of 2,000 draws and 0.5% of 20,000.
    assert abs(np.std(dropped) / float(expected.std()) - 1) < 0.08


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dim": None}, "dim: found nothing, expected an integer"),
        ({"dim": 0}, "dim: found 0"),
        ({"n_heads": 5}, "hidden_size 24 is not divisible"),
        ({"hidden_size": 32}, "hidden_size: found 32, expected the value of dim, 24"),
        ({"activation": "relu"}, "activation 'relu'.*'gelu'"),
        ({"seq_classif_dropout": None}, ""),
        ({"seq_classif_dropout": 1.5}, "seq_classif_dropout: found 1.5"),
        ({"model_type": "deberta"}, "model_type 'deberta'.*DeBERTa of the first version"),
        ({"model_type": "albert"}, "model_type 'albert'.*All layers of an ALBERT share one set"),
    ],
)
def test_settings_in_other_names(change, message, tmp_path):
    values = {"model_type": "distilbert", **DISTILBERT, **change}
    kept = {key: value for key, value in values.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    if message:
        with pytest.raises(FileError, match=message):
            architectures.read_config(tmp_path)
    else:
        assert architectures.read_config(tmp_path).head_dropout == 0.2


def test_names_that_transformers_takes_too_are_read(tmp_path):
    values = {**DISTILBERT, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    kept = {k: v for k, v in values.items() if k not in ("dim", "n_layers", "n_heads")}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "distilbert", **kept}))
    config = architectures.read_config(tmp_path)
    assert (config.width, config.depth, config.heads) == (24, 2, 3)
