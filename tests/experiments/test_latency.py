"""The latency measurement: its record, resuming, intervals, and the merged program."""

from __future__ import annotations

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from flax import nnx
from scipy import optimize, stats

from configs.latency import gpt2_medium, gpt2_small
from experiments.latency import (
    contenders,
    measure,
    programs,
    trials,
)
from experiments.paper import latency as paper
from experiments.reproduce import outcome
from experiments.reproduce.catalogue import catalogue
from experiments.runs import intervals
from lora_jax import methods, partition
from lora_jax.errors import FileError, InputError
from lora_jax.models.gpt2 import GPT2, SIZES, GPT2Config

NAMES = ["base", "merged", "unmerged", "pool", "adapter_h", "adapter_l"]
FIGURE_5 = [f"Adapter {kind}, r = {size}" for kind in "HL" for size in (2,)]


def tiny(**fields):
    """A config of two points and three trials."""
    config = gpt2_small.get_config()
    config.model.update(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=16)
    config.adapters.adapter_h.size = config.adapters.adapter_l.size = 3
    config.bottlenecks, config.batch_sizes, config.lengths, config.trials = (2,), (1, 2), (8,), 3
    with config.ignore_type():
        for name, value in fields.items():
            config.update_from_flattened_dict({name: value})
    return config


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("latency")
    return measure.measure(tiny(), workdir), workdir


@pytest.fixture(scope="module")
def made():
    return contenders.make(tiny())


def test_slow_downs_are_scores_of_experiments_reproduce(measured):
    record, workdir = measured
    item = dataclasses.replace(catalogue()["table_1/gpt2_small/grid"], metrics=("2 x 8: pool",))
    found = outcome.read(item, workdir)
    slower = record["points"][1]["contenders"]["pool"]["slow_down"]["value"]
    assert found.scores == {"2 x 8: pool": (slower,)}
    assert found.versions["jax"] == jax.__version__ and found.on.startswith("1 x cpu")
    with pytest.raises(FileError, match=r"latency.json, points: found no '4 x 8: pool'"):
        outcome.read(dataclasses.replace(item, metrics=("4 x 8: pool",)), workdir)


def test_record_tables_and_picture(measured):
    record, workdir = measured
    assert json.loads((workdir / "latency.json").read_text()) == json.loads(json.dumps(record))
    assert [(p["batch"], p["length"]) for p in record["points"]] == [(1, 8), (2, 8)]
    assert list(record["contenders"]) == NAMES + FIGURE_5
    for point in record["points"]:
        for name, figures in point["contenders"].items():
            assert figures["mean_ms"]["value"] > 0 and figures["mean_ms"]["half"] > 0
            assert (figures["slow_down"] is None) == (name == "base")
    lines = [json.loads(line) for line in (workdir / "trials.jsonl").read_text().splitlines()]
    assert [line["seconds"].keys() == {*NAMES, *FIGURE_5} for line in lines] == [True, True]
    assert {len(rounds) for line in lines for rounds in line["seconds"].values()} == {3}
    text = (workdir / "latency.md").read_text()
    for name in ("figures/slow_down.png", "figures/figure_5.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG") and f"]({name})" in text
    assert "mean of 3 trials" in text
    assert "here it is a GPT-2 of 2 layers, 16 wide, 50 tokens, with random weights" in text
    assert "(StableHLO): **equal at 2 of 2 points**" in text
    tabled = [line for line in text.splitlines() if re.match(r"\| [12] x 8 \|", line)]
    with_halves = [2 * len(FIGURE_5) + 1, 2 * len(NAMES) - 1]  # of Figure 5, and of the others
    counts = [line.count("±") for line in tabled]
    assert counts == [n for count in with_halves for n in (count, count, 0, 0)]  # then medians
    assert text.split("## Figure 5")[0].count("| adapter_h |") == 1 and "| Adapter H, r" in text


def test_the_merged_program_is_the_base_and_the_others_are_not(measured, made):
    record, _ = measured
    assert record["merged_is_base"] == {"lowered": True, "compiled": True}
    for point in record["points"]:
        for kind in ("lowered", "compiled"):
            assert len(set(point["programs"][f"{kind}_sha256"])) == 1
    tokens = programs.random_tokens(2, 8, made.vocabulary, "all", 0)
    other = programs.compared(made.base, made.by_name["unmerged"].call, tokens)
    assert not other["lowered_equal"] and not other["compiled_equal"]
    base, merged = (np.asarray(program(tokens)) for program in (made.base, made.merged))
    assert np.abs(base - merged).max() > 1e-3  # other weights, or the proof is of nothing


