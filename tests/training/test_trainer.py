"""The trainer on a model of a user's own: what fit judges by, and what it refuses."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh

import lora_jax as lj
from lora_jax.sharding.mesh import make_mesh
from lora_jax.sharding.placement import Placement
from lora_jax.training import ArrayBatches, Goal, Trainer, TrainSettings
from lora_jax.training.records import lora_layers


class Model(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(4, 6, rngs=rngs)
        self.qkv = nnx.Linear(6, 9, rngs=rngs)
        self.head = nnx.Linear(9, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.qkv(jax.nn.gelu(self.up(x))))


METHOD = lj.lora(
    {"up": {"rank": 2}, "qkv": {"rank": 1, "parts": ("q", "v"), "fused": ("q", "k", "v")}},
    head="head/.*",
)


GOAL = Goal(label="", headline="loss", evaluate=lambda _: {}, on_best=lambda *_: None)


def loss(model, batch, key):
    x = batch["x"]
    if key is not None:  # noise stands for dropout
        x = x + 0.1 * jax.random.normal(key, x.shape)
    return jnp.mean((model(x) - batch["y"]) ** 2)


def arrays(count, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(count, 4)).astype(np.float32)
    return {"x": jnp.asarray(x), "y": jnp.asarray(x[:, :2] ** 2)}


def trainer(method=METHOD, mesh=None, **settings):
    settings = TrainSettings(**{"epochs": 3, "learning_rate": 0.02, "log_every": 1, **settings})
    return Trainer(Model(nnx.Rngs(0)), method, settings, head="head/.*", mesh=mesh)


@pytest.fixture(scope="module")
def batches():
    return ArrayBatches(arrays(22), 8)


def test_epochs_are_judged_by_the_validation_data_without_dropout(batches, tmp_path):
    held_out = ArrayBatches(arrays(10, seed=1), 4)
    made = trainer()
    result = made.fit(batches, loss, tmp_path, validation=held_out)
    losses = [metrics["loss"] for metrics in result.progress.history]
    model = made.model(result.best)
    assert float(loss(model, arrays(10, seed=1), None)) == pytest.approx(min(losses), rel=1e-5)
    assert result.progress.best == 1 + losses.index(min(losses))
    assert result.progress.step == 9 and result.progress.examples == 3 * 22
    assert result.progress.flops > 0 and result.progress.tokens == 0


def test_scores_may_be_any_scalars_and_must_be_numbers(batches, tmp_path):
    result = trainer().fit(
        batches, loss, tmp_path / "a", headline="accuracy",
        evaluate=lambda model: {"accuracy": jnp.float32(0.5), "f1": np.float64(0.25)},
    )  # fmt: skip
    assert result.progress.history[0] == {"accuracy": 0.5, "f1": 0.25}
    with pytest.raises(ValueError, match="the metric 'accuracy' is not a number"):
        trainer().fit(
            batches, loss, tmp_path / "b", headline="accuracy",
            evaluate=lambda model: {"accuracy": "good"},
        )  # fmt: skip


def test_a_headline_that_nothing_gives_is_refused_before_the_folder_is_made(batches, tmp_path):
    with pytest.raises(ValueError, match="headline 'accuracy' is not among the metrics"):
        trainer().fit(batches, loss, tmp_path / "run", headline="accuracy")
    assert not (tmp_path / "run").exists()


def test_a_score_of_the_user_s_own_chooses_the_best_epoch(batches, tmp_path):
    scores = iter([0.2, 0.9, 0.5])
    seen = []

    def evaluate(model):
        seen.append(model)
        return {"accuracy": next(scores)}

    result = trainer().fit(batches, loss, tmp_path, evaluate=evaluate, headline="accuracy")
    assert result.progress.history == [
        {"accuracy": 0.2}, {"accuracy": 0.9}, {"accuracy": 0.5},
    ]  # fmt: skip
    assert result.progress.best == 2 and all(isinstance(model, Model) for model in seen)
    adapter = lj.load_adapter(tmp_path / "adapter")
    assert adapter.notes == {"epoch": 2, "metrics": {"accuracy": 0.9}}
    for path, value in result.best.items():
        np.testing.assert_array_equal(adapter.values[path], value)
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["best"] == {"accuracy": 0.9} and record["best_epoch"] == 2
    assert record["headline"] == "accuracy" and record["method"] == "lora"
    assert record["parameters"]["lora"] == 2 * (4 + 6) + 2 * (6 + 3)
    assert record["layers"] == [
        {"path": "qkv", "rank": 1, "parts": ["q", "v"]}, {"path": "up", "rank": 2, "parts": []},
    ]  # fmt: skip
    assert {"versions", "device", "memory", "config"} <= record.keys()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 10))
    assert list((tmp_path / "tensorboard").iterdir())


def test_the_base_stays_and_its_type_is_the_settings(batches, tmp_path):
    model = Model(nnx.Rngs(0))
    before = jax.tree.map(np.array, lj.parameters(model))
    settings = TrainSettings(epochs=1, base_dtype="bfloat16")
    made = Trainer(model, METHOD, settings, head="head/.*")
    assert {leaf.dtype for leaf in made.frozen.values()} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in made.trainable.values()} == {jnp.dtype(jnp.float32)}
    made.fit(batches, loss, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, before, lj.parameters(model))


def test_verify_compares_the_model_as_it_stands_with_its_base(batches):
    batch = arrays(4)
    found = trainer().verify(batch, lambda model, b: model(b["x"]))
    assert found.passed and found.layers == ("qkv", "up")
    wrong = trainer().verify(batch, lambda model, b: model(b["x"]) @ model.up.kernel[:2, :])
    assert [(f.check, f.path) for f in wrong.failures] == [("merge", "up")]
    assert trainer(lj.bitfit(head="head/.*")).verify(batch) is None


def test_methods_without_lora_have_no_layers():
    made = trainer(lj.bitfit(head="head/.*"))
    assert made.layers == [] and lora_layers(made.summary) == []


@pytest.mark.parametrize(
    ("settings", "options", "says"),
    [
        ({"epochs": 0}, {}, "epochs is 0: there is nothing to train"),
        ({"warmup_ratio": 0.0, "warmup_steps": 10}, {}, "warm-up of 10 updates is longer than the run of 9"),
        ({"init_adapter": "/no/run"}, {}, "/no/run/adapter.json is missing"),
    ],
)  # fmt: skip
def test_bad_settings_claim_no_folder(batches, tmp_path, settings, options, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        trainer(**settings).fit(batches, loss, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_headline_that_evaluate_does_not_give(batches, tmp_path):
    with pytest.raises(
        ValueError, match=r"the headline 'f1' is not among the metrics \['acc', 'loss'\]"
    ):
        trainer().fit(
            batches,
            loss,
            tmp_path,
            headline="f1",
            validation=batches,
            evaluate=lambda m: {"acc": 1},
        )


def test_a_mesh_with_an_axis_of_runs_is_refused(batches, tmp_path):
    made = trainer()
    made.placement = Placement(
        AbstractMesh((2, 1, 1, 1), ("run", "data", "fsdp", "model")), made.placement.axes
    )
    with pytest.raises(ValueError, match=r"run=2 splits the runs of a sweep"):
        made.prepare(batches, loss, GOAL, seed=0, folder=tmp_path)


def test_warm_start_takes_the_factors_and_not_the_head(batches, tmp_path):
    result = trainer().fit(batches, loss, tmp_path / "first")
    start = trainer(init_adapter=str(tmp_path / "first")).started(str(tmp_path / "first"))
    fresh = trainer().trainable
    for path, value in start.items():
        source = result.best if "/lora/" in path else fresh
        np.testing.assert_array_equal(value, source[path], err_msg=path)


def test_plain_batches_are_split_by_examples():
    placement = Placement(make_mesh({}, jax.devices()[:1]), {})
    batch = {"x": np.zeros((6, 4)), "y": (np.arange(6),)}
    placed = placement.batch(batch)
    assert jax.tree.structure(placed) == jax.tree.structure(batch)
    assert all(leaf.sharding.spec[0] == ("data", "fsdp") for leaf in jax.tree.leaves(placed))
    several = Placement(AbstractMesh((1, 2, 2, 1), ("run", "data", "fsdp", "model")), {})
    with pytest.raises(ValueError, match=r"data x fsdp = 4 does not divide a batch of 6 examples"):
        several.batch(batch)


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("what", ["values", "fewer", "order", "batches"])
def test_a_folder_is_of_its_data(tmp_path, finished, what):
    """Neither a killed run nor a finished one is taken for one on other data of the same size."""
    folder, whole = tmp_path / "run", arrays(22)
    others = {
        "values": ArrayBatches({**whole, "y": -whole["y"]}, 8),
        "fewer": ArrayBatches(jax.tree.map(lambda leaf: leaf[:20], whole), 8),
        "order": ArrayBatches(whole, 8, seed=1),
        "batches": ArrayBatches(jax.tree.map(lambda leaf: leaf[::-1], whole), 8),
    }
    if finished:
        record = trainer(epochs=1).fit(ArrayBatches(whole, 8), loss, folder).record
        assert set(record["inputs"]) == {"training data", "key of the initial values"}
    else:
        killed = ArrayBatches(whole, 8)
        killed.epoch = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            trainer(epochs=1)._try_batches = lambda *_: None
            run = trainer(epochs=1)
            run._try_batches = lambda *_: None
            run.fit(killed, loss, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*.json")}
    with pytest.raises(
        ValueError, match=r"holds a run on other inputs: training data \(\w{12} there"
    ):
        trainer(epochs=1).fit(others[what], loss, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*.json")} == before
    again = trainer(epochs=1).fit(ArrayBatches(whole, 8), loss, folder)
    assert again.progress.step == 3


def test_a_folder_of_an_earlier_version_is_read_back(tmp_path, batches):
    record = trainer(epochs=1).fit(batches, loss, tmp_path).record
    (tmp_path / "inputs.json").unlink()
    assert trainer(epochs=1).fit(batches, loss, tmp_path).record["best"] == record["best"]


def test_a_run_that_diverges_is_an_error_and_stays_one(tmp_path):
    """The first epoch was good: its adapter and its checkpoint are kept, and the record says the step."""
    data = arrays(22)

    def exploding(model, batch, key):
        value = loss(model, batch, None)
        return jnp.where(value < first, jnp.nan, value)

    first = -1.0  # never
    good = trainer(epochs=1, learning_rate=0.3).fit(
        ArrayBatches(data, 8), exploding, tmp_path / "good"
    )
    first = good.progress.history[0]["loss"]  # training goes on to smaller losses
    with pytest.raises(lj.errors.DivergedError, match="diverged: this run at step ") as failed:
        trainer(epochs=20, learning_rate=0.3).fit(
            ArrayBatches(data, 8), exploding, tmp_path / "run", validation=ArrayBatches(data, 22)
        )
    (step,) = failed.value.steps.values()
    record = json.loads((tmp_path / "run/result.json").read_text())
    assert record["diverged"] == step == record["step"] and record["last"] is None
    kept = [int(p.name) for p in (tmp_path / "run/checkpoints").iterdir() if p.name.isdigit()]
    assert all(number < step for number in kept)
    with pytest.raises(lj.errors.DivergedError, match=f"this run at step {step} "):
        trainer(epochs=20, learning_rate=0.3).fit(
            ArrayBatches(data, 8), exploding, tmp_path / "run", validation=ArrayBatches(data, 22)
        )


def test_a_run_is_of_the_adapter_and_the_key_that_start_it(batches, tmp_path):
    start, run = tmp_path / "start", tmp_path / "run"
    trainer().fit(batches, loss, start)
    made = trainer(init_adapter=str(start))
    result = made.fit(batches, loss, run)
    assert set(result.record["inputs"]) == {
        "training data", "key of the initial values", "init_adapter"
    }  # fmt: skip
    assert made.fit(batches, loss, run).record == result.record
    key = jax.random.key(7)
    other = Trainer(Model(nnx.Rngs(0)), METHOD, made.settings, key=key, head="head/.*")
    with pytest.raises(ValueError, match="on other inputs: key of the initial values"):
        other.fit(batches, loss, run)
    shutil.rmtree(start)
    trainer(learning_rate=0.05).fit(batches, loss, start)
    for gone in ("", "inputs.json", "result.json"):
        (run / gone).unlink() if gone else None
        with pytest.raises(ValueError, match="run on other inputs: init_adapter"):
            trainer(init_adapter=str(start)).fit(batches, loss, run)
