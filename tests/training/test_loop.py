"""The loop with a step of plain arithmetic: resume, best epoch, divergence, the log."""

import json
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.data.batch import Batch, Inputs
from lora_jax.data.counts import count_packed
from lora_jax.files import to_json
from lora_jax.training import clock, loop
from lora_jax.training.progress import LoopSettings, Progress
from lora_jax.training.records import MetricsLog


class Batches:
    """The labels of batch `number` of an epoch are a function of the two numbers."""

    per_epoch = 4

    def epoch(self, epoch, start=0):
        segments = np.array([[1] * 3, [2] * 3])
        inputs = Inputs(np.zeros((2, 3), int), segments, segments, segments)
        for number in range(start, self.per_epoch):
            value = np.float32(10 * epoch + number)
            yield Batch(inputs, np.zeros(2), np.zeros(2), value, np.ones(2))

    def count(self, batch):
        return count_packed(batch)


def step(trainable, state, frozen, batch, key):
    noise = jax.random.uniform(key)
    total = trainable["w"] + batch.labels * noise
    return {"w": total}, state + 1, {}, {"loss": total}


def run(folder, epochs, train_step=step, scores=None, flops=lambda _: 0, **settings):
    settings = LoopSettings(
        epochs=epochs, per_epoch=4, headline="accuracy", schedule=lambda _: 0.1,
        **{"log_every": 1, "checkpoint_every": 3, **settings},
    )  # fmt: skip
    scores = iter(scores or np.linspace(0.1, 0.9, epochs))
    saved = []
    trained, progress = loop.fit(
        settings, train_step, Batches(), evaluate=lambda _: {"accuracy": float(next(scores))},
        trainable={"w": jnp.zeros(())}, state=jnp.zeros((), jnp.int32), frozen={},
        key=jax.random.key(0), folder=folder, flops=flops,
        on_best=lambda trainable, p: saved.append((p.best, float(trainable["w"]))),
    )  # fmt: skip
    return trained, progress, saved


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [1, 3, 4, 5, 7, 11])
def test_resumed_run_equals_the_whole_one(tmp_path, after):
    whole, progress, _ = run(tmp_path / "whole", 3)
    calls = 0

    def dying(*arguments):
        nonlocal calls
        calls += 1
        if calls > after:
            raise Killed
        return step(*arguments)

    with pytest.raises(Killed):
        run(tmp_path / "cut", 3, dying)
    done = (after // 4) + 0  # epochs whose score was taken before the cut
    resumed, again, _ = run(tmp_path / "cut", 3, scores=list(np.linspace(0.1, 0.9, 3))[done:])
    assert resumed["w"] == whole["w"]
    assert (again.step, again.history, again.best) == (12, progress.history, progress.best)
    assert (again.examples, again.tokens, again.slots) == (24, 72, 72)
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "cut")]
    assert logs[0] == logs[1]


def test_flops_are_counted_once_per_shape_and_summed_over_restarts(tmp_path):
    asked = []

    def flops(batch):
        asked.append(batch.inputs.tokens.shape)
        return 7

    _, progress, _ = run(tmp_path, 2, flops=flops)
    assert progress.flops == 8 * 7 and asked == [(2, 3)]
    _, progress, _ = run(tmp_path, 3, scores=[0.5], flops=flops)
    assert progress.flops == 12 * 7 and asked == [(2, 3)] * 2


def test_batches_go_through_place(tmp_path):
    """The step gets what `place` made of a batch; counts are of the batch itself."""
    settings = LoopSettings(epochs=1, per_epoch=4, headline="accuracy", schedule=lambda _: 0.1)
    seen = []

    def watching(trainable, state, frozen, batch, key):
        seen.append(batch)
        return step(trainable, state, frozen, SimpleNamespace(labels=batch), key)

    _, progress = loop.fit(
        settings, watching, Batches(), evaluate=lambda _: {"accuracy": 0.5},
        trainable={"w": jnp.zeros(())}, state=jnp.zeros((), jnp.int32), frozen={},
        key=jax.random.key(0), folder=tmp_path, on_best=lambda *_: None,
        place=lambda batch: batch.labels + 100,
    )  # fmt: skip
    assert seen == [100, 101, 102, 103] and progress.tokens == 24


def test_best_epoch_is_the_first_of_equals_and_is_saved_once(tmp_path):
    trained, progress, saved = run(tmp_path, 4, scores=[0.2, 0.7, 0.7, 0.5])
    assert progress.best == 2 and [best for best, _ in saved] == [1, 2]
    assert saved[1][1] != float(trained["w"])
    # A finished run restores and does nothing more.
    _, again, saved = run(tmp_path, 4, scores=[0.0])
    assert again.step == 16 and saved == []


def test_smallest_score_is_the_best_where_smaller_is_better(tmp_path):
    scores = [0.7, 0.2, 0.5, 0.2]
    _, progress, saved = run(tmp_path / "small", 4, scores=scores, smaller_is_better=True)
    assert progress.best == 2 and [best for best, _ in saved] == [1, 2]
    # The choice survives a restart between the epochs.
    run(tmp_path / "cut", 2, scores=scores[:2], smaller_is_better=True)
    _, progress, saved = run(tmp_path / "cut", 4, scores=scores[2:], smaller_is_better=True)
    assert progress.best == 2 and saved == []
    assert [metrics["accuracy"] for metrics in progress.history] == scores
    _, progress, _ = run(tmp_path / "large", 4, scores=scores)
    assert progress.best == 1


