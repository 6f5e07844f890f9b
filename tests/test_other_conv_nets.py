"""A convolutional net as others write it, not of this project: adapted, trained, merged and verified."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lora_jax as lj
from lora_jax.training import ArrayBatches, Trainer, TrainSettings


class SqueezeExcite(nnx.Module):
    def __init__(self, features, rngs):
        self.down = nnx.Linear(features, 2, rngs=rngs)
        self.up = nnx.Linear(2, features, rngs=rngs)

    def __call__(self, x):
        return x * nnx.sigmoid(self.up(nnx.relu(self.down(x.mean(axis=(1, 2))))))[:, None, None]


class InvertedResidual(nnx.Module):
    """MobileNet's block: 1x1, depthwise 3x3, 1x1, each with BatchNorm."""

    def __init__(self, features, rngs):
        inner = 2 * features
        self.expand = nnx.Conv(features, inner, (1, 1), use_bias=False, rngs=rngs)
        self.depthwise = nnx.Conv(
            inner, inner, (3, 3), feature_group_count=inner, use_bias=False, rngs=rngs
        )
        self.project = nnx.Conv(inner, features, (1, 1), use_bias=False, rngs=rngs)
        self.norms = nnx.List(nnx.BatchNorm(n, rngs=rngs) for n in (inner, inner, features))
        self.attention = SqueezeExcite(inner, rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        y = nnx.relu(self.norms[0](self.expand(x)))
        y = self.attention(nnx.relu(self.norms[1](self.depthwise(y))))
        return x + self.drop(self.norms[2](self.project(y)))


class Net(nnx.Module):
    """In the manner of Flax's examples: layers in the constructor, `partial`s, a Sequential."""

    def __init__(self, *, rngs):
        self.stem = nnx.Conv(3, 6, kernel_size=(3, 3), strides=2, rngs=rngs)
        self.blocks = nnx.Sequential(*[InvertedResidual(6, rngs) for _ in range(2)])
        self.classify = nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x):
        return self.classify(self.blocks(nnx.relu(self.stem(x))).mean(axis=(1, 2)))


def _pictures(count):
    """Pictures in four colours: what they are called is which."""
    random = np.random.default_rng(0)
    label = np.arange(count) % 4
    colours = random.uniform(-1, 1, (4, 3))
    image = colours[label][:, None, None] + random.normal(0, 0.3, (count, 8, 8, 3))
    return {"image": image.astype(np.float32), "label": label.astype(np.int32)}


def _loss(model, batch, key):
    logits = model(batch["image"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


@pytest.mark.slow
def test_a_net_of_others_is_adapted_by_the_type_of_its_layers(tmp_path):
    base = Net(rngs=nnx.Rngs(0))
    data = _pictures(32)
    # Every group of a convolution has factors of its own, of rank 1 where it is a single channel.
    method = lj.lora(nnx.Conv, rank=2, alpha=8, too_large="cap", head=r"classify/.*")
    found = lj.verify(base, method, data["image"][:2])
    found.check()

    base.eval()
    kernel = np.asarray(base.blocks.layers[0].depthwise.kernel[...])
    trainer = Trainer(base, method, TrainSettings(epochs=10, learning_rate=3e-2, warmup_ratio=0.0))
    adapted = {layer.path for layer in trainer.summary.layers}
    inside = {
        f"blocks/layers/{n}/{name}" for n in (0, 1) for name in ("expand", "depthwise", "project")
    }
    assert adapted == {"stem", *inside}
    result = trainer.fit(ArrayBatches(data, 16), _loss, tmp_path / "run")
    losses = [epoch["loss"] for epoch in result.progress.history]
    assert losses[-1] < 0.5 * losses[0]

    tuned = trainer.model(result.best)
    tuned.eval()
    run = nnx.jit(lambda model, images: model(images))
    expected = np.asarray(run(tuned, data["image"]))
    merged = lj.merge(tuned)
    assert type(merged.blocks.layers[0].depthwise) is nnx.Conv
    changed = merged.blocks.layers[0].depthwise.kernel[...]
    assert not np.array_equal(changed, kernel)
    # float32, and the product in another order.
    np.testing.assert_allclose(run(merged, data["image"]), expected, rtol=0, atol=2e-5)
    again = lj.load(tmp_path / "run", base)
    np.testing.assert_array_equal(run(again, jnp.asarray(data["image"])), expected)
    assert (expected.argmax(-1) == data["label"]).mean() > 0.8
    assert jax.tree.leaves(nnx.state(base, nnx.BatchStat))  # a net with statistics, which stay
