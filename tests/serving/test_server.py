"""`python -m experiments.serve` with OpenAI's own client: answers, streams, load, and what goes wrong."""

import concurrent.futures
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import jax
import numpy as np
import openai
import pool_adapters
import pytest
import tune_files

import lora_jax
from experiments.serve.load import load
from experiments.serve.pieces import Pieces
from experiments.serve.served import Sizes
from lora_jax import partition
from lora_jax.data import tokenizers
from lora_jax.decoding.sampling import Sampling, sample
from lora_jax.models import hub
from lora_jax.run_folder import RESULT

METHOD = lora_jax.lora({".*/qkv": {"parts": ("q", "v"), "fused": ("q", "k", "v")}}, rank=4, alpha=8)
TEXTS = ["What is red blue?", "one two", "green tree runs", "It is", "cat"]
LONGEST, MOST = 24, 20


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Server:
    """A server with a tiny GPT-2 and three adapters, and what each of them writes alone."""

    def __init__(self, root):
        self.model = tune_files.write_model(root / "model", width=32)
        self.adapters = root / "adapters"
        self.base = hub.load_decoder(self.model, hub.read_decoder_config(self.model))
        self.tokenizer = tokenizers.load_tokenizer(
            self.model, tokenizers.DECODER, len(tune_files.tokenizer())
        )
        for seed in range(3):
            self.make(f"t{seed}", seed)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "experiments.serve", f"--model={self.model}",
             f"--adapters={self.adapters}", f"--port={self.port}", "--rows=4", "--steps=2", "--waiting=40"],
            cwd=Path(__file__).parents[2], env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while True:
            try:
                httpx.get(f"{self.url}/health", timeout=5).raise_for_status()
                break
            except httpx.TransportError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.process.kill()
                    pytest.fail(f"it did not start: {self.process.communicate()[1]}")
                time.sleep(0.1)
        self.client = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120
        )
        self._known = {}

    def adapter(self, seed):
        return pool_adapters.adapter(self.base, METHOD, seed, 0.4)

    def make(self, name, seed):
        self.adapter(seed).save(self.adapters / name)

    def expected(self, text, seed, count):
        """The continuation that an adapter alone makes greedily."""
        if (text, seed) not in self._known:
            model = (
                self.base if seed is None else pool_adapters.alone(self.base, self.adapter(seed))
            )
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            prompt = np.zeros((1, LONGEST), np.int32)
            prompt[0, : len(ids)] = ids
            structure, params = partition.all_frozen(model)
            found = greedy(structure, params, prompt, np.array([len(ids)], np.int32))
            self._known[text, seed] = np.asarray(found.tokens)[0, 0].tolist()
        tokens = self._known[text, seed][:count]
        end = self.tokenizer.eos_token_id
        kept = tokens[: tokens.index(end)] if end in tokens else tokens
        return self.tokenizer.decode(kept, skip_special_tokens=True)


def _greedy(structure, params, prompt, lengths):
    settings = Sampling((10**6,), max_tokens=MOST)
    return sample(
        partition.join(structure, {}, params), prompt, lengths, settings, jax.random.key(0)
    )


greedy = jax.jit(_greedy, static_argnums=0)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("server"))
    yield made
    made.process.kill()
    made.process.communicate()


def complete(server, text, model, count=MOST, **settings):
    return server.client.completions.create(
        model=model, prompt=text, max_tokens=count, temperature=0, **settings
    )


def metric(server, name):
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_models(server):
    names = [model.id for model in server.client.models.list()]
    assert names == [str(server.model), "base", "t0", "t1", "t2"]


@pytest.mark.parametrize("model", ["base", "t0", "t1", "t2"])
def test_completions_are_those_of_each_adapter(server, model):
    seed = None if model == "base" else int(model[1])
    for text in TEXTS:
        answer = complete(server, text, model)
        assert answer.choices[0].text == server.expected(text, seed, MOST)
        assert answer.model == model and answer.usage.total_tokens > answer.usage.prompt_tokens > 0


