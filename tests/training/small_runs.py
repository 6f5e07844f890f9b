"""A run of `Trainer.fit` that takes a second, for tests that kill it and damage its folder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import lora_jax as lj
from lora_jax.training import ArrayBatches, Trainer, TrainSettings

STEPS = 9  # three epochs of three
KILLED = 8  # step after whose checkpoint a run is killed


class Model(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(4, 6, rngs=rngs)
        self.head = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(jax.nn.gelu(self.up(x)))


class Killed(BaseException):
    pass


class Batches(ArrayBatches):
    """The batches, with something that is called before each step."""

    def __init__(self, *arguments, at_step):
        super().__init__(*arguments)
        self.at_step = at_step

    def epoch(self, epoch, start=0):
        for number, batch in enumerate(super().epoch(epoch, start), start):
            self.at_step(3 * epoch + number)
            yield batch


def loss(model, batch, key):
    return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)


def arrays():
    x = np.random.default_rng(0).normal(size=(22, 4)).astype(np.float32)
    return {"x": x, "y": np.concatenate([x[:, :1] ** 2, x[:, 1:2]], 1)}


def fit(folder, rank=2, at_step=lambda step: None):
    """Trains in the folder, or goes on there; the first epoch is the best by its score."""
    data = arrays()
    return trainer(rank).fit(
        Batches(data, 8, at_step=at_step), loss, folder, validation=ArrayBatches(data, 8),
        headline="distance", smaller_is_better=True,
        evaluate=lambda model: {"distance": jnp.abs(model.head.bias[...]).sum()},
    )  # fmt: skip


@functools.cache
def trainer(rank):
    method = lj.lora({"up": {"rank": rank, "alpha": 2}}, head="head/.*")
    settings = TrainSettings(epochs=3, learning_rate=0.02, log_every=1, checkpoint_every=2)
    return Trainer(Model(nnx.Rngs(0)), method, settings, head="head/.*")


def killed_at(folder, step):
    """A run that ends before a step, as if killed."""

    def kill(at):
        if at == step:
            raise Killed

    try:
        fit(folder, at_step=kill)
    except Killed:
        return
    raise AssertionError("it was not killed")


def half_done(root):
    """The folder of a run that was killed after its second checkpoint of the last epoch."""
    folder = root / "run"
    killed_at(folder, KILLED)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["6", "8"]
    return folder


def same_result(one, two):
    """Whether two results have the same scores and the same adapter, bit for bit."""
    same = one.progress.history == two.progress.history and one.progress.best == two.progress.best
    return same and all(np.array_equal(one.best[path], two.best[path]) for path in two.best)
