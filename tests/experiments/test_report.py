"""The report: paper numbers, placement of runs in rows, pooling, sweeps, what is left out, the plot.

Records are made up with known values; one real run shows that true records have what is read.
"""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.colors
import pytest

from configs.glue import minilm, roberta_base_lora, roberta_large_lora
from configs.nlg import gpt2_medium_lora
from experiments import glue
from experiments.paper.columns import COLUMNS
from experiments.paper.scores import SCORES, TABLE_5, TABLE_6, TABLE_18
from experiments.report import document, panel_grid, score_plot
from experiments.report.record import model_label
from experiments.report.records import find
from experiments.report.set_ups import set_up_lines
from experiments.runs.run import run_all
from tests.experiments.report_records import QUERY_VALUE, glue_record, nlg_record, write

ROOT = Path(__file__).parents[2]


def table_of(folder, number):
    return next(t for t in document.tables(find([folder]).records) if t.number == number)


def ours(table, **where):
    """(score as shown, row) of the cells with a score of ours."""
    return [
        (c.of_ours, c.row)
        for c in table.cells
        if c.ours and all(getattr(c, k) == v for k, v in where.items())
    ]


# --- The paper's numbers --------------------------------------------------------------------------


def test_average_of_table_2_rounds_to_the_printed_one():
    assert [len(rows) for rows in SCORES.values()] == [14, 12, 8, 11, 11, 30]
    for row in SCORES[2]:
        *tasks, average = (float(score.partition("±")[0]) for score in row.scores)
        assert len(tasks) == 8 and abs(sum(tasks) / 8 - average) < 0.0501, row


@pytest.mark.parametrize(
    ("config", "mark", "table", "label"),
    [
        (roberta_base_lora, "paper ", 2, "RoB-base (LoRA)"),
        (roberta_large_lora, "paper ", 2, "RoB-large (LoRA)"),
        (roberta_large_lora, "paper†", 2, "RoB-large (LoRA)†"),
        (gpt2_medium_lora, "e2e, paper", 3, "GPT-2 M (LoRA)"),
    ],
)
def test_scores_agree_with_the_configs(config, mark, table, label):
    line = re.search(rf"^\| {mark}.*$", config.__doc__, re.MULTILINE)[0]
    printed = [cell.strip() for cell in line.strip("|").split("|")][1:]
    assert list(next(r.scores for r in SCORES[table] if r.label == label)) == printed


def test_single_numbers_of_the_paper():
    rows = {(n, r.label, r.trained): r.scores for n, table in SCORES.items() for r in table}
    assert rows[2, "RoB-large (AdptH)†", "0.8M"][6] == "72.9±2.9"  # RTE
    assert rows[3, "GPT-2 L (AdapterL)", "23.00M"] == (
        "68.9±.3", "8.70±.04", "46.1±.1", "71.3±.2", "2.45±.02"
    )  # fmt: skip
    assert rows[13, "GPT-2 M (FT_Top2)", "24M"] == ("41.0", "0.34", "0.56")
    assert rows[14, "GPT-2 L (AdapterL)", "23M"][:3] == ("49.2±.1", "64.7±.2", "57.7±.1")
    assert rows[14, "GPT-2 M (FT_Top2)", "24M"][6:] == (".99", ".49", ".72")
    assert len(COLUMNS[14]) == 9 and COLUMNS[14][1].metric == "bleu_seen"
    assert TABLE_18[16] == ("1.16", "69.61", "8.7483", "0.4629", "0.7177", "2.4985")
    # Both tables have these two points, of W_q, W_v at r=4 and of all four at r=2.
    for task in ("WikiSQL", "MNLI"):
        assert TABLE_5[task][5] == TABLE_6[task, "qv"][2]
        assert TABLE_5[task][6] == TABLE_6[task, "qkvo"][1]