def test_streams(server):
    pieces = list(
        complete(server, TEXTS[0], "t1", stream=True, stream_options={"include_usage": True})
    )
    text = "".join(choice.text for piece in pieces for choice in piece.choices)
    assert text == server.expected(TEXTS[0], 1, MOST)
    assert len(pieces) > 1  # how many depends on who is faster
    assert pieces[-1].usage.completion_tokens <= MOST
    assert [c.finish_reason for p in pieces for c in p.choices][-1] in ("stop", "length")


def test_several_prompts_and_choices(server):
    answer = complete(server, TEXTS[:3], "t2", n=2)
    texts = [choice.text for choice in answer.choices]
    assert texts == [server.expected(text, 2, MOST) for text in TEXTS[:3] for _ in range(2)]
    drawn = server.client.completions.create(
        model="t2", prompt="cat", max_tokens=12, n=4, temperature=2.0, seed=3
    )
    again = server.client.completions.create(
        model="t2", prompt="cat", max_tokens=12, n=4, temperature=2.0, seed=3
    )
    assert len({c.text for c in drawn.choices}) > 1
    assert [c.text for c in drawn.choices] == [c.text for c in again.choices]


def test_stops(server):
    whole = server.expected(TEXTS[1], 0, MOST)
    stop = whole[6:8]
    for stream in (False, True):
        answer = complete(server, TEXTS[1], "t0", stop=[stop], stream=stream)
        choices = [c for piece in answer for c in piece.choices] if stream else answer.choices
        assert "".join(c.text for c in choices) == whole[: whole.index(stop)]
        assert choices[-1].finish_reason == "stop"


def test_token_ids(server):
    ids = server.tokenizer(TEXTS[2], add_special_tokens=False)["input_ids"]
    assert complete(server, ids, "t0").choices[0].text == server.expected(TEXTS[2], 0, MOST)


def test_conversations(server):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is red?"},
    ]
    answer = server.client.chat.completions.create(
        model="t0", messages=messages, temperature=0, max_tokens=8
    )
    prompt = server.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    # The same as the conversation written out: its special tokens are tokens there.
    ids = server.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    same = complete(server, ids, "t0", 8).choices[0].text
    assert answer.choices[0].message.content == same
    # What a client may send back: the newer name of a role, and fields that hold nothing.
    newer = [{"role": "developer", "content": "Be brief.", "refusal": None}, messages[1]]
    again = server.client.chat.completions.create(
        model="t0", messages=newer, temperature=0, max_tokens=8
    )
    assert again.choices[0].message.content == same
    pieces = server.client.chat.completions.create(
        model="t0", messages=messages, temperature=0, max_tokens=8, stream=True
    )
    assert "".join(p.choices[0].delta.content for p in pieces) == same


def test_one_model(server):
    assert server.client.models.retrieve("t1").id == "t1"
    with pytest.raises(openai.NotFoundError, match="there is no model 'nobody'; /v1/models lists"):
        server.client.models.retrieve("nobody")


