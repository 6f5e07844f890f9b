"""Rank sweeps in the report: the expected numbers are worked out by numpy from the scores written."""

import csv
import io
import json
import math

import numpy as np
import pytest

from experiments.paper.scores import TABLE_18
from experiments.report import document, rank_plot, rank_sweeps, rank_tables
from experiments.report.records import find
from lora_jax.analysis.plots import COLOURS
from tests.experiments.report_records import glue_record, nlg_record

_NAMES = {"q": "query", "k": "key", "v": "value", "o": "output"}


def point(folder, weights="qv", rank=8, values=(0.9,), seeds=None, **changes):
    targets = rf".*/attention/({'|'.join(_NAMES[w] for w in weights)})"
    trained = 100 * rank * len(weights)
    fields = {"method__targets": targets, "method__rank": rank, "trained": trained, **changes}
    return glue_record(folder, values=values, seeds=seeds, **fields)


def swept(*folders):
    return rank_sweeps.find_sweeps(find(folders).records)


def by_place(sweep):
    return {(p.weights, p.rank): p for p in sweep.points}


def grid(folder, random, weights=("q", "qv"), ranks=(1, 4, 64), rates=(1e-4, 1e-3, 1e-2), seeds=5):
    """A sweep's folder; returns the scores by weights, rank and learning rate."""
    scores = {}
    for w in weights:
        for rank in ranks:
            for rate in rates:
                values = scores[w, rank, rate] = random.uniform(0.5, 0.9, seeds)
                written = [None if math.isnan(v) else float(v) for v in values]
                point(folder / f"points/{w},{rank},{rate}", w, rank, written, learning_rate=rate)
    return scores


# --- Data -----------------------------------------------------------------------------------------


def test_best_run_and_best_set_up_of_every_rank(tmp_path):
    scores = grid(tmp_path, np.random.default_rng(0))
    (sweep,) = swept(tmp_path)
    points = by_place(sweep)
    assert list(points) == [(w, r) for w in ("q", "qv") for r in (1, 4, 64)]
    differ = 0
    for (w, rank), place in points.items():
        table = {rate: 100 * v for (a, r, rate), v in scores.items() if (a, r) == (w, rank)}
        top = max(table, key=lambda rate: table[rate].max())
        middle = max(table, key=lambda rate: np.median(table[rate]))
        differ += top != middle
        assert len(place.runs) == 15 and place.best.score == pytest.approx(table[top].max())
        assert place.best.seed == str(table[top].argmax())
        assert place.best.set_up[0] == place.best.record.config["learning_rate"] == top
        assert place.best.record.workdir == f"{tmp_path.name}/points/{w},{rank},{top}"
        assert {run.set_up[0] for run in place.chosen} == {middle}
        assert place.scores == pytest.approx(list(table[middle]))
        assert place.median == pytest.approx(np.median(table[middle]))
    assert differ  # else the test cannot tell the two apart


def test_seeds_in_records_of_their_own_are_one_set_up(tmp_path):
    values = np.random.default_rng(1).uniform(0.5, 0.9, 7)
    for seed, value in enumerate(values):
        point(tmp_path / f"points/{seed}", rank=4, values=(float(value),), seeds=(seed,))
    point(tmp_path / "points/8", rank=8)
    place = by_place(swept(tmp_path)[0])["qv", 4]
    assert place.median == pytest.approx(100 * np.median(values)) and len(place.chosen) == 7
    assert place.best.seed == str(values.argmax())


def test_a_diverged_seed_hides_no_other(tmp_path):
    point(tmp_path / "a", rank=4, values=(0.8, None, 0.7, 0.75), learning_rate=1e-3)
    point(tmp_path / "b", rank=4, values=(0.6, 0.6, 0.6, 0.6), learning_rate=1e-4)
    point(tmp_path / "c", rank=8, values=(None, None))
    places = by_place(swept(tmp_path)[0])
    assert places["qv", 4].best.score == pytest.approx(80) and places[
        "qv", 4
    ].median == pytest.approx(75)
    assert places["qv", 8].best is None and places["qv", 8].scores == []
    lines = rank_tables.markdown(swept(tmp_path), str, "").splitlines()
    four, eight = [line.split(" | ") for line in lines if line.startswith("| W_q, W_v |")]
    std = np.std([80, 70, 75], ddof=1)
    assert four[3] == "8 (1 diverged)"
    assert four[-3:] == [f"75.00 ± {std:.2f}", "70.00 to 80.00", "4 (1 diverged) |"]
    assert eight[3] == "2 (2 diverged)" and set(eight[4:]) == {"–", "– |"}


