"""The loop of several runs with a step of plain arithmetic: each member is `loop.fit` alone."""

import dataclasses
import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.data.batch import Batch, Inputs
from lora_jax.data.counts import count_packed
from lora_jax.sweeps import loop as runs_loop
from lora_jax.sweeps import members
from lora_jax.sweeps.loop import Arrays
from lora_jax.sweeps.members import Member
from lora_jax.sweeps.runs import RunValues
from lora_jax.training import clock as running
from lora_jax.training import loop, records
from lora_jax.training.checkpoints import Checkpoints
from lora_jax.training.progress import LoopSettings

EPOCHS, PER_EPOCH = 3, 4
RATES = (0.5, 0.25, 1.0)
NEVER = 1000
KEYS, FROZEN = jax.random.split(jax.random.key(0), 3), {"base": jnp.ones(())}
DEATHS = {  # the step whose loss is the first that is not finite, by member
    "none": (NEVER, NEVER, NEVER),
    "in an epoch": (NEVER, 6, NEVER),
    "at an epoch's end": (8, NEVER, NEVER),
    "at the end": (NEVER, NEVER, 12),
    "two at once": (6, NEVER, 6),
    "one after another": (2, 7, NEVER),
    "all": (3, 6, 5),
    "all at once": (5, 5, 5),
}


class Batches:
    """As those of one run in tests/training/test_loop.py, or with an axis of runs."""

    per_epoch = PER_EPOCH

    def __init__(self, runs=0):
        self._lead = (runs,) * (runs > 0)

    def epoch(self, epoch, start=0):
        for number in range(start, self.per_epoch):
            rows = (*self._lead, 2, 3)
            segments = np.broadcast_to(np.array([[1] * 3, [2, 2, 0]]), rows)
            inputs = Inputs(np.zeros(rows, int), segments, segments, segments)
            value = np.float32(10 * epoch + number)
            slots = np.ones((*self._lead, 2))
            yield Batch(inputs, slots, slots, value, slots)

    def count(self, batch):
        return count_packed(batch)


class InMemory(Checkpoints):
    """Checkpoints in memory: Orbax takes most of a second for a run as short as these."""

    kept = {}  # noqa: RUF012

    def __init__(self, folder, inputs=None):
        self._own = self.kept.setdefault(str(folder), {})

    def save(self, step, state, record):
        copy = jax.tree.map(np.array, state)
        self._own.setdefault(step, (copy, json.loads(json.dumps(record))))

    def record(self):
        found = self.restore(None)
        return found and found[1]

    def restore(self, like):
        return self._own[max(self._own)] if self._own else None

    def close(self):
        pass


@pytest.fixture(autouse=True)
def in_memory(monkeypatch):
    for module in (loop, members):
        monkeypatch.setattr(module, "Checkpoints", InMemory)
    monkeypatch.setattr(InMemory, "kept", {})
    board = types.SimpleNamespace(add_scalar=lambda *_: None, close=lambda: None)
    monkeypatch.setattr(records, "EventFile", lambda *_, **__: board)
    return monkeypatch


@functools.cache
def noise():
    """Of every step and run."""
    keys = jnp.stack([jax.random.key(i) for i in range(len(RATES))])
    of_runs = jax.vmap(jax.random.fold_in, (None, 0))
    folded = jax.vmap(of_runs, (0, None))(keys, jnp.arange(EPOCHS * PER_EPOCH))
    return np.asarray(jax.vmap(jax.vmap(jax.random.uniform))(folded))


def moved(w, state, value, rate, death, drawn):
    """The step of one run, or of several: (parameters, state, metrics)."""
    w = (w + rate * value * drawn).astype(np.float32)
    loss = np.where(state + 1 >= death, np.nan, w)
    return {"w": np.asarray(w)}, state + 1, {"loss": loss, "grad_norm": 2 * w}


def schedule(rate):
    return lambda update: rate / (1 + update)


def loop_settings(i, **changes):
    return LoopSettings(
        epochs=EPOCHS, per_epoch=PER_EPOCH, headline="accuracy", schedule=schedule(RATES[i]),
        label=f"run {i}", **{"log_every": 1, "checkpoint_every": 3, **changes},
    )  # fmt: skip


def metrics_of(w):
    """Scores that go up and down from epoch to epoch."""
    return {"accuracy": float(w % 1), "weight": float(w)}


def alone(folder, i, death=NEVER, **settings):
    """Run `i` through `loop.fit`: (progress, what was saved as best)."""

    def step(trainable, state, frozen, batch, key):
        drawn = np.asarray(jax.random.uniform(key))
        new, state, metrics = moved(
            trainable["w"], state, batch, np.float32(RATES[i]), death, drawn
        )
        return new, state, {}, metrics

    saved = []
    _, progress = loop.fit(
        loop_settings(i, **settings), step, Batches(),
        evaluate=lambda trainable: metrics_of(trainable["w"]), trainable={"w": np.asarray(i, np.float32)},
        state=np.zeros((), np.int32), frozen={}, key=jax.random.key(i), folder=folder,
        on_best=lambda trainable, p: saved.append((p.best, p.step, float(trainable["w"]))),
        place=lambda batch: batch.labels, flops=lambda batch: 7,
    )  # fmt: skip
    return progress, saved


