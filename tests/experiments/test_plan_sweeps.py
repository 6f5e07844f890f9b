"""Plans of sweeps: a program of several runs of a small model beside one run at a time."""

from __future__ import annotations

import dataclasses
import json

import jax
import pytest

from configs.pod import gpt2_large_sweep, gpt3_175b_sweep
from experiments.plan import abstract_step, tables
from experiments.plan.figures import StepFigures
from experiments.plan.planner import Planner
from experiments.plan.report import report, runs_of, search
from experiments.plan.variants import configured
from lora_jax.costs import compiled
from lora_jax.models import gpt2
from lora_jax.sharding.mesh import make_mesh

TOPOLOGY = "v5e:2x2"


@pytest.fixture(scope="module", autouse=True)
def small_models(optimised):
    """The configs' models by name, with small sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")
        patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        small = gpt2.GPT2Config(256, 3, 4, vocab_size=1003, n_positions=256)
        for name in ("gpt2-large", "gpt3-175b"):
            patch.setitem(gpt2.SIZES, name, small)
        yield


def small_plan(module, **mesh):
    config = module.get_config()
    config.rows, config.length, config.outputs = 8, 128, 16
    config.mesh.update({"run": 1, "data": 1, "fsdp": 1, "model": 1, **mesh})
    return config


@pytest.fixture
def sweep(tmp_path):
    """A planner of 4 runs of rank 4."""
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu")
    config = small_plan(gpt2_large_sweep, fsdp=2, model=2)
    config.runs, config.method.rank = 4, 4
    return Planner(config, TOPOLOGY, tmp_path)


def steps_of(planner, runs, **mesh):
    """The abstract steps of several runs and of one."""
    config = planner.config
    method = configured(config, None)
    over = make_mesh(mesh, planner.devices)
    alone = make_mesh({"fsdp": 2, "model": 2}, planner.devices)
    several = abstract_step.build_runs(config, method, over, 8, runs)
    return several, abstract_step.build(config, method, alone, 8)


def bytes_of(step):
    return compiled.argument_bytes(step.arguments), compiled.argument_bytes(step.frozen)


FACTORS = 3 * 2 * 2 * 256 * 4  # layers x (q, v) x (a, b) x width x rank
BATCH = 4 * 8 // 2 * 128 * 4 + 4 * 8 * 16 * 4  # rows over fsdp; slots whole
# rate, two scales, two dropout rates; two counters of the optimizer; a key of two words
NUMBERS = 4 * (1 + 2 + 2) + 4 * 2 + 8


def test_further_runs_add_factors_state_and_batch_and_no_base(sweep):
    """By hand: a is split over fsdp, b over model, so each device has half of a run's factors."""
    several, one = steps_of(sweep, 4, fsdp=2, model=2)
    (bytes_4, frozen), (bytes_1, same) = bytes_of(several), bytes_of(one)
    a_run = 3 * 4 * FACTORS // 2 + BATCH + NUMBERS
    alone, number = 4 * (1 + 2 + 2), 4  # only a program has a run's values, and the step's number
    assert bytes_4 == bytes_1 + 3 * a_run + alone + number
    assert frozen == same > 0
    assert several.trainable == 4 * one.trainable == 4 * FACTORS
    assert several.total == one.total + 3 * FACTORS
    assert several.flops == 4 * one.flops
    sweep.config.method.rank = 8  # runs of rank 4, padded: more products, and twice the factors
    padded, _ = steps_of(sweep, 4, fsdp=2, model=2)
    assert padded.flops > several.flops and padded.trainable == 2 * several.trainable
    sweep.config.orders = "shared"
    shared, _ = steps_of(sweep, 4, fsdp=2, model=2)
    assert bytes_of(padded)[0] - bytes_of(shared)[0] == 3 * BATCH


