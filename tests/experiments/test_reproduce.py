"""Every item of experiments.reproduce can be run, and what it says of a score is what the seeds say."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from experiments.compare.record import Comparison, to_json
from experiments.compare.runs import Run
from experiments.compare.statistics import rows
from experiments.latency import contenders
from experiments.paper.columns import TITLES
from experiments.paper.latency import TABLE_1
from experiments.paper.scores import SCORES, TABLE_18
from experiments.report import sent
from experiments.report.records import find
from experiments.reproduce import bands, cost, manifest, outcome, page, running
from experiments.reproduce.catalogue import catalogue, chosen
from experiments.reproduce.items import Item, command, shown
from experiments.runs.fields import OPEN, PLAN, check_config
from lora_jax import run_files
from lora_jax.errors import FileError, InputError, MissingFileError
from tests.experiments.report_records import glue_record, nlg_record, write

ITEM = Item(
    table="2", model="toy", name="sst2/lora", module="tests.experiments.left_by_hand",
    config="works", metrics=("accuracy",), tolerances={"": 0.01}, percent=("accuracy",),
)  # fmt: skip


def known(config, field):
    """Whether a config has a field, by its path."""
    for name in field.split("."):
        if name not in config:
            return False
        config = config[name]
    return True


def test_every_item_has_a_config_with_the_fields_that_its_command_sets():
    for item in catalogue().values():
        config = cost.config_of(item)
        for argument in command(item, Path("runs"), {"glue": "G", "nlg": "N"})[4:]:
            field = argument.partition("=")[0].removeprefix("--config.")
            assert known(config, field), (item.id, field)
        for needed, _ in item.needs.values():
            assert needed in catalogue()


def test_every_table_of_numbers_has_an_item_without_an_accelerator():
    """The others, 9 to 12 and 17, are settings; 13 and 14 are as Table 3, on other corpora."""
    here = {item.table for item in catalogue().values() if not item.accelerator}
    assert {int(table) for table in here if table.isdigit()} == {1, 7, *TITLES} - {13, 14}
    assert {item.table for item in catalogue().values()} == {*here, "13", "14"}


def test_every_score_of_the_papers_tables_2_3_13_and_14_is_an_items():
    for table in (2, 3, 13, 14):
        printed = [score for row in SCORES[table] for score in row.scores]
        if table == 2:  # without the averages
            printed = [score for row in SCORES[2] for score in row.scores[:8]]
        paper = [s for i in catalogue().values() if i.table == str(table) for s in i.paper.values()]
        assert sorted(paper) == sorted(score for score in printed if score != "-")
    paper = catalogue()["table_18/gpt2_medium/e2e"].paper
    assert [*paper.values()] == [score for scores in TABLE_18.values() for score in scores]
    assert paper["rank=4: bleu"] == "70.38"
    slower = catalogue()["table_1/gpt2_medium/grid"].paper
    assert slower["1 x 128: adapter_h"] == "30.3" and slower["32 x 512: adapter_l_small"] == "2.2"
    assert len(slower) == sum(len(point.adapters) for point in TABLE_1)


def test_a_command_as_it_is_shown():
    assert shown(catalogue()["table_2/roberta_base/lora/rte"]) == (
        "python -m experiments.glue --config=configs/glue/roberta_base_lora.py:rte "
        "--workdir=runs/reproduce/table_2/roberta_base/lora/rte --config.data.source=GLUE_FOLDER "
        "--config.init_adapter=runs/reproduce/table_2/roberta_base/lora/mnli"
    )
    assert "--config.run.model.name=runs/reproduce/variants/small/pretrained/model" in shown(
        catalogue()["variants/small/e2e"]
    )
    # GLUE is downloaded without a folder, also for the command whose own default is a folder.
    tuned = command(catalogue()["table_4/smollm2/mnli_text/lora"], Path("runs"), {})
    assert "--config.data.source=tfds" in tuned


def test_what_an_item_needs_stands_before_it():
    found = [item.id for item in chosen("2", "roberta_base", "lora/(rte|sst2)")]
    base = "table_2/roberta_base/lora/"
    assert found == [f"{base}sst2", f"{base}mnli", f"{base}rte"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("7b",), r"--table=7b: known are 1, 2, 3, 4, 5, 6, 7, 8, 13, 14, 15, 16, 18, variants"),
        (("2", "gpt2"), r"--model=gpt2: known models of table 2 are minilm, roberta_base"),
        (("2", "minilm", "wnli"), r"--only=wnli is in no name of table_2/minilm/sst2/head_only"),
        (("2", "minilm", "("), r"--only=\( is no regular expression"),
    ],
)
def test_items_that_are_not_there(arguments, message):
    with pytest.raises(InputError, match=message):
        chosen(*arguments)


def test_95_of_100_bands_have_the_mean_of_new_seeds():
    draws = np.random.default_rng(0).normal(3.0, 0.5, (4000, 2, 3))
    hits = [bands.verdict(new, bands.band(old, 0.0)) == "within" for old, new in draws.tolist()]
    # 4,000 draws of a share of 0.95 spread by 0.0034.
    assert abs(np.mean(hits) - 0.95) < 0.012


def test_bands_are_at_least_the_tolerance_and_of_one_seed_just_that():
    assert bands.band((0.5,), 0.02) == (0.48, 0.52)
    assert bands.band((0.5, 0.5), 0.02) == (0.48, 0.52)
    low, high = bands.band((0.4, 0.6), 0.02)
    half = stats.t.ppf(0.975, 1) * math.sqrt(0.02)
    np.testing.assert_allclose((low, high), (0.5 - half, 0.5 + half))
    assert bands.band((0.5, math.nan), 0.02) is None
    assert bands.band((0.5,), 0.0) is None  # nothing is known of how it varies
    assert bands.verdict((0.47,), (0.48, 0.52)) == "below"
    assert bands.verdict((0.53,), (0.48, 0.52)) == "above"
    assert bands.verdict((math.nan,), (0.48, 0.52)) == "diverged"
    np.testing.assert_allclose(bands.of_paper("87.5±.3", 100, 0.001), (0.869, 0.881))
    np.testing.assert_allclose(bands.of_paper("8.72", 1, 0.1), (8.62, 8.82))


def expected(name, score):
    return page._expected(catalogue()[name], score, manifest.Manifest({}, {}))


def test_bands_of_the_papers_rows_are_in_the_units_of_records():
    """METEOR is 46.2 in Table 3 and 0.39 in Tables 13 and 14; runs have 0.462."""
    np.testing.assert_allclose(expected("table_13/gpt2_medium/dart/full", "meteor"), (0.37, 0.41))
    np.testing.assert_allclose(expected("table_3/gpt2_medium/e2e/full", "meteor"), (0.442, 0.482))
    np.testing.assert_allclose(expected("table_3/gpt2_medium/e2e/full", "nist"), (8.42, 8.82))
    low, high = expected("table_2/roberta_base/lora/cola", "matthews")
    # 63.4 ± 1.2: (1 - 0.65^2) / sqrt(1043) of two runs
    half = max(0.024, 1.96 * math.sqrt(2) * (1 - 0.65**2) / math.sqrt(1043))
    np.testing.assert_allclose((low, high), (0.634 - half, 0.634 + half))


def test_rows_of_table_2_are_judged_by_medians():
    assert catalogue()["table_2/roberta_base/lora/sst2"].median
    assert bands.verdict((0.9, 0.9, 0.0), (0.89, 0.91), median=True) == "within"
    assert bands.verdict((0.9, 0.9, 0.0), (0.89, 0.91)) == "below"
    assert bands.band((0.9, 0.9, 0.0), 0.0, median=True)[0] < 0.9


def test_other_data_than_those_of_the_band_are_named(tmp_path):
    item = next(iter(catalogue().values()))
    first = dataclasses.replace(made(tmp_path), inputs={"train data": "a", "model": "m"})
    known = manifest.with_outcome(manifest.Manifest({}, {}), item, first)
    again = dataclasses.replace(first, inputs={"train data": "b", "model": "m"})
    text = page.results({item.id: again}, known)
    assert f"- {item.id}: train data are not those of the expected band." in text
    assert "are not those" not in page.results({item.id: first}, known)


def test_scores_of_runs_are_those_of_texts_before_those_of_validation(tmp_path):
    nlg_record(tmp_path / "run", bleu=(0.7, 0.72))
    item = dataclasses.replace(ITEM, metrics=("bleu", "loss"))
    found = outcome.read(item, tmp_path / "run")
    assert found.scores == {"bleu": (0.7, 0.72), "loss": (1.5, 1.5)}
    with pytest.raises(FileError, match=r"result.json, best: .*the score 'cider' among them"):
        outcome.read(dataclasses.replace(ITEM, metrics=("cider",)), tmp_path / "run")


def test_seeds_of_a_sweeps_point_are_one_score(tmp_path):
    item = dataclasses.replace(ITEM, kind="sweep")
    for name, values in {
        "rank=1,seed=0": (0.1,), "rank=1,seed=1": (0.2,), "rank=2,seed=0": (0.3,)
    }.items():  # fmt: skip
        glue_record(tmp_path / "points" / name, values=values)
    (tmp_path / "sweep.json").write_text("{}")
    scores = outcome.read(item, tmp_path).scores
    assert scores == {"rank=1: accuracy": (0.1, 0.2), "rank=2: accuracy": (0.3,)}


def left(folder, name, record):
    """A signed record of a command."""
    folder.mkdir(parents=True)
    (folder / name).write_text(json.dumps(run_files.signed(folder, record)))


def test_measurements_have_what_is_scored():
    """Names of contenders, points and columns are those of the configs and of the tables."""
    for model in ("gpt2_small", "gpt2_medium"):
        item = catalogue()[f"table_1/{model}/grid"]
        config = cost.config_of(item)
        places = {f"{b} x {n}" for b in config.batch_sizes for n in config.lengths}
        names = {*contenders.OWN, *config.adapters}
        scored = [score.split(": ") for score in item.metrics]
        assert {place for place, _ in scored} <= places and {name for _, name in scored} <= names
    analysis = catalogue()["table_7/minilm/analysis"]
    assert set(cost.config_of(analysis).adapters) == {
        field.partition(".")[2] for field in analysis.needs
    }


def made(root, **changes):
    """The outcome of `ITEM`, whose run left a signed record."""
    folder = root / ITEM.id
    record = json.loads((glue_record(folder, **changes) / "result.json").read_text())
    write(folder, run_files.signed(folder, record))
    return outcome.read(ITEM, folder)


def send(path, found):
    sent.write(path, {ITEM.id: {"records": dict(found.records)}})


def test_a_file_that_is_sent_makes_the_tables_that_its_folders_make(tmp_path):
    send(tmp_path / "sent.json", made(tmp_path / "a", values=(0.8, 0.9)))
    (there,), (here,) = find([tmp_path / "sent.json"]).records, find([tmp_path / "a"]).records
    assert there.workdir.endswith(f"/sent.json: {ITEM.id}")
    assert dataclasses.replace(there, workdirs=here.workdirs) == here


def test_a_file_that_is_sent_twice_counts_once(tmp_path):
    found = made(tmp_path / "a", values=(0.8, 0.9))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        send(tmp_path / name / "reproduced.json", found)
    both = find([tmp_path / "one/reproduced.json", tmp_path / "two/reproduced.json"])
    assert len(both.records) == 1
    ((label, why),) = both.others
    assert label.startswith("two/") and "a copy of the run `one/reproduced.json" in why
    with pytest.raises(MissingFileError, match="none.json"):
        find([tmp_path / "none.json"])


def test_measurements_that_are_sent_are_named_and_are_in_no_table(tmp_path):
    left(tmp_path / "m", "latency.json", {"contenders": {}, "points": []})
    record = json.loads((tmp_path / "m/latency.json").read_text())
    both = {"table_1/toy/grid": {"records": {".": record}}}
    sent.write(tmp_path / "alone.json", both)
    with pytest.raises(InputError, match=r"grid is a measurement of experiments.latency"):
        find([tmp_path / "alone.json"])
    found = made(tmp_path / "a", values=(0.8, 0.9))
    sent.write(tmp_path / "sent.json", {**both, ITEM.id: {"records": dict(found.records)}})
    there = find([tmp_path / "sent.json"])
    assert len(there.records) == 1 and "experiments.latency" in dict(there.others).popitem()[1]


def test_a_score_that_was_changed_on_the_way_is_refused(tmp_path):
    path = tmp_path / "sent.json"
    send(path, made(tmp_path))
    changed = json.loads(path.read_text())
    changed["items"][ITEM.id]["records"]["."]["best"]["accuracy"]["values"] = [0.99]
    path.write_text(json.dumps(changed))
    with pytest.raises(
        FileError,
        match=r"items.table_2/toy/sst2/lora.records..: found content that",
    ):
        find([path])
    del changed["items"][ITEM.id]["records"]["."]["digests"]
    path.write_text(json.dumps(changed))
    with pytest.raises(FileError, match=r"found no digests, expected what the run wrote"):
        find([path])
    changed["items"][ITEM.id]["records"] = {}
    path.write_text(json.dumps(changed))
    with pytest.raises(FileError, match=r"records: found {}, expected the record of a run"):
        find([path])
    path.write_text('{"format": "another", "items": {}}')
    with pytest.raises(FileError, match=r"format: found 'another', expected 'lora_jax results 1'"):
        find([path])


def test_commands_run_once_and_what_failed_is_named(tmp_path):
    said, outcomes = [], {}
    running.run([ITEM], tmp_path, {}, said.append, outcomes.update)
    assert outcomes[ITEM.id].scores == {"accuracy": (0.8, 0.9)} and len(said) == 1
    arguments = (tmp_path / ITEM.id / "arguments.txt").read_text().splitlines()
    assert arguments == ["--config=works", f"--workdir={tmp_path / ITEM.id}"]
    fails = dataclasses.replace(ITEM, name="other", config="fails")
    with pytest.raises(InputError, match=r"table_2/toy/other ended with status 3"):
        running.run([ITEM, fails], tmp_path, {}, said.append, outcomes.update)
    # The command of a finished item is called again: it looks whether the folder is of its settings and data.
    assert len(said) == 3 and list(outcomes) == [ITEM.id]


def test_data_that_are_not_named_are_asked_for_before_anything_runs(tmp_path):
    needs = dataclasses.replace(ITEM, name="needs", source="nlg")
    with pytest.raises(InputError, match=r"table_2/toy/needs needs a folder of data: --nlg=FOLDER"):
        running.run([ITEM, needs], tmp_path, {}, print, print)
    assert not list(tmp_path.iterdir())


def test_what_is_kept_is_read_back_and_judges_the_next_one(tmp_path):
    path = tmp_path / "reproduce.json"
    item = catalogue()["table_2/minilm/sst2/lora"]
    known = manifest.with_outcome(
        manifest.Manifest({}, {}), item, made(tmp_path, values=(0.5, 0.6))
    )
    manifest.write(known, path)
    again = manifest.read(path)
    assert again == known and again.made[item.id].scores["accuracy"].values == (0.5, 0.6)
    text = page.results({item.id: made(tmp_path / "b", values=(0.55, 0.56))}, again)
    assert text.splitlines()[2].endswith("| 55.50 ± 0.71 | within |")
    assert "| accuracy | 55.00 ± 7.07 |" in page.page(again)


def test_the_page_is_that_of_the_manifest():
    text = page.page(manifest.read())
    assert text == manifest.PATH.with_suffix(".md").read_text(), (
        "python -m experiments.reproduce --page"
    )


def test_scores_of_a_comparison_are_those_of_every_method_at_its_best_rate(tmp_path):
    def run(rate, seed, score):
        return Run(
            rate=rate, seed=seed, score=score, diverged=False, step_seconds=0.1, trained=5,
            folder=tmp_path, examples=100,
        )  # fmt: skip

    found = {
        "lora": [run(1e-3, 0, 0.7), run(1e-3, 1, 0.8), run(1e-2, 0, 0.9), run(1e-2, 1, 0.95)],
        "full": [run(1e-4, 0, 0.6), run(1e-4, 1, 0.5)],
    }
    compared = Comparison(
        experiment="glue", budget={"examples": 9, "epochs": 1, "batch_size": 3}, headline="accuracy",
        smaller_is_better=False,
        rows=tuple(rows(found, smaller_is_better=False)),
    )  # fmt: skip
    text = json.dumps(to_json(compared, {"lora": 1, "full": 1}))
    (tmp_path / "comparison.json").write_text(text)
    glue_record(tmp_path / "points" / "one")
    item = dataclasses.replace(ITEM, kind="comparison")
    assert outcome.read(item, tmp_path).scores == {"lora": (0.9, 0.95), "full": (0.6, 0.5)}


def test_plans_of_the_papers_rows_have_known_fields():
    items = [item for item in catalogue().values() if cost.can_be_planned(item)]
    assert {item.table for item in items} == {"2", "3", "4", "13", "14"}
    for item in items:
        check_config(cost.plan_of(cost.config_of(item), 2), PLAN, OPEN)
