"""LoRA over packed weights equals peft over bitsandbytes: outputs, gradients, and steps of AdamW."""

from __future__ import annotations

import re

import bitsandbytes_folders as folders
import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
from decoder_parity import GRADIENT_TOLERANCE, LOGITS_TOLERANCE, VOCAB, difference

import lora_jax
from lora_jax import partition
from lora_jax.data.batch import Inputs
from lora_jax.models import hub
from lora_jax.quantisation.layers import quantised_layers
from lora_jax.training import optimizer

pytest.importorskip("bitsandbytes")

STEPS, ROWS, TOKENS, RANK, ALPHA = 5, 3, 14, 4, 8.0
RATE, DECAY = 1e-2, 0.1
NAMES = {
    "q_proj": "attention/query", "k_proj": "attention/key", "v_proj": "attention/value",
    "o_proj": "attention/output", "gate_proj": "feed_forward/gate", "up_proj": "feed_forward/up",
    "down_proj": "feed_forward/down",
}  # fmt: skip
BATCHES = np.random.default_rng(0).integers(0, VOCAB, (STEPS, ROWS, TOKENS))
ROW, COLUMN = (grid.reshape(-1) for grid in np.indices((ROWS, TOKENS - 1)))


def ours(folder):
    """Adapted model over the packed weights: (labels, model), both factors of which are random."""
    model = hub.load_decoder(folder, hub.read_decoder_config(folder, base_format="stored"))
    assert len(quantised_layers(model)) == 7
    method = lora_jax.lora("all-linear", rank=RANK, alpha=ALPHA)
    adapted = method.insert(model, jax.random.key(0))
    labels = method.labels(adapted)
    rng = np.random.default_rng(1)
    structure, factors, rest = partition.split(adapted, labels)
    factors = {
        path: jnp.asarray(rng.normal(scale=0.1, size=v.shape), jnp.float32)
        for path, v in factors.items()
    }
    return labels, partition.join(structure, factors, rest)


def theirs(folder, factors):
    """The same model in peft over bitsandbytes."""
    targets = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=list(NAMES), task_type="CAUSAL_LM"
    )  # fmt: skip
    model = peft.get_peft_model(folders.load(folder), targets).train()  # nothing here drops out
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(named) == 2 * 7 * 2
    with torch.no_grad():
        for name, value in named.items():
            value.copy_(torch.tensor(np.array(ours_for(name, factors))))
    return model, named


def ours_for(name, values):
    """Our array for peft's parameter, in the order of PyTorch (out, in)."""
    found = re.search(r"layers\.(\d+)\.\w+\.(\w+)\.lora_([AB])", name)
    path = f"layers/block/{NAMES[found[2]]}/lora/{found[3].lower()}"
    return np.asarray(values[path])[int(found[1])].T


def distance(found, expected, before=None):
    """Norm of the difference, relative to the expected one's, or to how far it moved."""
    moved = expected - before if before is not None else expected
    return np.linalg.norm(found - expected) / np.linalg.norm(moved)


def make_run(structure, frozen, adamw):
    def loss(factors, tokens):
        zeros = np.zeros(tokens.shape, np.int32)
        inputs = Inputs(tokens, zeros + 1, zeros + np.arange(TOKENS), zeros)
        logits = partition.join(structure, factors, frozen)(inputs, ROW, COLUMN)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:].reshape(-1))
        return losses.mean(), logits

    @jax.jit
    def step(factors, state, tokens):
        (value, logits), gradients = jax.value_and_grad(loss, has_aux=True)(factors, tokens)
        updates, state = adamw.update(gradients, state, factors)
        return optax.apply_updates(factors, updates), state, value, logits, gradients

    return step


@pytest.mark.parametrize("case", ["nf4", "fp4, single", "int8"])
def test_five_steps_over_packed_weights_equal_peft(case):
    folder = folders.folder(case)
    labels, model = ours(folder)
    structure, start, frozen = partition.split(model, labels)
    trained = {path: group for path, group in labels.items() if group != partition.FROZEN}
    assert set(trained) == set(start)
    adamw = optimizer.adamw(trained, RATE, weight_decay=DECAY)
    step, state, factors = make_run(structure, frozen, adamw), adamw.init(start), start
    reference, named = theirs(folder, start)
    packed = {n: b.clone() for n, b in reference.named_parameters() if n not in named}
    torch_adamw = torch.optim.AdamW(named.values(), lr=RATE, weight_decay=DECAY)
    losses, worst = [], 0.0
    for number, tokens in enumerate(BATCHES):
        result = reference(torch.tensor(tokens), labels=torch.tensor(tokens))
        torch_adamw.zero_grad()
        result.loss.backward()
        factors, state, value, logits, gradients = step(factors, state, jnp.asarray(tokens))
        losses.append((float(value), result.loss.item()))
        if number == 0:
            expected = result.logits[:, :-1].reshape(-1, VOCAB)
            assert difference(logits, expected) < LOGITS_TOLERANCE
            worst = max(distance(ours_for(n, gradients), p.grad.numpy()) for n, p in named.items())
        torch_adamw.step()
    reached = [
        distance(ours_for(n, factors), p.detach().numpy(), ours_for(n, start))
        for n, p in named.items()
    ]
    our_losses, their_losses = np.array(losses).T
    deviation = np.abs(our_losses / their_losses - 1).max()
    print(f"\n{case}: losses {deviation:.1e}, gradients {worst:.1e}, factors {max(reached):.1e}")
    # The weights are the same bits, so only the order of float32 sums differs.
    assert worst < GRADIENT_TOLERANCE
    np.testing.assert_allclose(our_losses, their_losses, rtol=1e-5)
    # Adam divides by the root of the second moment, so gradients near zero make their rounding count.
    assert max(reached) < 2e-4
    for n, before in packed.items():
        assert torch.equal(before, dict(reference.named_parameters())[n])