class Killed(BaseException):
    pass


def together(folder, deaths=DEATHS["none"], killed_after=None, fillers=0, lead=True, **settings):
    """All runs through `fit_runs`: what it returned and what it called."""
    count = len(RATES) + fillers
    number_of = [*range(len(RATES)), *[0] * fillers]
    seen = types.SimpleNamespace(saved=[[] for _ in RATES], watched=[], evaluated=[], steps=0)

    deaths = np.array([*deaths, *[4] * fillers])  # a filler may diverge: nobody cares

    def step(trainable, state, values, frozen, batch, keys, number):
        if seen.steps == killed_after:
            raise Killed
        seen.steps += 1
        assert keys is KEYS and frozen is FROZEN
        drawn = noise()[number_of, number]
        return moved(trainable["w"], state, batch, values.learning_rate, deaths, drawn)

    def evaluate(trainable):
        seen.evaluated.append(np.asarray(trainable["w"]))
        return [metrics_of(trainable["w"][i]) for i in range(len(RATES))]

    def save(i):
        return lambda params, p: seen.saved[i].append((p.best, p.step, params["w"]))

    runs = [
        Member(loop_settings(i, **settings), folder / f"run_{i}", save(i))
        for i in range(len(RATES))
    ]
    rates = np.array([RATES[i] for i in number_of], np.float32)
    arrays = Arrays(
        {"w": np.array(number_of, np.float32)}, np.zeros(count, np.int32),
        RunValues(rates, {}, {}), FROZEN, KEYS,
    )  # fmt: skip

    def watch(runs, losses):
        seen.watched.append(([run.step for run in runs], list(losses)))

    seen.runs = runs_loop.fit_runs(
        runs, step, Batches(count if lead else 0), evaluate=evaluate, arrays=arrays,
        folder=folder / "program", place=lambda batch: batch.labels, flops=lambda batch: 7,
        watch=watch,
    )  # fmt: skip
    return seen


def text_of(folder):
    return (folder / "metrics.jsonl").read_text()


TIMES = ("seconds", "compile_seconds", "evaluation_seconds", "waiting_seconds")


def counts(progress):
    return {k: v for k, v in dataclasses.asdict(progress).items() if k not in TIMES}


def assert_each_is_alone(tmp_path, folder, seen, deaths, **settings):
    for i in range(len(RATES)):
        progress, saved = alone(tmp_path / f"alone_{i}", i, deaths[i], **settings)
        assert counts(seen.runs[i]) == counts(progress), i
        assert seen.saved[i] == saved, i
        assert text_of(folder / f"run_{i}") == text_of(tmp_path / f"alone_{i}"), i


@pytest.mark.parametrize("lead", [True, False])
@pytest.mark.parametrize("deaths", DEATHS)
def test_every_member_is_its_run_alone(tmp_path, deaths, lead):
    seen = together(tmp_path / "sweep", DEATHS[deaths], lead=lead)
    assert_each_is_alone(tmp_path, tmp_path / "sweep", seen, DEATHS[deaths])
    for run, death in zip(seen.runs, DEATHS[deaths], strict=True):
        assert run.diverged == (0 if death == NEVER else death)
        assert run.step == min(death, EPOCHS * PER_EPOCH)
        assert len(run.history) == min(death - 1, run.step) // PER_EPOCH
    # A program ends when its last run does, of which it may hear one step later.
    assert seen.steps - max(run.step for run in seen.runs) in (0, 1)


@pytest.mark.parametrize(
    "settings",
    [{"log_every": 3}, {"log_every": 5, "accumulate": 2}, {"log_every": 100},
     {"smaller_is_better": True, "checkpoint_every": 1}],
)  # fmt: skip
def test_settings_of_the_loop_mean_what_they_do_alone(tmp_path, settings):
    deaths = (NEVER, 6, 8)
    seen = together(tmp_path / "sweep", deaths, **settings)
    assert_each_is_alone(tmp_path, tmp_path / "sweep", seen, deaths, **settings)


@pytest.mark.parametrize("deaths", ["none", "one after another", "at an epoch's end", "all"])
@pytest.mark.parametrize("after", [0, 1, 3, 4, 5, 7, 11])
def test_a_killed_program_goes_on_and_equals_the_whole_one(tmp_path, after, deaths):
    whole = together(tmp_path / "whole", DEATHS[deaths])
    folder = tmp_path / "cut"
    killed = after < whole.steps
    if killed:
        with pytest.raises(Killed):
            together(folder, DEATHS[deaths], killed_after=after)
    again = together(folder, DEATHS[deaths])
    assert [counts(run) for run in again.runs] == [counts(run) for run in whole.runs]
    for i in range(len(RATES)):
        assert text_of(folder / f"run_{i}") == text_of(tmp_path / f"whole/run_{i}")
        assert again.saved[i] == whole.saved[i][len(whole.saved[i]) - len(again.saved[i]) :]
    # There is a checkpoint every 3 steps and after every epoch.
    assert again.steps <= whole.steps - (after - 2 if killed else 0)


