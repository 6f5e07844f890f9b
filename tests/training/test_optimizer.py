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
    [(1, 0.0), (2, 0.06), (10, 0.0), (10, 0.06), (37, 0.06), (50, 0.1), (100, 0.06), (100, 0.07),
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


# the public GPT-2 code's AdamW, and what PyTorch's is


def public_adamw(start, gradients, rates, weight_decay, eps, b1=0.9, b2=0.999, of_old=False):
    """Float64, literally as in the public GPT-2 code: decay takes the parameter after its update.

    `of_old`: before it, as we and PyTorch do.
    """
    params = {path: value.astype(np.float64) for path, value in start.items()}
    m, v = ({path: np.zeros(value.shape) for path, value in start.items()} for _ in range(2))
    for t, rate in enumerate(rates, start=1):
        for path, p in params.items():
            g = gradients[path][t - 1].astype(np.float64)
            m[path] = b1 * m[path] + (1 - b1) * g
            v[path] = b2 * v[path] + (1 - b2) * g**2
            size = rate * np.sqrt(1 - b2**t) / (1 - b1**t)
            new = p - size * m[path] / (np.sqrt(v[path]) + eps)
            params[path] = new - rate * weight_decay * (p if of_old else new)
    return params


def ours_after(start, gradients, schedule, **settings):
    optimizer = adamw(LABELS, schedule, **settings)

    @jax.jit
    def run(params, gradients):
        def step(carry, gradient):
            updates, state = optimizer.update(gradient, carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), gradients)[0][0]

    return {path: np.asarray(value) for path, value in run(start, gradients).items()}


def largest_gap(one, two):
    return max(float(np.abs(one[path] - two[path]).max()) for path in SHAPES)


# Gradients as small as LoRA's on GPT-2, so that epsilon weighs as much as the second moment.
@pytest.mark.parametrize("scale", [1.0, 1e-5])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_early_epsilon_equals_the_public_code(scale, decay):
    steps, peak, eps = 20, 1e-2, 1e-6
    start = values(0)
    gradients = {path: np.float32(scale) * value for path, value in values(1, steps).items()}
    schedule = linear_schedule(peak, steps, warmup_steps=5)
    rates = [float(schedule(step)) for step in range(steps)]
    settings = {"weight_decay": decay, "no_decay": "", "eps": eps}
    found = ours_after(start, gradients, schedule, epsilon="before", **settings)
    about = start, gradients, rates, decay, eps
    expected = public_adamw(*about)
    gap = largest_gap(found, expected)
    late = largest_gap(ours_after(start, gradients, schedule, **settings), expected)
    print(f"\ngradients of {scale}, decay {decay}: {gap:.1e}, with the late epsilon {late:.1e}")
    # float32 against float64 over 20 updates of at most 1e-2: reached 1e-6.
    assert largest_gap(found, public_adamw(*about, of_old=True)) < 3e-6
    # The public code decays the new parameter: lr^2 * decay * (an update of about 1) a step.
    order = decay * sum(rate**2 for rate in rates)
    assert gap < 3e-6 + 2 * order
    if scale < 1:
        assert late > 10 * (3e-6 + 2 * order)  # the place of epsilon does matter here
    if decay:
        assert largest_gap(found, public_adamw(start, gradients, rates, 0.0, eps)) > 5e-3


@pytest.mark.parametrize("scale", [1.0, 1e-5])
def test_late_epsilon_equals_pytorch_and_biases_decay_too(scale):
    steps, eps, decay = 20, 1e-6, 0.1
    start = values(0)
    gradients = {path: np.float32(scale) * value for path, value in values(1, steps).items()}
    found = ours_after(
        start, gradients, 1e-2, weight_decay=decay, no_decay="", eps=eps, epsilon="after"
    )
    theirs = {p: torch.nn.Parameter(torch.tensor(v.astype(np.float64))) for p, v in start.items()}
    reference = torch.optim.AdamW(theirs.values(), lr=1e-2, eps=eps, weight_decay=decay)
    for step in range(steps):
        for path, parameter in theirs.items():
            parameter.grad = torch.tensor(gradients[path][step].astype(np.float64))
        reference.step()
    gap = largest_gap(found, {path: p.detach().numpy() for path, p in theirs.items()})
    print(f"\nAdamW against PyTorch, gradients of {scale}: {gap:.1e}")
    assert gap < 3e-6  # float32 against float64 over 20 updates of 1e-2


def test_no_exemption_decays_every_leaf():
    params = {path: jnp.ones(shape) for path, shape in SHAPES.items()}
    optimizer = adamw(LABELS, 0.1, weight_decay=0.5, no_decay="")
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    for path, update in updates.items():
        np.testing.assert_allclose(update, -0.1 * 0.5, rtol=1e-6, err_msg=path)


@pytest.mark.wrong_types
@pytest.mark.parametrize("name", ["", "Before", "early", None])
def test_unknown_place_of_epsilon_is_refused(name):
    with pytest.raises(ValueError, match="epsilon must be 'after' or 'before', got"):
        adamw(LABELS, 0.1, epsilon=name)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (2, 2), (10, 3), (10, 10), (60, 50)])
def test_warm_up_steps_equal_transformers(steps, warmup):
    peak = 2e-4
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    theirs = optimization.get_linear_schedule_with_warmup(optimizer, warmup, steps)
    schedule = linear_schedule(peak, steps, warmup_steps=warmup)
    ours = jax.jit(jax.vmap(schedule))(jnp.arange(steps))
    for step in range(steps):
        assert float(ours[step]) == pytest.approx(theirs.get_last_lr()[0], abs=1e-6 * peak), step
        optimizer.step()
        theirs.step()
    assert float(schedule(0)) == (0 if warmup else pytest.approx(peak))
    if warmup < steps:
        assert float(schedule(warmup)) == pytest.approx(peak) and float(schedule(steps)) == 0


def test_a_warm_up_ratio_goes_before_a_number_of_steps():
    both = linear_schedule(1.0, 20, 0.1, warmup_steps=10)
    assert float(both(2)) == 1.0


@pytest.mark.parametrize("warmup", [{"warmup_steps": 11}, {"warmup_ratio": 1.1}])
def test_a_warm_up_longer_than_the_run_is_refused(warmup):
    with pytest.raises(ValueError, match=r"warm-up of 11 updates is longer than the run of 10"):
        linear_schedule(1.0, 10, **warmup)


def test_every_run_with_a_small_share_of_warm_up_has_an_update_at_the_peak():
    """One of a single update, too, which transformers trains at rate 0."""
    for steps in (1, 2, 3, 33, 34):
        rates = [float(linear_schedule(1.0, steps, 0.03)(step)) for step in range(steps)]
        assert max(rates) == 1.0 and sum(rate == 0 for rate in rates) <= 1


def test_a_run_whose_only_update_would_be_warm_up_is_refused():
    with pytest.raises(ValueError, match="the warm-up of 1 updates"):
        linear_schedule(1.0, 1, warmup_steps=1)
    assert float(linear_schedule(1.0, 2, warmup_steps=2)(1)) == 0.5