def test_a_set_up_that_mostly_diverges_is_not_the_best(tmp_path):
    point(tmp_path / "a", rank=4, values=(0.9, None, None), learning_rate=1e-2)
    point(tmp_path / "b", rank=4, values=(0.7, 0.8, 0.6), learning_rate=1e-3)
    point(tmp_path / "c", rank=8, values=(0.9, None, None), learning_rate=1e-2)
    places = by_place(swept(tmp_path)[0])
    assert places["qv", 4].median == pytest.approx(70) and places[
        "qv", 4
    ].best.score == pytest.approx(90)
    assert places["qv", 8].scores == pytest.approx([90])  # where there is no other, the seed counts


def test_what_varies_joins_runs_and_all_else_parts_them(tmp_path):
    point(tmp_path / "a/1", rank=1)
    point(tmp_path / "a/2", rank=2, learning_rate=1e-2, method__alpha=32.0, data__order_seed=None)
    point(tmp_path / "a/3", rank=4, method__scaling="alpha/sqrt(r)", method__dropout=0.1)
    point(
        tmp_path / "a/4",
        "qkvo",
        rank=4,
        method__init="gaussian",
        method__std=0.1,
        data__order_seed=3,
    )
    point(tmp_path / "b/1", rank=1, epochs=7)
    point(tmp_path / "b/2", rank=2, epochs=7)
    point(tmp_path / "c", rank=4, batch_size=99)  # a rank alone
    point(tmp_path / "d", rank=4, task="cola", metric="matthews")
    glue_record(tmp_path / "e", method="bitfit")
    found = swept(tmp_path)
    assert [len(sweep.records) for sweep in found] == [4, 2]
    assert [sweep.name for sweep in found] == [
        "roberta-base, sst2 accuracy, epochs=2", "roberta-base, sst2 accuracy, epochs=7"
    ]  # fmt: skip
    text = rank_tables.markdown(found, lambda record: record.model, "x.png")
    first, second = text.split("### ")[1:]
    assert "scaling | dropout | init | std | seed" in first and "scaling | dropout" not in second
    assert "| 0.0005 | 8 | alpha/r | 0 | gaussian | 0.1 | 0, order 3 |" in first
    assert "| 0.0005 | 8 | alpha/sqrt(r) | 0.1 | kaiming | – | 0 |" in first
    assert "- Tried: learning rate 0.0005, 0.01; alpha 8, 32; scaling" in first
    assert "\n- roberta-base\n" in first and text.endswith("![Score against rank](x.png)")


def test_order_of_the_data_is_chance_and_a_default_is_no_other_set_up(tmp_path):
    values = np.random.default_rng(2).uniform(0.5, 0.9, 6)
    for i, value in enumerate(values):  # one seed, six orders
        more = (
            {"method__scaling": "alpha/r", "method__dropout": 0.0, "method__std": 0.3} if i else {}
        )
        point(tmp_path / f"{i}", rank=4, values=(float(value),), data__order_seed=i, **more)
    point(tmp_path / "other", rank=8, values=(0.8,))
    place = by_place(swept(tmp_path)[0])["qv", 4]
    assert place.median == pytest.approx(100 * np.median(values)) and len(place.chosen) == 6
    assert place.best.order == values.argmax()


def test_alpha_is_the_rank_where_it_was_not_given(tmp_path):
    for rank in (2, 16):
        point(tmp_path / f"{rank}", rank=rank, method__alpha=None)
    point(tmp_path / "same", rank=16, method__alpha=16.0, seeds=(1,))
    places = by_place(swept(tmp_path)[0])
    assert [places["qv", r].best.set_up[1] for r in (2, 16)] == [2, 16]
    assert len(places["qv", 16].chosen) == 2


def test_a_repeated_seed_counts_once(tmp_path):
    point(tmp_path / "a", rank=4, values=(0.8, 0.7))
    point(tmp_path / "b", rank=4, values=(0.9,), seeds=(1,))
    point(tmp_path / "c", rank=8)
    (sweep,) = swept(tmp_path)
    assert by_place(sweep)["qv", 4].scores == pytest.approx([80, 70])
    assert sweep.repeats == (f"{tmp_path.name}/b",)
    assert f"another run has: `{tmp_path.name}/b`" in rank_tables.markdown([sweep], str, "")


