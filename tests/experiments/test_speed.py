"""The FLOPs and the MFU that a run record shows."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import pytest

from experiments.runs.record import speed, training_record


def run(**values):
    progress = {
        "examples": 100, "tokens": 4000, "slots": 5000, "seconds": 30.0, "compile_seconds": 10.0,
        "flops": 10**16, "step": 7, "best": {"loss": 1.0}, "last": {"loss": 1.0},
    }  # fmt: skip
    return {**progress, **values}


def test_mfu_on_a_chip_whose_peak_is_known(monkeypatch):
    """Two runs of 1e16 FLOPs in 20 s each (compilation does not count) on 4 chips of 459 TFLOP/s."""
    chip = SimpleNamespace(device_kind="TPU v5", memory_stats=lambda: None)
    monkeypatch.setattr(jax, "devices", lambda: [chip] * 4)
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    record = training_record([run(), run()], "accuracy")
    assert record["flops"] == 2 * 10**16
    assert record["flops_per_second_and_device"] == pytest.approx(2e16 / 40 / 4)
    assert record["mfu"] == pytest.approx(2e16 / 40 / 4 / 459e12)
    text = speed(record)
    assert "125,000 GFLOP/s per device, MFU 27.2%" in text and "80% real tokens" in text


def test_no_mfu_on_a_cpu_and_none_without_a_step():
    record = training_record([run()], "accuracy")
    assert record["mfu"] is None and "MFU" not in speed(record)
    record = training_record([run(compile_seconds=30.0)], "accuracy")  # all of it was compilation
    assert record["flops_per_second_and_device"] is None and record["mfu"] is None
    assert "FLOP" not in speed(record)


def test_the_first_step_of_every_shape_is_no_step_that_was_timed():
    """Its time is compilation's: of 10 steps in two shapes 8 were done in the other 20 seconds."""
    record = training_record([run(step=10, shapes=[(8, 64), (4, 128)])], "accuracy")
    assert record["flops"] == 10**16
    per_device = 0.8e16 / 20 / jax.device_count()
    assert record["flops_per_second_and_device"] == pytest.approx(per_device)
    record = training_record([run(step=1, shapes=[(8, 64)])], "accuracy")
    assert record["flops_per_second_and_device"] is None and "FLOP" not in speed(record)


def test_examples_and_tokens_a_second_leave_compilation_out():
    """Of 10 steps with 100 examples in two shapes 8 were done in the 20 seconds that did not compile."""
    record = training_record([run(step=10, shapes=[(8, 64), (4, 128)])], "accuracy")
    assert record["examples_per_second"] == pytest.approx(80 / 20)
    assert record["tokens_per_second"] == pytest.approx(3200 / 20)
    assert record["compile_seconds"] == 10.0
    assert speed(record).startswith(
        "30 s of training (10 s of it the first steps, which compile), 4.0 "
    )
    only = training_record([run(step=1, shapes=[(8, 64)])], "accuracy")
    assert only["examples_per_second"] == pytest.approx(100 / 30)
    del record["compile_seconds"]  # as of earlier versions
    assert speed(record).startswith("30 s of training, ")


def test_waiting_for_batches_is_said_where_it_is_a_share_of_the_time():
    record = training_record(
        [run(waiting_seconds=6.0), run()], "accuracy"
    )  # an old record lacks it
    assert record["waiting_seconds"] == 6.0
    assert "10% of the time spent waiting for batches" in speed(record)
    assert "waiting" not in speed(training_record([run(waiting_seconds=0.3)], "accuracy"))
