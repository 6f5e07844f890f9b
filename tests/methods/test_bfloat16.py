"""Base and computation in bfloat16, trainable leaves in float32: `experiments` on accelerators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lora_jax import methods, partition
from lora_jax.data.batch import Batch, Inputs
from lora_jax.models.encoder import Classifier, EncoderConfig
from lora_jax.models.gpt2 import GPT2, GPT2Config
from lora_jax.training import optimizer, step

KEY = jax.random.key(0, impl="unsafe_rbg")  # compiles faster
MODELS = {
    "encoder": lambda dtype: Classifier(
        EncoderConfig(
            "roberta",
            vocab_size=30,
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=20,
            type_vocab_size=1,
            position_offset=2,
            compute_dtype=dtype,
        ),
        3,
        nnx.Rngs(0),
    ),
    "decoder": lambda dtype: GPT2(
        GPT2Config(16, 3, 2, vocab_size=30, n_positions=20, compute_dtype=dtype), nnx.Rngs(0)
    ),
}
METHODS = [
    pytest.param(method, id=method.name, marks=[pytest.mark.slow] * slow)
    for method, slow in (
        (methods.bitfit(), True),
        (methods.top_layers(1), True),
        (methods.full(), True),
        (methods.lora(".*/(query|qkv)", rank=2) + methods.adapter_d(2, 1), False),
    )
]


def prepared(kind, method, dtype):
    adapted = method.insert(MODELS[kind](dtype), KEY)
    structure, trainable, frozen = partition.split(adapted, method.labels(adapted))
    return structure, trainable, {path: value.astype(dtype) for path, value in frozen.items()}


def batch():
    tokens = np.random.default_rng(0).integers(2, 30, (3, 8)).astype(np.int32)
    places = np.broadcast_to(np.arange(8, dtype=np.int32), tokens.shape)
    inputs = Inputs(tokens, np.ones_like(tokens), places, np.zeros_like(tokens))
    at = np.arange(3)
    return Batch(inputs, at, 0 * at, at, np.ones(3, np.float32))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", MODELS)
def test_loss_gradients_and_decoding_are_near_those_of_float32(kind, method):
    found = {}
    for dtype in ("float32", "bfloat16"):
        structure, trainable, frozen = prepared(kind, method, dtype)
        loss = step.completion_loss() if kind == "decoder" else step.classification_loss
        labels = dict.fromkeys(trainable, "own")
        tx = optimizer.adamw(labels, 1e-3)
        run = step.make_train_step(structure, loss, tx)
        copy = jax.tree.map(jnp.copy, trainable)  # donated
        new, _, _, metrics = run(copy, tx.init(trainable), frozen, batch(), KEY)
        assert all(value.dtype == jnp.float32 for value in new.values())
        outputs = [metrics["loss"][None], metrics["grad_norm"][None]]
        if kind == "decoder":
            model = partition.join(structure, trainable, frozen)
            logits, cache = model.prefill(batch().inputs.tokens, jnp.array([8, 3, 5]), 2, 2)
            more, _ = model.decode_step(jnp.array([[1, 2], [3, 4], [5, 6]]), cache)
            outputs += [logits, more]
        found[dtype] = outputs
    for half, exact in zip(found["bfloat16"], found["float32"], strict=True):
        assert half.dtype == jnp.float32
        # 8 bits of mantissa through three layers; 8e-3 reached.
        assert np.abs(half - exact).max() < 0.03 * np.abs(exact).max()