def test_other_weights_than_attentions_have_their_targets_as_name(tmp_path):
    everywhere = r".*/(query|key|value|up|down)$"
    for rank in (2, 4):
        point(tmp_path / f"{rank}", rank=rank, method__targets=everywhere)
    point(tmp_path / "q", "q", rank=4)
    for rank in (2, 4):  # arguments per target
        targets = {".*/up": {"rank": rank, "alpha": 4.0}, ".*/down": {"rank": rank, "alpha": 2.0}}
        point(tmp_path / f"per_target{rank}", rank=1, method__targets=targets)
    (sweep,) = swept(tmp_path)
    names = [everywhere, ".*/up, .*/down"]
    assert list(by_place(sweep)) == [("q", 4), *((n, r) for n in sorted(names) for r in (2, 4))]
    assert by_place(sweep)[names[1], 2].best.set_up[1] == "4 / 2"
    text = rank_tables.markdown([sweep], str, "")
    assert r"| `.*/(query\|key\|value\|up\|down)$` | 2 |" in text
    drawn = rank_plot.figure([sweep])
    drawn.canvas.draw()  # nothing in a pattern is a formula


def test_csv_has_every_line(tmp_path):
    scores = grid(tmp_path, np.random.default_rng(3), weights=("q", "v"), ranks=(2, 8))
    found = swept(tmp_path)
    rows = list(csv.DictReader(io.StringIO(rank_tables.csv_text(found))))
    assert [(row["weights"], row["rank"]) for row in rows] == [
        (w, r) for w in "qv" for r in ("2", "8")
    ]
    for row in rows:
        rate = float(row["set_up_learning_rate"])
        seeds = 100 * scores[row["weights"], int(row["rank"]), rate]
        numbers = {"median": np.median(seeds), "std": np.std(seeds, ddof=1), "min": seeds.min()}
        for name, value in {**numbers, "max": seeds.max()}.items():
            assert float(row[f"seeds_{name}"]) == pytest.approx(value)
        best = scores[row["weights"], int(row["rank"]), float(row["learning_rate"])]
        assert float(row["best"]) == pytest.approx(100 * best.max())
        assert (row["runs"], row["diverged"], row["seeds"], row["seeds_diverged"]) == (
            "15", "0", "5", "0"
        )  # fmt: skip


# --- The report -----------------------------------------------------------------------------------


def test_a_sweeps_folder_is_read_and_files_of_an_earlier_report_go(tmp_path):
    grid(tmp_path / "sweep", np.random.default_rng(4), ranks=(2, 8))
    (tmp_path / "sweep/sweep.json").write_text(json.dumps({"method": {}, "seeds": [], "points": 8}))
    found = find([tmp_path / "sweep"])
    document.write(found, "COMMAND", tmp_path / "out.md")
    text = (tmp_path / "out.md").read_text()
    assert len(found.records) == 12 and not found.unfinished and not found.others
    assert text.count("## Rank sweeps\n") == 1 and "Records in no table" not in text
    assert text.index("## Table 18") < text.index("## Rank sweeps")
    assert "![Score against rank](out/rank_curves.png)" in text
    assert "- roberta-base on sst2: 2 epochs, batch 16, 100 training examples" in text
    files = [tmp_path / "out/rank_sweeps.csv", tmp_path / "out/rank_curves.png"]
    assert files[1].read_bytes().startswith(b"\x89PNG") and files[0].exists()
    printed = document.document(found, document.tables(found.records), "COMMAND", {})
    assert "## Rank sweeps" in printed and "rank_curves.png" not in printed

    point(tmp_path / "alone")
    document.write(find([tmp_path / "alone"]), "COMMAND", tmp_path / "out.md")
    assert not any(path.exists() for path in files)
    assert "Rank sweeps" not in (tmp_path / "out.md").read_text()


def test_a_record_in_a_rank_sweep_alone_is_placed(tmp_path):
    for rank in (2, 8):
        point(tmp_path / f"{rank}", rank=rank)
    text = document.document(find([tmp_path]), [], "COMMAND", {})  # no tables at all
    assert "Records in no table" not in text
    point(tmp_path / "8", rank=2, seeds=(1,))  # now one rank
    assert "Records in no table" in document.document(find([tmp_path]), [], "COMMAND", {})


def test_a_headline_score_is_needed(tmp_path):
    for rank in (2, 8):
        point(tmp_path / f"{rank}", rank=rank, metric="f1")
    assert swept(tmp_path) == [] and rank_sweeps.find_sweeps([]) == []


# --- The figure -----------------------------------------------------------------------------------


def curves(axes):
    """(colour, ranks, values) of the lines with error bars."""
    lines = [container.lines[0] for container in axes.containers]
    return [
        (line.get_color(), [2 ** round(math.log2(x)) for x in line.get_xdata()],
         list(line.get_ydata())) for line in lines
    ]  # fmt: skip


