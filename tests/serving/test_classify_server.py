"""`/v1/classify`: answers of each adapter and of `experiments.predict`, load, adapters that go, mistakes."""

import concurrent.futures
import contextlib
import dataclasses
import json
import random
import shutil
import threading
import time

import httpx
import numpy as np
import pool_adapters
import pytest
import torch
import transformers
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from task_adapters import KINDS, TEXTS, Tasks

from experiments import classify, predict
from experiments.runs.answers import probabilities
from experiments.runs.run import run_all
from experiments.serve import app
from experiments.serve.classify import wanted
from experiments.serve.load import load
from experiments.serve.served import Sizes
from lora_jax.errors import InputError
from tests.experiments.own_rows import config, rows, write
from tests.fuzz.fixed_settings import fixed_settings

SIZES = Sizes(rows=4, room=1024, steps=4, waiting=200, capacity=0, rank=0)
PAIRS = [["a film", "good"], ["good", "it was not what i had hoped for"]]


class Server:
    """A server in a thread, with a folder of random tasks."""

    def __init__(self, tasks, root, sizes=SIZES, seconds=60.0):
        self.tasks, self.adapters = tasks, root / "adapters"
        self.adapters.mkdir()
        for name in KINDS:
            self.make(name)
        self.served = load(str(tasks.folder), str(self.adapters), "float", sizes)
        made = app.make(self.served, seconds=seconds, hosts=["127.0.0.1"])
        self._server = uvicorn.Server(uvicorn.Config(made, port=0, log_level="error"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def make(self, name, seed=0):
        self.tasks.adapter(name, seed).save(self.adapters / name)

    def post(self, model, given, **settings):
        return self.client.post("/v1/classify", json={"model": model, "input": given, **settings})

    def data(self, model, given):
        answer = self.post(model, given)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def error(self, code, model, given, **settings):
        answer = self.post(model, given, **settings)
        assert answer.status_code == code
        return answer.json()["error"]["message"]

    def check(self, found, name, items, seed=0):
        """Compares answers with the adapter alone."""
        outputs = self.tasks.outputs(name, items, seed)
        assert [one["index"] for one in found] == list(range(len(items)))
        if outputs.shape[1] == 1:
            assert all(one["label"] is None and one["probs"] is None for one in found)
            values = [one["value"] for one in found]
            np.testing.assert_allclose(values, outputs[:, 0], atol=1e-5)
            return
        np.testing.assert_allclose(
            [one["probs"] for one in found], probabilities(outputs), atol=1e-5
        )
        assert all(one["num_classes"] == outputs.shape[1] for one in found)

    def metric(self, name):
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"lora_jax_{name}"))

    def close(self):
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture(scope="module")
def tasks(tiny_model):
    return Tasks(tiny_model)


@pytest.fixture(scope="module")
def server(tasks, tmp_path_factory):
    made = Server(tasks, tmp_path_factory.mktemp("server"))
    yield made
    made.close()


@pytest.mark.parametrize("name", ["two", "three", "one", "sst2"])
def test_answers_are_those_of_each_adapter(server, name):
    found = server.data(name, TEXTS)
    server.check(found, name, TEXTS)
    names = ["negative", "positive"] if name == "sst2" else [f"LABEL_{i}" for i in range(3)]
    for one in found:
        if name != "one":
            assert one["label"] == names[int(np.argmax(one["probs"]))]
    server.check(server.data(name, TEXTS[1]), name, TEXTS[1:2])  # a text alone


@pytest.mark.parametrize("name", ["rte", "stsb", "three"])
def test_pairs(server, name):
    server.check(server.data(name, PAIRS), name, PAIRS)
    same = server.client.post("/classify", json={"model": name, "input": PAIRS}).json()
    server.check(same["data"], name, PAIRS)
    assert same["object"] == "list" and same["id"].startswith("classify-")
    tokens = sum(len(ids) for ids, _ in server.tasks.tokens(PAIRS))
    assert same["usage"] == {
        "prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens
    }  # fmt: skip


def test_what_an_adapter_reads_is_known_from_its_task(server):
    assert "pairs of texts, and 'input' has single ones" in server.error(400, "rte", PAIRS[0])
    assert "single texts, and 'input' has pairs" in server.error(400, "sst2", PAIRS)
    models = {one["id"]: one for one in server.client.get("/v1/models").json()["data"]}
    assert list(models) == sorted(KINDS)
    assert models["rte"]["labels"] == ["entailment", "not_entailment"] and models["rte"]["pair"]
    assert models["stsb"]["regression"] and models["two"]["pair"] is None
    assert models["two"]["max_length"] == 64