# --- Rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["roberta-base", "FacebookAI/roberta-base", "/x/y/roberta-base"])
def test_a_run_of_the_papers_row_is_beside_it(tmp_path, model):
    glue_record(tmp_path / "a", values=(0.95, 0.91, 0.93), model=model)
    table = table_of(tmp_path, 2)
    (cell,) = [c for c in table.cells if c.ours]
    # std of 91, 93, 95 is 2
    assert (cell.row, cell.paper, cell.paper_std) == ("RoB-base (LoRA) 0.3M", "95.1", ".2")
    assert (cell.ours, cell.ours_std, cell.seeds, cell.trained) == ("93.00", "2.00", "3", "294912")
    text = table.markdown().splitlines()
    at = next(i for i, line in enumerate(text) if line.startswith("| RoB-base (LoRA) |"))
    assert text[at] == (
        "| RoB-base (LoRA) | 0.3M | paper | 87.5±.3 | 95.1±.2 | 89.7±.7 | 63.4±1.2 | 93.3±.3 "
        "| 90.8±.1 | 86.6±.7 | 91.5±.2 | 87.2 |"
    )
    assert text[at + 1] == ("|  | 294,912 | ours | – | 93.00±2.00 | – | – | – | – | – | – | – |")
    assert "no row of the paper" not in table.markdown()


@pytest.mark.parametrize(
    "changes",
    [
        {"trained": 589_824, "method__rank": 16},  # another size
        {"method__targets": r".*/attention/(key|value)"},  # the same size, other weights
        {"model": "roberta-other"},
        {"method": "adapter_h"},
        {"data__max_eval_examples": 50},  # a part of the dev set
    ],
)
def test_other_runs_have_rows_of_their_own(tmp_path, changes):
    glue_record(tmp_path / "a", **changes)
    ((score, row),) = ours(table_of(tmp_path, 2))
    assert score == "90.00" and row.startswith(changes.get("model", "roberta-base") + ", ")
    assert ("50 dev examples" in row) == ("data__max_eval_examples" in changes)


def test_a_count_that_does_not_round_must_be_the_rows_exactly(tmp_path):
    glue_record(tmp_path / "same", method="full", trained=124_055_040)  # printed: 125.0M
    glue_record(tmp_path / "other", method="full", trained=124_055_041)
    rows = {row for _, row in ours(table_of(tmp_path, 2))}
    assert rows == {"RoB-base (FT)* 125.0M", "roberta-base, full"}


@pytest.mark.parametrize(
    ("task", "length", "start", "rows"),
    [
        ("qqp", 512, "", {"RoB-large (LoRA) 0.8M"}),
        ("qqp", 128, "", {"RoB-large (LoRA)† 0.8M"}),
        ("rte", 128, "runs/mnli", {"RoB-large (LoRA) 0.8M"}),
        # Table 9 has the same settings in both rows.
        ("mnli", 128, "", {"RoB-large (LoRA) 0.8M", "RoB-large (LoRA)† 0.8M"}),
    ],
)
def test_restricted_rows(tmp_path, task, length, start, rows):
    changes = {"data__max_length": length, "init_adapter": start}
    glue_record(tmp_path / "a", task, model="roberta-large", trained=786_432, **changes)
    assert {row for _, row in ours(table_of(tmp_path, 2))} == rows


def test_tables_13_and_14_know_the_rows_of_table_3(tmp_path):
    nlg_record(tmp_path / "d", "dart", more={"meteor": [0.3812], "ter": [0.47]})
    scores = {"bleu_seen": [0.6], "bleu_unseen": [0.4], "ter": [0.5]}
    nlg_record(tmp_path / "w", "webnlg", method="full", trained=354_823_168, more=scores)
    rows = [(c.row, c.metric, c.ours) for c in table_of(tmp_path, 13).cells if c.ours]
    name = "GPT-2 M (LoRA) 0.35M"
    assert rows == [(name, "bleu", "70.00"), (name, "meteor", "0.3812"), (name, "ter", "0.4700")]
    line = next(x for x in table_of(tmp_path, 14).lines if x[1] == "354,823,168")
    assert line[3:] == ("40.00", "60.00", "70.00", "–", "–", "–", "–", "–", "0.5000")


