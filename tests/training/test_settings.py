"""Settings of training: what is refused, and what of them reaches optimizer and loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.training import AdamSettings, TrainSettings
from lora_jax.training.optimizer import adamw, linear_schedule


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"epochs": -1}, "epochs must be an? integer from 0 on, got -1"),
        ({"epochs": 1.5}, "epochs must be"),
        ({"accumulate": 0}, "accumulate must be a positive integer"),
        ({"log_every": 0}, "log_every must be a positive integer"),
        ({"checkpoint_every": True}, "checkpoint_every must be a positive integer"),
        ({"warmup_steps": -1}, "warmup_steps must be"),
        ({"learning_rate": -1e-3}, "learning_rate must be a finite number from 0 on"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number"),
        ({"weight_decay": "0.1"}, "weight_decay must be a finite number"),
        ({"max_grad_norm": float("inf")}, "max_grad_norm must be a finite number"),
        ({"base_dtype": "bfloat15"}, "base_dtype must be 'keep', 'auto' or a floating-point type"),
        ({"base_dtype": "int8"}, "base_dtype must be"),
        ({"base_dtype": None}, "base_dtype must be a text"),
        ({"epochs": 10**20}, "epochs must be"),
        ({"learning_rate": 1e300}, "learning_rate must be a finite number"),  # infinite in float32
        ({"learning_rate": 10**400}, "learning_rate must be a finite number"),
        ({"learning_rate": True}, "learning_rate must be a finite number"),
        ({"warmup_ratio": 1.1}, r"warmup_ratio must be a number in \[0, 1\]"),
        ({"warmup_ratio": -0.1}, "warmup_ratio must be"),
        (
            {"prng": "mersenne"},
            "prng must be 'threefry2x32', 'rbg' or 'unsafe_rbg', got 'mersenne'",
        ),
        ({"init_adapter": 3}, "init_adapter must be a text"),
        ({"learning_rate": 1e-60}, "learning_rate .*got 1e-60, which is 0 in float32"),
        ({"max_grad_norm": 1e-60}, "max_grad_norm .*which is 0 in float32"),
        (
            {"adam": {"eps": 1}},
            r"adam must be of type AdamSettings .*got \{'eps': 1\} of type dict",
        ),
        ({"adam": None}, "adam must be of type AdamSettings"),
    ],
)
def test_settings_out_of_range_are_named(values, says):
    with pytest.raises(ValueError, match=says):
        TrainSettings(**values)


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"b1": 1.0}, r"adam.b1 must be a number in \[0, 1\), got 1.0"),
        ({"b2": -0.1}, "adam.b2 must be"),
        ({"eps": -1.0}, "adam.eps must be"),
        ({"eps": 0.0}, "adam.eps must be a positive finite number"),
        ({"eps": 1e-60}, "adam.eps .*got 1e-60, which is 0 in float32"),
        ({"b1": 0.99999999999}, "adam.b1 .*which is 1 in float32"),
        ({"b2": 0.99999999999}, "adam.b2 .*which is 1 in float32"),
        ({"no_decay": "("}, "adam.no_decay"),
        ({"epsilon": "early"}, "epsilon must be 'after' or 'before', got 'early'"),
    ],
)
def test_constants_of_adam_out_of_range_are_named(values, says):
    with pytest.raises(ValueError, match=says):
        AdamSettings(**values)


@pytest.mark.wrong_types
def test_numbers_of_numpy_become_pythons():
    settings = TrainSettings(
        epochs=np.int64(2), accumulate=np.uint8(3), learning_rate=np.float32(0.5),
        adam=AdamSettings(b1=np.float64(0.5)),
    )  # fmt: skip
    assert settings == TrainSettings(
        epochs=2, accumulate=3, learning_rate=0.5, adam=AdamSettings(b1=0.5)
    )
    assert [type(getattr(settings, name)) for name in ("epochs", "accumulate")] == [int, int]
    assert type(settings.learning_rate) is type(settings.adam.b1) is float


def test_settings_are_frozen_and_given_by_name():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainSettings().epochs = 4
    with pytest.raises(TypeError):
        TrainSettings(3)


def test_the_type_of_the_base():
    assert TrainSettings().dtype is None
    assert TrainSettings(base_dtype="auto").dtype == "float32"  # on a CPU
    assert TrainSettings(base_dtype="bfloat16").dtype == "bfloat16"


def test_the_optimizer_is_that_of_the_settings():
    settings = TrainSettings(
        epochs=4, learning_rate=0.5, warmup_steps=2, warmup_ratio=0.0, weight_decay=0.1,
        max_grad_norm=0.0, accumulate=2, adam=AdamSettings(b2=0.9, epsilon="before", no_decay=""),
    )  # fmt: skip
    assert settings.updates(per_epoch=5) == 12  # two whole ones and what is left, in every epoch
    labels = {"bias": "lora", "kernel": "lora"}
    schedule, tx = settings.optimizer(labels, 5)
    expected = adamw(
        labels, linear_schedule(0.5, 12, warmup_steps=2), weight_decay=0.1, accumulate=2, b2=0.9,
        per_epoch=5, epsilon="before", no_decay="",
    )  # fmt: skip
    assert float(schedule(2)) == 0.5
    params = {path: jnp.ones(3) for path in labels}
    states = [t.init(params) for t in (tx, expected)]
    for i in range(6):
        gradients = jax.tree.map(lambda p, i=i: (i + 1) * p, params)
        (one, states[0]), (two, states[1]) = (
            t.update(gradients, state, params)
            for t, state in zip((tx, expected), states, strict=True)
        )
        jax.tree.map(np.testing.assert_array_equal, one, two)
    other, _ = settings.optimizer(labels, 5, learning_rate=0.25)
    assert float(other(2)) == 0.25


def test_the_loop_takes_over_its_part():
    settings = TrainSettings(epochs=2, accumulate=3, log_every=4, checkpoint_every=5)
    loop = settings.loop(lambda update: 0.1 * update, 4, headline="f1", label="run")
    assert (loop.epochs, loop.accumulate, loop.log_every, loop.checkpoint_every) == (2, 3, 4, 5)
    # Of the four batches of an epoch the last one makes an update of its own.
    rates = [loop.learning_rate(step) for step in range(1, 9)]
    assert rates == pytest.approx([0.0, 0.0, 0.0, 0.1, 0.2, 0.2, 0.2, 0.3])


def test_an_update_of_more_batches_than_an_epoch_has_is_refused():
    with pytest.raises(ValueError, match="accumulate is 6, but an epoch has 5 batches only"):
        TrainSettings(accumulate=6).optimizer({"a": "lora"}, 5)


def test_adam_at_the_ends_of_its_ranges_is_finite():
    largest = 1 - 2**-24  # below 1 in float32
    for b1, b2, eps in ((largest, largest, 2**-126), (0.0, 0.0, 2**-126), (largest, 0.0, 1e38)):
        adam = AdamSettings(b1=b1, b2=b2, eps=eps)
        for epsilon in ("after", "before"):
            tx = adamw({"a": "lora"}, 1e-3, b1=adam.b1, b2=adam.b2, eps=adam.eps, epsilon=epsilon)
            params = {"a": jnp.zeros(3)}
            state = tx.init(params)
            for _ in range(3):
                updates, state = tx.update({"a": jnp.array([0.0, 1.0, -1e-3])}, state, params)
                assert np.all(np.isfinite(updates["a"])), (b1, b2, eps, epsilon)
