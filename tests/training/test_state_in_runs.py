"""Runs of models with state: killed and resumed, the best epoch's statistics, old folders."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from state_models import METHOD, Model, Rematerialised, Scanned, arrays, assert_same, flat, loss

import lora_jax as lj
from lora_jax.fingerprints import accepted
from lora_jax.training import ArrayBatches, Progress, Trainer, TrainSettings
from lora_jax.training.checkpoints import Checkpoints

pytestmark = [
    pytest.mark.usefixtures("quick_compilation"),
    pytest.mark.filterwarnings("ignore:Using 'Module.sow"),
]
SETTINGS = TrainSettings(epochs=2, learning_rate=0.02, log_every=1, checkpoint_every=2)


class Killed(BaseException):
    pass


def trainer(make=Model, **settings):
    return Trainer(make(nnx.Rngs(0)), METHOD, dataclasses.replace(SETTINGS, **settings))


def fit(folder, made=None, **options):
    return (made or trainer()).fit(ArrayBatches(arrays(24), 8), loss, folder, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    made = trainer()
    return folder, made, fit(folder, made)


@pytest.mark.parametrize(
    ("make", "checkpoint"), [(Model, 2), (Model, 4), (Scanned, 4), (Rematerialised, 4)]
)
def test_killed_and_resumed_is_the_uninterrupted_run(make, checkpoint, tmp_path):
    """Bit for bit: masks, statistics and counts go on where they were, also within an epoch."""
    whole = fit(tmp_path / "whole", trainer(make))
    epoch, seen = ArrayBatches.epoch, 0

    def dying(self, number, start=0):
        nonlocal seen
        for batch in epoch(self, number, start):
            seen += 1
            if (
                seen > {2: 6, 4: 12}[checkpoint]
            ):  # four tried, three trained, three evaluated, three trained
                raise Killed
            yield batch

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(ArrayBatches, "epoch", dying)
        fit(tmp_path / "cut", trainer(make))
    kept = (tmp_path / "cut/checkpoints").glob("[0-9]")
    assert max(int(path.name) for path in kept) == checkpoint
    resumed = fit(tmp_path / "cut", trainer(make))
    assert resumed.progress.history == whole.progress.history
    assert_same(*({p: np.asarray(v) for p, v in r.best.items()} for r in (whole, resumed)))
    for name in ("metrics.jsonl", "adapter/adapter.safetensors", "adapter/adapter.json"):
        one, two = (tmp_path / folder / name for folder in ("whole", "cut"))
        assert one.read_bytes() == two.read_bytes(), name


def test_the_adapter_holds_the_statistics_and_no_random_state(whole):
    folder, made, result = whole
    adapter = lj.load_adapter(folder / "adapter")
    assert set(adapter.state) == {"block/norm/mean", "block/norm/var", "block/calls"}
    assert set(adapter.values) == set(made.trainable)
    assert set(result.best) == {*adapter.state, *adapter.values}
    assert int(adapter.state["block/calls"]) == 3 * result.progress.best
    assert np.all(adapter.state["block/norm/mean"] != 0)


def test_a_loaded_adapter_gives_the_bits_of_the_best_epoch(whole):
    folder, made, result = whole
    best = made.model(result.best)
    loaded = lj.load(folder, Model(nnx.Rngs(0)))
    for model in (best, loaded):
        model.eval()
    x = arrays(5, seed=7)["x"]
    np.testing.assert_array_equal(best(x), loaded(x))
    other = Model(nnx.Rngs(0))
    other.head = nnx.Linear(4, 2, rngs=nnx.Rngs(3))
    loaded = lj.load(folder / "adapter", other)
    loaded.eval()
    np.testing.assert_array_equal(best(x), loaded(x))


def test_epochs_are_judged_in_evaluation_mode_with_the_moved_statistics(tmp_path):
    seen = []

    def evaluate(model):
        seen.append((np.asarray(model.block.norm.mean[...]), model.block.drop.deterministic))
        model(arrays(3)["x"])  # moves nothing in the run
        return {"accuracy": float(len(seen))}

    made = trainer()
    result = fit(tmp_path, made, evaluate=evaluate, headline="accuracy")
    assert [deterministic for _, deterministic in seen] == [True, True]
    assert np.any(seen[0][0] != seen[1][0])
    np.testing.assert_array_equal(seen[1][0], result.best["block/norm/mean"])
    validated = fit(tmp_path / "loss", trainer())
    model = made.model(validated.best)
    model.eval()
    batches = [jax.tree.map(jnp.asarray, b) for b in ArrayBatches(arrays(24), 8).epoch(0)]
    losses = [float(loss(model, batch, None)) for batch in batches]
    expected = validated.progress.history[validated.progress.best - 1]["loss"]
    assert np.mean(losses) == pytest.approx(expected, rel=1e-5)


def test_checkpoints_of_models_without_state_have_what_they_always_had(tmp_path):
    model = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(1)))
    made = Trainer(model, lj.lora("layers/0", rank=1), SETTINGS)
    made.fit(ArrayBatches(arrays(24), 8), loss, tmp_path)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    record = checkpoints.record()
    assert record["step"] == 6 and record.keys() == dataclasses.asdict(Progress()).keys()
    params = made.started()
    labels = {path: made.labels[path] for path in params}
    like = {"trainable": params, "state": SETTINGS.optimizer(labels, 6)[1].init(params)}
    state, again = checkpoints.restore(like)  # strict: nothing else is there
    assert again == record and state["trainable"].keys() == params.keys()
    checkpoints.close()
    assert "state" not in json.loads((tmp_path / "adapter/adapter.json").read_text())


def test_statistics_keep_their_type_where_the_base_is_cast():
    made = trainer(base_dtype="bfloat16")
    assert made.frozen["block/linear/kernel"].dtype == jnp.bfloat16
    assert made.frozen["block/norm/mean"].dtype == jnp.float32
    assert made.base == trainer().base


def test_folders_of_earlier_versions_load(whole, tmp_path):
    """They were marked by the parameters only, and by the head's too where nobody named it."""
    folder, made, result = whole
    model = Model(nnx.Rngs(0))
    trained = {path: result.best[path] for path in made.trainable}
    for number, kept in enumerate((lambda p: True, lambda p: not p.startswith("head"))):
        mark = lj.fingerprint({p: v for p, v in lj.parameters(model).items() if kept(p)})
        assert mark in made.bases and mark != made.base
        old = lj.save_adapter(tmp_path / str(number), trained, made.labels, METHOD, mark)
        loaded = lj.load(old, model)
        np.testing.assert_array_equal(
            loaded.block.linear.lora.a[...], trained["block/linear/lora/a"]
        )
        assert set(made.load(old)) == set(trained)
    assert len(set(made.bases)) == 4 == len(list(accepted(model, METHOD)))
    # A run that was begun under the old mark goes on.
    config = json.loads((folder / "config.json").read_text())
    for path in folder.rglob("*"):
        if path.is_file():
            copy = tmp_path / "run" / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    config["base"] = made.bases[-1]
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    record = json.loads((tmp_path / "run/result.json").read_text())
    del record["digests"]
    (tmp_path / "run/result.json").write_text(json.dumps({**record, "config": config}))
    assert fit(tmp_path / "run").progress == result.progress
    (tmp_path / "run/config.json").write_text(json.dumps({**config, "base": "other"}))
    with pytest.raises(ValueError, match="base: 'other' there"):
        fit(tmp_path / "run")


def test_state_that_the_model_lacks_is_named(tmp_path):
    settings = {"epochs": 1}
    fit(tmp_path, trainer(**settings))
    (tmp_path / "result.json").unlink()
    made = trainer(**settings)
    del made.frozen["block/calls"]
    with pytest.raises(ValueError, match="state that the model lacks: \\['block/calls'\\]"):
        fit(tmp_path, made)


def test_fingerprints_of_trained_models_see_statistics_and_no_counts(whole):
    _, made, result = whole
    prints = made.fingerprints(result.best)
    counted = {**result.best, "block/drop/rngs/count": jnp.uint32(5)}
    assert made.fingerprints(counted) == prints
    changed = {**result.best, "block/norm/mean": result.best["block/norm/mean"] + 1}
    assert made.fingerprints(changed)["weights"] != prints["weights"]


def test_warm_starts_take_the_factors_only(whole):
    folder, made, result = whole
    started = made.started(str(folder))
    assert set(started) == set(made.trainable)
    assert_same(
        {p: np.asarray(v) for p, v in started.items() if "lora" in p},
        {p: np.asarray(v) for p, v in result.best.items() if "lora" in p},
    )
    assert flat(made.model(started))["block/calls"] == 0