def test_real_checkpoints_and_boards_give_the_same(tmp_path, in_memory):
    deaths = DEATHS["one after another"]
    whole = together(tmp_path / "whole", deaths)
    in_memory.undo()
    with pytest.raises(Killed):
        together(tmp_path / "cut", deaths, killed_after=7)
    again = together(tmp_path / "cut", deaths)
    assert again.steps == 6  # from the checkpoint after step 6
    assert [counts(run) for run in again.runs] == [counts(run) for run in whole.runs]
    for i in range(len(RATES)):
        assert text_of(tmp_path / f"cut/run_{i}") == text_of(tmp_path / f"whole/run_{i}")
        assert list((tmp_path / f"cut/run_{i}/tensorboard").iterdir())


@pytest.mark.parametrize("deaths", ["none", "all"])
def test_a_finished_program_does_nothing_more(tmp_path, deaths):
    whole = together(tmp_path, DEATHS[deaths])
    texts = [text_of(tmp_path / f"run_{i}") for i in range(len(RATES))]
    again = together(tmp_path, DEATHS[deaths])
    assert again.steps == 0 and again.saved == [[], [], []] and not again.evaluated
    assert again.runs == whole.runs
    assert [text_of(tmp_path / f"run_{i}") for i in range(len(RATES))] == texts


def test_runs_beyond_the_members_are_ignored(tmp_path):
    """They fill a program up: trained for nothing, even where they diverge."""
    deaths = DEATHS["in an epoch"]
    few, many = (together(tmp_path / str(n), deaths, fillers=n) for n in (0, 2))
    assert len(many.runs) == len(RATES) and many.evaluated[0].shape == (5,)
    assert list(map(counts, many.runs)) == list(map(counts, few.runs))
    assert many.saved == few.saved
    assert json.dumps(many.watched) == json.dumps(few.watched)  # NaN is NaN
    for i in range(len(RATES)):
        assert text_of(tmp_path / f"2/run_{i}") == text_of(tmp_path / f"0/run_{i}")


def test_evaluation_is_once_an_epoch_and_of_no_run_that_diverged(tmp_path):
    for name in ("none", "one after another", "two at once"):
        assert len(together(tmp_path / name, DEATHS[name]).evaluated) == EPOCHS
    assert len(together(tmp_path / "d", DEATHS["all"]).evaluated) == 1


def test_seconds_are_shared_among_the_members(tmp_path, monkeypatch):
    """A clock that goes on by 1 whenever it is read."""
    now = iter(range(10**6))
    clock = types.SimpleNamespace(perf_counter=lambda: float(next(now)))
    for module in (loop, running, members):
        monkeypatch.setattr(module, "time", clock)
    seen = together(tmp_path / "sweep")
    progress, _ = alone(tmp_path / "alone", 0)
    for run in seen.runs:
        for name in TIMES:
            assert getattr(run, name) == pytest.approx(getattr(progress, name) / len(RATES)), name
    assert progress.evaluation_seconds == EPOCHS and progress.compile_seconds > 0
    # One that ends early has its share of the time until then.
    early = together(tmp_path / "early", DEATHS["in an epoch"]).runs
    assert early[0].seconds > early[1].seconds > 0
    assert early[0].evaluation_seconds == EPOCHS / 3 and early[1].evaluation_seconds == 1 / 3


def test_the_watch_sees_every_logged_step_and_every_epoch(tmp_path):
    deaths = DEATHS["in an epoch"]
    seen = together(tmp_path, deaths)
    steps = [steps for steps, _ in seen.watched]
    assert steps[0] == [0, 0, 0]  # before the first step, or where a resumed program stands
    assert {steps[0] for steps in steps} == set(range(13))
    assert {steps[1] for steps in steps} == set(range(7))
    assert len(seen.watched) == 1 + 12 + EPOCHS
    lines = [json.loads(line) for line in text_of(tmp_path / "run_0").splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    for steps, seen_losses in seen.watched[1:]:
        assert seen_losses[0] == pytest.approx(losses[steps[0]], rel=1e-6)
        assert np.isnan(seen_losses[1]) == (steps[0] >= 6)
    assert all(np.isnan(loss) for loss in seen.watched[0][1])


def test_a_resumed_watch_starts_where_the_program_stands(tmp_path):
    with pytest.raises(Killed):
        together(tmp_path, DEATHS["one after another"], killed_after=5)
    again = together(tmp_path, DEATHS["one after another"])
    assert again.watched[0][0] == [2, 4, 4]


def test_the_batches_examples_and_tokens_are_those_of_one_run(tmp_path):
    runs = together(tmp_path, fillers=1).runs
    for run in runs:
        assert (run.examples, run.tokens, run.slots) == (2 * 12, 5 * 12, 6 * 12)
        assert run.flops == 7 * 12
