"""Checks of the schedule against transformers and of AdamW against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from lora_jax.partition import FROZEN
from lora_jax.training.optimizer import adamw, linear_schedule

optimization = pytest.importorskip("transformers.optimization")
trainer_utils = pytest.importorskip("transformers")

torch.set_num_threads(1)


@pytest.mark.parametrize(
    "steps, ratio",
    [(1, 0.0), (1, 0.06), (10, 0.0), (10, 0.06), (37, 0.06), (50, 0.1), (100, 0.06), (100, 0.07),
     (20, 0.5), (20, 1.0)],
)  # fmt: skip
def test_schedule_equals_transformers(steps, ratio):
    peak = 4e-4
    arguments = trainer_utils.TrainingArguments(output_dir="unused", use_cpu=True)
    if hasattr(arguments, "warmup_ratio"):
        arguments.warmup_ratio = ratio
        warmup = arguments.get_warmup_steps(steps)
    else:
        warmup = int(np.ceil(steps * ratio))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    theirs = optimization.get_linear_schedule_with_warmup(optimizer, warmup, steps)
    ours = jax.jit(jax.vmap(linear_schedule(peak, steps, ratio)))(jnp.arange(steps))
    for step in range(steps):
        # float32 against float64: an error of a few units in the last place of the peak.
        assert float(ours[step]) == pytest.approx(theirs.get_last_lr()[0], abs=1e-6 * peak), step
        optimizer.step()
        theirs.step()


def test_schedule_ends_at_zero_and_stays_there():
    schedule = linear_schedule(1.0, 20, 0.1)
    assert float(schedule(0)) == 0 and float(schedule(2)) == 1
    assert float(schedule(20)) == 0 and float(schedule(30)) == 0


SHAPES = {
    "block/query/lora/a": (6, 2),
    "block/query/lora/b": (2, 6),
    "block/query/bias": (6,),
    "norm/scale": (6,),
    "norm/bias": (6,),
    "bias": (3,),
    "scale": (3,),
    "head/kernel": (6, 3),
    "head/rescale": (3,),  # only a whole last name is exempt
    "head/bias_kernel": (3, 3),
}
EXEMPT = {"block/query/bias", "norm/scale", "norm/bias", "bias", "scale"}
LABELS = dict.fromkeys(SHAPES, "lora") | {"head/kernel": "head"}


def values(seed, steps=None):
    rng = np.random.default_rng(seed)
    lead = () if steps is None else (steps,)
    return {p: rng.normal(size=(*lead, *s)).astype(np.float32) for p, s in SHAPES.items()}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "max_grad_norm": 1.0},
        {"weight_decay": 0.01, "max_grad_norm": 1.0, "accumulate": 2},
        {"weight_decay": 0.1, "b1": 0.8, "b2": 0.98, "eps": 1e-6},
    ],
    ids=str,
)
def test_adamw_equals_pytorch(settings):
    steps, accumulate = 20, settings.get("accumulate", 1)
    start, gradients = values(0), values(1, steps)
    schedule = linear_schedule(1e-2, steps // accumulate, 0.1)
    optimizer = adamw(LABELS, schedule, **settings)

    @jax.jit
    def run(params, gradients):
        def step(carry, gradient):
            params, state = carry
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (params, optimizer.init(params)), gradients)[1]

    ours = run(start, gradients)

    theirs = {p: torch.nn.Parameter(torch.tensor(v.astype(np.float64))) for p, v in start.items()}
    decay = settings.get("weight_decay", 0.0)
    reference = torch.optim.AdamW(
        [
            {"params": [v for p, v in theirs.items() if p not in EXEMPT], "weight_decay": decay},
            {"params": [theirs[p] for p in EXEMPT], "weight_decay": 0.0},
        ],
        lr=1e-2,
        betas=(settings.get("b1", 0.9), settings.get("b2", 0.999)),
        eps=settings.get("eps", 1e-8),
    )
    rates = optimization.get_linear_schedule_with_warmup(
        reference, int(np.ceil(0.1 * (steps // accumulate))), steps // accumulate
    )
    for step in range(steps):
        for path, parameter in theirs.items():
            gradient = torch.tensor(gradients[path][step].astype(np.float64)) / accumulate
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        if (step + 1) % accumulate == 0:
            if "max_grad_norm" in settings:
                torch.nn.utils.clip_grad_norm_(theirs.values(), settings["max_grad_norm"])
            reference.step()
            rates.step()
            reference.zero_grad()
        for path, parameter in theirs.items():
            # float32 against float64 over 20 updates of at most 1e-2.
            np.testing.assert_allclose(
                ours[path][step], parameter.detach().numpy(), rtol=1e-5, atol=2e-6,
                err_msg=f"{path} after step {step}",
            )  # fmt: skip


def test_biases_and_norms_are_exempt_from_decay():
    params = {path: jnp.ones(shape) for path, shape in SHAPES.items()}
    optimizer = adamw(LABELS, 0.1, weight_decay=0.5)
    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    for path, update in updates.items():
        expected = 0.0 if path in EXEMPT else -0.1 * 0.5
        np.testing.assert_allclose(update, expected, rtol=1e-6, err_msg=path)


@pytest.mark.parametrize("schedule", [0.1, linear_schedule(0.1, 10, 0.0)])
def test_constant_rate_and_schedule_are_both_taken(schedule):
    params = {"a": jnp.ones(2)}
    optimizer = adamw({"a": "lora"}, schedule)
    updates, _ = optimizer.update({"a": jnp.ones(2)}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"], -0.1, rtol=1e-5)  # Adam's first update is the rate


def test_frozen_leaves_get_no_update():
    labels = LABELS | {"head/kernel": FROZEN}
    params, gradients = values(0), values(1)
    optimizer = adamw(labels, 0.1, weight_decay=0.1, max_grad_norm=1.0)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    assert not np.any(updates["head/kernel"])
    assert all(np.any(update) for path, update in updates.items() if path != "head/kernel")