def test_load_with_adapters_that_come_and_go(server):
    """Eight clients, mixed adapters, some hang up, while folders are added and removed: no wrong answer."""
    draw = random.Random(0)
    jobs = [
        (draw.choice(TEXTS), draw.choice([None, 0, 1, 2]), draw.randint(1, MOST))
        for _ in range(160)
    ]
    changing = threading.Event()

    def change():
        number = 0
        while not changing.is_set():
            server.make(f"extra{number % 3}", 10 + number % 3)
            httpx.get(f"{server.url}/v1/models", timeout=30)
            shutil.rmtree(server.adapters / f"extra{number % 3}")
            number += 1

    def run(number):
        text, seed, count = jobs[number]
        name = "base" if seed is None else f"t{seed}"
        if number % 8 == 5:  # hangs up after the first piece
            stream = complete(server, text, name, MOST, stream=True)
            next(iter(stream))
            stream.close()
            return None
        answer = complete(server, text, name, count)
        return answer.choices[0].text == server.expected(text, seed, count)

    for text in TEXTS:  # compiled here before the clients start
        for seed in (None, 0, 1, 2):
            server.expected(text, seed, MOST)
    before = [metric(server, f"lora_jax_batch_{kind}_total") for kind in ("rows", "calls")]
    thread = threading.Thread(target=change)
    thread.start()
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as clients:
            results = list(clients.map(run, range(len(jobs))))
    finally:
        changing.set()
        thread.join()
    assert results.count(True) == 140 and results.count(None) == 20
    deadline = time.monotonic() + 30
    while metric(server, "lora_jax_running") or metric(server, "lora_jax_waiting"):
        assert time.monotonic() < deadline, "rows leak"
        time.sleep(0.1)
    requests = metric(server, "lora_jax_requests_total")
    assert requests == metric(server, "lora_jax_finished_total")
    after = [metric(server, f"lora_jax_batch_{kind}_total") for kind in ("rows", "calls")]
    rows, calls = (b - a for a, b in zip(before, after, strict=True))
    assert rows > calls  # requests have shared batches


def test_folders_come_and_go(server):
    server.make("late", 7)
    try:
        answer = complete(server, TEXTS[0], "late")
        assert answer.choices[0].text == server.expected(TEXTS[0], 7, MOST)
        server.make("late", 8)
        time.sleep(0.01)
        list(server.client.models.list())
        answer = complete(server, TEXTS[0], "late")
        assert answer.choices[0].text == server.expected(TEXTS[0], 8, MOST)
    finally:
        shutil.rmtree(server.adapters / "late")
    list(server.client.models.list())
    with pytest.raises(openai.NotFoundError, match="no model 'late'"):
        complete(server, TEXTS[0], "late")


def test_a_folder_that_is_copied_piece_by_piece_is_served_when_it_is_whole(server):
    server.make("whole", 4)
    folder = server.adapters / "pieces"
    folder.mkdir()
    try:
        shutil.copy(server.adapters / "whole" / "adapter.json", folder)
        with pytest.raises(openai.NotFoundError, match="adapter.safetensors is missing"):
            complete(server, TEXTS[0], "pieces")
        shutil.copy(server.adapters / "whole" / "adapter.safetensors", folder)
        answer = complete(server, TEXTS[0], "pieces")
        assert answer.choices[0].text == server.expected(TEXTS[0], 4, MOST)
        (folder / "adapter.json").write_text("{")  # and a broken one is not served any more
        list(server.client.models.list())
        with pytest.raises(openai.NotFoundError, match="'pieces' is not served"):
            complete(server, TEXTS[0], "pieces")
    finally:
        shutil.rmtree(server.adapters / "whole")
        shutil.rmtree(folder)


def test_the_folder_may_go_and_come_back(server):
    away = server.adapters.with_name("away")
    server.adapters.rename(away)
    try:
        assert [m.id for m in server.client.models.list()] == [str(server.model), "base"]
        time.sleep(2.5)  # the server's own look
    finally:
        away.rename(server.adapters)
    answer = complete(server, TEXTS[1], "t1")
    assert answer.choices[0].text == server.expected(TEXTS[1], 1, MOST)


def test_odd_subfolders_harm_no_other(server):
    """A name that is no UTF-8, a link whose target is no possible name or itself, an adapter of PEFT."""
    odd = os.fsencode(server.adapters) + b"/odd\xff"
    shutil.copytree(os.fsencode(server.adapters / "t0"), odd)
    links = {server.adapters / "link": "x" * 300, server.adapters / "loop": "loop"}
    for link, target in links.items():
        link.symlink_to(target)
    (server.adapters / "of_peft").mkdir()
    (server.adapters / "of_peft" / "adapter_config.json").touch()
    try:
        refused = httpx.get(f"{server.url}/v1/models", timeout=30).json()["refused"]
        assert "no UTF-8" in refused["odd\\xff"] and "too long" in refused["link"]
        assert "convert from_peft" in refused["of_peft"]
        server.make("beside", 5)
        answer = complete(server, TEXTS[0], "beside")
        assert answer.choices[0].text == server.expected(TEXTS[0], 5, MOST)
        with pytest.raises(openai.NotFoundError, match="no UTF-8"):
            complete(server, TEXTS[0], "odd\\xff")
    finally:
        shutil.rmtree(odd)
        shutil.rmtree(server.adapters / "of_peft")
        shutil.rmtree(server.adapters / "beside", ignore_errors=True)
        for link in links:
            link.unlink()
    assert not httpx.get(f"{server.url}/v1/models", timeout=30).json()["refused"]


