"""Tuning on one's own texts with a tiny GPT-2: records, samples, resume, evaluation, formats, refusals."""

import csv
import gzip
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import tune_files
from pyarrow import parquet

from configs import record
from configs.sweep.common import sweep_config
from configs.tune import common, small, smollm2
from experiments import tune
from experiments.report import records
from experiments.runs.record import check_converged
from experiments.runs.samples import shown
from experiments.runs.tune import TuneTask
from experiments.runs.tune_data import Columns, read_splits, split
from experiments.runs.tuned import of_run
from experiments.sweep.__main__ import write_report
from experiments.sweep.local import run_sweep
from lora_jax import methods
from lora_jax.adapters import load_adapter
from lora_jax.data.conversations import Example, Message
from lora_jax.errors import DivergedError, InputError
from lora_jax.metrics.answers import same_number
from lora_jax.training import loop

ROOT = Path(__file__).parents[2]
OPTIONS = {
    "epochs": 2, "batch_size": 4, "learning_rate": 0.01, "log_every": 1, "checkpoint_every": 3,
    "samples.count": 2, "samples.max_tokens": 5, "decode.max_tokens": 5, "decode.batch_size": 3,
    "method.rank": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two model folders, one of them without a chat template, and files of examples."""
    root = tmp_path_factory.mktemp("tune")
    tune_files.write_model(root / "chat")
    tune_files.write_model(root / "plain", chat=False)
    tune_files.write_lines(root / "pairs.jsonl", tune_files.pairs(24))
    tune_files.write_lines(root / "chats.jsonl", tune_files.chats(16))
    tune_files.write_lines(root / "test.jsonl", tune_files.pairs(7, seed=1))
    return root


@pytest.fixture(scope="module")
def config(folder):
    def make(kind="text", **changes):
        chat = kind == "chat"
        values = smollm2.get_config() if chat else small.get_config()
        values.update_from_flattened_dict(OPTIONS)
        values.update_from_flattened_dict(
            {
                "model.name": str(folder / ("chat" if chat else "plain")),
                "data.train": str(folder / ("chats.jsonl" if chat else "pairs.jsonl")),
                "data.held_out": 4,
            }
        )
        values.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
        return values

    return make


@pytest.fixture(scope="module")
def finished(config, folder, tmp_path_factory):
    """Two seeds on pairs, with test examples: the folder and the record."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    return workdir, tune.tune(
        config(seeds=(0, 1), data__test=str(folder / "test.jsonl"), metric="last_number"), workdir
    )


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_record(finished, folder):
    workdir, result = finished
    assert json.loads((workdir / "result.json").read_text()) == json.loads(json.dumps(result))
    assert result["task"] == "tune" and result["headline"] == "loss" and result["split"] == "test"
    assert set(result["inputs"]) == {
        "model", "tokenizer", "train data", "validation data", "test data"
    }  # fmt: skip
    assert result["format"] == {
        "format": "text", "template": "{prompt}", "separator": "\n", "system": "",
        "messages": "messages", "completion": "completion", "chat_template": "",
    }  # fmt: skip
    counts = result["examples"]
    assert (counts["train"]["examples"], counts["validation"]["examples"], counts["test"]) == (
        20,
        4,
        7,
    )
    assert 0 < counts["train"]["learned"] < counts["train"]["tokens"]
    assert (
        list(result["test"]) == ["last_number"]
        and len(result["test"]["last_number"]["values"]) == 2
    )
    for run in result["seeds"].values():
        losses = [metrics["loss"] for metrics in run["history"]]
        assert run["best"]["loss"] == min(losses) < run["start"]["loss"]
        assert run["best"]["perplexity"] == pytest.approx(math.exp(min(losses)))
    shares = result["test"]["last_number"]
    right = f"{100 * shares['mean']:.2f} ±{100 * shares['std']:.2f} % of the answers are right"
    assert "20 examples (0 cut, 0 dropped)" in tune.table(result) and right in tune.table(result)