def test_figure_has_medians_ranges_and_seeds(tmp_path):
    scores = grid(tmp_path / "a", np.random.default_rng(5), rates=(1e-3,))
    point(tmp_path / "b/1", rank=1, values=(0.5,), epochs=3)
    point(tmp_path / "b/2", rank=32, values=(None,), epochs=3)
    drawn = rank_plot.figure(swept(tmp_path))
    two, one = drawn.axes
    assert [axes.get_title() for axes in drawn.axes] == [
        "roberta-base, sst2 accuracy, epochs=2", "roberta-base, sst2 accuracy, epochs=3"
    ]  # fmt: skip
    expected = {w: [100 * scores[w, r, 1e-3] for r in (1, 4, 64)] for w in ("q", "qv")}
    for (color, drawn_ranks, medians), values, known in zip(
        curves(two), expected.values(), COLOURS, strict=False
    ):
        assert color == known and drawn_ranks == [1, 4, 64]
        assert medians == pytest.approx([np.median(v) for v in values])
    for container, values in zip(two.containers, expected.values(), strict=True):
        ends = [segment[:, 1].tolist() for segment in container.lines[2][0].get_segments()]
        assert ends == [pytest.approx([v.min(), v.max()]) for v in values]
    dots = [
        np.sort(points.get_offsets()[:, 1])
        for points in two.collections
        if len(points.get_offsets()) > 1
    ]
    seeds = [np.sort(np.concatenate(values)) for values in expected.values()]
    assert all(any(np.allclose(d, s) for d in dots if len(d) == len(s)) for s in seeds)
    assert [label.get_text() for label in two.get_xticklabels()] == ["1", "4", "64"]
    assert two.get_ylabel() == "accuracy x 100"
    assert curves(one) == [(COLOURS[1], [1], [50.0])]
    assert list(one.containers[0].lines[0].get_xdata()) == [1]  # alone, so exactly on the rank
    assert one.get_xlabel() == "rank\nall runs diverged: W_q, W_v r=32"
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["W_q", "W_q, W_v"]


def test_points_of_one_rank_stand_beside_each_other_nearer_than_ranks(tmp_path):
    for w in ("q", "k", "v", "o", "qk", "qv", "qkvo"):
        for rank in (3, 4, 1024):
            point(tmp_path / f"{w}{rank}", w, rank, (0.5, 0.6))
    (axes,) = rank_plot.figure(swept(tmp_path)).axes
    x = np.array([c.lines[0].get_xdata() for c in axes.containers], float)
    assert np.all(np.diff(x, axis=0) > 0) and x[:, 0].max() < x[:, 1].min()
    assert np.exp(np.log(x).mean(0)) == pytest.approx([3, 4, 1024])
    low, high = axes.get_xlim()
    assert low < x.min() and x.max() < high
    # Labels of 3 and 4 would overlap.
    assert [label.get_text() for label in axes.get_xticklabels()] == ["", "4", "1024"]


@pytest.mark.parametrize(
    ("changes", "drawn"),
    [
        ({}, True),
        ({"model": "openai-community/gpt2-medium"}, True),
        ({"model": "gpt2-large"}, False),
        ({"task": "dart"}, False),
        ({"method__parts": ["q"]}, False),
        ({"data__max_prompts": 9}, False),
    ],
)
def test_the_papers_curve_is_only_in_the_panel_of_its_model(tmp_path, changes, drawn):
    for rank in (1, 16):
        nlg_record(tmp_path / f"{rank}", rank=rank, bleu=(0.6, 0.7, 0.69), **changes)
    figure = rank_plot.figure(swept(tmp_path))
    (axes,) = figure.axes
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert axes.get_ylabel() == "BLEU" and curves(axes)[0][1:] == ([1, 16], [69.0, 69.0])
    assert ("paper, Table 18" in labels) == drawn == bool(dashed)
    if drawn:
        assert dict(zip(*dashed[0].get_data(), strict=True)) == {
            rank: float(scores[1]) for rank, scores in TABLE_18.items()
        }


def test_no_figure_without_a_score(tmp_path):
    for rank in (1, 2):
        point(tmp_path / f"{rank}", rank=rank, values=(None,))
    assert rank_plot.figure(swept(tmp_path)) is None and rank_plot.figure([]) is None
    document.write(find([tmp_path]), "COMMAND", tmp_path / "out.md")
    assert (tmp_path / "out/rank_sweeps.csv").exists() and not list(tmp_path.glob("out/rank*.png"))