def test_table_3_has_the_mean_in_the_papers_units(tmp_path):
    scores = {"nist": (8.0, 8.5, 9.3), "meteor": (0.45, 0.46, 0.47)}
    nlg_record(tmp_path / "a", bleu=(0.7, 0.71, 0.75), more=scores)
    line = next(x for x in table_of(tmp_path, 3).lines if x[1] == "393,216")
    assert line[2:] == ("ours", "72.00±2.65", "8.6000±0.6557", "46.00±1.00", "–", "–")


def test_a_run_on_part_of_the_training_data_says_so(tmp_path):
    glue_record(tmp_path / "a", data__max_examples=100)  # of which there are 100 or more
    glue_record(tmp_path / "b", "rte", method="bitfit", trained=102_144, data__max_examples=101)
    lines = {line[1]: line[0] for line in table_of(tmp_path, 2).lines if line[2] == "ours"}
    assert lines["294,912"] == "(trained on part of the data)" and lines["102,144"] == ""


def test_average_needs_all_eight_tasks(tmp_path):
    for i, column in enumerate(COLUMNS[2][:8]):
        assert not ours(table_of(tmp_path, 2), task_or_split="average") if i else True
        values = (0.8 + 0.01 * i, 0.1, 0.99)  # the median is the first
        glue_record(tmp_path / column.task, column.task, values, metric=column.metric)
    ((average, _),) = ours(table_of(tmp_path, 2), task_or_split="average")
    assert average == "83.50"


def test_mnli_shows_matched_and_names_mismatched(tmp_path):
    glue_record(tmp_path / "a", "mnli", (0.87,), more={"accuracy_mismatched": [0.86]})
    table = table_of(tmp_path, 2)
    assert table.notes == [f"MNLI of `{tmp_path.name}/a`: matched 87.00 (shown), mismatched 86.00."]


def test_another_split_or_fewer_inputs_are_no_row_of_the_paper(tmp_path):
    nlg_record(tmp_path / "a", data__decode_split="valid", data__max_prompts=48)
    ((_, row),) = ours(table_of(tmp_path, 3))
    assert row == "gpt2-medium, lora W_q, W_v r=4 (valid split, 48 inputs)"


def test_a_diverged_seed_is_shown(tmp_path):
    glue_record(tmp_path / "a", values=(0.9, None, 0.8))
    assert ours(table_of(tmp_path, 2))[0][0] == "diverged (1 of 3 seeds)"


# --- Several records of one cell ------------------------------------------------------------------


def test_other_seeds_of_one_setting_are_pooled(tmp_path):
    glue_record(tmp_path / "a", values=(0.90, 0.92), seeds=(0, 1))
    glue_record(tmp_path / "b", values=(0.94,), seeds=(2,), data__source="/elsewhere")
    (cell,) = [c for c in table_of(tmp_path, 2).cells if c.ours]
    assert (cell.of_ours, cell.seeds) == ("92.00±2.00", "3")
    assert cell.workdir == f"{tmp_path.name}/a + {tmp_path.name}/b"


@pytest.mark.parametrize("changes", [{"seeds": (0,)}, {"seeds": (1,), "learning_rate": 1e-3}])
def test_the_same_seed_or_another_setting_is_not_pooled(tmp_path, changes):
    glue_record(tmp_path / "a", values=(0.90,), seeds=(0,))
    glue_record(tmp_path / "b", values=(0.94,), **changes)
    glue_record(tmp_path / "c", "rte", values=(0.8,))
    table = table_of(tmp_path, 2)
    lines = {line[0]: line for line in table.lines if line[1] == "294,912"}
    name = tmp_path.name
    assert [(k, v[4], v[9]) for k, v in lines.items()] == [
        ("", "–", "80.00"),
        (f"[`{name}/a`]", "90.00", "–"),
        (f"[`{name}/b`]", "94.00", "–"),
    ]
    assert {row for _, row in ours(table)} == {"RoB-base (LoRA) 0.3M"}


