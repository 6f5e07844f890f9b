"""The engine of classifiers: outputs are those of each text and adapter alone, whatever comes and goes."""

import queue
import shutil
import threading

import numpy as np
import pool_adapters
import pytest
from hypothesis import given
from hypothesis import strategies as st
from task_adapters import METHOD, TEXTS, Tasks

from lora_jax.data.packing import place
from lora_jax.errors import InputError
from lora_jax.pool import AdapterPool
from lora_jax.serving import classifier, shapes
from lora_jax.serving.adapters import UnknownAdapterError
from lora_jax.serving.classifier import ClassifierEngine
from lora_jax.serving.examples import Example
from lora_jax.serving.tickets import ClosedError, QueueFullError
from tests.fuzz.fixed_settings import fixed_settings

NAMES = ("two", "three", "one", "rte")


@pytest.fixture(scope="module")
def tasks(tiny_model):
    return Tasks(tiny_model)


@pytest.fixture
def engine(tasks):
    pool = AdapterPool(tasks.base(4), [METHOD], capacity=2)
    made = ClassifierEngine(pool, rows=2, room=64, waiting=12)
    for name in NAMES:
        made.add(name, tasks.adapter(name))
    yield made
    made.close(now=True)


class Held:
    """Keeps the engine's thread busy, so that what is submitted meanwhile waits."""

    def __init__(self, engine, tasks):
        self._go_on, begun = threading.Event(), threading.Event()

        def hold(_):
            begun.set()
            self._go_on.wait()

        engine.submit(examples(tasks, ["a film"]), "two", hold)
        assert begun.wait(60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._go_on.set()


def examples(tasks, items):
    return [Example(ids, types) for ids, types in tasks.tokens(items)]


def submit(engine, tasks, name, items, **settings):
    """Submits texts: the tickets and the queue of those that end."""
    done = queue.Queue()
    return engine.submit(examples(tasks, items), name, done.put, **settings), done


def ended(tickets, done):
    for _ in tickets:
        done.get(timeout=60)
    return tickets


def check(tasks, tickets, name, items, seed=0):
    found = np.stack([ticket.outputs for ticket in tickets])
    np.testing.assert_allclose(found, tasks.outputs(name, items, seed), atol=1e-5)


def test_outputs_are_those_of_each_adapter_alone(engine, tasks):
    """Four adapters, of which two have a slot, in the batches of two rows."""
    with Held(engine, tasks):
        items = {name: [text, text[:20]] for name, text in zip(NAMES, TEXTS, strict=False)}
        waiting = {name: submit(engine, tasks, name, two) for name, two in items.items()}
    for name, (tickets, done) in waiting.items():
        check(tasks, ended(tickets, done), name, items[name])
    counts = engine.counts
    assert counts.answered == counts.examples == 9 and counts.finished == {"done": 9}
    assert 3 <= counts.batches <= 6  # pairs of adapters share one, where the rows have room
    assert counts.places >= counts.tokens > 0


def test_pairs_have_their_token_types(engine, tasks):
    items = [["a film", "good"], ["good", "it was not what i had hoped for"]]
    check(tasks, ended(*submit(engine, tasks, "rte", items)), "rte", items)


def test_nan_in_one_adapter_touches_no_other_text_of_its_rows(engine, tasks):
    engine.add("bad", pool_adapters.with_nan(tasks.adapter("two", 7)))
    with Held(engine, tasks):
        first = submit(engine, tasks, "bad", TEXTS[:2])
        second = submit(engine, tasks, "three", TEXTS[:2])
        batches = engine.counts.batches
    for ticket in ended(*first):
        assert ticket.reason == "error" and "not finite" in ticket.error and ticket.outputs is None
    check(tasks, ended(*second), "three", TEXTS[:2])
    assert engine.counts.batches == batches + 1  # they were in one


def test_who_waits_keeps_the_adapter_that_he_was_taken_for(engine, tasks):
    with Held(engine, tasks):
        replaced = submit(engine, tasks, "three", TEXTS[:2])
        removed = submit(engine, tasks, "one", TEXTS[:2])
        engine.add("three", tasks.adapter("two", 5))
        engine.remove("one")
        new = submit(engine, tasks, "three", TEXTS[:2])
        with pytest.raises(UnknownAdapterError, match="no adapter 'one'"):
            submit(engine, tasks, "one", TEXTS[:1])
    check(tasks, ended(*replaced), "three", TEXTS[:2])
    check(tasks, ended(*removed), "one", TEXTS[:2])
    check(tasks, ended(*new), "two", TEXTS[:2], 5)
    assert len(engine.pool.names) == 3  # nobody has the old ones any more


def test_an_adapter_that_cannot_be_read_fails_alone(tasks, tmp_path):
    pool = AdapterPool(tasks.base(4), [METHOD], capacity=2, in_memory=1)
    engine = ClassifierEngine(pool, rows=2, room=64)
    for name in ("two", "three"):
        tasks.adapter(name).save(tmp_path / name)
        engine.add(name, tmp_path / name)
    shutil.rmtree(tmp_path / "two")
    engine.add("one", tasks.adapter("one"))
    done = queue.Queue()
    with engine.using("one") as version:
        gone = engine.submit(examples(tasks, TEXTS[:1]), "two", done.put)
        there = engine.submit(examples(tasks, TEXTS[:1]), version, done.put)
    for _ in range(2):
        done.get(timeout=60)
    assert gone[0].reason == "error" and "two" in gone[0].error
    check(tasks, there, "one", TEXTS[:1])
    engine.close()


def test_limits(engine, tasks):
    with Held(engine, tasks):
        kept, done = submit(engine, tasks, "two", TEXTS[:3] * 3)
        with pytest.raises(QueueFullError, match="9 requests are waiting"):
            submit(engine, tasks, "two", TEXTS[:4])
        last, late_done = submit(engine, tasks, "two", TEXTS[:1], seconds=0.0)
        given_up, cancelled_done = submit(engine, tasks, "two", TEXTS[:1])
        given_up[0].cancel()
        answered = engine.counts.answered
    assert ended(last, late_done)[0].reason == "timeout"
    assert ended(given_up, cancelled_done)[0].reason == "cancelled"
    check(tasks, ended(kept, done), "two", TEXTS[:3] * 3)
    assert engine.counts.answered == answered + 9  # not the two that were in vain
    with pytest.raises(InputError, match="13 texts are more than the 12"):
        submit(engine, tasks, "two", ["a"] * 13)
    with pytest.raises(InputError, match="a text has 65 tokens, allowed are 1 to 64"):
        engine.submit([Example(np.ones(65, np.int32), np.zeros(65, np.int32))], "two", print)
    assert engine.load == (0, 0)


def test_closing_waits_for_what_is_there(engine, tasks):
    with Held(engine, tasks):
        tickets, done = submit(engine, tasks, "two", TEXTS)
    engine.close()
    check(tasks, ended(tickets, done), "two", TEXTS)
    with pytest.raises(ClosedError, match="shutting down"):
        submit(engine, tasks, "two", TEXTS)


def test_no_more_programs_than_shapes(engine, tasks, monkeypatch):
    traced = []

    def packed_slots(*args):
        traced.append(args[0].shape)
        return original(*args)

    original = classifier.packed_slots
    monkeypatch.setattr(classifier, "packed_slots", packed_slots)
    engine.prepare(64)
    assert sorted(traced) == sorted(shapes.shapes(2, 64))
    for number in range(30):
        items = TEXTS[: number % 5 + 1] * (number % 2 + 1)
        tickets, done = submit(engine, tasks, NAMES[number % 4], items)
        ended(tickets, done)
    assert len(traced) == len(shapes.shapes(2, 64))


@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=80),
    st.integers(1, 20),
    st.sampled_from([200, 512]),
)
@fixed_settings(100)
def test_the_first_that_wait_fit_their_shape(lengths, rows, room):
    menu = shapes.shapes(rows, room)
    count, shape = shapes.first_batch(lengths, menu)
    assert 1 <= count <= len(lengths) and shape in menu
    assert place(lengths[:count], shape[1])[1] <= shape[0] and count <= shapes.slots(shape)
    if count < len(lengths):  # one more is too many for every shape, unless order plays a part
        more = lengths[: count + 1]
        assert shapes.fitting(more, menu) is None
    tokens = [r * n for r, n in menu]
    assert tokens == sorted(tokens) and max(tokens) <= max(rows * 128, room)
    assert (1, room) in menu