def test_what_the_contenders_compute(made):
    """Merged and unmerged are one adapter; in the pool row 0 has that one, and row 1 another."""
    tokens = programs.random_tokens(2, 8, made.vocabulary, "all", 0)
    logits = {n: np.asarray(made.by_name[n].call(tokens)).reshape(2, 8, -1) for n in NAMES}
    np.testing.assert_allclose(logits["unmerged"], logits["merged"], atol=1e-5)
    np.testing.assert_allclose(logits["pool"][0], logits["merged"][0], atol=1e-5)
    for name in ("merged", "base"):
        assert np.abs(logits["pool"][1] - logits[name][1]).max() > 1e-3
    last = programs.random_tokens(2, 8, made.vocabulary, "last", 0)
    np.testing.assert_allclose(made.base(last), logits["base"][:, -1], atol=1e-5)


def test_bfloat16_is_that_of_all_weights():
    config = tiny(base_dtype="bfloat16")
    found = contenders.make(config)
    for name in ("base", "merged", "unmerged", "adapter_h"):
        params = found.by_name[name].call.params
        assert {str(leaf.dtype) for leaf in params.values()} == {"bfloat16"}, name
    tokens = programs.random_tokens(2, 8, found.vocabulary, "all", 0)
    assert programs.compared(found.base, found.merged, tokens)["lowered_equal"]
    assert np.isfinite(np.asarray(found.by_name["pool"].call(tokens))).all()


def test_points_that_are_there_are_not_timed_again(measured, tmp_path, monkeypatch):
    _, workdir = measured
    lines = (workdir / "trials.jsonl").read_text().splitlines()
    (tmp_path / "config.json").write_bytes((workdir / "config.json").read_bytes())
    (tmp_path / "trials.jsonl").write_text(f'{lines[0]}\nno JSON\n{{"batch": 2}}\n{lines[1][:40]}')
    asked = []
    timed = trials.timed
    monkeypatch.setattr(trials, "timed", lambda *args: asked.append(args) or timed(*args))
    record = measure.measure(tiny(), tmp_path)
    assert len(asked) == 1  # the second point
    assert (tmp_path / "trials.jsonl.damaged").exists()
    assert json.loads((tmp_path / "trials.jsonl").read_text().splitlines()[0]) == json.loads(
        lines[0]
    )
    (tmp_path / "latency.md").unlink()
    again = measure.measure(tiny(), tmp_path)
    assert len(asked) == 1 and again == record and (tmp_path / "latency.md").exists()
    with pytest.raises(InputError, match=r"another config \(trials: 3 there, 4 now\). Use another"):
        measure.measure(tiny(trials=4), tmp_path)
    monkeypatch.setattr(measure, "_environment", lambda: {"device": {"kind": "TPU v9"}})
    with pytest.raises(InputError, match="another machine or version of JAX .*TPU v9.* now"):
        measure.measure(tiny(), tmp_path)


def test_rounds_are_interleaved_and_the_first_call_is_not_timed():
    called, ticks = [], []
    calls = {name: lambda name=name: called.append(name) for name in "abc"}
    seconds = trials.timed(calls, 20, np.random.default_rng(0), lambda: ticks.append(1))
    assert called[:3] == list("abc") and len(called) == 3 + 60 and len(ticks) == 20
    rounds = ["".join(called[i : i + 3]) for i in range(3, 63, 3)]
    assert {"".join(sorted(r)) for r in rounds} == {"abc"} and len(set(rounds)) > 3
    assert [len(seconds[name]) for name in "abc"] == [20, 20, 20]


def test_intervals_against_scipy():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=40)  # of the round, for both
    x = 10 + noise + rng.normal(scale=0.3, size=40)
    y = 12 + 1.2 * noise + rng.normal(scale=0.3, size=40)
    low, high = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    value, half = intervals.mean(list(x))
    np.testing.assert_allclose([value - half, value + half], [low, high])
    # Fieller: the ratios R that a paired test does not reject
    ends = [
        optimize.brentq(lambda r: stats.ttest_1samp(y - r * x, 0).pvalue - 0.05, *bracket)
        for bracket in ((1.1, y.mean() / x.mean()), (y.mean() / x.mean(), 1.3))
    ]
    value, half = intervals.slow_down(list(y), list(x))
    np.testing.assert_allclose([1 + value - half, 1 + value + half], ends, rtol=2e-4)
    assert value == pytest.approx(y.mean() / x.mean() - 1)
    assert intervals.slow_down(list(x), list(x)) == (0, 0)


