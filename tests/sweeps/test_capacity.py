"""How many runs fit: against the closed form of a straight line, and what is said to be free."""

import math
import os
import types

import jax
import pytest

from lora_jax.sweeps import capacity


@pytest.mark.parametrize("step", [1, 2, 4])
@pytest.mark.parametrize("wanted", [1, 3, 8, 100])
@pytest.mark.parametrize("base, each", [(0, 7), (100, 7), (1000, 1), (1000, 333)])
def test_the_most_runs_of_a_straight_line(base, each, wanted, step):
    asked = []

    def needed(runs):
        asked.append(runs)
        return base + each * runs

    for budget in range(base + each * step, base + each * 40, 13):
        asked.clear()
        found = capacity.fitting(needed, budget, step, wanted)
        fit = (budget - base) // each
        assert found == min(fit // step, math.ceil(wanted / step)) * step
        assert found % step == 0 and found >= step and found < wanted + step
        assert asked in ([step], [step, 2 * step])  # a program is compiled for each
        assert base + each * found <= budget


def test_one_run_more_would_not_fit():
    line = lambda runs: 10 + 5 * runs  # noqa: E731
    for budget in range(15, 200):
        found = capacity.fitting(line, budget, 1, 1000)
        assert line(found) <= budget < line(found + 1)


def test_only_as_many_programs_are_measured_as_are_needed():
    asked = []
    assert capacity.fitting(lambda runs: asked.append(runs) or 1, 10, 4, 3) == 4
    assert asked == [4]


@pytest.mark.parametrize("slope", [0, -3])
def test_where_runs_cost_nothing_all_fit(slope):
    assert capacity.fitting(lambda runs: 100 + slope * runs, 100, 2, 9) == 10


@pytest.mark.parametrize("step, words", [(1, "1 run needs"), (4, "4 runs needs")])
def test_what_does_not_fit_is_said_with_the_remedy(step, words):
    gib = 2**30
    with pytest.raises(ValueError) as error:
        capacity.fitting(lambda runs: 3 * gib, 2 * gib + gib // 2, step, 8)
    text = str(error.value)
    assert words in text and "3.00 GiB" in text and "2.50 GiB are free" in text
    assert "batch" in text and "fsdp" in text and "remat=full" in text
    assert capacity.fitting(lambda runs: 3 * gib, 3 * gib, step, step) == step


def device(**stats):
    return types.SimpleNamespace(memory_stats=lambda: stats or None)


def test_free_bytes_of_an_accelerator():
    assert capacity.free_bytes(device(bytes_limit=1000)) == 800
    assert capacity.free_bytes(device(bytes_limit=1000, bytes_in_use=250)) == 600


def test_free_bytes_of_a_host(monkeypatch):
    """Without a limit among a device's numbers it lives in host memory."""
    for each in (jax.devices()[0], device(), device(bytes_in_use=5)):
        assert 0 < capacity.free_bytes(each) < capacity._free_host_bytes() * 1.5
    monkeypatch.setattr(capacity, "_free_host_bytes", lambda: 1000)
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    assert capacity.free_bytes(device()) == 200


def test_free_host_memory_is_below_the_physical_one():
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < capacity._free_host_bytes() < physical


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    7 kB\nX: 1\n"}, 7 * 1024),
        ({"/proc/meminfo": "MemAvailable: 7 kB\n", "memory.max": "max\n", "memory.current": "5\n"},
         7 * 1024),
        ({"/proc/meminfo": "MemAvailable: 7 kB\n", "memory.max": "3000\n",
          "memory.current": "1000\n"}, 2000),
        ({"/proc/meminfo": "MemAvailable: 7 kB\n", "memory.max": "9000\n",
          "memory.current": "1000\n"}, 7 * 1024),
        ({"/proc/meminfo": "MemAvailable: 7 kB\n", "memory.max": "3000\n",
          "memory.current": "3500\n"}, 0),
    ],
)  # fmt: skip
def test_a_containers_limit_counts(tmp_path, monkeypatch, files, expected):
    for name, text in files.items():
        (tmp_path / name.rpartition("/")[2]).write_text(text)

    def moved(path):
        return tmp_path / "meminfo" if path == "/proc/meminfo" else tmp_path

    monkeypatch.setattr(capacity, "Path", moved)
    assert capacity._free_host_bytes() == expected
