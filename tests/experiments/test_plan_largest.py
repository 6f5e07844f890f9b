"""The largest batch that fits: found with few compilations, whatever the memory's course."""

from types import SimpleNamespace

import numpy as np
import pytest

from experiments.plan import largest
from experiments.plan.figures import StepFigures
from experiments.plan.variants import Variant
from lora_jax import methods
from lora_jax.costs import chips

VARIANT = Variant(name="lora, nf4", method=methods.full(), base_dtype="bfloat16")


class Counted:
    """A planner whose steps take `peak(rows)` bytes; counts what is compiled."""

    def __init__(self, peak, devices=1):
        self.peak, self.topology, self.tried = peak, f"rtx4090:{devices}", []
        self.chip, self.config = chips.by_name("rtx4090"), SimpleNamespace(length=2048)
        self.devices = list(range(devices))

    def figures(self, variant, mesh, rows):
        assert rows not in self.tried
        self.tried.append(rows)
        peak = int(self.peak(rows))
        return StepFigures(
            topology=self.topology, devices=len(self.devices), mesh=mesh, method="full", rows=rows,
            tokens=rows * 2048, trainable=1, total=1, arguments=2**30, temporaries=peak - 2**30,
            peak=peak, fits=peak <= self.chip.memory_bytes, traffic={}, flops=1, compute_seconds=1.0,
            link_seconds=0.0, compile_seconds=0.0,
        )  # fmt: skip


@pytest.fixture(autouse=True)
def shares(monkeypatch):
    monkeypatch.setattr(largest, "make_mesh", lambda mesh, devices: mesh)
    monkeypatch.setattr(largest, "shares", lambda mesh: mesh.get("data", 1))


@pytest.mark.parametrize("seed", range(8))
def test_the_boundary_is_found_on_rising_courses(seed):
    rng = np.random.default_rng(seed)
    base, slope = rng.uniform(1, 22) * 2**30, 2 ** rng.uniform(25, 32)
    steps = np.cumsum(rng.uniform(0.5, 1.5, 5000)) * slope  # uneven, but rising
    planner = Counted(lambda rows: base + steps[rows])
    found, beyond = largest.largest(planner, VARIANT, {})
    most = int(np.sum(base + steps[1:] <= planner.chip.memory_bytes))
    if most == 0:
        assert found.rows == 1 and not found.fits and beyond is None
    else:
        assert found.rows == most and found.fits and beyond.rows == most + 1 and not beyond.fits
    assert len(planner.tried) <= 16


def test_a_straight_line_takes_four_compilations():
    planner = Counted(lambda rows: 7 * 2**30 + rows * 2**30)
    found, beyond = largest.largest(planner, VARIANT, {})
    assert (found.rows, beyond.rows, planner.tried) == (16, 17, [1, 2, 16, 17])


def test_batches_are_multiples_of_the_devices_that_share_them():
    planner = Counted(lambda rows: 7 * 2**30 + rows * 2**30, devices=4)
    found, beyond = largest.largest(planner, VARIANT, {"data": 4})
    assert (found.rows, beyond.rows) == (16, 20)


def test_memory_that_does_not_grow_ends_at_the_limit():
    planner = Counted(lambda rows: 2**30)
    found, beyond = largest.largest(planner, VARIANT, {})
    assert (found.rows, beyond, planner.tried) == (4096, None, [1, 2, 4096])


def test_the_table():
    planner = Counted(lambda rows: 7 * 2**30 + rows * 2**30)
    text = largest.report_largest(planner, [VARIANT], {})
    assert (
        "| lora, nf4 | 1.00 GiB | 16 x 2048 | 23.00 GiB | 32,768 | 17 x 2048: 24.00 GiB |" in text
    )
    none = largest.report_largest(Counted(lambda rows: 2**36), [VARIANT], {})
    assert "| lora, nf4 | 1.00 GiB | none | - | - | 1 x 2048: 64.00 GiB |" in none
