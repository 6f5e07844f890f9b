"""A program that waits for others says so."""

import time

import jax
import pytest

from lora_jax.sharding import hosts


@pytest.fixture(autouse=True)
def _preemption_service():
    """`hosts.start` is for whole programs: it switches this service of JAX off."""
    before = jax.config.jax_enable_preemption_service
    yield
    jax.config.update("jax_enable_preemption_service", before)


def test_a_wait_of_some_seconds_is_told(monkeypatch, caplog):
    monkeypatch.setattr(hosts, "_QUIET", 0.05)
    waits = iter((0.5, 0.0))
    asked = []

    def join(*arguments, **_):
        asked.append(arguments)
        time.sleep(next(waits))

    monkeypatch.setattr(jax.distributed, "initialize", join)
    hosts.start(*hosts.parse("localhost:9876,0/2"))
    assert asked == [("localhost:9876", 2, 0)]
    says = "process 0 of 2 waits for the others at localhost:9876; each is started with --hosts="
    assert caplog.text.count(says) == 1
    hosts.start(*hosts.parse("localhost:9876,1/2"))
    time.sleep(0.2)
    assert "process 1 of 2" not in caplog.text