# --- Sweeps ---------------------------------------------------------------------------------------


def sweep(folder, points, task="cola", **more):
    names = {"q": "query", "k": "key", "v": "value", "o": "output"}
    for weights, rank, value in points:
        targets = rf".*/attention/({'|'.join(names[w] for w in weights)})"
        changes = {"method__targets": targets, "method__rank": rank, "model": "package:mini"}
        trained = 100 * rank * len(weights)
        glue_record(
            folder / f"{weights}{rank}", task, (value,), metric="matthews", trained=trained,
            **changes, **more,
        )  # fmt: skip


def test_sweep_over_weights_and_ranks(tmp_path):
    sweep(
        tmp_path, [("q", 8, 0.1), ("qk", 4, 0.2), ("qkvo", 2, 0.3), ("qv", 8, 0.4), ("q", 3, 0.5)]
    )
    five, six, two = (table_of(tmp_path, n) for n in (5, 6, 2))
    assert five.lines[-1] == (
        "mini, cola matthews", "ours", "10.00", "–", "–", "–", "20.00", "–", "30.00"
    )  # fmt: skip
    assert six.header[3:] == ("r=1", "r=2", "r=4", "r=8", "r=64", "r=3")
    assert [line[1:] for line in six.lines[-3:]] == [
        ("W_q", "ours", "–", "–", "–", "10.00", "–", "50.00"),
        ("W_q, W_v", "ours", "–", "–", "–", "40.00", "–", "–"),
        ("W_q, W_k, W_v, W_o", "ours", "–", "30.00", "–", "–", "–", "–"),
    ]
    assert not ours(two) and two.notes == [
        "Runs of sweeps over weights that are in Tables 5 and 6 only: 5."
    ]
    assert five.lines[0][2:] == ("70.4", "70.0", "73.0", "73.2", "71.4", "73.7", "73.7")


def test_the_papers_weights_stay_where_other_methods_ran_in_the_same_set_up(tmp_path):
    sweep(tmp_path, [("qv", 8, 0.4), ("qv", 4, 0.3), ("q", 8, 0.5)])
    model = {"model": "package:mini", "metric": "matthews"}
    glue_record(tmp_path / "bitfit", "cola", (0.2,), method="bitfit", trained=50, **model)
    rows = [row for _, row in ours(table_of(tmp_path, 2))]
    assert rows == ["mini, bitfit", "mini, lora W_q, W_v r=4", "mini, lora W_q, W_v r=8"]


def test_runs_of_two_set_ups_are_two_sweeps(tmp_path):
    sweep(tmp_path / "a", [("q", 8, 0.1), ("v", 8, 0.2)])
    sweep(tmp_path / "b", [("q", 8, 0.3), ("k", 8, 0.4)], learning_rate=1e-3)
    sweep(tmp_path / "c", [("q", 8, 0.9)], epochs=7)  # a point alone
    table = table_of(tmp_path, 5)
    assert [(line[0], *line[2:5]) for line in table.lines[2:]] == [
        ("mini, cola matthews, learning_rate=0.0005", "10.00", "–", "20.00"),
        ("mini, cola matthews, learning_rate=0.001", "30.00", "40.00", "–"),
    ]
    assert [row for _, row in ours(table_of(tmp_path, 2))] == ["mini, lora W_q r=8"]