def test_the_axis_of_runs_splits_all_but_the_base(sweep):
    """All four runs on each device, two, one: the base is whole over the axis, whatever it costs."""
    sizes = {}
    for run in (1, 2, 4):
        step, _ = steps_of(sweep, 4, run=run, data=4 // run)
        sizes[run] = [compiled.argument_bytes(part) for part in step.arguments]
    trainable, state, values, frozen, _, keys, number = zip(*sizes.values(), strict=True)
    assert trainable == (16 * FACTORS, 8 * FACTORS, 4 * FACTORS)
    counters = [2 * 4 * runs for runs in (4, 2, 1)]  # of the optimizer, a word of every run
    assert list(state) == [2 * a + b for a, b in zip(trainable, counters, strict=True)]
    for part in (values, keys):
        assert part[0] == 2 * part[1] == 4 * part[2]
    assert frozen[0] == frozen[1] == frozen[2] and number == (4, 4, 4)


@pytest.mark.slow
def test_a_sweep_beside_one_run_at_a_time(sweep):
    config = sweep.config
    text = report(sweep, config, None)
    method = configured(config, None)
    program = sweep.figures(method, config.mesh.to_dict(), 8, 4)
    one = sweep.single(method, config.mesh.to_dict(), 8)
    keys = [json.loads(json.loads(k)["key"]) for k in sweep.path.read_text().splitlines()]
    assert len(keys) == 2  # the report compiled both
    _, plain, *_, sizes, rows = keys[0]  # as before there were sweeps, but for the compiler
    assert sizes == {"data": 1, "fsdp": 2, "model": 2} and rows == 8
    assert not {"mesh", "runs", "orders", "single_mesh", "search"} & plain.keys()
    assert keys[1][-2:] == [4, "own"]
    assert (program.runs, one.runs, program.tokens) == (4, 1, 4 * one.tokens)
    assert program.frozen == one.frozen and program.arguments < 4 * one.arguments
    assert program.traffic["all-gather"] < 4 * one.traffic["all-gather"]  # of a base that all share
    assert program.compute_seconds == pytest.approx(4 * one.compute_seconds)
    head = "| one step of all runs | 4 runs, one program | one run at a time | ratio |"
    assert head in text and "run=1, data=1, fsdp=2, model=2 (one run at a time: data=1, " in text
    assert f"| trained values | {4 * FACTORS:,} | {FACTORS:,} | 4.000 |" in text
    assert f"| PFLOP | {program.flops / 1e15:.4g} | {4 * one.flops / 1e15:.4g} | 1.000 |" in text
    saved = tables.size_text(3 * program.frozen), tables.size_text(12 * program.frozen)
    assert f"have it 4 times: {saved[0]} more on each device, {saved[1]} more on all 4." in text
    large = dataclasses.replace(program, fits=False, traffic={})
    text = tables.sweep_comparison(large, one, sweep.chip)
    gathered = tables.size_text(4 * one.traffic["all-gather"])
    assert f"| all-gather, sent per device | - | {gathered} | - |" in text
    assert f"at most, by products and links | - | {one.bound:,.0f} | - |" in text
    alone = dataclasses.replace(program, mesh={**program.mesh, "run": 4})
    assert "one run and" in tables.sweep_comparison(alone, one, sweep.chip)


def test_sweeps_that_cannot_be(sweep):
    method, sweep._compile = configured(sweep.config, None), None
    with pytest.raises(ValueError, match="run=4 does not divide the sweep's 6 runs"):
        sweep.figures(method, {"run": 4}, 8, 6)
    with pytest.raises(ValueError, match="this is one run: set config.runs to a multiple of 4"):
        sweep.figures(method, {"run": 4}, 8)
    with pytest.raises(ValueError, match="run=3 .* = 3 is not the number of devices, 4"):
        sweep.figures(method, {"run": 3}, 8, 3)
    assert sweep.single_mesh({"run": 2, "model": -1}) == {"data": 2, "fsdp": 1, "model": 2}
    with pytest.raises(ValueError, match="one run at a time: .*data x fsdp = 4 .*set config.sin"):
        sweep.single(method, {"run": -1}, 2)
    sweep.config.single_mesh.update({"data": 2, "model": 2})
    assert sweep.single_mesh({"run": -1}) == {"data": 2, "fsdp": 1, "model": 2}
    sweep.config.orders = "each"
    with pytest.raises(ValueError, match="config.orders must be own or shared, got 'each'"):
        sweep.figures(method, {"run": 4}, 8, 4)
    sweep.config.runs = -1
    with pytest.raises(ValueError, match="config.runs must be .*integer from 0 on, got -1"):
        runs_of(sweep.config)


@pytest.mark.slow
def test_a_search_of_sweeps(sweep):
    config = sweep.config
    config.search.update({"runs": (2, 1), "rows": (2,), "model": (1, 2), "run": ()})
    sweep.figures = lambda method, mesh, rows, runs: (mesh, rows, runs)
    method = configured(config, None)
    found = [(list(mesh.items()), runs) for mesh, _, runs in search(sweep, method)]
    rest = [[("data", 2), ("fsdp", 1), ("model", 2)], [("data", 1), ("fsdp", 2), ("model", 2)]]
    assert found == [  # two rows: data x fsdp is 2 at most
        ([("run", 2), ("data", 2), ("fsdp", 1), ("model", 1)], 2),
        ([("run", 2), ("data", 1), ("fsdp", 2), ("model", 1)], 2),
        ([("run", 1), *rest[0]], 2), ([("run", 1), *rest[1]], 2),
        ([("run", 2), ("data", 1), ("fsdp", 1), ("model", 2)], 2),
        (rest[0], 1), (rest[1], 1),
    ]  # fmt: skip


def test_the_ranking_of_sweeps_shows_runs():
    mesh = {"data": 4, "fsdp": 1, "model": 1}
    slow = StepFigures(
        topology=TOPOLOGY, devices=4, mesh=mesh, method="lora()", rows=4, tokens=400, trainable=1,
        total=2, arguments=1, temporaries=1, peak=2**30, fits=True, traffic={"all-gather": 2**20},
        flops=1, compute_seconds=2.0, link_seconds=1.0, compile_seconds=1.0,
    )  # fmt: skip
    fast = dataclasses.replace(slow, runs=8, mesh={"run": 4, **mesh}, tokens=8 * slow.tokens)
    head, _, *lines = tables.ranking([slow, fast]).splitlines()
    assert head.startswith("| run | data | fsdp | model | runs | rows | peak | fits |")
    assert lines[0] == "| 4 | 4 | 1 | 1 | 8 | 4 | 1.00 GiB | yes | 1.00 MiB | 1,600 | 1,067 |"
    assert lines[1].startswith("| 1 | 4 | 1 | 1 | 1 | 4 | ")
    assert "run" not in tables.ranking([slow])


def test_configs_of_the_sweeps():
    for module in (gpt2_large_sweep, gpt3_175b_sweep):
        config = small_plan(module)
        method = configured(config, None)
        step = abstract_step.build_runs(
            config, method, make_mesh({}, jax.devices()[:1]), 8, config.runs
        )
        one = abstract_step.build(config, method, make_mesh({}, jax.devices()[:1]), 8)
        assert step.trainable == config.runs * one.trainable and config.runs > 1
