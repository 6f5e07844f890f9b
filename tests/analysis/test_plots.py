"""Figures hold the numbers they are given: panels, colours, lines, bars; and nothing global."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex

from lora_jax.analysis import plots
from lora_jax.analysis.amplification import Amplification


@pytest.fixture
def random():
    return np.random.default_rng(0)


def _maps(random, layers=2, m=8, n=24):
    return {
        f"layer {layer}": {name: random.uniform(0, 0.4, (m, n)) for name in ("query", "value")}
        for layer in range(1, layers + 1)
    }


def _panels(figure):
    return [axis for axis in figure.axes if axis.get_images()]


def test_maps_show_phi_beside_chance(random):
    maps = _maps(random)
    panels = _panels(plots.similarity_maps(maps, 96, rows="i", columns="j"))
    assert [p.get_title() for p in panels] == [
        "layer 1 query", "value", "chance, max(i, j) / 96",
        "layer 2 query", "value", "chance, max(i, j) / 96",
    ]  # fmt: skip
    drawn = [panel.get_images()[0] for panel in panels]
    np.testing.assert_array_equal(drawn[1].get_array(), maps["layer 1"]["value"])
    i, j = np.indices((8, 24)) + 1
    np.testing.assert_allclose(drawn[5].get_array(), np.maximum(i, j) / 96, rtol=1e-6)
    assert {image.get_clim() for image in drawn} == {(0.0, 0.5)}  # one scale, the next of 0.1 to 1
    # Pixel (i, j) is centred at x = j, y = i, with i growing downwards as in the paper.
    assert drawn[0].get_extent() == [0.5, 24.5, 8.5, 0.5]
    assert panels[0].get_yticks()[0] == 1 and panels[0].get_xticks()[0] == 1


def test_maps_minus_chance(random):
    maps = _maps(random, layers=1)
    panels = _panels(plots.similarity_maps(maps, 96, rows="i", columns="j", chance="subtracted"))
    i, j = np.indices((8, 24)) + 1
    expected = maps["layer 1"]["query"] - np.maximum(i, j) / 96
    assert len(panels) == 2
    # float32 arithmetic of the chance level
    np.testing.assert_allclose(panels[0].get_images()[0].get_array(), expected, atol=1e-7)
    low, high = panels[0].get_images()[0].get_clim()
    assert low == -high  # so that zero is the neutral colour


def test_zoom_shows_the_lower_left_triangle(random):
    maps = _maps(random, layers=1)
    figure = plots.similarity_maps(maps, 96, rows="i", columns="j", zoom=4)
    zoomed = _panels(figure)[2].get_images()[0].get_array()
    i, j = np.indices((4, 4)) + 1
    np.testing.assert_array_equal(np.ma.getmaskarray(zoomed), j > i)
    np.testing.assert_array_equal(zoomed[j <= i], maps["layer 1"]["query"][:4, :4][j <= i])


def test_the_scale_of_the_colours_can_be_given(random):
    panel = _panels(plots.similarity_maps(_maps(random), 96, rows="i", columns="j", top=0.8))[0]
    assert panel.get_images()[0].get_clim() == (0.0, 0.8)


def test_no_map_is_an_error():
    with pytest.raises(ValueError, match="no map"):
        plots.similarity_maps({}, 8, rows="i", columns="j")
    with pytest.raises(ValueError, match="no map"):
        plots.similarity_maps({"layer 1": {}}, 8, rows="i", columns="j")


def test_spectra_are_relative_and_cumulative(random):
    values = np.sort(random.uniform(0.1, 2, (3, 5)))[:, ::-1]
    figure = plots.spectra({"r5 query": values, "r5 value": values})
    above, _, below, _ = figure.axes[:4]
    np.testing.assert_allclose(above.lines[1].get_ydata(), values[1] / values[1, 0])
    share = np.cumsum(values[2] ** 2) / np.sum(values[2] ** 2)
    np.testing.assert_allclose(below.lines[2].get_ydata(), share)
    assert above.get_yscale() == "log" and len(below.lines) == 4  # three layers, and all equal


def test_amplification_has_a_bar_for_every_norm_and_a_line_for_every_weight(random):
    rows = {
        name: Amplification(*random.uniform(0.5, 5, (7, 6))) for name in ("r8 query", "r64 query")
    }
    left, right = plots.amplification(rows).axes
    heights = [bar.get_height() for bar in left.patches]
    fields = ("in_random", "in_delta", "in_weight", "delta_norm")
    expected = [np.median(getattr(row, field)) for field in fields for row in rows.values()]
    np.testing.assert_allclose(heights, expected)
    for line, row in zip(right.lines, rows.values(), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), row.factor)
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 7))


def test_lines_differ_by_more_than_colour(random):
    names = [f"adapter {k}" for k in range(10)]
    figure = plots.by_layer({name: random.uniform(size=6) for name in names}, "rank", chance=0.1)
    axis = figure.axes[0]
    looks = {(line.get_marker(), line.get_linestyle()) for line in axis.lines[:10]}
    assert len(looks) == 10
    assert to_hex(axis.lines[0].get_color()) == "#0072b2"
    assert axis.lines[10].get_ydata()[0] == 0.1 and axis.get_ylabel() == "rank"


def test_save_writes_a_whole_file_and_pyplot_is_not_touched(tmp_path, random, monkeypatch):
    import sys

    figure = plots.by_layer({"a": random.uniform(size=3)}, "rank")
    path = plots.save(figure, tmp_path / "figures" / "ranks.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [p.name for p in path.parent.iterdir()] == ["ranks.png"]
    if pyplot := sys.modules.get("matplotlib.pyplot"):  # another test may have imported it
        assert not pyplot.get_fignums()
    monkeypatch.setattr(figure, "savefig", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        plots.save(figure, path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