@pytest.mark.slow
def test_adapters_that_do_not_share_a_pool_and_names_of_the_base(tmp_path, monkeypatch):
    """The first ones are served; the others are refused, and say why."""
    monkeypatch.chdir(tmp_path)
    model = tune_files.write_model(tmp_path / "model", width=32)
    base = hub.load_decoder(model, hub.read_decoder_config(model))
    for name, method in (
        ("a", METHOD),
        ("b", lora_jax.lora("all-linear", rank=2)),
        ("model", METHOD),
    ):
        pool_adapters.adapter(base, method, 0).save(tmp_path / "adapters" / name)
    sizes = Sizes(rows=2, room=64, steps=2, waiting=4, capacity=0, rank=0)
    served = load("model", "adapters", "float", sizes)
    try:
        assert served.names == ["model", "base", "a"]
        assert set(served.refused) == {"b", "model"}
        assert "the name 'model' is taken" in served.refused["model"]
    finally:
        served.engine.close(now=True)


def test_pieces_hold_back_what_may_be_a_stop():
    class Bytes:
        def decode(self, tokens, skip_special_tokens):
            return bytes(tokens).decode("utf-8", "replace")

    pieces, content, out = Pieces(Bytes(), ["ENé"]), "ab ENé cd".encode(), ""
    for count in range(1, len(content) + 1):
        out += pieces.add(list(content[:count]), ended=count == len(content))
    assert out == "ab " and pieces.stopped


def test_a_run_without_an_adapter_is_named(server):
    folder = server.adapters / "broken"
    server.make("broken", 1)
    try:
        (folder / "adapter.safetensors").write_bytes(b"no")
        refused = httpx.get(f"{server.url}/v1/models").json()["refused"]
        assert list(refused) == ["broken"] and "adapter.safetensors" in refused["broken"]
        with pytest.raises(openai.NotFoundError, match="'broken' is not served"):
            complete(server, "a", "broken")
        (folder / RESULT).write_text("{")
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": 3}, "'model' must be the name"),
        ({"prompt": None}, "'prompt' must be a text"),
        ({"prompt": [[1, "a"]]}, "'prompt' must be a text"),
        ({"prompt": []}, "'prompt' must be a text"),
        ({"prompt": [10**6]}, "has the token 1000000"),
        ({"prompt": ""}, "empty"),
        ({"prompt": "\ud800"}, "'prompt' is no text"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 500}, "do not fit"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 100}, "n"),
        ({"prompt": ["a"] * 3, "n": 16}, "48 continuations are more than the 40"),
        ({"seed": 1.5}, "seed"),
        ({"stream": "yes"}, "'stream' must be true or false"),
        ({"stop": [""]}, "'stop' must be"),
        ({"stop": ["a"] * 5}, "at most 4"),
        ({"logprobs": 5}, "'logprobs' is not supported"),
        ({"temperatur": 1}, "unknown field 'temperatur'"),
    ],
)
def test_wrong_fields(server, change, message):
    body = {"model": "base", "prompt": "a", "max_tokens": 2, **change}
    answer = httpx.post(f"{server.url}/v1/completions", content=json.dumps(body), timeout=60)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_classification_is_for_other_servers(server):
    for path in ("/v1/classify", "/classify"):
        answer = httpx.post(f"{server.url}{path}", json={"model": "t0", "input": "a"})
        assert answer.status_code == 404 and "server of decoders" in answer.text


