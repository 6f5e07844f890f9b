"""Sweeps on tiny models: every point is the run that its own experiment makes of it alone.

The compiler batches the products of several runs, so sums may be taken in another order: some units
of float32's last place, 1e-7 of a value. Eight steps of AdamW leave losses and scores within 1e-5.
"""

import functools
import json

import numpy as np
import pytest

from experiments import glue
from experiments.runs.decoding import Decoding
from experiments.sweep.folder import SweepFolder
from experiments.sweep.local import planned, run_sweep
from experiments.sweep.memory import Memory
from experiments.sweep.points import points
from experiments.sweep.shared_base import SharedBase
from lora_jax.adapters import load_adapter
from lora_jax.metrics import files
from lora_jax.sweeps import capacity
from tests.experiments.sweep_runs import (
    STEPS,
    alone,
    assert_same,
    factors,
    glue_sweep,
    lines,
    losses,
    nlg_sweep,
    record,
)  # fmt: skip

QUERY_VALUE = ".*/attention/(query|value)"
# Two steps on batches of one shape, where there are other things to look at than training.
SHORT = {
    "epochs": 1, "batch_size": 8, "data__max_examples": 16, "data__row_length": 48,
    "data__max_eval_examples": 8,
}  # fmt: skip
OTHER = {
    "method": {
        "rank": (2,), "alpha": (32.0,), "scaling": ("alpha/sqrt(r)",), "dropout": (0.2,),
        "init": ("gaussian",), "std": (0.3,),
    },
    "learning_rate": (0.03,), "seeds": (2,),
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("no_java")


class Sweep:
    """A finished sweep, and its runs alone as tests ask for them."""

    def __init__(self, config, root):
        self.config, self.root, self.workdir = config, root, root / "sweep"
        run_sweep(config, self.workdir)
        self.points = {path.name: path for path in (self.workdir / "points").iterdir()}
        self.programs = json.loads((self.workdir / "plan.json").read_text())

    def alone(self, name):
        """The folder of the run alone; it is made once."""
        return alone(self.points[name], self.root / "alone" / name)

    def one(self, text):
        """The name of the only point whose name has this text."""
        (name,) = (name for name in self.points if text in name)
        return name


@pytest.fixture(scope="module")
def own_orders(tiny_model, tiny_glue, tmp_path_factory):
    """RTE with an order of the examples for each seed: five points in programs of three."""
    grids = {"a": {"method": {"rank": (1, 3)}, "seeds": (0, 1)}, "b": OTHER}
    config = glue_sweep(tiny_model, tiny_glue, grids, runs=3)
    return Sweep(config, tmp_path_factory.mktemp("own_orders"))


@pytest.fixture(scope="module")
def one_order(tiny_model, tiny_glue, tmp_path_factory):
    """STS-B with the same batches for all, one of which ends at once: three points, two at a time."""
    grids = {
        "a": {"method": {"rank": (1,)}, "seeds": (0,)},
        "b": OTHER,
        "c": {"learning_rate": (1e30,), "seeds": (1,)},
    }
    config = glue_sweep(tiny_model, tiny_glue, grids, "stsb", runs=2, data__order_seed=0)
    return Sweep(config, tmp_path_factory.mktemp("one_order"))


OWN_ORDERS = ["rank=1,seed=0", "rank=3,seed=1", "rank=2,seed=2"]


@pytest.mark.parametrize("name", OWN_ORDERS)
def test_a_point_with_an_order_of_its_own_is_the_run_alone(own_orders, name):
    point = own_orders.one(name + ",")
    assert_same(own_orders.points[point], own_orders.alone(point))
    assert len(losses(own_orders.points[point])) == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rank=1,seed=0", "rank=2,seed=2"])
def test_a_point_with_the_batches_of_all_is_the_run_alone(one_order, name):
    point = one_order.one(name + ",")
    assert_same(one_order.points[point], one_order.alone(point))


def test_a_run_that_diverges_has_the_record_it_has_alone(one_order):
    """The others' equality with their runs alone says that it does not touch them."""
    point = one_order.points[one_order.one("learning_rate=1e+30")]
    (seed,) = record(point)["seeds"].values()
    assert 0 < seed["diverged"] < STEPS and seed["step"] == seed["diverged"]
    assert not seed["history"] and seed["best"] is None and lines(point)[-1]["loss"] is None
    other = alone(point, one_order.root / "alone" / point.name)
    for key in ("step", "diverged", "history", "best", "last", "best_epoch", "examples"):
        assert record(other)["seeds"]["1"][key] == seed[key], key
    assert [line["step"] for line in lines(point)] == [line["step"] for line in lines(other)]
    statuses = {
        status.name: status
        for status in SweepFolder(one_order.workdir, one_order.config).statuses(
            points(one_order.config)
        )
    }
    states = [statuses[name].state for name in one_order.points]
    assert sorted(states) == ["diverged", "finished", "finished"]
    assert statuses[point.name].state == "diverged"


def test_the_points_differ(own_orders):
    """Equality with the runs alone is worth something only if these are all different."""
    curves = [losses(point) for point in own_orders.points.values()]
    for i, one in enumerate(curves):
        for other in curves[:i]:
            assert np.max(np.abs(np.subtract(one, other))) > 2e-5  # runs alone: 1e-5


def test_the_plan_has_few_programs_of_one_size(own_orders):
    assert [program["runs"] for program in own_orders.programs] == [3, 3]
    assert [len(program["points"]) for program in own_orders.programs] == [3, 2]
    for program in own_orders.programs:
        for name in program["points"]:
            (seed,) = record(own_orders.points[name])["seeds"].values()
            notes = {"program": program["name"], "runs": 3, "points": len(program["points"])}
            assert seed["sweep"] == notes
    # Nothing is left of the runs that filled up, nor of files that were written beside.
    assert len(own_orders.points) == 5 and not list(own_orders.workdir.rglob(".*"))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_an_adapter_has_its_own_rank_and_is_read_as_any_other(own_orders, rank, tmp_path):
    point = own_orders.points[sorted(n for n in own_orders.points if f"rank={rank}," in n)[0]]
    result = record(point)
    adapter = load_adapter(point / "adapter")
    shapes = {p: v.shape for p, v in adapter.values.items() if p.endswith("/a")}
    assert shapes and {min(shape[1:]) for shape in shapes.values()} == {rank}
    (target,) = adapter.method.to_json()[0]["arguments"]["targets"].values()
    assert target["rank"] == rank and result["config"]["method"]["rank"] == rank
    assert result["parameters"]["lora"] == 2 * 2 * 2 * 32 * rank
    config = points(own_orders.config)[0].config
    config.update(json.loads((point / "config.json").read_text()))
    config.eval_only, config.adapter = True, str(point)
    best = {name: value["values"][0] for name, value in result["best"].items()}
    assert glue.evaluate(config, tmp_path) == pytest.approx(best, abs=1e-6)


def test_what_tokens_and_times_of_a_record_say(own_orders):
    """Tokens are the program's mean; its time is shared out over its points."""
    for name in OWN_ORDERS[:1]:
        point = own_orders.one(name + ",")
        one, other = (record(f) for f in (own_orders.points[point], own_orders.alone(point)))
        (one,), (other,) = one["seeds"].values(), other["seeds"].values()
        assert abs(one["tokens"] - other["tokens"]) <= STEPS  # rounded once a step
        assert one["examples"] == other["examples"] == 2 * 60
        assert one["slots"] >= other["slots"] and one["flops"] >= other["flops"] > 0
        assert one["seconds"] > 0 and one["compile_seconds"] > 0


@pytest.fixture(scope="module")
def mixed(tiny_model, tiny_glue, tmp_path_factory):
    """BitFit, and LoRA on two sets of targets: three groups."""
    lora = {"name": ("lora",), "targets": (QUERY_VALUE, ".*/up"), "rank": (1, 2)}
    grids = {"a": {"method": {"name": ("bitfit",)}}, "b": {"method": lora}}
    config = glue_sweep(tiny_model, tiny_glue, grids, method="full", **SHORT)
    return Sweep(config, tmp_path_factory.mktemp("mixed"))


def test_other_methods_and_targets_are_groups_of_their_own(mixed):
    assert [len(program["points"]) for program in mixed.programs] == [1, 2, 2]
    assert [program["name"] for program in mixed.programs] == ["000", "001", "002"]
    found = {name: record(point) for name, point in mixed.points.items()}
    assert {result["method"] for result in found.values()} == {"bitfit", "lora"}
    counts = [result["parameters"].get("lora") for result in found.values()]
    assert len({count for count in counts if count}) == 4


@pytest.mark.parametrize("text", [pytest.param("name=bitfit", marks=pytest.mark.slow), "up,rank=2"])
def test_a_point_of_any_method_is_the_run_alone(mixed, text):
    names = [name for name in mixed.points if all(part in name for part in text.split(","))]
    assert len(names) == 1
    assert_same(mixed.points[names[0]], mixed.alone(names[0]))


def test_warm_starts_are_those_of_the_runs_alone(mixed, tiny_model, tiny_glue, tmp_path):
    start = next(p for name, p in mixed.points.items() if "query" in name and "rank=2" in name)
    (settings,) = (
        load_adapter(start / "adapter").method.to_json()[0]["arguments"]["targets"].values()
    )
    alpha = settings["alpha"]
    grids = {"a": {"learning_rate": (0.02, 0.01), "init_adapter": (str(start),)}}
    config = glue_sweep(tiny_model, tiny_glue, grids, **SHORT, method__rank=2, method__alpha=alpha)
    config.labels = (("mixed", str(start)),)
    sweep = Sweep(config, tmp_path)
    assert len(sweep.points) == 2
    for name, point in sweep.points.items():
        assert "init_adapter=mixed" in name and record(point)["warm_start"] == str(start)
    name = sweep.one("learning_rate=0.01")
    assert_same(sweep.points[name], sweep.alone(name))
    # Training from where the other run ended, and not from A drawn anew.
    key = "encoder/layers/block/attention/query/lora/a"
    factor, other = (factors(point)[key] for point in (sweep.points[name], start))
    assert 0 < np.abs(factor - other).max() < 0.1 < np.abs(other).max()
    others = {"a": {"method": {"alpha": (alpha, 2 * alpha)}, "init_adapter": (str(start),)}}
    config = glue_sweep(tiny_model, tiny_glue, others, **SHORT, method__rank=2)
    config.labels = (("mixed", str(start)),)
    with pytest.raises(ValueError, match="its update would be 2 times what was trained"):
        Sweep(config, tmp_path / "alphas")


@pytest.fixture
def seeds(tiny_model, tiny_glue):
    """Five seeds, measured: how many runs fit is not given."""
    grids = {"a": {"seeds": (0, 1, 2, 3, 4)}}
    return glue_sweep(tiny_model, tiny_glue, grids, runs=0, **SHORT)


@pytest.mark.slow
def test_as_many_runs_as_the_memory_holds(seeds, tmp_path, monkeypatch):
    measure = functools.cache(Memory.needed_bytes)
    base = SharedBase("glue", points(seeds))
    base.widest.at_once = 0  # as on accelerators; in a loop over runs activations are those of one
    memory = Memory(base)
    needs = [measure(memory, count) for count in (1, 2, 3)]
    frozen, slope = memory.frozen_bytes(), needs[1] - needs[0]
    # Three really need what the line through one and two says.
    assert slope > 0 and abs(needs[2] - needs[1] - slope) < 0.1 * slope
    monkeypatch.setattr(Memory, "needed_bytes", lambda self, count: measure(memory, count))
    for free, runs in ((2**40, 5), *((needs[0] + (n - 0.5) * slope, n) for n in (4, 2, 1, 3))):
        monkeypatch.setattr(capacity, "free_bytes", lambda device, left=int(free) - frozen: left)
        assert memory.runs_that_fit() == runs
    run_sweep(seeds, tmp_path)
    programs = json.loads((tmp_path / "plan.json").read_text())
    assert [(len(p["points"]), p["runs"]) for p in programs] == [(3, 3), (2, 3)]
    assert len(list((tmp_path / "points").glob("*/result.json"))) == 5


def test_too_little_memory_for_one_run(seeds, tmp_path, monkeypatch):
    monkeypatch.setattr(capacity, "free_bytes", lambda device: 2**20)
    monkeypatch.setattr(Memory, "needed_bytes", lambda self, count: 3 * 2**30)
    says = (
        r"a program with 1 run needs 3.00 GiB of each device, 0.00 GiB are free; choose a smaller"
    )
    with pytest.raises(ValueError, match=says):
        run_sweep(seeds, tmp_path)
    assert not list(tmp_path.glob("points/*")) and not (tmp_path / "plan.json").exists()


def test_a_plan_without_the_device_needs_a_number(seeds, tmp_path):
    folder = SweepFolder(tmp_path, seeds)
    with pytest.raises(ValueError, match="config.runs_per_program is 0"):
        planned(seeds, folder, points(seeds))
    seeds.runs_per_program = 2
    programs = planned(seeds, folder, points(seeds))
    assert [len(program.points) for program in programs] == [2, 2, 1]
    assert planned(seeds, folder, points(seeds)) == programs


@pytest.fixture(scope="module")
def texts(tiny_nlg, tmp_path_factory):
    """E2E at two ranks, and how many beam searches were compiled."""
    searches = []
    search = Decoding._search

    def kept(self, *arguments):
        searches.append(search(self, *arguments))
        return searches[-1]

    config = nlg_sweep(tiny_nlg, {"a": {"method": {"rank": (1, 4)}}}, data__row_length=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoding, "_search", kept)
        sweep = Sweep(config, tmp_path_factory.mktemp("texts"))
    return sweep, searches


@pytest.mark.parametrize("rank", [1])  # the one that is padded
def test_texts_and_scores_are_those_of_the_run_alone(texts, rank):
    sweep, _ = texts
    name = f"rank={rank}"
    point, other = sweep.points[name], sweep.alone(name)
    assert_same(point, other)
    assert record(point)["test"] == record(other)["test"]
    for file in ("predictions.txt", "references.txt"):
        one, two = (folder / "seed_0" / file for folder in (point, other))
        assert one.read_bytes() == two.read_bytes()
    assert len(files.read_hypotheses(point / "seed_0/predictions.txt")) == 7


def test_one_beam_search_serves_all_runs(texts):
    _, searches = texts
    assert len(searches) == 2 and searches[0] is searches[1]
    assert searches[0]._cache_size() <= 2  # prompts of different lengths


def test_an_unknown_experiment(seeds, tmp_path):
    seeds.experiment = "glew"
    with pytest.raises(ValueError, match="config.experiment must be 'glue', .*got 'glew'"):
        run_sweep(seeds, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()
