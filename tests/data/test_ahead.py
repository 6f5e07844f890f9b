"""A stream that a thread draws from ahead: order, bounds, errors, and its end."""

import contextvars
import threading
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.data.ahead import ahead


def threads():
    return {thread.name for thread in threading.enumerate() if "batches" in thread.name}


class Source:
    """Random numbers, and how many of them were drawn by which threads."""

    def __init__(self, count, error=None):
        self.numbers = list(np.random.default_rng(0).integers(0, 99, count))
        self.drawn, self.by, self._error = 0, set(), error

    def __iter__(self):
        for number in self.numbers:
            self.drawn += 1
            self.by.add(threading.current_thread())
            yield number
        if self._error is not None:
            raise self._error


@pytest.mark.parametrize("count", [0, 1, 2, 3, 50])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_items_are_those_of_the_source_in_its_order(count, depth):
    source = Source(count)
    with ahead(source, depth) as stream:
        assert list(stream) == source.numbers
    assert source.drawn == count and threads() == set()
    assert threading.main_thread() not in source.by and len(source.by) <= 1


@pytest.mark.parametrize("depth", [1, 3])
def test_no_more_is_drawn_than_its_depth(depth):
    source = Source(20)
    with ahead(source, depth) as stream:
        for taken, _ in enumerate(stream, 1):
            assert source.drawn <= min(20, taken + depth)
            if taken == 7:
                break
    assert 7 <= source.drawn <= 7 + depth and threads() == set()


def test_the_next_items_are_made_while_one_is_worked_on():
    """Without looking ahead the second item would be drawn only when it is asked for."""
    third = threading.Event()

    def source():
        yield 1
        yield 2
        third.set()
        yield 3

    with ahead(source(), 2) as stream:
        assert next(stream) == 1
        assert third.wait(30)


def test_an_error_comes_in_its_place_with_its_traceback():
    with ahead(Source(3, error=ValueError("no such row"))) as stream:
        assert [next(stream) for _ in range(3)] == Source(3).numbers
        with pytest.raises(ValueError, match="no such row") as raised:
            next(stream)
    assert traceback.extract_tb(raised.value.__traceback__)[-1].line == "raise self._error"
    assert threads() == set()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_whoever_stops_in_between_leaves_no_thread(error):
    source = Source(1000)
    with pytest.raises(error), ahead(source) as stream:
        next(stream)
        raise error
    assert source.drawn <= 3 and threads() == set()


def test_the_thread_has_the_types_and_devices_of_its_caller():
    """They are settings of a thread in JAX: without them float64 batches become float32 on their way."""
    name = contextvars.ContextVar("name", default="none")

    def made():
        for _ in range(3):
            yield jnp.asarray(np.ones(3)), name.get()

    name.set("given")
    device = jax.devices()[-1]
    with jax.enable_x64(True), jax.default_device(device), ahead(made()) as stream:
        found = list(stream)
    assert {(str(x.dtype), value) for x, value in found} == {("float64", "given")}
    assert all(x.devices() == {device} for x, _ in found)
    with ahead(made()) as stream:
        assert next(stream)[0].dtype == jnp.float32


def test_a_depth_that_is_none():
    with pytest.raises(ValueError, match="depth must be a positive integer"), ahead([1], depth=0):
        pass