def test_weights_of_older_records_follow_from_the_targets(tmp_path):
    def weights(**changes):
        nlg_record(tmp_path / "n", **changes)
        return find([tmp_path / "n"]).records[0].weights

    assert weights() == "qv"
    assert weights(method__parts=[]) is None  # one pair of factors for all three
    both = {".*/attention/qkv": {"parts": ["k"]}, ".*/attention/output": {"parts": []}}
    assert weights(method__targets=both) == "ko"
    assert weights(method__targets=[".*/attention/output"]) == "o"
    assert weights(method__targets=".*/(qkv|up|down)") is None
    glue_record(tmp_path / "g", method__targets=r".*/(query|key|value|attention/output|up|down)")
    assert find([tmp_path / "g"]).records[0].weights is None
    glue_record(tmp_path / "g", method__targets=r".*/attention/.*")
    assert find([tmp_path / "g"]).records[0].weights == "qkvo"
    glue_record(tmp_path / "g", method__targets=r".*/output")  # the head's output too
    assert find([tmp_path / "g"]).records[0].weights is None


ENCODER, DECODER = "encoder/layers/block", "layers/block"


def layers_of(paths, rank, parts=()):
    """`layers` of result.json: the parts are those of the fused projection."""
    return [
        {"path": path, "rank": rank, "parts": list(parts) if path.endswith("qkv") else []}
        for path in paths
    ]


@pytest.mark.parametrize(
    ("make", "changes", "layers", "weights", "rank"),
    [
        (glue_record, {"method__targets": QUERY_VALUE, "method__rank": 4},
         layers_of([f"{ENCODER}/attention/query", f"{ENCODER}/attention/value"], 4), "qv", 4),
        (glue_record, {"method__targets": r".*/attention/.*"},
         layers_of([f"{ENCODER}/attention/{w}" for w in ("key", "output", "query", "value")], 8),
         "qkvo", 8),
        (glue_record, {"method__targets": r".*/(value|up)", "method__rank": 2},
         layers_of([f"{ENCODER}/attention/value", f"{ENCODER}/feed_forward/up"], 2), None, 2),
        (glue_record, {"method__targets": [r".*/query", r"head/dense"]},
         layers_of([f"{ENCODER}/attention/query", "head/dense"], 8), None, 8),
        (glue_record, {"method__targets": {r".*/query": {"rank": 2}, r".*/key": {}}},
         layers_of([f"{ENCODER}/attention/query"], 2) + layers_of([f"{ENCODER}/attention/key"], 8),
         None, None),
        (glue_record, {"method__targets": QUERY_VALUE, "method__bias": "all"},
         layers_of([f"{ENCODER}/attention/query", f"{ENCODER}/attention/value"], 8), None, 8),
        (nlg_record, {}, layers_of([f"{DECODER}/attention/qkv"], 4, ["q", "v"]), "qv", 4),
        (nlg_record, {"method__parts": [], "rank": 16},
         layers_of([f"{DECODER}/attention/qkv"], 16), None, 16),
        (nlg_record,
         {"method__targets": {".*/qkv": {"parts": ["k"]}, ".*/attention/output": {"parts": []}}},
         layers_of([f"{DECODER}/attention/qkv", f"{DECODER}/attention/output"], 4, ["k"]), "ko", 4),
        (nlg_record, {"method__targets": r"embeddings/token", "method__parts": []},
         layers_of(["embeddings/token"], 4), None, 4),
    ],
)  # fmt: skip
def test_listed_layers_give_what_older_records_infer(
    tmp_path, make, changes, layers, weights, rank
):
    """A record with `layers` and the same record without them, and which of the two is read."""
    path = make(tmp_path / "run", **changes) / "result.json"
    (older,) = find([tmp_path]).records
    path.write_text(json.dumps({**json.loads(path.read_text()), "layers": layers}))
    (record,) = find([tmp_path]).records
    assert (older.weights, older.rank) == (record.weights, record.rank) == (weights, rank)
    other = layers_of([f"{ENCODER}/attention/key"], 32)  # what the run says counts, not the pattern
    path.write_text(json.dumps({**json.loads(path.read_text()), "layers": other}))
    (record,) = find([tmp_path]).records
    assert (record.weights, record.rank) == (None if "method__bias" in changes else "k", 32)