def test_a_run_answers_as_experiments_predict(server, tmp_path):
    """Names of classes, probabilities, long texts cut at the run's length."""
    train = write(tmp_path / "rows.csv", rows(30))
    changes = {"data.max_length": 16, "method.rank": 3, "verify": False, "epochs": 1}
    values = config(server.tasks.folder, train, **changes)
    run_all(classify.task, values, tmp_path / "run")
    texts = [row["text"] for row in rows(12, seed=1)]
    texts += ["the cat near the old river sleeps under a tree " * 9, "house", texts[0].upper()]
    expected = list(predict.predict_lines(tmp_path / "run", texts))
    shutil.copytree(tmp_path / "run", server.adapters / "run")
    try:
        found = server.data("run", texts)
        for one, row in zip(found, expected, strict=True):
            assert one["label"] == row["prediction"]
            assert one["probs"] == pytest.approx(list(row["probabilities"].values()), abs=1e-5)
        unknown = "\U0001f600 \U0001f601"
        (refused,) = predict.predict_lines(tmp_path / "run", [unknown])
        message = server.error(400, "run", unknown)
        assert message.partition(": ")[2] == refused["error"].partition(": ")[2]
    finally:
        shutil.rmtree(server.adapters / "run")


@pytest.mark.slow
def test_load_with_clients_that_hang_up_and_adapters_that_come_and_go(server):
    """Eight clients, mixed adapters, some hang up, folders are added and removed: no wrong answer."""
    draw = random.Random(0)
    jobs = [(draw.choice(["two", "three", "one"]), draw.randint(1, 5)) for _ in range(160)]
    for name in ("two", "three", "one"):
        server.tasks.outputs(name, TEXTS)  # compiled before the clients start
    changing = threading.Event()

    def change():
        number = 0
        while not changing.is_set():
            server.make(f"two-{number % 3}", number % 3)
            httpx.get(f"http://127.0.0.1:{server.port}/v1/models", timeout=30)
            shutil.rmtree(server.adapters / f"two-{number % 3}")
            number += 1

    def run(number):
        name, count = jobs[number]
        url = f"http://127.0.0.1:{server.port}/v1/classify"
        body = {"model": name, "input": TEXTS[:count]}
        if number % 8 == 5:  # hangs up at once
            with contextlib.suppress(httpx.TimeoutException):
                httpx.post(url, json=body, timeout=0.001)
            return
        server.check(httpx.post(url, json=body, timeout=60).json()["data"], name, TEXTS[:count])

    kinds = ("batches_total", "batch_inputs")
    before = [server.metric(kind) for kind in kinds]
    thread = threading.Thread(target=change)
    thread.start()
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as clients:
            list(clients.map(run, range(len(jobs))))
    finally:
        changing.set()
        thread.join()
    deadline = time.monotonic() + 30
    while server.metric("running") or server.metric("waiting"):
        assert time.monotonic() < deadline, "texts are left"
        time.sleep(0.1)
    assert server.metric("inputs_total") == server.metric("finished_total")
    batches, texts = (server.metric(kind) - old for kind, old in zip(kinds, before, strict=True))
    assert texts > batches  # texts have shared batches


def test_folders_come_change_and_go(server):
    server.make("three-7", 1)
    try:
        server.check(server.data("three-7", TEXTS), "three-7", TEXTS, 1)
        old = server.tasks.adapter("three-7", 1)
        new = dataclasses.replace(server.tasks.adapter("stsb", 2))
        new.save(server.adapters / "three-7")  # another task, with another head
        server.client.get("/v1/models")
        server.check(server.data("three-7", PAIRS), "stsb", PAIRS, 2)
        wrong = dataclasses.replace(old, notes={"task": "rte"})
        wrong.save(server.adapters / "three-7")
        server.client.get("/v1/models")
        message = server.error(404, "three-7", TEXTS)
        assert "its notes name 2 outputs, and its head has 3" in message
    finally:
        shutil.rmtree(server.adapters / "three-7")
    server.client.get("/v1/models")
    assert "no model 'three-7'" in server.error(404, "three-7", TEXTS)


