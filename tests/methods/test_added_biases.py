"""BitFit on layers without a bias: what it adds, against the closed form, and what it refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_models import with_norms_near_one

import lora_jax
from lora_jax import methods, partition
from lora_jax.errors import InputError, InputTypeError
from lora_jax.models.llama import Llama
from lora_jax.models.llama_config import LlamaConfig

SIZES = {
    "vocab_size": 19, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16,
}  # fmt: skip
KEY = jax.random.key(0)
BITFIT = methods.bitfit(add=True)


def llama(**fields):
    return with_norms_near_one(lambda: Llama(LlamaConfig(**SIZES, **fields), nnx.Rngs(0)))


def logits(model):
    tokens = jnp.arange(10, dtype=jnp.int32).reshape(2, 5)
    return jax.jit(lambda m: m.prefill(tokens, jnp.array([5, 5]), 1, 1)[0])(model)


def test_every_matrix_of_a_layer_gets_a_bias_and_nothing_else_trains():
    adapted = BITFIT.insert(llama(), KEY)
    labels = BITFIT.labels(adapted)
    trained = {path for path, group in labels.items() if group == "bias"}
    inner = [f"attention/{name}" for name in ("query", "key", "value", "output")]
    inner += [f"feed_forward/{name}" for name in ("gate", "up", "down")]
    assert trained == {f"layers/block/{name}/added/bias" for name in inner}  # not lm_head's
    counts = BITFIT.summary(adapted).counts()
    assert counts["bias"] == counts["trainable"] == 2 * (8 + 4 + 4 + 8 + 12 + 12 + 8)
    np.testing.assert_array_equal(logits(adapted), logits(llama()))


def test_an_added_bias_is_a_bias():
    """The same model made with biases, at the values of the added ones, computes the same."""
    adapted = BITFIT.insert(llama(), KEY)
    rng = np.random.default_rng(1)
    for path, value in partition.parameters(adapted).items():
        if path.endswith("added/bias"):
            module = adapted
            for name in path.split("/")[:-1]:
                module = getattr(module, name)
            module.bias[...] = jnp.asarray(rng.normal(size=value.shape), jnp.float32)
    fields = {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True}
    other = nnx.eval_shape(lambda: Llama(LlamaConfig(**SIZES, **fields), nnx.Rngs(0)))
    shapes = partition.parameters(other)
    structure, _, _ = partition.split(other, dict.fromkeys(shapes, partition.FROZEN))
    values = {
        path.replace("added/bias", "bias"): value
        for path, value in partition.parameters(adapted).items()
    }
    built_in = partition.join(structure, values, {})
    np.testing.assert_allclose(logits(adapted), logits(built_in), rtol=1e-6, atol=1e-6)
    assert np.abs(logits(adapted) - logits(llama())).max() > 0.1


def test_with_some_biases_both_kinds_train_and_with_all_there_is_nothing_to_add():
    adapted = BITFIT.insert(llama(attention_bias=True), KEY)
    labels = BITFIT.labels(adapted)
    assert labels["layers/block/attention/query/bias"] == "bias"
    assert labels["layers/block/attention/output/added/bias"] == "bias"
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="has a bias already; leave `add` out"):
        BITFIT.insert(nnx.Sequential(model), KEY)


def test_layers_with_several_axes():
    layer = nnx.LinearGeneral((2, 3), (4, 5), axis=(-2, -1), use_bias=False, rngs=nnx.Rngs(0))
    adapted = BITFIT.insert(nnx.Sequential(layer), KEY)
    bias = adapted.layers[0].added.bias
    assert bias.shape == (4, 5)
    bias[...] = jnp.arange(20.0).reshape(4, 5)
    x = jnp.ones((7, 2, 3))
    np.testing.assert_allclose(adapted(x), layer(x) + jnp.arange(20.0).reshape(4, 5), rtol=1e-6)


def test_without_add_a_model_without_biases_is_an_error():
    with pytest.raises(InputError, match="matches no"):
        methods.bitfit().labels(methods.bitfit().insert(llama(), KEY))


@pytest.mark.wrong_types
def test_it_shares_no_layer_with_another_method():
    both = methods.lora(".*/query", rank=2) + BITFIT
    with pytest.raises(InputTypeError, match=r"query is a LoRALinear.*plain layer only"):
        both.insert(llama(), KEY)
    with pytest.raises(InputError, match="add must be True or False, got 1"):
        methods.bitfit(add=1)


def test_an_adapter_goes_through_a_folder(tmp_path):
    model = llama()
    adapted = BITFIT.insert(model, KEY)
    adapted.layers.block.attention.query.added.bias[...] = jnp.ones((2, 8))
    lora_jax.save(tmp_path, adapted, BITFIT, model)
    again = lora_jax.load(tmp_path, model)
    np.testing.assert_array_equal(logits(again), logits(adapted))
    assert methods.from_json(BITFIT.to_json()) == BITFIT
