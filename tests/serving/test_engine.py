"""The engine: tokens are those of each request alone, whatever else runs, comes and goes."""

import dataclasses
import functools
import itertools
import queue
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pool_adapters
import pytest
import random_models
import scipy.stats
from flax import nnx
from pool_adapters import alone

import lora_jax
from lora_jax import partition
from lora_jax.decoding.sampling import Sampling, sample
from lora_jax.errors import InputError
from lora_jax.models.gpt2 import GPT2, GPT2Config
from lora_jax.models.llama import Llama
from lora_jax.models.llama_config import LlamaConfig
from lora_jax.pool import AdapterPool
from lora_jax.serving.choosing import Choice, choose
from lora_jax.serving.engine import Engine
from lora_jax.serving.requests import Request
from lora_jax.serving.tickets import ClosedError, QueueFullError

VOCAB, ROOM, LONGEST = 40, 64, 20


def llama():
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=ROOM,
    )  # fmt: skip
    return random_models.from_shapes(lambda: Llama(config, nnx.Rngs(0)), scale=0.2)


def gpt2():
    config = GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=ROOM)
    return random_models.from_shapes(lambda: GPT2(config, nnx.Rngs(0)), scale=0.2)


METHODS = {
    "llama": lora_jax.lora("all-linear", rank=3, alpha=6),
    "gpt2": lora_jax.lora(
        {".*/qkv": {"parts": ("q", "v"), "fused": ("q", "k", "v")}}, rank=4, alpha=8
    ),
}
BASES = {"llama": llama, "gpt2": gpt2}


class Setting:
    """A base, adapters, an engine, and what each adapter writes alone."""

    def __init__(self, family, **settings):
        self.base, self.method = BASES[family](), METHODS[family]
        self.adapters = {f"t{i}": self.adapter(i) for i in range(3)}
        self.engine = Engine(
            AdapterPool(self.base, [self.method], capacity=settings.get("rows", 4)),
            **{"rows": 4, "steps": 3, "room": ROOM, **settings},
        )
        for name, adapter in self.adapters.items():
            self.engine.add(name, adapter)

    def adapter(self, seed):
        return pool_adapters.adapter(self.base, self.method, seed, 0.15)

    def expected(self, request, adapter="by name"):
        """Greedy decoding of one adapter alone."""
        if adapter == "by name":
            adapter = self.adapters.get(request.adapter)
        model = self.base if adapter is None else alone(self.base, adapter)
        prompt = np.zeros((1, LONGEST), np.int32)
        prompt[0, : len(request.prompt)] = request.prompt
        structure, params = partition.all_frozen(model)
        found = greedy(structure, params, prompt, np.array([len(request.prompt)], np.int32))
        tokens = np.asarray(found.tokens)[0, 0, : request.max_tokens].tolist()
        ends = [tokens.index(end) for end in request.ends if end in tokens]
        return tokens[: min(ends, default=None)]


@functools.partial(jax.jit, static_argnums=0)
def greedy(structure, params, prompt, lengths):
    settings = Sampling((VOCAB,), max_tokens=ROOM - LONGEST)
    return sample(
        partition.join(structure, {}, params), prompt, lengths, settings, jax.random.key(0)
    )


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def setting(request):
    made = Setting(request.param)
    yield made
    made.engine.close(now=True)


@pytest.fixture
def one():
    made = Setting("llama", waiting=6)
    yield made
    made.engine.close(now=True)


def requests(count, seed=0, **settings):
    rng = np.random.default_rng(seed)
    names = itertools.cycle(["t0", None, "t2", "t1", "t1"])
    return [
        Request(
            tuple(rng.integers(0, VOCAB, rng.integers(1, 20)).tolist()), next(names),
            max_tokens=int(rng.integers(1, 25)), **settings,
        )
        for _ in range(count)
    ]  # fmt: skip


def answered(engine, request, seconds=120):
    done = queue.Queue()
    ticket = engine.submit(request, lambda t: t.reason and done.put(t))
    assert done.get(timeout=seconds) is ticket
    return ticket


def all_answered(engine, wanted):
    done = queue.Queue()
    tickets = [engine.submit(r, lambda t: t.reason and done.put(t)) for r in wanted]
    for _ in tickets:
        done.get(timeout=120)
    return tickets