def test_nan_is_an_error_of_its_own_request(server):
    about = server.served.engine.versions["two"].about
    bad = pool_adapters.with_nan(server.tasks.adapter("two", 3))
    server.served.engine.add("bad", bad, about=about)
    try:
        with concurrent.futures.ThreadPoolExecutor(2) as clients:
            failed = clients.submit(server.error, 503, "bad", TEXTS)
            server.check(clients.submit(server.data, "two", TEXTS).result(), "two", TEXTS)
        assert "not finite numbers" in failed.result()
    finally:
        server.served.engine.remove("bad")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "must be a JSON object"),
        ({"input": "a"}, "'model' must be the name"),
        ({"model": "two"}, "'input' must be a text, a list"),
        ({"model": "two", "input": []}, "'input' is empty"),
        ({"model": "two", "input": ["a", 3]}, "item 1 is 3"),
        ({"model": "two", "input": [["a", "b", "c"]]}, "item 0 is ['a', 'b', 'c']"),
        ({"model": "two", "input": [["a", 1]]}, "item 0 is ['a', 1]"),
        ({"model": "two", "input": ["a", ["b", "c"]]}, "texts and pairs together"),
        ({"model": "two", "input": ["a", " \n"]}, "'input', item 1 has an empty text"),
        ({"model": "two", "input": "a\0b"}, "item 0 has a NUL character"),
        ({"model": "two", "input": "\ud800"}, "item 0 is no text"),
        ({"model": "two", "input": "a", "top_k": 3}, "unknown field 'top_k'"),
        ({"model": "two", "input": "a", "truncate_prompt_tokens": 5}, "is not supported"),
        ({"model": "two", "input": ["a"] * 201}, "201 texts are more than the 200"),
    ],
)
def test_wrong_bodies(server, body, message):
    answer = server.client.post("/v1/classify", content=json.dumps(body))
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_wrong_requests(server):
    assert "'base' is not served: the model without" in server.error(404, "base", "a")
    assert "no model 'nobody'" in server.error(404, "nobody", "a")
    for path in ("/v1/completions", "/v1/chat/completions"):
        answer = server.client.post(path, json={})
        assert answer.status_code == 404 and "server of classifiers" in answer.text
    assert server.client.get("/v1/classify").status_code == 405
    assert server.client.post("/v1/classify", content=b" " * (2**20 + 1)).status_code == 413
    page = server.client.get("/")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "http" not in page.text.partition("<script>")[0] and "src=" not in page.text


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@given(_JSON | st.fixed_dictionaries({"model": st.text(max_size=3), "input": _JSON}))
@fixed_settings(200)
def test_any_body_is_texts_or_an_error(body):
    try:
        asked = wanted(body)
    except InputError:
        return
    assert {len(texts) for texts in asked.inputs} in ({1}, {2})
    assert all(text.strip() for texts in asked.inputs for text in texts)


def test_a_full_queue_a_late_answer_and_a_stop(tasks, tmp_path):
    """While the engine's thread is held up."""
    sizes = dataclasses.replace(SIZES, waiting=8)
    server = Server(tasks, tmp_path, sizes, seconds=1.0)
    go_on, begun = threading.Event(), threading.Event()

    def hold(_):
        begun.set()
        go_on.wait()

    engine = server.served.engine
    with engine.using("two") as version:
        engine.submit(server.served.examples(version, [("a film",)]), version, hold)
    assert begun.wait(60)
    with concurrent.futures.ThreadPoolExecutor(2) as clients:
        late = clients.submit(server.error, 503, "two", TEXTS)
        while engine.load[1] < len(TEXTS):
            time.sleep(0.01)
        answer = server.post("two", TEXTS)
        assert answer.status_code == 429 and answer.headers["Retry-After"]
        time.sleep(1.1)
        go_on.set()
        assert "took too long" in late.result()
    server.check(server.data("two", TEXTS), "two", TEXTS)
    server.close()
    with pytest.raises(httpx.ConnectError):
        server.post("two", TEXTS)
    assert not engine._thread.is_alive()


def test_an_empty_folder_has_room_for_what_comes(tasks, tmp_path):
    (tmp_path / "adapters").mkdir()
    served = load(str(tasks.folder), str(tmp_path / "adapters"), "float", SIZES)
    try:
        assert served.names == []
        tasks.adapter("three").save(tmp_path / "adapters" / "three")
        served.scan()
        done = threading.Event()
        with served.using("three") as version:
            examples = served.examples(version, [("a film",)])
            (ticket,) = served.engine.submit(examples, version, lambda _: done.set())
        assert done.wait(60)
        np.testing.assert_allclose(ticket.outputs, tasks.outputs("three", ["a film"])[0], atol=1e-5)
    finally:
        served.engine.close()


def test_a_head_of_the_base_is_served_as_base(tasks, tmp_path):
    """A folder of transformers' own classifier, with adapters whose heads are wider."""
    torch.manual_seed(1)
    model = transformers.BertForSequenceClassification.from_pretrained(tasks.folder, num_labels=3)
    model.config.id2label = {0: "bad", 1: "fair", 2: "good"}
    model.classifier.weight.data.normal_(0, 0.5)
    shutil.copytree(tasks.folder, tmp_path / "model")
    model.eval().save_pretrained(tmp_path / "model")
    tasks.adapter("rte").save(tmp_path / "adapters" / "rte")
    served = load(str(tmp_path / "model"), str(tmp_path / "adapters"), "float", SIZES)
    try:
        assert served.names == [str(tmp_path / "model"), "base", "rte"] and not served.refused
        texts = TEXTS[:3]
        done = threading.Event()
        with served.using("base") as version:
            examples = served.examples(version, [(text,) for text in texts])
            left = iter(range(len(texts) - 1, -1, -1))
            tickets = served.engine.submit(examples, version, lambda _: next(left) or done.set())
            assert version.about.labels.classes == ("bad", "fair", "good")
        assert done.wait(60)
        for ticket, example in zip(tickets, examples, strict=True):
            with torch.no_grad():
                expected = model(torch.tensor(example.tokens[None].astype(np.int64))).logits[0]
            np.testing.assert_allclose(ticket.outputs, expected, atol=1e-5)
    finally:
        served.engine.close()