def test_a_long_text_holds_up_nobody_else(server):
    """Reading a text of half a megabyte takes seconds, in which the server answers others."""
    body = json.dumps({"model": "base", "prompt": "a b" * 200_000})
    # One client for all: making it takes longer than an answer.
    with concurrent.futures.ThreadPoolExecutor(1) as clients, httpx.Client(timeout=60) as other:
        long = clients.submit(httpx.post, f"{server.url}/v1/completions", content=body, timeout=120)
        answered = 0
        while not long.done():
            other.get(f"{server.url}/health").raise_for_status()
            answered += not long.done()
    assert long.result().status_code == 400 and "do not fit" in long.result().text
    assert answered > 20


def test_wrong_bodies(server):
    post = lambda content: httpx.post(f"{server.url}/v1/completions", content=content, timeout=60)  # noqa: E731
    for content in (b"", b"[", b"[]", b"\xff", b"[" * 100_000):
        answer = post(content)
        assert answer.status_code == 400 and "body" in answer.json()["error"]["message"]
    assert post(b" " * (2**20 + 1)).status_code == 413
    for messages in ([], "a", [{"role": "king", "content": "a"}], [{"role": "user"}], [1]):
        answer = httpx.post(
            f"{server.url}/v1/chat/completions", json={"model": "base", "messages": messages}
        )
        assert answer.status_code == 400, messages
    assert httpx.get(f"{server.url}/v1/completions").status_code == 405
    assert httpx.get(f"{server.url}/v2").status_code == 404


def test_other_names_of_the_machine_are_refused(server):
    answer = httpx.get(f"{server.url}/v1/models", headers={"Host": "example.org"})
    assert answer.status_code == 400


def test_the_page_has_no_foreign_parts(server):
    answer = httpx.get(server.url)
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert (
        "http://" not in answer.text and "https://" not in answer.text and "src=" not in answer.text
    )


def test_a_full_queue(server):
    body = json.dumps({"model": "base", "prompt": "a", "max_tokens": 90, "n": 16})
    with concurrent.futures.ThreadPoolExecutor(6) as clients:
        answers = list(
            clients.map(
                lambda _: httpx.post(f"{server.url}/v1/completions", content=body, timeout=120),
                range(6),
            )
        )
    codes = [answer.status_code for answer in answers]
    assert set(codes) == {200, 429}
    busy = answers[codes.index(429)]
    assert busy.json()["error"]["type"] == "rate_limit_error" and busy.headers["Retry-After"]


def test_sigterm_ends_it_after_what_runs(server):
    """The last test with this server."""
    complete(server, "a", "t0", 2)
    stream = complete(server, TEXTS[0], "t0", MOST, stream=True)
    pieces = [next(iter(stream))]
    server.process.send_signal(signal.SIGTERM)
    pieces += list(stream)
    text = "".join(choice.text for piece in pieces for choice in piece.choices)
    assert text == server.expected(TEXTS[0], 0, MOST)
    _, error = server.process.communicate(timeout=60)
    assert "Traceback" not in error
    assert server.process.returncode in (0, -signal.SIGTERM)


@pytest.mark.slow
def test_flags():
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "experiments.serve", f"--port={free_port()}", *arguments],
            capture_output=True, text=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip

    taken = socket.create_server(("127.0.0.1", 0))
    for arguments, message in (
        ((), "name the base"),
        (("--model=package:none",), "not installed"),
        (("--model=a", "--port=0"), "--port"),
        (("--model=a", f"--port={taken.getsockname()[1]}"), "name another --port"),
        (("--model=a", "--host=no.such.name.invalid"), "--host=no.such.name.invalid"),
        (("--model=a", "--adapters=/none"), "--adapters=/none is not a folder"),
    ):
        done = run(*arguments)
        assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr
    taken.close()