def test_the_interval_of_a_slow_down_covers_the_truth():
    rng = np.random.default_rng(1)
    noise = rng.gamma(2.0, 0.5, size=(1000, 30))  # of a machine that others use
    x, y = (scale * (5 + noise + rng.gamma(2.0, 0.2, size=noise.shape)) for scale in (1.0, 1.1))
    found = [intervals.slow_down(list(b), list(a)) for a, b in zip(x, y, strict=True)]
    assert 0.92 < np.mean([abs(value - 0.1) < half for value, half in found]) < 0.98


def _values(method, sizes):
    """Values that a method adds to a GPT-2, and those of the GPT-2."""
    base = nnx.eval_shape(lambda: GPT2(sizes, nnx.Rngs(0)))
    adapted = nnx.eval_shape(lambda: method.insert(base, jax.random.key(0)))
    count = partition.count(partition.parameters(base))
    return partition.count(partition.parameters(adapted)) - count, count


def test_values_are_those_of_table_1():
    """11M and 0.5M, in the sizes nearest to them; LoRA r = 4 on W_q and W_v."""
    config = gpt2_medium.get_config()
    sizes = GPT2Config(**{k: v for k, v in config.model.items() if k != "name"})
    assert sizes == SIZES[paper.MODEL]
    expected = {"adapter_h": 11_064_576, "adapter_l": 11_089_152, "adapter_h_small": 540_912,
                "adapter_l_small": 516_312}  # fmt: skip
    for name, method in contenders.check(config).items():
        values, base = _values(method, sizes)
        assert values == expected[name] and base == paper.VALUES
        assert f"{values:,}" in gpt2_medium.__doc__
        goal = 0.5e6 if "small" in name else 11.09e6  # as Table 3 prints 11M
        arguments = config.adapters[name].to_dict()
        for size in (arguments["size"] - 1, arguments["size"] + 1):
            other, _ = _values(methods.create(**{**arguments, "size": size}), sizes)
            assert abs(values - goal) < abs(other - goal)
    assert _values(methods.create(**config.method.to_dict()), sizes)[0] == 393_216
    places = {(b, n) for b in config.batch_sizes for n in config.lengths}
    assert len(places) == 18 and places > {(p.batch, p.length) for p in paper.TABLE_1}
    assert config.trials == 100 and contenders.check(gpt2_small.get_config()).keys() == {
        "adapter_h", "adapter_l"
    }  # fmt: skip


WRONG = [
    ("batch_sizes", (0,), "config.batch_sizes must be a tuple"),
    ("bottlenecks", (0,), r"config.bottlenecks must be a tuple.* \(\) for no Figure 5"),
    ("bottlenecks", (3, 3), "all different"),
    ("adapters", {"Adapter H, r = 2": {"name": "bitfit"}}, "r = 2: the name is taken"),
    ("batch_sizes", (2, 2), "all different"),
    ("lengths", (), "config.lengths must be"),
    ("lengths", (8, 32), "config.lengths has 32, and the model takes 16"),
    ("trials", 1, "config.trials must be an integer from 2"),
    ("outputs", "first", "config.outputs must be 'all'"),
    ("base_dtype", "float16", "config.base_dtype must be"),
    ("seed", -1, "config.seed must be"),
    ("model.n_head", 3, "n_embd 16 is not divisible by n_head 3"),
    ("model.n_embd", 0, "config.model.n_embd must be"),
    ("model.n_layer", 0, "config.model.n_layer"),
    ("model.vocab_size", 1, "config.model.vocab_size"),
    ("model.n_positions", 0, "config.model.n_positions"),
    ("model.name", 3, "config.model.name must be"),
    ("method.name", "bitfit", "other methods go into config.adapters"),
    ("method.rank", 0, "rank must be"),
    ("method.targets", ".*/query", "query"),
    ("adapters.adapter_h.size", 0, "size must be"),
    ("adapters.adapter_h.name", "adapter_x", "unknown method 'adapter_x'"),
    ("adapters.adapter_h.width", 3, "unknown \\['width'\\]"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG, ids=lambda value: repr(value)[:24])
def test_what_is_wrong_is_refused_before_there_is_a_folder(tmp_path, name, value, message):
    config = tiny()
    with config.ignore_type(), config.unlocked():
        *parents, last = name.split(".")
        at = config
        for parent in parents:
            at = at[parent]
        at[last] = value
    with pytest.raises((InputError, TypeError), match=message):
        measure.measure(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_names_that_are_taken_and_fields_that_are_not_known(tmp_path):
    config = tiny()
    with config.unlocked():
        config.adapters.pool = config.adapters.adapter_h
    with pytest.raises(InputError, match="config.adapters.pool: the name is taken, as are base"):
        measure.measure(config, tmp_path / "new")
    config = tiny()
    with config.unlocked():
        config.trails = 3
    with pytest.raises(InputError, match="unknown field 'trails'"):
        measure.measure(config, tmp_path / "new")