def test_printed_samples_have_their_references():
    samples = [
        {"prompt": "What?\nWhy?", "reference": "word " * 100, "text": "so"},
        {"prompt": "Who?", "reference": "", "text": "x" * 400},
    ]
    text = shown({"epoch": 1, "metrics": {"loss": 0.5}, "samples": samples}, 3)
    assert text.split("\n") == [
        "seed 3 epoch 1: loss 0.5", "  > What?", "    Why?", "  < so", f"  = {'word ' * 59}word...",
        "  > Who?", f"  < {'x' * 300}...",
    ]  # fmt: skip


def test_samples_of_every_epoch_and_before(finished, folder):
    workdir, result = finished
    held_out = TuneTask(record.get_config(str(workdir))).splits.validation[:2]
    for seed, run in result["seeds"].items():
        found = lines(workdir / f"seed_{seed}/samples.jsonl")
        assert found == run["samples"] and [line["epoch"] for line in found] == [0, 1, 2]
        assert found[0]["metrics"] == run["start"]
        assert [line["metrics"] for line in found[1:]] == run["history"]
        for line in found:
            pairs = [(s["prompt"], s["reference"]) for s in line["samples"]]
            assert pairs == [(e.text, e.reference) for e in held_out]
        texts = [[sample["text"] for sample in line["samples"]] for line in found]
        assert texts[0] != texts[2]  # it learns


def test_answers_stand_beside_prompts_and_references(finished, folder):
    workdir, result = finished
    expected = tune_files.pairs(7, seed=1)
    for number, seed in enumerate(("0", "1")):
        found = lines(workdir / f"seed_{seed}/answers.jsonl")
        assert [(f["prompt"], f["reference"]) for f in found] == [
            (e["prompt"], e["completion"]) for e in expected
        ]
        right = [same_number(f["prediction"], f["reference"]) for f in found]
        assert right == [f["right"] for f in found]
        assert result["test"]["last_number"]["values"][number] == sum(right) / 7


def test_a_finished_run_is_read_back_and_another_file_refused(finished, config, folder, tmp_path):
    workdir, result = finished
    moved = tmp_path / "run"
    shutil.copytree(workdir, moved)
    changes = {"seeds": (0, 1), "metric": "last_number"}
    path = folder / "test.jsonl"
    again = tune.tune(config(**changes, data__test=str(path)), moved)
    assert again == json.loads(json.dumps(result)) and tune.table(again) == tune.table(result)
    before = path.read_text()
    try:
        path.write_text(before.replace("red", "rot"))
        with pytest.raises(ValueError, match=r"other inputs: test data \(.* there, .* now\)"):
            tune.tune(config(**changes, data__test=str(path)), moved)
    finally:
        path.write_text(before)
    with pytest.raises(ValueError, match="learning_rate: 0.01 there, 0.5 now"):
        tune.tune(config(**changes, data__test=str(path), learning_rate=0.5), moved)


def test_evaluation_gives_the_loss_and_the_answers_of_the_run(finished, config, folder, tmp_path):
    workdir, result = finished
    values = config(data__test=str(folder / "test.jsonl"), metric="last_number")
    values.eval_only, values.adapter = True, str(workdir)
    found = tune.evaluate(values, tmp_path / "evaluation")
    best = result["seeds"][str(result["adapter"]["seed"])]
    assert found["test"] == best["test"]
    assert found["validation"]["loss"] == pytest.approx(best["best"]["loss"], rel=1e-6)
    one = workdir / f"seed_{result['adapter']['seed']}/answers.jsonl"
    assert one.read_bytes() == (tmp_path / "evaluation/answers.jsonl").read_bytes()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("where", ["step", "epoch"])
