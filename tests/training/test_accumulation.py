"""Several batches an update train as one batch of all their examples would, whatever they hold."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from random_examples import random_examples
from random_models import from_shapes

import lora_jax as lj
from lora_jax import partition
from lora_jax.data.batches import TrainingBatches
from lora_jax.data.completions import TokenisedPairs
from lora_jax.models.encoder import Classifier, EncoderConfig
from lora_jax.models.gpt2 import GPT2, GPT2Config
from lora_jax.training import ArrayBatches, Trainer, TrainSettings, optimizer, step

_EPOCHS, _EXAMPLES, _WHOLE, _PART = 2, 22, 8, 2  # batches of 8, 8, 6; of 2 in groups of 4, 4, 3


def encoder():
    config = EncoderConfig(
        "roberta", vocab_size=50, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=24, type_vocab_size=2, position_offset=2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = from_shapes(lambda: Classifier(config, 3, nnx.Rngs(0)))
    return model, r".*/attention/(query|value)", random_examples(_EXAMPLES, 12, seed=1)


def decoder():
    config = GPT2Config(
        vocab_size=50, n_embd=8, n_layer=2, n_head=2, n_positions=16, embd_pdrop=0.0,
        attn_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    rng = np.random.default_rng(2)
    lengths = rng.integers(3, 16, _EXAMPLES)
    ids = [rng.integers(1, 50, n).astype(np.int32) for n in lengths]
    starts = np.array([rng.integers(1, n - 1) for n in lengths], np.int32)
    return from_shapes(lambda: GPT2(config, nnx.Rngs(0))), r".*/qkv", TokenisedPairs(ids, starts)


def trained(model, target, examples, loss, *, batch_size, accumulate, row_length):
    """Parameters after every batch."""
    method = lj.lora(target, rank=2)
    adapted = method.insert(model, jax.random.key(3))
    labels = method.labels(adapted)
    structure, trainable, frozen = partition.split(adapted, labels)
    batches = TrainingBatches(
        examples, batch_size=batch_size, epochs=_EPOCHS, seed=5, hidden_size=8, max_length=16,
        row_length=row_length,
    )  # fmt: skip
    tx = lj.optimizer(
        {path: labels[path] for path in trainable}, optax.sgd(0.5),
        around=lambda inside: optimizer.accumulated(inside, accumulate, batches.per_epoch)
        if accumulate > 1 else inside,
    )  # fmt: skip
    train, state = step.make_train_step(structure, loss, tx), tx.init(trainable)
    history = []
    for epoch in range(_EPOCHS):
        for batch in batches.epoch(epoch):
            trainable, state, _, _ = train(trainable, state, frozen, batch, jax.random.key(0))
            history.append({path: np.asarray(value) for path, value in trainable.items()})
    return history


@pytest.mark.parametrize("row_length", [0, 16], ids=["shapes by batch", "rows of one length"])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_packed_micro_batches_equal_the_unsplit_batch(kind, row_length):
    model, target, examples = encoder() if kind == "encoder" else decoder()
    loss = step.classification_loss if kind == "encoder" else step.completion_loss(0.1)
    whole, parts = (
        trained(
            model, target, examples, loss, batch_size=size, accumulate=_WHOLE // size,
            row_length=row_length,
        )
        for size in (_WHOLE, _PART)
    )  # fmt: skip
    ends = [4, 8, 11, 15, 19, 22]  # micro-batches after which there is an update
    assert (len(whole), len(parts)) == (6, 22)
    for number, after in enumerate(ends):
        for path, expected in whole[number].items():
            # float32 sums in another order; the completion loss has 1e-4 in its divisor, once a batch.
            np.testing.assert_allclose(
                parts[after - 1][path], expected, rtol=2e-4, atol=1e-5, err_msg=path
            )
    moved = [
        number + 1
        for number in range(1, 22)
        if any(np.any(parts[number][p] != parts[number - 1][p]) for p in parts[0])
    ]
    assert moved == ends


def test_groups_of_unequal_batches_have_the_gradient_of_all_their_examples():
    """Against the closed form: the mean over examples, not the mean of means."""
    tx = optimizer.accumulated(optax.sgd(1.0), 3)
    state = tx.init({"w": jnp.zeros(2)})
    values = [np.array([1.0, 2.0]), np.array([3.0, 4.0]), np.array([10.0, 0.5])]
    counts = [1, 5, 2]
    for value, count in zip(values, counts, strict=True):
        updates, state = tx.update({"w": jnp.asarray(value)}, state, weight=count)
    mean = np.average(values, axis=0, weights=counts)
    np.testing.assert_allclose(updates["w"], -mean, rtol=1e-6)
    assert not np.any(state.gradients["w"]) and state.weight == 0


class Model(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.layer(x)


def fitted(folder, batch_size, accumulate, drop_last=False):
    random = np.random.default_rng(0)
    x = random.normal(size=(_EXAMPLES, 4)).astype(np.float32)
    data = {"x": x, "y": x[:, :2] ** 2}
    settings = TrainSettings(
        epochs=3, learning_rate=0.05, warmup_ratio=0.3, max_grad_norm=0.5, accumulate=accumulate,
        log_every=1,
    )  # fmt: skip
    trainer = Trainer(Model(nnx.Rngs(0)), lj.lora("layer", rank=1), settings)

    def loss(model, batch, key):
        return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)

    batches = ArrayBatches(data, batch_size, seed=1, drop_last=drop_last)
    return trainer.fit(batches, loss, folder)


def test_a_users_run_with_accumulation_is_the_run_with_large_batches(tmp_path):
    whole, parts = fitted(tmp_path / "whole", 8, 1), fitted(tmp_path / "parts", 2, 4)
    assert whole.progress.step == 9 and parts.progress.step == 33
    for path, expected in whole.best.items():
        np.testing.assert_allclose(parts.best[path], expected, rtol=1e-4, atol=1e-5)
    assert np.any(whole.best["layer/lora/b"])


def test_no_group_is_lost(tmp_path):
    """Three batches of an epoch in groups of two: the third one counts."""
    whole, parts = fitted(tmp_path / "a", 22, 1), fitted(tmp_path / "b", 8, 3)
    for path, expected in whole.best.items():
        np.testing.assert_allclose(parts.best[path], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="accumulate is 4, but an epoch has 3 batches only"):
        fitted(tmp_path / "c", 8, 4)
    assert not (tmp_path / "c").exists()