def test_a_broken_list_of_layers_is_an_error(tmp_path):
    path = glue_record(tmp_path / "a") / "result.json"
    broken = [
        ({"path": "x", "parts": []}, "a/result.json, layers\\[0\\].rank: found nothing"),
        (7, "a/result.json, layers\\[0\\]: found 7, expected an object"),
    ]
    for layer, message in broken:
        path.write_text(json.dumps({**json.loads(path.read_text()), "layers": [layer]}))
        with pytest.raises(ValueError, match=message):
            find([tmp_path])


def test_ranks_on_e2e(tmp_path):
    nlg_record(tmp_path / "a", rank=4, bleu=(0.69,), more={"meteor": [0.46]})
    assert not ours(table_of(tmp_path, 18))  # one rank is no sweep
    nlg_record(tmp_path / "b", rank=1, bleu=(0.68,))
    for rank in (2, 4):
        nlg_record(tmp_path / f"s{rank}", rank=rank, model="/x/runs/small/model", bleu=(0.6,))
    table = table_of(tmp_path, 18)
    found = {c.row: (c.paper, c.ours) for c in table.cells if c.metric == "bleu" and c.paper}
    assert found["r=1"] == ("68.72", "68.00") and found["r=4"] == ("70.38", "69.00")
    assert found["r=2"] == ("69.17", "")
    assert [line[0] for line in table.lines[-2:]] == [
        "small/model, W_q, W_v, r=2", "small/model, W_q, W_v, r=4"
    ]  # fmt: skip
    assert table.lines[7][3:] == ("–",) * 6  # r=8, ours
    assert table.lines[5][2:6] == ("ours", "1.5000", "69.00", "–")


# --- What is read ---------------------------------------------------------------------------------


def test_labels_have_no_absolute_path():
    assert model_label("package:mini") == "mini"
    assert model_label("/a/b/small_gpt2/model") == "small_gpt2/model"
    assert model_label("runs/small_gpt2/model") == "small_gpt2/model"
    assert model_label("FacebookAI/roberta-base") == "FacebookAI/roberta-base"
    assert model_label("/model") == "model"


def test_unfinished_runs_and_records_of_no_table_are_listed(tmp_path):
    glue_record(tmp_path / "done")
    glue_record(tmp_path / "done/seed_0", "cola")  # inside a seed: not read
    glue_record(tmp_path / "made_up", "sentiment")
    write(tmp_path / "small", {"task": "pretrain", "parameters": {}})
    for name, config in (("begun", {"method": {}, "seeds": []}), ("model", {"n_embd": 3})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    (tmp_path / "done/evaluation.json").write_text("not JSON")
    found = find([tmp_path, tmp_path / "done"])  # given twice, read once
    assert found.unfinished == (f"{tmp_path.name}/begun",) and len(found.records) == 2
    text = document.document(found, document.tables(found.records), "COMMAND", {})
    name = tmp_path.name
    assert f"- `{name}/made_up`: sentiment is no task of these tables" in text
    assert f"- `{name}/small`: a pre-training run, no adaptation" in text
    assert text.endswith(f"Started, but no result.json yet:\n\n- `{name}/begun`\n")
    assert "Made by `COMMAND` from 2 run records." in text and str(tmp_path) not in text


def test_set_ups_are_listed(tmp_path):
    glue_record(tmp_path / "a", values=(0.9, 0.8), init_adapter="/x/y/runs/mnli")
    glue_record(tmp_path / "b", "rte", data__max_examples=100)
    records = find([tmp_path]).records
    name = tmp_path.name
    assert set_up_lines(records) == [
        "- roberta-base on sst2: 2 epochs, batch 16, 100 training examples (all), length up to "
        "512; 1 x cpu",
        f"  - lora W_q, W_v r=8 (`{name}/a`): learning rate 0.0005; seeds 0, 1; starts from "
        "runs/mnli; best epoch 1 of 2; 60 s of training",
        "- roberta-base on rte: 2 epochs, batch 16, 100 training examples, length up to 512; "
        "1 x cpu",
        f"  - lora W_q, W_v r=8 (`{name}/b`): learning rate 0.0005; seed 0; best epoch 1 of 2; "
        "60 s of training",
    ]


def test_folders_of_one_name_have_different_labels(tmp_path):
    glue_record(tmp_path / "x/run")
    glue_record(tmp_path / "y/run", "rte")
    records = find([tmp_path / "x/run", tmp_path / "y/run"]).records
    assert [record.workdir for record in records] == ["x/run", "y/run"]


@pytest.mark.parametrize("field", ["task", "method", "model", "parameters", "seeds", "config"])
def test_a_field_that_is_missing_is_named(tmp_path, field):
    path = glue_record(tmp_path / "a") / "result.json"
    record = json.loads(path.read_text())
    del record[field]
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rf"a/result.json, {field}: found nothing, expected"):
        find([tmp_path])


