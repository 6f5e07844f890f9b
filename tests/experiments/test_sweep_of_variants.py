"""Sweeps over the methods after LoRA: every point is the run that its own experiment makes of it alone."""

import json

import numpy as np
import pytest

from experiments.sweep.local import run_sweep
from experiments.sweep.memory import Memory
from experiments.sweep.points import points
from experiments.sweep.shared_base import SharedBase
from lora_jax.adapters import load_adapter
from tests.experiments.sweep_runs import STEPS, alone, assert_same, glue_sweep, losses

QUERY_VALUE = ".*/attention/(query|value)"
SHORT = {"rank": (2,), "alpha": (4.0,)}
# By name: fields of LoRA's method, or a whole other one.
VARIANTS = {
    "pissa": {**SHORT, "init": ("pissa",)},
    "lora_ga": {**SHORT, "init": ("lora_ga",)},
    "lora_fa": {**SHORT, "gradient": ("lora_fa",)},
    "lora_pro": {**SHORT, "gradient": ("lora_pro",)},
    "lora_plus": {**SHORT, "b_rate": (4.0,)},
    "vera": {"name": "vera", "targets": QUERY_VALUE, "rank": 8},
    "adalora": {
        "name": "adalora", "targets": QUERY_VALUE, "rank": 4, "target_rank": 2, "warm_up": 2,
        "final": 2, "every": 1,
    },
    "ia3": {"name": "ia3", "targets": QUERY_VALUE},
}  # fmt: skip
pytestmark = pytest.mark.usefixtures("no_java")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_point_of_a_variant_is_the_run_alone(name, tiny_model, tiny_glue, tmp_path):
    method = VARIANTS[name]
    method = (method,) if "name" in method else method
    grid = {"method": method, "learning_rate": (0.003, 0.01), "seeds": (0, 1)}
    config = glue_sweep(tiny_model, tiny_glue, {"a": grid}, runs=4)
    run_sweep(config, tmp_path / "sweep")
    programs = json.loads((tmp_path / "sweep/plan.json").read_text())
    assert [program["runs"] for program in programs] == [4]  # rates and seeds are one program
    folders = sorted((tmp_path / "sweep/points").iterdir())
    assert len(folders) == 4
    point = next(p for p in folders if "learning_rate=0.01" in p.name and p.name.endswith("seed=1"))
    other = alone(point, tmp_path / "alone")
    assert_same(point, other, rtol=1e-4, atol=2e-5)  # some variants divide by small numbers
    assert len(losses(point)) == STEPS
    ours, theirs = load_adapter(point), load_adapter(other)
    assert ours.method.name == name and ours.state.keys() == theirs.state.keys()
    assert bool(ours.state) == (name in ("pissa", "lora_ga"))


@pytest.mark.parametrize("init", ["lora_ga", "pissa"])
@pytest.mark.slow
def test_a_point_that_starts_from_another_adapter_is_the_run_alone(
    init, tiny_model, tiny_glue, tmp_path
):
    """With the factors goes what is taken off of them: a fresh one would make another function of them."""
    grid = {"method": {**SHORT, "init": (init,)}}
    config = glue_sweep(tiny_model, tiny_glue, {"a": grid}, task="mnli", seeds=(1,))
    run_sweep(config, tmp_path / "first")
    (source,) = (tmp_path / "first/points").iterdir()
    grid = {**grid, "learning_rate": (0.003, 0.01)}
    config = glue_sweep(tiny_model, tiny_glue, {"a": grid}, init_adapter=str(source), seeds=(0,))
    run_sweep(config, tmp_path / "second")
    point = next(p for p in (tmp_path / "second/points").iterdir() if "0.01" in p.name)
    other = alone(point, tmp_path / "alone")
    assert_same(point, other, rtol=1e-4, atol=2e-5)
    started, here, there = (load_adapter(path).state for path in (source, point, other))
    assert started
    for path, value in started.items():
        np.testing.assert_array_equal(here[path], value)
        np.testing.assert_array_equal(there[path], value)


@pytest.mark.slow
def test_memory_counts_what_every_run_holds_of_its_own(tiny_model, tiny_glue):
    """LoRA-GA's starts are of a run's own data, so each run has its own."""
    grid = {"method": {**SHORT, "init": ("lora_ga",)}, "seeds": (0, 1)}
    base = SharedBase("glue", points(glue_sweep(tiny_model, tiny_glue, {"a": grid})))
    start = base.start(next(iter(base.points.values())))
    trained = sum(leaf.nbytes for leaf in start.trainable.values())
    fixed = sum(leaf.nbytes for leaf in start.values.fixed.values())
    assert fixed > 0
    memory = Memory(base)
    # The values that train with AdamW's two moments, and those that do not.
    assert memory.needed_bytes(4) - memory.needed_bytes(2) >= 2 * (3 * trained + fixed)
