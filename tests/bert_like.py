"""A layer like BERT's in PyTorch and in Flax, with equal weights, and training in both against each other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx

import lora_jax

WIDTH, INNER, TOKENS = 8, 12, 5
LINEAR = {"query": (WIDTH, WIDTH), "key": (WIDTH, WIDTH), "value": (WIDTH, WIDTH),
          "intermediate": (WIDTH, INNER), "down": (INNER, WIDTH)}  # fmt: skip
NORMS = ("first", "second")


class TorchBlock(torch.nn.Module):
    """Attention of one head and a feed-forward block, each with a LayerNorm after it."""

    def __init__(self):
        super().__init__()
        for name, sizes in LINEAR.items():
            setattr(self, name, torch.nn.Linear(*sizes))
        for name in NORMS:
            setattr(self, name, torch.nn.LayerNorm(WIDTH, eps=1e-5))

    def forward(self, x):
        scores = self.query(x) @ self.key(x).transpose(-1, -2) / WIDTH**0.5
        x = self.first(x + torch.softmax(scores, -1) @ self.value(x))
        return self.second(x + self.down(torch.nn.functional.gelu(self.intermediate(x))))


class Block(nnx.Module):
    """The same."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        for name, sizes in LINEAR.items():
            setattr(self, name, nnx.Linear(*sizes, rngs=rngs))
        for name in NORMS:
            setattr(self, name, nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs))

    def __call__(self, x):
        scores = self.query(x) @ jnp.swapaxes(self.key(x), -1, -2) / WIDTH**0.5
        x = self.first(x + jax.nn.softmax(scores, axis=-1) @ self.value(x))
        return self.second(x + self.down(jax.nn.gelu(self.intermediate(x), approximate=False)))


def blocks():
    """Both, with equal random weights and biases."""
    torch.manual_seed(0)
    theirs, ours = TorchBlock(), Block()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    copy_weights(theirs, ours)
    return theirs, ours


def copy_weights(theirs, ours):
    for name in (*LINEAR, *NORMS):
        layer, module = getattr(ours, name), getattr(theirs, name)
        weight = layer.kernel if name in LINEAR else layer.scale
        weight[...] = jnp.asarray(module.weight.detach().numpy().T.copy())
        layer.bias[...] = jnp.asarray(module.bias.detach().numpy().copy())


def compare_training(run_theirs, trained, method, adapted, run_ours, target, tolerance):
    """Five steps of AdamW on both sides: losses, gradients and values.

    Args:
      run_theirs: the outputs of PyTorch's model, in our layout.
      trained: its parameters by the paths that ours have, with equal values.
      method, adapted: of our model.
      run_ours: the outputs of our model.
      target: of the mean squared error.
      tolerance: relative one of values and gradients.

    Returns:
      What was trained here.
    """
    labels = method.labels(adapted)
    structure, trainable, frozen = lora_jax.split(adapted, labels)
    assert set(trainable) == set(trained)
    tx = lora_jax.optimizer(
        {path: labels[path] for path in trainable}, optax.adamw(1e-2, weight_decay=0.1)
    )

    @jax.jit
    @jax.value_and_grad
    def loss(trainable):
        outputs = run_ours(lora_jax.join(structure, trainable, frozen))
        return jnp.mean((outputs - jnp.asarray(target, jnp.float32)) ** 2)

    state = tx.init(trainable)
    adamw = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.1)
    goal = torch.tensor(np.asarray(target, np.float32))
    for _ in range(5):
        adamw.zero_grad()
        theirs = ((run_theirs() - goal) ** 2).mean()
        theirs.backward()
        value, gradients = loss(trainable)
        np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
        for path, parameter in trained.items():
            same = parameter.grad.reshape(gradients[path].shape).numpy()
            np.testing.assert_allclose(gradients[path], same, rtol=tolerance, atol=1e-6)
        adamw.step()
        updates, state = tx.update(gradients, state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        for path, parameter in trained.items():  # Adam divides small gradients by their own size
            same = parameter.detach().reshape(trainable[path].shape).numpy()
            np.testing.assert_allclose(trainable[path], same, rtol=tolerance, atol=1e-5)
    return lora_jax.join(structure, trainable, frozen)
