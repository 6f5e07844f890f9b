"""Tables and figures of the latency measurement, of invented times; see `test_latency`."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest

from configs.latency import gpt2_medium
from experiments.latency import figure, page, results, tables, trials
from experiments.paper import latency as paper
from lora_jax.run_folder import flat

NAMES = ["base", "merged", "unmerged", "pool"]


def about(method="lora", values=0, bottleneck=0):
    return {"method": method, "values": values, "bottleneck": bottleneck}


def made_up(count, slower):
    """A record of GPT-2 medium at Table 1's points, with invented times."""
    config = gpt2_medium.get_config()
    described = {"base": about(""), **{name: about() for name in NAMES[1:]}}
    for name, method in config.adapters.items():
        described[name] = about(method["name"], 500_000 if "small" in name else 11_000_000)
    for method, title in (("adapter_h", "Adapter H"), ("adapter_l", "Adapter L")):
        for size in config.bottlenecks:
            described[f"{title}, r = {size}"] = about(method, 100_000 * size, size)
    rng = np.random.default_rng(0)
    points = [
        trials.Point(p.batch, p.length, {
            name: list(rng.normal(1 + slower * (name not in NAMES[:2]), 0.01, count)) for name in described
        }, {"lowered_equal": True, "compiled_equal": p.batch > 1}, {})
        for p in paper.TABLE_1
    ]  # fmt: skip
    device = {"backend": "gpu", "kind": "NVIDIA X", "cpu_cores": 2}
    environment = {"versions": {"jax": "0"}, "device": device}
    config = {**flat(config.to_dict()), "model": {"name": "gpt2-medium"}}
    return results.record(config, environment, described, paper.VALUES, points)


def test_the_papers_numbers_stand_beside_ours():
    record = made_up(10, 0.2)
    lines = tables.table_1(record).splitlines()
    assert lines[0].count("paper (") == 3 and "| paper (0.5M) |" in lines[0]
    cells = {
        line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[2:] for line in lines[2:]
    }
    assert (
        cells["base"][1::2]
        == cells["LoRA, merged"][1::2]
        == ["1449.4±0.8", "338.0±0.6", "19.8±2.7"]
    )
    assert cells["LoRA, pool"][1::2] == ["–", "–", "–"]
    # 0.5M at 32 x 512, 11M at the other points
    assert cells["adapter_h"][1::2] == ["–", "366.3±0.5 (+8.4%)", "25.8±2.2 (+30.3%)"]
    assert cells["adapter_l_small"][1::2] == ["1482.0±1.0 (+2.2%)", "–", "–"]
    assert re.fullmatch(r"1\d{3}\.\d±\d\.\d \(\+(19|20|21)\.\d+±0\.\d\d?%\)", cells["adapter_h"][0])
    assert "as the compiler leaves it (HLO): **equal at 2 of 3 points**" in page.same_program(
        record
    )
    assert record["merged_is_base"] == {"lowered": True, "compiled": False}
    names = results.of_config(record)[1:]
    base, *others = tables.medians(record, names).splitlines()[-1].split(" | ")[1:]
    times = {name: f["median_ms"] for name, f in record["points"][-1]["contenders"].items()}
    assert base == f"{times['base']:.2f}" and len(others) == 7
    assert float(others[2].rstrip("%")) == pytest.approx(
        100 * (times["pool"] / times["base"] - 1), abs=0.06
    )
    text = page.set_up(record)
    assert (
        "Quadro RTX8000" in text and "here it is gpt2-medium" in text and "on NVIDIA X, one" in text
    )


def made_up_grid(slower):
    record = made_up(3, slower)
    grid = []
    for batch, length in ((b, n) for b in (1, 2, 4, 8, 16, 32) for n in (128, 256, 512)):
        point = copy.deepcopy(record["points"][0])
        grid.append({**point, "batch": batch, "length": length})
    return {**record, "points": grid}


@pytest.mark.parametrize("slower", [0.0, 0.3, 40.0])
def test_a_panel_for_each_contender(slower):
    drawn = figure.slow_downs(made_up_grid(slower))
    titles = [axis.get_title() for axis in drawn.axes if axis.get_title()]
    assert titles == ["LoRA, merged", "LoRA, unmerged", "LoRA, pool", "adapter_h (11.0M)",
                      "adapter_h_small (500k)", "adapter_l (11.0M)", "adapter_l_small (500k)"]  # fmt: skip
    image = drawn.axes[0].images[0]
    assert image.get_array().shape == (3, 6)  # lengths x batch sizes
    assert image.norm.vmin == -image.norm.vmax and image.norm.vmax >= 100 * slower


def test_figure_5_is_laid_out_as_the_papers():
    record = made_up_grid(0.0)
    names = {
        ("Adapter H", size): f"Adapter H, r = {size}" for size in (10, 100, 250)
    } | {("Adapter L", size): f"Adapter L, r = {size}" for size in (10, 100, 250)}  # fmt: skip
    for point in record["points"]:  # every cell another number
        for (kind, size), name in names.items():
            value = (
                0.1 + point["batch"] / 1e3 + point["length"] / 1e5 + size / 1e7 + (kind[-1] == "L")
            )
            point["contenders"][name]["slow_down"] = {"value": value, "half": 0.05}
        point["contenders"]["merged"]["slow_down"] = {"value": 0.01, "half": 0.02}
    *panels, bar = figure.figure_5(record).axes
    assert [axis.get_title() for axis in panels] == [f"{n} tokens" for n in (128, 256, 512)] + [
        ""
    ] * 3
    assert [axis.get_ylabel() for axis in panels[::3]] == [
        "Adapter H: bottleneck r",
        "Adapter L: bottleneck r",
    ]
    assert [axis.get_xlabel() for axis in panels] == [""] * 3 + ["batch size"] * 3
    assert "slow-down over the base, %" in bar.get_ylabel()
    for number, axis in enumerate(panels):
        (image,) = axis.images
        length, of_l = (128, 256, 512)[number % 3], number >= 3
        expected = [
            [
                100 * (0.1 + batch / 1e3 + length / 1e5 + size / 1e7 + of_l)
                for batch in (1, 2, 4, 8, 16, 32)
            ]
            for size in (10, 100, 250)
        ]
        shown = image.get_array()
        assert shown[0].mask.all()  # r = 0 is the merged model, whose interval includes 0: grey
        np.testing.assert_allclose(shown[1:], expected)
        assert (image.norm.vmin, image.norm.vmax) == (-200, 200)  # one scale
        ticks = [
            [text.get_text() for text in ticks]
            for ticks in (axis.get_xticklabels(), axis.get_yticklabels())
        ]
        across = ["1", "2", "4", "8", "16", "32"] if number >= 3 else []
        down = ["0", "10", "100", "250"] if number % 3 == 0 else []
        assert ticks == [across, down]
        assert axis.texts[0].get_text() == "+1.0\n±2.0" and len(axis.texts) == 24


def test_without_bottlenecks_there_is_no_figure_5(tmp_path):
    record = made_up(3, 0.1)
    for name in [
        name for by_size in results.of_figure_5(record).values() for name in by_size.values()
    ]:
        del record["contenders"][name]
    assert page.of_bottlenecks(record, tmp_path) == [] and not list(tmp_path.iterdir())