def test_killed_and_resumed_is_the_same(finished, config, folder, tmp_path, monkeypatch, where):
    """Killed in the second epoch, or behind the first one's samples and before its checkpoint."""
    workdir, result = finished
    values = config(seeds=(0, 1), data__test=str(folder / "test.jsonl"), metric="last_number")
    name = {"step": "_log_step", "epoch": "_save"}[where]
    whole, calls = getattr(loop, name), iter(range(99))

    def dying(*arguments):
        if next(calls) == {"step": 7, "epoch": 1}[where]:
            raise Killed
        return whole(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, name, dying)
        tune.tune(values, tmp_path / "run")
    epochs = [line["epoch"] for line in lines(tmp_path / "run/seed_0/samples.jsonl")]
    assert epochs == [0, 1]
    again = tune.tune(values, tmp_path / "run")
    assert again["test"] == result["test"]
    names = ("samples.jsonl", "answers.jsonl", "adapter/adapter.safetensors", "metrics.jsonl")
    for seed in ("0", "1"):
        for key in ("history", "start", "samples", "tokens", "examples"):
            assert again["seeds"][seed][key] == result["seeds"][seed][key]
        for file in names:
            one, two = (path / f"seed_{seed}" / file for path in (workdir, tmp_path / "run"))
            assert one.read_bytes() == two.read_bytes(), file


def test_pairs_become_chats_with_a_system_message(config, folder):
    task = TuneTask(
        config("chat", data__train=str(folder / "pairs.jsonl"), data__system="Be brief.")
    )
    task.prepare()
    text = task.tokenizer.decode(task.train.ids[0])
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is ")
    assert text.endswith("<|im_end|>\n")


def test_every_file_format_gives_the_same_run(config, tmp_path):
    rows = tune_files.pairs(24)
    tune_files.write_lines(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.json").write_text(json.dumps(rows))
    (tmp_path / "c.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    for name, delimiter in (("d.csv", ","), ("e.tsv", "\t")):
        with (tmp_path / name).open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "f.parquet")
    tasks = [TuneTask(config(data__train=str(path))) for path in sorted(tmp_path.iterdir())]
    assert len(tasks) == 6 and all(task.inputs == tasks[0].inputs for task in tasks)
    assert len({task.train.digest for task in tasks}) == 1


def test_auto_looks_for_a_column_of_messages(config, folder):
    forms = {}
    for name in ("pairs", "chats"):
        values = config("chat", data__format="auto", data__train=str(folder / f"{name}.jsonl"))
        forms[name] = TuneTask(values).columns.form
    assert forms == {"pairs": "text", "chats": "chat"}


def test_a_file_of_its_own_for_validation_says_what_it_shares(config, folder, tmp_path):
    path = tune_files.write_lines(
        tmp_path / "v.jsonl", tune_files.pairs(3) + tune_files.pairs(2, 9)
    )
    task = TuneTask(config(data__validation=str(path)))
    assert (len(task.splits.train), len(task.splits.validation)) == (24, 5)
    assert task.notes["validation"] == "3 prompts are among the training examples too"


def test_sampling_is_reproducible_and_beams_work(config, folder, tmp_path):
    texts = {}
    for name, changes in {
        "one": {"decode__seed": 1}, "again": {"decode__seed": 1}, "other": {"decode__seed": 2},
        "beam": {"decode__method": "beam"},
    }.items():  # fmt: skip
        values = config(
            epochs=0, data__test=str(folder / "test.jsonl"),
            **{"decode__method": "sample", "decode__temperature": 1.0, **changes},
        )  # fmt: skip
        result = tune.tune(values, tmp_path / name)
        assert result["method"] == "none"
        texts[name] = (tmp_path / name / "seed_0/answers.jsonl").read_text()
    assert texts["one"] == texts["again"] and len(set(texts.values())) == 3


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("prefix_embed", "full", "prefix_layer")
    ],
)  # test_gpt3_tables.py trains and decodes with a prefix
def test_other_methods_tune_too(config, tmp_path, method):
    values = config(epochs=1, data__test="held_out")
    with values.unlocked():
        values.method = {"name": method}
        if method != "full":
            values.method = {"name": method, "prefix": 3, "infix": 2}
    result = tune.tune(values, tmp_path / "run")
    assert load_adapter(tmp_path / "run/adapter").method.name == method == result["method"]
    assert len(lines(tmp_path / "run/seed_0/answers.jsonl")) == 4


