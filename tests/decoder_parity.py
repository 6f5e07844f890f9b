"""A decoder against one of PyTorch `transformers`: a packed batch, gradients, and decoding with a cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from deviations import deviation

from lora_jax import methods, partition
from lora_jax.data.batch import Inputs

torch.set_num_threads(1)

# Relative to the largest value of a tensor, in float32; only the order of summation differs. Reached
# on a CPU: logits 1.4e-6 (with a cache too), gradients 4e-6.
LOGITS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 2e-5
VOCAB, POSITIONS = 37, 24


def batch():
    """Rows with several examples and padding; the examples; some tokens of each, and targets."""
    rng = np.random.default_rng(0)
    inputs = Inputs(*np.zeros((4, 4, POSITIONS + 1), np.int32))
    inputs.tokens[...] = 9  # padding must not be read
    examples, chosen, at = [], [], []
    for row, lengths in enumerate([(5, 1, 9), (POSITIONS,), (2,), (7, 12)]):
        for number, n in enumerate(lengths, 1):
            start = sum(lengths[: number - 1])
            span = slice(start, start + n)
            examples.append(rng.integers(0, VOCAB, n))
            chosen.append(np.sort(rng.choice(n, (n + 1) // 2, replace=False)))
            at += [(row, start + i) for i in chosen[-1]]
            inputs.tokens[row, span], inputs.segments[row, span] = examples[-1], number
            inputs.positions[row, span] = np.arange(n)
    return inputs, np.array(at).T, examples, chosen, rng.integers(0, VOCAB, len(at))


INPUTS, AT, EXAMPLES, CHOSEN, TARGETS = batch()
run = jax.jit(lambda model, key=None: model(INPUTS, *AT, key=key))


def torch_logits(theirs):
    """Of the chosen tokens, one example at a time."""
    logits = [theirs(torch.tensor(example[None])).logits[0] for example in EXAMPLES]
    return torch.cat([rows[c] for rows, c in zip(logits, CHOSEN, strict=True)])


def difference(ours, theirs):
    return deviation({"": ours}, {"": theirs.detach().numpy()})


def parameters(model):
    return {path: np.asarray(value) for path, value in partition.parameters(model).items()}


def logits_and_gradients(model, key=None):
    structure, params, rest = partition.split(model, methods.full().labels(model))

    def loss(p):
        logits = partition.join(structure, p, rest)(INPUTS, *AT, key=key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, TARGETS).mean(), logits

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    return np.asarray(logits), {k: np.asarray(v) for k, v in gradients.items()}


def decode(ours, theirs, lengths, beams, steps, padding):
    """Largest deviation of `prefill` and `step` under random reorderings from full forward passes."""
    rng, n = np.random.default_rng(0), len(lengths)
    prompts = rng.integers(0, VOCAB, (n, max(lengths) + padding))
    texts = [[prompts[i, :k].tolist()] * beams for i, k in enumerate(lengths)]

    def compare(logits):
        with torch.no_grad():
            expected = [theirs(torch.tensor(beams)).logits[:, -1] for beams in texts]
        return difference(logits, torch.stack(expected))

    start = jax.jit(lambda m, *args: m.prefill(*args, beams, steps))
    step = jax.jit(lambda m, tokens, cache: m.decode_step(tokens, cache))
    logits, cache = start(ours, prompts, np.array(lengths))
    worst = compare(np.repeat(logits[:, None], beams, axis=1))
    for _ in range(steps):
        # As in a beam search: parents with repetition, so some pasts die and others double.
        parents, new = rng.integers(0, beams, (n, beams)), rng.integers(0, VOCAB, (n, beams))
        texts = [
            [[*continuations[parents[i, j]], int(new[i, j])] for j in range(beams)]
            for i, continuations in enumerate(texts)
        ]
        paths = jnp.take_along_axis(cache.paths, jnp.asarray(parents)[..., None], axis=1)
        logits, cache = step(ours, new, cache._replace(paths=paths))
        worst = max(worst, compare(logits))
    print(f"\ndeviation with a cache {worst:.1e}")
    return worst
