"""DeBERTa against PyTorch `transformers`, and against itself packed, unrolled and recomputed."""

from __future__ import annotations

import dataclasses

import deberta_models
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from deberta_models import VARIANTS, to_ours
from deviations import deviation
from transformers.models.deberta_v2 import modeling_deberta_v2 as of_torch

from lora_jax import partition
from lora_jax.data.batch import Inputs
from lora_jax.errors import InputError
from lora_jax.models.attention.relative import Relative, buckets
from lora_jax.models.deberta_config import SIZES

torch.set_num_threads(1)

# Reached on a CPU in float32, relative to the largest value of the tensor: 2.4e-6 and 1.1e-5. The order of
# summation differs; the tolerances are about ten times that.
LOGITS, GRADIENTS = 2e-5, 1e-4
LENGTHS = [13, 29, 1, 22, 2]  # in rows of 40: several in each, and padding behind them


def split(model):
    return partition.split(model, dict.fromkeys(partition.parameters(model), partition.TRAINABLE))


def outputs(model, batch, loss, key=None):
    """Logits, and the gradients of a loss of them by path."""
    structure, params, rest = split(model)

    @jax.jit
    def both(params):
        def of(p):
            logits = partition.join(structure, p, rest)(*batch, key=key)
            return loss(logits), logits

        return jax.grad(of, has_aux=True)(params)

    gradients, logits = both(params)
    return np.asarray(logits), {k: np.asarray(v) for k, v in gradients.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_all_gradients_equal_pytorch(variant, tmp_path):
    theirs = deberta_models.reference(variant, seed=len(variant))
    theirs.save_pretrained(tmp_path)
    ours, config = deberta_models.load(tmp_path)
    expected = to_ours(dict(theirs.named_parameters()))
    loaded = partition.parameters(ours)
    assert set(loaded) == set(expected)
    for path, value in expected.items():
        np.testing.assert_array_equal(loaded[path], value, err_msg=path)

    torch_inputs, batch = deberta_models.batches(LENGTHS, config.type_vocab_size)
    labels = np.array([0, 2, 1, 1, 0]) % theirs.config.num_labels
    logits = theirs(**torch_inputs).logits
    if theirs.config.num_labels == 1:
        target = np.linspace(-1, 1, len(LENGTHS)).astype(np.float32)
        torch.nn.functional.mse_loss(logits[:, 0], torch.tensor(target)).backward()
        loss = lambda x: jnp.mean((x[:, 0] - target) ** 2)  # noqa: E731
    else:
        torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()
        loss = lambda x: optax.softmax_cross_entropy_with_integer_labels(x, labels).mean()  # noqa: E731
    # What is not used has no gradient in PyTorch, and 0 in JAX.
    named = {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in theirs.named_parameters()}
    found, gradients = outputs(ours, batch, loss)
    reached = (
        deviation({"": found}, {"": logits.detach().numpy()}),
        deviation(gradients, to_ours(named)),
    )
    print(f"\ndeviation {variant}: logits {reached[0]:.1e}, gradients {reached[1]:.1e}")
    assert reached[0] < LOGITS
    assert reached[1] < GRADIENTS
