"""A sweep on meshes of 8 devices gives what one device gives; runs are split and send nothing."""

import pytest

from experiments.sweep.local import run_sweep
from tests.experiments.sweep_runs import assert_same
from tests.sharding.sweep_on_meshes import GRIDS, MESHES, config

POINTS = [*(f"rank={rank},seed={seed}" for rank in (1, 4) for seed in (0, 1, 2)), "rank=2,seed=0"]
# Of the factors (of one run) and of the base's matrices, the least that a device holds.
WITHIN = {
    "run": (1, 1), "run x data": (1, 1), "run x fsdp x model": (1 / 2, 1 / 4)
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("no_java")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sweeps_on_meshes")


@pytest.fixture(scope="module")
def one(tiny_model, tiny_glue, folder):
    """The points of one device."""
    run_sweep(config(tiny_model, tiny_glue, {}), folder / "one")
    return folder / "one/points"


@pytest.fixture(scope="module")
def found(on_eight_devices, tiny_model, tiny_glue, folder):
    return on_eight_devices("sweep_on_meshes.py", str(tiny_model), str(tiny_glue), str(folder))


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_gives_what_one_device_gives(found, one, folder, mesh, point):
    """Rows and heads are summed in parts: float32 rounding. A dropout mask that differed would show."""
    assert set(POINTS) == {path.name for path in one.iterdir()} and GRIDS
    assert_same(folder / mesh / "points" / point, one / point, atol=1e-5)


@pytest.mark.parametrize("mesh", MESHES)
def test_factors_are_split_by_runs_and_the_base_is_not(found, mesh):
    seen, ways = found[mesh], MESHES[mesh]["run"]
    assert set(seen["runs"]) == {8} and set(seen["runs of a device"]) == {8 // ways}
    least, base = WITHIN[mesh]
    factors = [share for path, share in seen["factors"].items() if "/lora/" in path]
    assert factors and min(factors) == least / ways and max(factors) <= 1 / ways
    assert max(seen["moments"]) <= 1 / ways and set(seen["values"]) == {1 / ways}
    matrices = [share for path, share in seen["frozen"].items() if path.endswith("kernel")]
    assert matrices and min(matrices) == base  # less, were it split by runs
    # Every run has its own order of the examples, and its devices its batches.
    rows = MESHES[mesh].get("data", 1) * MESHES[mesh].get("fsdp", 1)
    assert seen["tokens"] == pytest.approx(1 / ways / rows)
    assert seen["stays"]


@pytest.mark.parametrize("mesh", MESHES)
def test_runs_send_each_other_nothing(found, mesh):
    """But for the losses and norms of 8 runs, which every host must see for its log.

    And, where `fsdp` splits the base, what the compiler makes of looking words up in a split table.
    """
    crossing = [(size, origin) for _, size, origin in found[mesh]["crossing"]]
    others = [
        collective for collective in crossing if "fsdp" not in mesh or "_take" not in collective[1]
    ]
    assert all(size <= 2 * 8 * 4 for size, _ in others), others
    assert len(crossing) - len(others) <= 2, crossing
    if mesh == "run":
        assert set(found[mesh]["kinds"]) <= {"all-gather"}
    else:
        assert "all-reduce" in found[mesh]["kinds"]


def test_how_many_fit_is_measured_on_a_mesh(found):
    """Seven points of different orders, on a mesh that takes runs in pairs."""
    assert found["fit"] == 8