def test_words_behind_a_config_are_data_and_method():
    plain, both = smollm2.get_config(), smollm2.get_config("gsm8k,full")
    assert plain.to_dict() == smollm2.get_config("lora").to_dict()
    assert both.to_dict() == smollm2.get_config("full,gsm8k").to_dict()
    assert both.method.to_dict() == {"name": "full"} and both.metric == "last_number"
    assert both.learning_rate == smollm2.LEARNING_RATE["full"] != plain.learning_rate
    assert plain.learning_rate == smollm2.get_config("dora").learning_rate
    for make in (smollm2, small):
        for name in common.METHODS:
            made = make.get_config(name)
            assert methods.create(**made.method.to_dict()) and made.learning_rate > 0
    with pytest.raises(
        ValueError, match="unknown data or method 'lroa' in 'gsm8k,lroa'; known are"
    ):
        smollm2.get_config("gsm8k,lroa")
    with pytest.raises(ValueError, match="two of a kind"):
        small.get_config("lora,full")


REFUSED = [
    ({"data__train": "/no/file.jsonl"}, r"/no/file.jsonl is missing"),
    ({"data__train": "x.xlsx"}, r"the suffix '.xlsx', expected a name that ends in .jsonl"),
    (
        {"data__template": "{question}"},
        r"the columns prompt, completion, expected a column 'question'. Name the file's own: "
        r"--config.data.template='{COLUMN}'$",
    ),
    ({"data__template": "none"}, r"names no column"),
    (
        {"data__completion": "answer"},
        r"expected a column 'answer'. Name the file's own: --config.data.completion=COLUMN$",
    ),
    (
        {"data__held_out": 0},
        r"config.data.held_out=0 of 24 examples .*at least one must be held out",
    ),
    ({"data__held_out": 24}, r"config.data.held_out=24 of 24 examples"),
    ({"data__system": "x"}, r"config.data.system is a message"),
    ({"data__format": "chat"}, r"has no chat template.*config.data.format='text'"),
    ({"data__max_length": 8, "data__long": "refuse"}, r"line 1: \d+ tokens, expected at most 8"),
    ({"data__max_length": 3, "data__long": "drop"}, r"none of 20 examples is left"),
    ({"samples__max_tokens": 128}, r"max_tokens=128 leaves no room for a prompt"),
    ({"metric": "rouge"}, r"config.metric must be '', 'exact_match' or 'last_number'"),
]