def test_tokens_are_those_of_each_adapter_alone(setting):
    wanted = requests(11)
    whole = all_answered(setting.engine, wanted)
    for ticket in whole:
        assert ticket.tokens == setting.expected(ticket.request)
        assert ticket.reason == "length"
    # The same with an end token that each of them writes on its way.
    ending = [dataclasses.replace(t.request, ends=(t.tokens[len(t.tokens) // 2],)) for t in whole]
    for before, ticket in zip(whole, all_answered(setting.engine, ending), strict=True):
        (end,) = ticket.request.ends
        assert ticket.tokens == before.tokens[: before.tokens.index(end)]
        assert ticket.reason == "stop"


def test_pieces_come_in_order(setting):
    pieces, done = [], threading.Event()

    def tell(ticket):
        pieces.append(list(ticket.tokens))
        if ticket.reason:
            done.set()

    request = Request((1, 2, 3), "t1", max_tokens=10)
    setting.engine.submit(request, tell)
    assert done.wait(60)
    assert [len(piece) for piece in pieces] == [1, 4, 7, 10]
    assert all(piece == pieces[-1][: len(piece)] for piece in pieces)


def test_draws_do_not_depend_on_the_batch(setting):
    request = Request((1, 2, 3), "t1", max_tokens=12, temperature=1.0, top_k=9, top_p=0.9, seed=5)
    first = answered(setting.engine, request).tokens
    tickets = all_answered(setting.engine, [*requests(5, temperature=0.7), request, *requests(4)])
    assert tickets[5].tokens == first
    assert (
        first
        != answered(setting.engine, Request((1, 2, 3), "t1", max_tokens=12, temperature=1.0)).tokens
    )


def test_an_adapter_may_be_replaced_while_it_runs(one):
    request = Request((1, 2, 3), "t0", max_tokens=40)
    old, events = one.adapters["t0"], queue.Queue()
    running = one.engine.submit(request, events.put)
    events.get(timeout=60)
    one.engine.add("t0", one.adapter(17))
    new = answered(one.engine, request)
    while running.reason is None:
        events.get(timeout=60)
    assert running.tokens == one.expected(request, old)
    assert new.tokens == one.expected(request, one.adapter(17))
    assert old is not None and running.tokens != new.tokens
    assert len(one.engine.pool.names) == 3


def test_a_removed_adapter_is_refused(one):
    events = queue.Queue()
    request = Request((1, 2, 3), "t0", max_tokens=40)
    running = one.engine.submit(request, events.put)
    events.get(timeout=60)
    one.engine.remove("t0")
    with pytest.raises(InputError, match="no adapter 't0'"):
        one.engine.submit(request, events.put)
    while running.reason is None:
        events.get(timeout=60)
    assert running.tokens == one.expected(request)
    assert answered(one.engine, Request((1,), "t1", max_tokens=2)).reason == "length"
    assert len(one.engine.pool.names) == 2


@pytest.mark.slow
def test_a_hundred_adapters_and_no_compilation(one):
    one.engine.pool.compiled
    wanted = [Request((1, 2, 3), f"t{i}", max_tokens=4) for i in range(3)]
    all_answered(one.engine, wanted)
    programs = one.engine._programs
    before = programs._begin._cache_size(), programs._advance._cache_size()
    for number in range(100):
        name, adapter = f"n{number % 7}", one.adapter(number)
        one.engine.add(name, adapter)
        if number % 10 == 0:
            request = Request((number % VOCAB, 2), name, max_tokens=5)
            assert answered(one.engine, request).tokens == one.expected(request, adapter)
        else:
            answered(one.engine, Request((1, 2), name, max_tokens=1))
    assert (programs._begin._cache_size(), programs._advance._cache_size()) == before
    assert len(one.engine.pool.names) == 10


def test_limits(one):
    engine = one.engine
    for token in (VOCAB, -5):
        with pytest.raises(InputError, match=f"the token {token}, and the model knows 40"):
            engine.submit(Request((1, token), max_tokens=1), print)
    with pytest.raises(InputError, match="do not fit the 61 tokens"):
        engine.submit(Request((1,) * 30, max_tokens=40), print)
    go_on, begun = threading.Event(), threading.Event()

    def hold(_):
        begun.set()
        go_on.wait()

    try:
        tickets = [engine.submit(Request((1,), max_tokens=3), hold)]
        assert begun.wait(60)
        tickets += [engine.submit(Request((1,), max_tokens=1), lambda t: None) for _ in range(6)]
        with pytest.raises(QueueFullError, match="6 requests are waiting"):
            engine.submit(Request((1,), max_tokens=1), print)
        assert engine.load == (1, 6)
    finally:
        go_on.set()
    while any(ticket.reason is None for ticket in tickets):
        time.sleep(0.01)


def test_who_hangs_up_frees_its_row(one):
    begun = queue.Queue()
    ticket = one.engine.submit(Request((1,), max_tokens=55), begun.put)
    begun.get(timeout=60)
    ticket.cancel()
    while ticket.reason is None:
        begun.get(timeout=60)
    assert ticket.reason == "cancelled" and len(ticket.tokens) < 55
    late = answered(one.engine, Request((1,), max_tokens=55, seconds=0.0))
    assert late.reason == "timeout"
    assert one.engine.load == (0, 0)


def test_one_that_fails_to_listen_does_not_stop_the_others(one):
    def broken(_):
        raise RuntimeError("gone")

    gone = one.engine.submit(Request((1,), max_tokens=50), broken)
    request = Request((3, 1), "t2", max_tokens=9)
    assert answered(one.engine, request).tokens == one.expected(request)
    while gone.reason is None:
        time.sleep(0.01)
    assert gone.reason == "cancelled"


def test_an_adapter_that_cannot_be_read_fails_alone(tmp_path):
    one = Setting("llama")
    one.engine.close()
    pool = AdapterPool(one.base, [one.method], capacity=4, in_memory=1)
    engine = Engine(pool, rows=4, steps=3, room=ROOM)
    for seed, name in enumerate(("gone", "there")):
        one.adapter(seed).save(tmp_path / name)
        engine.add(name, tmp_path / name)
    shutil.rmtree(tmp_path / "gone")
    request = Request((1, 2), "there", max_tokens=30)
    done = queue.Queue()
    tickets = [engine.submit(r, lambda t: t.reason and done.put(t)) for r in (
        request, Request((1, 2), "gone", max_tokens=30), request
    )]  # fmt: skip
    for _ in tickets:
        done.get(timeout=60)
    assert [t.reason for t in tickets] == ["length", "error", "length"]
    assert "gone" in tickets[1].error
    assert tickets[0].tokens == tickets[2].tokens == one.expected(request, one.adapter(1))
    engine.close()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_end_their_request_alone(one, temperature):
    one.engine.add("bad", pool_adapters.with_nan(one.adapter(7)))
    requests = [Request((3, 4, 5), name, max_tokens=9) for name in ("t0", "bad", "t1")]
    requests[1] = dataclasses.replace(requests[1], ends=(0,), temperature=temperature)
    first, bad, last = all_answered(one.engine, requests)
    assert bad.reason == "error" and "not finite" in bad.error and not bad.tokens
    for ticket in (first, last):
        assert ticket.tokens == one.expected(ticket.request)


def test_closing_waits_for_what_runs(one):
    done = queue.Queue()
    wanted = requests(6)
    tickets = [one.engine.submit(r, lambda t: t.reason and done.put(t)) for r in wanted]
    one.engine.close()
    assert [t.tokens for t in tickets] == [one.expected(r) for r in wanted]
    with pytest.raises(ClosedError, match="shutting down"):
        one.engine.submit(wanted[0], print)


def test_closing_at_once_tells_everybody():
    one = Setting("llama")
    tickets = [one.engine.submit(Request((1,), max_tokens=55), lambda t: None) for _ in range(6)]
    one.engine.close(now=True)
    assert all(t.reason in ("closed", "length") for t in tickets)
    assert not one.engine._thread.is_alive()


@pytest.mark.wrong_types
def test_mistakes_of_other_types():
    with pytest.raises(InputError, match="whole numbers"):
        Request(("a",))
    with pytest.raises(InputError, match="seconds"):
        Request((1,), seconds="x")


def test_mistakes():
    with pytest.raises(InputError, match="empty"):
        Request(())
    for settings in (
        {"seconds": -1.0},
        {"max_tokens": 0},
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_k": -1},
        {"seed": -1},
    ):
        with pytest.raises(InputError, match=next(iter(settings))):
            Request((1,), **settings)
    pool = AdapterPool(llama(), [METHODS["llama"]], capacity=2)
    with pytest.raises(InputError, match="make it with capacity=3"):
        Engine(pool, rows=3)


@pytest.mark.parametrize("temperature", [1e-45, 2e-38, 1e-6])
def test_a_tiny_temperature_takes_the_most_probable_token(temperature):
    choice = Choice(
        np.array([temperature], np.float32), np.array([0], np.int32),
        np.array([1], np.float32), np.array([3], np.uint32),
    )  # fmt: skip
    assert choose(jnp.array([[20.0, 50.0, 5.0]]), choice, jnp.array([2])).tolist() == [1]


def test_choices_follow_the_probabilities():
    """20,000 draws of rows with different settings against the probabilities of a formula."""
    logits = np.random.default_rng(0).normal(size=8).astype(np.float32)
    rows = 20_000
    for temperature, top_k, top_p in ((1.0, 0, 1.0), (0.5, 3, 1.0), (1.0, 0, 0.6), (2.0, 5, 0.7)):
        choice = Choice(
            np.full(rows, temperature, np.float32), np.full(rows, top_k, np.int32),
            np.full(rows, top_p, np.float32), np.arange(rows, dtype=np.uint32),
        )  # fmt: skip
        found = np.asarray(choose(jnp.tile(logits, (rows, 1)), choice, jnp.full(rows, 3)))
        p = np.exp(np.float64(logits) / temperature)
        order = np.argsort(-p)
        if top_k:
            p[order[top_k:]] = 0
        p /= p.sum()
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= top_p]] = 0
        p /= p.sum()
        counts = np.bincount(found, minlength=8)
        assert not counts[p == 0].any()
        assert scipy.stats.chisquare(counts[p > 0], p[p > 0] * rows).pvalue > 1e-3
