"""The experiment on pictures: digits, a whole run in small, its record, page and plot."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn.datasets import load_digits

from configs.vision import digits as configs
from experiments.vision import contenders, digits, measure, page
from experiments.vision.runs import Run
from lora_jax.errors import InputError
from lora_jax.run_folder import RESULT


def _config(argument="rotated,lora_2", **changes):
    config = configs.get_config(argument)
    config.model.width = 4
    config.data.update(size=8, pretrain_examples=100, train_examples=20, test_examples=1600)
    config.pretrain.epochs = 1
    config.update(
        learning_rates=(1e-2,), rate_seeds=1, seeds=(0, 1), epochs=1, batch_size=20, **changes
    )
    return config


def test_digits_are_turned_or_coloured_and_in_one_place_each():
    rotated = digits.load(_config("rotated"))
    coloured = digits.load(_config("recoloured"))
    parts = (rotated.pretrain, rotated.held_out, rotated.pool, rotated.test)
    assert [len(p.label) for p in parts] == [90, 10, 97, 1600]
    counts = np.bincount(np.concatenate([p.label for p in parts]), minlength=10)
    np.testing.assert_array_equal(counts, np.bincount(load_digits().target))
    np.testing.assert_array_equal(rotated.test.label, coloured.test.label)
    np.testing.assert_array_equal(rotated.pretrain.image, coloured.pretrain.image)
    # The original pixels, of which none was enlarged: a picture and its first task's turned by 90 degrees.
    raw = {one.tobytes() for one in (load_digits().images / 16).astype(np.float32)}
    assert all(one[..., 0].tobytes() in raw for one in rotated.pretrain.image)
    still = _config("rotated")
    still.data.jitter = 0.0
    turned = digits.load(still).test.image
    back = np.rot90(turned, -1, axes=(1, 2))[..., 0]
    assert np.mean([min(np.abs(np.frombuffer(r, np.float32) - one.ravel()).max() for r in raw) < 1e-5
                    for one in back[:5]]) == 1  # fmt: skip
    # Dark ink on light paper, of one colour each.
    corners = coloured.test.image[:, 0, 0]
    assert corners.min() > 0.55
    assert coloured.test.image.min() < 0.2
    assert np.std(corners, axis=1).mean() > 0.05
    train, rest = rotated.few(20, seed=1)
    assert (len(train.label), len(rest.label)) == (20, 77)
    other, _ = rotated.few(20, seed=2)
    assert not np.array_equal(train.label, other.label)


def test_a_whole_run_and_the_same_again(tmp_path):
    config = _config()
    record = measure.measure(config, tmp_path)
    (row,) = record["rows"]
    assert (row["method"], row["statistics"], row["rate"]) == ("lora_2", "stay", 1e-2)
    assert 0 <= row["accuracy"]["value"] <= 1
    assert 0 < row["relative_flops"] < 1
    assert row["adapter_bytes"] > 4 * row["trained"]
    assert len(record["runs"]) == 2
    text = (tmp_path / page.PAGE).read_text()
    assert "Rotated digits" in text and "| lora_2 |" in text
    assert (tmp_path / page.PLOT).stat().st_size > 10_000
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    # From the runs, if the record is lost, and from the record.
    (tmp_path / RESULT).unlink()
    again = measure.measure(_config(), tmp_path)
    assert json.loads(json.dumps(again["runs"])) == json.loads(json.dumps(record["runs"]))
    assert measure.measure(_config(), tmp_path)["rows"] == json.loads(json.dumps(again["rows"]))
    assert {p for p in tmp_path.rglob("*") if p.is_file()} == set(files)
    with pytest.raises(InputError, match="statistics: 'auto' there, 'move' now"):
        measure.measure(_config(statistics="move"), tmp_path)


def _run(rate, seed, validation):
    return Run(
        method="full", rate=rate, seed=seed, validation=validation, test=0.5, trained=10, adapter_bytes=1,
        seconds=1.0,
    )  # fmt: skip


def test_the_rate_is_chosen_by_validation_pictures():
    scores = {
        (1e-3, 0): 0.8,
        (1e-3, 1): 0.6,
        (1e-2, 0): 0.7,
        (1e-2, 1): 0.9,
        (0.1, 0): 0.99,
        (0.1, 1): math.nan,
    }
    runs = [_run(rate, seed, value) for (rate, seed), value in scores.items()]
    assert measure.best_rate(runs) == 1e-2
    assert measure.best_rate([_run(1e-2, 0, 0.5), _run(1e-3, 0, 0.5)]) == 1e-3
    assert measure.best_rate([_run(1e-2, 0, math.nan)]) is None


def test_what_is_wrong_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown task"):
        configs.get_config("upside")
    with pytest.raises(ValueError, match="unknown method"):
        configs.get_config("rotated,lora")
    with pytest.raises(InputError, match="no 'lora_0'"):
        measure.measure(_config(methods=("lora_0",)), tmp_path)
    config = _config()
    config.data.pretrain_examples = 180
    with pytest.raises(InputError, match="add up to 1800"):
        digits.load(config)
    config = _config()
    config.rate_seeds = 3
    with pytest.raises(InputError, match="rate_seeds is 3"):
        measure.measure(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_settings_of_statistics():
    moves = {n: contenders.statistics_move(n, "auto") for n in configs.ALL}
    assert {name for name, moving in moves.items() if moving} == {"norms", "full"}
    assert contenders.statistics_move("head", "move")
    assert not contenders.statistics_move("full", "stay")