def test_bad_folders_and_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        find([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match=rf"no run record .* in {tmp_path}. Give the --workdir"):
        find([tmp_path])
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(ValueError, match=r"result.json, line 1: found invalid JSON"):
        find([tmp_path])
    (tmp_path / "result.json").write_text("[]")
    with pytest.raises(ValueError, match=r"result.json: found \[\], expected a JSON object"):
        find([tmp_path])


# --- Files ----------------------------------------------------------------------------------------


def test_csv_has_the_values_of_the_markdown(tmp_path):
    glue_record(tmp_path / "a", values=(0.95, 0.91, 0.93))
    glue_record(tmp_path / "b", method="bitfit", trained=77, model="package:mini")
    nlg_record(tmp_path / "c", bleu=(0.7, None))
    sweep(tmp_path / "s", [("q", 8, 0.1), ("qk", 4, 0.2), ("q", 1, 0.3)])
    for table in document.tables(find([tmp_path]).records):
        rows = list(csv.DictReader(io.StringIO(table.csv())))

        def shown(name, rows=rows):
            return [r[name] + (f"±{r[name + '_std']}" if r[name + "_std"] else "") for r in rows]

        cells = [cell for line in table.lines for cell in line]
        filled = [text for text in shown("paper") + shown("ours") if text]
        scores = [c for c in cells if re.match(r"(-?[\d.]*\d(±[\d.]+)?|diverged .*)$", c)]
        counts = {line[1] for line in table.lines if len(line) > 1}
        assert sorted(filled) == sorted(s for s in scores if s not in counts), table.number
        assert ",".join(rows[0]) == (
            "table,row,model,method,trained,task_or_split,metric,paper,paper_std,ours,ours_std,seeds,"
            "workdir"
        )


@pytest.mark.slow
def test_command_line(tmp_path):
    glue_record(tmp_path / "runs/a")
    nlg_record(tmp_path / "runs/c", method="none")
    nlg_record(tmp_path / "runs/d")
    (tmp_path / "docs/results").mkdir(parents=True)
    (tmp_path / "docs/results/table_14.png").write_bytes(b"of an earlier report")

    def run(*arguments):
        command = [sys.executable, "-m", "experiments.report", *map(str, arguments)]
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]]),
        }
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    done = run("runs", "--output=docs/results.md")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "docs/results.md").read_text()
    assert "Made by `python -m experiments.report runs --output=docs/results.md` from 3" in text
    assert "(results/table_2.png)" in text and str(tmp_path) not in text
    names = sorted(path.name for path in (tmp_path / "docs/results").iterdir())
    assert names == sorted(
        [f"table_{n}.csv" for n in (2, 3, 4, 5, 6, 8, 13, 14, 15, 16, 18)]
        + ["table_2.png", "table_3.png"]
    )
    assert (tmp_path / "docs/results/table_2.png").read_bytes().startswith(b"\x89PNG")
    bad = run()
    assert bad.returncode == 1 and bad.stderr.startswith("error: no WORKDIR")