def test_a_run_that_diverges_stops_and_says_so(tmp_path):
    def exploding(trainable, state, frozen, batch, key):
        trainable, state, moved, metrics = step(trainable, state, frozen, batch, key)
        bad = jnp.where(state >= 6, jnp.nan, metrics["loss"])
        return trainable, state, moved, {"loss": bad}

    _, progress, saved = run(tmp_path, 3, exploding)
    assert progress.diverged == 6
    assert len(progress.history) == 1 and [best for best, _ in saved] == [
        1
    ]  # the first epoch was good
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert next(line for line in lines if line["step"] == 6)["loss"] is None  # no NaN in JSON
    assert progress.record()["last"] is None and progress.record()["best"] == {"accuracy": 0.1}
    # The newest checkpoint is from before: resumed, the run ends at the same step.
    _, again, saved = run(tmp_path, 3, exploding)
    assert again.diverged == 6 and saved == []
    assert [
        json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ] == [line["step"] for line in lines]


@pytest.mark.parametrize("log_every", [1, 4, 5, 100])
@pytest.mark.parametrize("bad_step", [1, 2, 3, 4, 5, 8, 12])
def test_divergence_is_seen_at_its_step_whatever_is_logged(tmp_path, log_every, bad_step):
    """The loss may even be finite again afterwards; nothing of the bad step is evaluated or saved."""

    def once(trainable, state, frozen, batch, key):
        trainable, state, moved, metrics = step(trainable, state, frozen, batch, key)
        return trainable, state, moved, {**metrics, "finite": state != bad_step}

    _, progress, saved = run(tmp_path, 3, once, log_every=log_every)
    assert progress.diverged == progress.step == bad_step and progress.examples == 2 * bad_step
    assert len(progress.history) == len(saved) == (bad_step - 1) // 4
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert bad_step in steps and steps == sorted(steps)
    kept = sorted(
        int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()
    )
    assert all(number < bad_step for number in kept)


@pytest.mark.parametrize("smaller_is_better", [False, True])
def test_a_score_that_is_no_number_is_worse_than_any_other(tmp_path, smaller_is_better):
    nan = float("nan")
    scores = [nan, nan, 0.3, nan]
    _, progress, saved = run(tmp_path, 4, scores=scores, smaller_is_better=smaller_is_better)
    assert progress.best == 3 and [best for best, _ in saved] == [1, 3]


def test_a_headline_that_is_no_metric_is_named(tmp_path):
    settings = LoopSettings(epochs=1, per_epoch=4, headline="f1", schedule=lambda _: 0.1)
    with pytest.raises(ValueError, match=r"headline 'f1' is not among the metrics \['accuracy'\]"):
        settings.note(Progress(), {"accuracy": 0.5})


def test_a_record_gives_the_progress_back(tmp_path):
    _, progress, _ = run(tmp_path, 3, scores=[0.2, 0.7, 0.5])
    record = json.loads(to_json(progress.record()))
    assert record["best"] == {"accuracy": 0.7} and record["best_epoch"] == 2
    assert record["last"] == {"accuracy": 0.5}
    assert Progress.from_record(record) == progress


def test_log_drops_what_a_killed_run_left_after_its_checkpoint(tmp_path):
    log = MetricsLog(tmp_path)
    for number in range(1, 6):
        log.write(number, {"loss": number / 2})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    log = MetricsLog(tmp_path, resume_step=3)
    log.write(4, {"loss": 9.0})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [
        (1, 0.5),
        (2, 1.0),
        (3, 1.5),
        (4, 9.0),
    ]


def test_json_of_what_json_lacks():
    assert json.loads(to_json({"a": float("nan"), "b": (1, float("inf")), 3: True})) == {
        "a": None, "b": [1, None], "3": True,
    }  # fmt: skip


def test_an_error_of_the_batches_comes_after_the_steps_before_it(tmp_path, monkeypatch):
    """The batches are drawn ahead; the run is as one that draws each just before its step."""
    whole, _, _ = run(tmp_path / "whole", 3)
    plain = Batches.epoch

    def broken(self, epoch, start=0):
        for number, batch in enumerate(plain(self, epoch, start), start):
            if (epoch, number) == (1, 3):
                raise OSError("the disk is gone")
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "epoch", broken)
        with pytest.raises(OSError, match="the disk is gone"):
            run(tmp_path / "cut", 3)
    assert not [thread for thread in threading.enumerate() if "batches" in thread.name]
    lines = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 4, 5, 6, 7]
    resumed, progress, _ = run(tmp_path / "cut", 3, scores=[0.4, 0.9])
    assert resumed["w"] == whole["w"] and progress.examples == 24


def test_the_clock_counts_the_time_until_each_batch_is_there(monkeypatch):
    now = 0.0
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now)

    def stream():
        nonlocal now
        for seconds in (3, 0, 4):
            now += seconds
            yield seconds

    progress = Progress()
    for _ in clock.Clock(progress, count_packed, lambda _: 0).waiting(stream()):
        now += 100  # the step
    assert progress.waiting_seconds == 7