@pytest.mark.parametrize(("changes", "says"), REFUSED)
def test_bad_input_is_named_and_claims_no_folder(config, tmp_path, changes, says):
    with pytest.raises(ValueError, match=says):
        tune.tune(config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_messages_are_refused_by_their_line(config, tmp_path):
    rows = [*tune_files.chats(5), {"messages": [{"role": "user", "content": "a"}]}]
    path = tune_files.write_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(ValueError, match="a.jsonl, line 6: found no turn of the assistant"):
        tune.tune(config("chat", data__train=str(path)), tmp_path / "run")


def test_the_report_passes_over_it(finished):
    with pytest.raises(ValueError, match="no run record"):
        records.find([finished[0]])


def test_a_record_is_a_config(finished):
    values = record.get_config(str(finished[0]))
    task = TuneTask(values)
    assert task.inputs == finished[1]["inputs"]


@pytest.mark.slow
def test_a_sweep_gives_what_its_runs_alone_give(config, tmp_path):
    run = config(data__test="held_out", metric="exact_match")
    swept = sweep_config("tune", run, {"rates": {"learning_rate": (0.01, 0.03)}})
    swept.runs_per_program = 2
    run_sweep(swept, tmp_path / "sweep")
    for rate in (0.01, 0.03):
        point = json.loads(
            (tmp_path / f"sweep/points/learning_rate={rate}/result.json").read_text()
        )
        values = config(data__test="held_out", metric="exact_match", learning_rate=rate)
        values.data.row_length = point["config"]["data"]["row_length"]
        alone = tune.tune(values, tmp_path / f"alone_{rate}")
        # float32: runs side by side add up in another order
        assert point["best"]["loss"]["mean"] == pytest.approx(
            alone["best"]["loss"]["mean"], rel=1e-4
        )
        assert point["format"] == alone["format"] and point["examples"] == alone["examples"]
    write_report(tmp_path / "sweep", "tune")
    report = (tmp_path / "sweep/report.md").read_text()
    assert (
        "| run | loss | perplexity | exact_match |" in report
        and report.count("learning_rate=") == 2
    )


def test_examples_of_the_page_are_read_as_it_says(config, tmp_path):
    blocks = re.findall(r"```json\n(.*?)\n```", (ROOT / "docs/tune.md").read_text(), re.S)
    assert len(blocks) == 4
    changes = [
        {"data__messages": "messages"},
        {"data__messages": "conversations"},
        {"data__format": "text"},
        {"data__template": "{instruction}[[\n\n{input}]]", "data__completion": "output"},
    ]
    found = []
    for number, (block, change) in enumerate(zip(blocks, changes, strict=True)):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(block + "\n")
        columns = Columns(config("chat", **change).data)
        (example,) = columns.read(str(path))
        found.append((columns.form, example.text, example.reference))
    assert found == [
        ("chat", "system: Be brief.\nuser: What is 2 + 2?", "4."),
        ("chat", "What is 2 + 2?", "4."),
        ("text", "Translate into French: cheese", "fromage"),
        ("chat", "Add the numbers.\n\n1 2 3", "6"),
    ]


@pytest.mark.parametrize("seed", range(20))
def test_no_prompt_is_on_both_sides(seed):
    draw = np.random.default_rng(seed)
    count = int(draw.integers(6, 60))
    prompts = [f"prompt {n}" for n in draw.integers(0, count // 2, count)]
    examples = [
        Example((Message("user", prompt), Message("assistant", str(i))), f"line {i}")
        for i, prompt in enumerate(prompts)
    ]
    wanted = int(draw.integers(1, count // 3 + 1))
    rest, out = split(examples, wanted, seed)
    assert sorted([*rest, *out], key=lambda e: int(e.reference)) == examples
    assert not {e.key for e in rest} & {e.key for e in out}
    most = max(prompts.count(prompt) for prompt in prompts)
    assert wanted <= len(out) < wanted + most  # the last prompt of them may have several examples
    assert (rest, out) == split(examples, wanted, seed) == split(examples, wanted / count, seed)


def test_the_instructions_split_into_a_thousand_and_a_hundred(real_data):
    values = smollm2.get_config("instructions")
    values.data.train = str(real_data / "nlg/instructions/instruction-data.json")
    splits = read_splits(values.data, Columns(values.data))
    assert (len(splits.train), len(splits.validation)) == (1000, 100)
    assert splits.test == splits.validation and splits.shared == 0
    assert all(e.reference.strip() for e in [*splits.train, *splits.validation])


def test_every_answer_of_gsm8k_is_read(real_data):
    values = smollm2.get_config("gsm8k")
    values.data.train = str(real_data / "nlg/gsm8k/train.jsonl")
    values.data.test = str(real_data / "nlg/gsm8k/test.jsonl")
    splits = read_splits(values.data, Columns(values.data))
    assert len(splits.train) + len(splits.validation) == 7473 and len(splits.test) == 1319
    assert all(same_number(e.reference, e.reference) for e in splits.test)


def test_a_run_that_diverges_says_so_and_has_no_adapter(config, tmp_path):
    values = config(learning_rate=1e38, max_grad_norm=0.0, warmup_ratio=0.0)
    result = tune.tune(values, tmp_path / "run")
    assert result["seeds"]["0"]["diverged"] > 0 and result["adapter"] is None
    assert "held-out loss nan" in tune.table(result)
    with pytest.raises(DivergedError, match="seed 0 at step"):
        check_converged(result, tmp_path / "run")
    with pytest.raises(InputError, match="has no adapter: all of its seeds diverged"):
        of_run(tmp_path / "run")