def test_plot_has_a_panel_per_task_model_and_number_of_examples(tmp_path):
    mini = {"model": "package:mini"}
    glue_record(tmp_path / "a", values=(0.9, 0.8), trained=2000, **mini)
    glue_record(tmp_path / "b", values=(0.95,), trained=8000, method__rank=32, **mini)
    glue_record(tmp_path / "c", values=(0.7,), method="head_only", trained=0, **mini)
    glue_record(tmp_path / "d", "rte", values=(0.5,), method="bitfit", trained=300, **mini)
    glue_record(tmp_path / "e", "rte", values=(None,), trained=2000, **mini)
    glue_record(tmp_path / "f", "qqp", values=(0.5,), method="bitfit", trained=300, **mini)  # alone
    glue_record(tmp_path / "g", "mrpc", values=(0.9,))  # RoBERTa: with the paper's five rows
    drawn = score_plot.figure(table_of(tmp_path, 2))
    titles = [axes.get_title() for axes in drawn.axes]
    assert titles == [
        "MRPC, roberta-base\n100 training examples",
        "SST-2, mini\n100 training examples",
        "RTE, mini\n100 training examples",
    ]
    mrpc, sst2, rte = drawn.axes
    styles = {marker for _, marker in score_plot.STYLES.values()}
    points = [line for line in mrpc.lines if line.get_marker() in styles]
    hollow = [line for line in points if line.get_markerfacecolor() == "none"]
    assert (len(hollow), len(points)) == (5, 6)
    points = [line for line in sst2.lines if line.get_marker() in styles]
    assert [(*p.get_xdata(), *p.get_ydata()) for p in points] == [(2000, 85.0), (8000, 95.0)]
    assert sst2.get_xscale() == "log" and len(sst2.containers) == 1  # one has two seeds
    joined = [list(x.get_xdata()) for x in sst2.lines if len(x.get_xdata()) == 2]
    assert [2000, 8000] in joined and [0, 1] in joined  # LoRA's sizes; the head's dashed line
    assert [text.get_text() for text in rte.texts] == ["diverged: lora"]
    labels = [text.get_text() for text in drawn.legends[0].get_texts()]
    paper = ["full", "bitfit", "adapter_p", "adapter_d", "lora"]
    assert labels == [*paper, "head_only", "hollow: the paper's"]
    assert score_plot.figure(table_of(tmp_path, 3)) is None


def test_methods_differ_in_marker_and_text_is_readable():
    markers = [marker for _, marker in score_plot.STYLES.values()]
    assert len(set(markers)) == len(markers)
    assert all(matplotlib.colors.is_color_like(color) for color, _ in score_plot.STYLES.values())
    assert panel_grid.FONT >= 8 and panel_grid.PANEL[0] >= 100


@pytest.mark.slow
@pytest.mark.usefixtures("no_java")
def test_a_real_run(tiny_model, tiny_glue, tmp_path):
    config = minilm.get_config("rte,lora")
    config.model.name, config.data.source = str(tiny_model), str(tiny_glue)
    config.data.max_length, config.batch_size, config.epochs, config.seeds = 48, 8, 1, (3, 5)
    result = run_all(glue.task, config, tmp_path / "run")
    document.write(find([tmp_path / "run"]), "COMMAND", tmp_path / "out.md")
    text, accuracy = (tmp_path / "out.md").read_text(), result["best"]["accuracy"]
    score = f"{100 * accuracy['median']:.2f}±{100 * accuracy['std']:.2f}"
    label = f"{tiny_model.parent.name}/{tiny_model.name}"
    dashes = " | ".join(["–"] * 6)
    assert f"| {label}, lora W_q, W_v r=8 | 2,048 | ours | {dashes} | {score} | – | – |" in text
    assert f"{label} on rte: 1 epoch, batch 8, 60 training examples (all)" in text
    assert "(`run`): learning rate 0.001; seeds 3, 5; best epoch 1 of 1" in text
    assert str(tmp_path) not in text and str(tiny_model) not in text
