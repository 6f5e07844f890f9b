"""Configs against the paper: Tables 9 and 11, the rows of Tables 2, 3, 13, 14, variants, counts."""

import importlib.util
import re
from pathlib import Path

import jax
import pytest
from flax import nnx

from configs.glue import (
    common,
    deberta_xxl_full,
    deberta_xxl_lora,
    minilm_weights,
    roberta_base_adapter_d,
    roberta_base_bitfit,
    roberta_base_full,
    roberta_base_lora,
    roberta_large_adapter_h,
    roberta_large_adapter_p,
    roberta_large_bitfit,
    roberta_large_full,
    roberta_large_lora,
)
from configs.nlg import (
    gpt2_large_adapter_l,
    gpt2_large_full,
    gpt2_large_lora,
    gpt2_large_prefix_layer,
    gpt2_medium_adapter_h,
    gpt2_medium_adapter_l,
    gpt2_medium_full,
    gpt2_medium_lora,
    gpt2_medium_prefix_layer,
    gpt2_medium_top2,
    small,
)
from configs.pretrain import small as pretrain
from experiments.paper import scores
from experiments.paper.counts import count
from lora_jax import methods, partition
from lora_jax.models import deberta_config, hub
from lora_jax.models.deberta import DebertaClassifier
from lora_jax.models.encoder import Classifier, EncoderConfig
from lora_jax.models.gpt2 import GPT2, SIZES

ALL = [
    (roberta_base_adapter_d, ""), (roberta_base_adapter_d, ",large"), (roberta_base_bitfit, ""),
    (roberta_base_full, ""), (roberta_base_lora, ""), (roberta_base_lora, ",script"),
    (roberta_large_adapter_h, ""), (roberta_large_adapter_h, ",large"),
    (roberta_large_adapter_p, ""), (roberta_large_adapter_p, ",large"), (roberta_large_bitfit, ""),
    (roberta_large_full, ""), (roberta_large_lora, ""), (roberta_large_lora, ",restricted"),
    (roberta_large_lora, ",script"), (deberta_xxl_full, ""), (deberta_xxl_lora, ""),
    (deberta_xxl_lora, ",table"), (deberta_xxl_lora, ",script"),
]  # fmt: skip


ROOT = Path(common.__file__).parents[2]
FILES = [
    file
    for file in sorted((ROOT / "configs").rglob("*.py"))
    if "\ndef get_config(" in file.read_text()
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_heads_have_the_command_of_their_config(file):
    """Every config file says how it is run, with a program that exists; its argument has a default."""
    path = file.relative_to(ROOT)
    module = importlib.import_module(".".join(path.with_suffix("").parts))
    commands = re.findall(r"python -m (\S+)(.*)", module.__doc__)
    assert commands and all(importlib.util.find_spec(program) for program, _ in commands)
    named = any(f"--config={path}" in arguments for _, arguments in commands)
    assert named or file.name == "quickstart.py"
    if file.name not in ("record.py", "folders.py"):  # which need the folder of a run
        assert module.get_config()


# (batch, epochs, learning rate, alpha, length) as paper.md 5.1 and 5.2 have them
@pytest.mark.parametrize(
    ("module", "argument", "expected"),
    [
        (roberta_base_lora, "mnli", (16, 30, 5e-4, 8, 512)),
        (roberta_base_lora, "cola", (32, 80, 4e-4, 8, 512)),
        (roberta_base_lora, "rte", (32, 80, 5e-4, 8, 512)),
        (roberta_base_lora, "rte,script", (256, 80, 5e-4, 16, 512)),
        (roberta_base_lora, "cola,script", (64, 80, 4e-4, 16, 512)),
        (roberta_large_lora, "cola", (4, 20, 2e-4, 16, 128)),
        (roberta_large_lora, "stsb", (8, 30, 2e-4, 16, 512)),
        (roberta_large_lora, "stsb,script", (32, 10, 3e-4, 16, 128)),
        (roberta_large_lora, "rte,restricted", (4, 20, 4e-4, 16, 128)),
        (roberta_large_lora, "sst2,script", (64, 10, 4e-4, 16, 512)),
    ],
)
def test_lora_rows(module, argument, expected):
    config = module.get_config(argument)
    values = (
        config.batch_size, config.epochs, config.learning_rate, config.method.alpha,
        config.data.max_length,
    )  # fmt: skip
    assert values == expected
    assert config.method.rank == 8 and config.warmup_ratio == 0.06 and config.weight_decay == 0.1


# Table 10 and the scripts as paper.md 5.3 has them, in its order: batch, epochs, rate, weight decay, dropout
# of the head, length, warm-up
TABLE_10 = {
    "mnli": (8, 5, 1e-4, 0, 0.15, 256), "sst2": (8, 16, 6e-5, 0.01, 0, 128),
    "mrpc": (32, 30, 2e-4, 0.01, 0, 128), "cola": (4, 10, 1e-4, 0, 0.1, 64),
    "qnli": (6, 8, 1e-4, 0.01, 0.1, 512), "qqp": (8, 11, 1e-4, 0.01, 0.2, 320),
    "rte": (4, 11, 2e-4, 0.01, 0.2, 320), "stsb": (4, 10, 2e-4, 0.1, 0.2, 128),
}  # fmt: skip
SCRIPT_10 = {
    "mnli": (64, 1e-4, 1000), "sst2": (64, 6e-5, 1000), "mrpc": (256, 2e-4, 0.1), "cola": (32, 1.3e-4, 100),
    "qnli": (48, 1e-4, 500), "qqp": (64, 1e-4, 10000), "rte": (32, 2.6e-4, 50), "stsb": (32, 2e-4, 100),
}  # fmt: skip


@pytest.mark.parametrize("task", TABLE_10)
def test_table_10(task):
    """Its rank of 8 is not that of Table 2's 4.7M values, which is the config's."""
    config, table, script = (
        deberta_xxl_lora.get_config(task + variant) for variant in ("", ",table", ",script")
    )
    for one in (config, table):
        assert (
            one.batch_size, one.epochs, one.learning_rate, one.weight_decay,
            one.model.classifier_dropout, one.data.max_length,
        ) == TABLE_10[task]  # fmt: skip
        assert (one.warmup_ratio, one.warmup_steps) == (0.1, 0)
    batch, rate, warmup = SCRIPT_10[task]
    assert (script.batch_size, script.learning_rate) == (batch, rate)
    assert (script.warmup_steps or script.warmup_ratio) == warmup and script.seeds == (0,)
    assert script.model == config.model and script.data == config.data
    ranks = [(c.method.rank, c.method.alpha) for c in (config, table, script)]
    assert ranks == [(16, 32), (8, 8), (16, 32)]
    full = deberta_xxl_full.get_config(task)
    assert {k for k in full if full[k] != config[k]} == {"method", "learning_rate"}


# Table 9's adapter rows as paper.md 5.1 has them: size, epochs and learning rates in its order
ADAPTER_ROWS = {
    (roberta_large_adapter_p, "large"): (64, [10, 20, 20, 20, 10, 20, 20, 20], [3e-5] * 2 + [3e-4] * 6),
    (roberta_large_adapter_p, "small"): (16, [5, 20, 20, 20, 10, 20, 20, 20], [3e-4] * 8),
    (roberta_large_adapter_h, "large"): (64, [10, 5, 10, 10, 5, 20, 20, 10], [3e-5] + [3e-4] * 7),
    (roberta_large_adapter_h, "small"): (8, [10, 5, 10, 10, 5, 20, 20, 10], [3e-4] * 8),
}  # fmt: skip
PAPER_ORDER = ("mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb")


@pytest.mark.parametrize(("module", "variant"), ADAPTER_ROWS)
def test_adapter_rows_of_table_9(module, variant):
    size, *columns = ADAPTER_ROWS[module, variant]
    for task, *values in zip(PAPER_ORDER, *columns, strict=True):
        config = module.get_config(f"{task},{variant}")
        assert [config.epochs, config.learning_rate] == values and config.batch_size == 32
        assert config.method.to_dict() == {"name": module.__name__[-9:], "size": size}
        assert config.model.name == "roberta-large" and config.data.max_length == 128
        assert (config.warmup_ratio, config.weight_decay) == (0.06, 0.0)
        assert config.init_adapter == "" and len(config.seeds) == 5
    assert module.get_config("rte") == module.get_config("rte,small")


@pytest.mark.parametrize("task", common.TASKS)
def test_adapter_drop(task):
    small, large = (roberta_base_adapter_d.get_config(f"{task},{v}") for v in ("small", "large"))
    assert small.method.to_dict() == {"name": "adapter_d", "size": 48, "layers": 4}
    assert large.method.to_dict() == {"name": "adapter_p", "size": 48}
    assert {name for name in small if small[name] != large[name]} == {"method"}
    assert roberta_base_adapter_d.get_config(task) == small and small.model.name == "roberta-base"


@pytest.mark.parametrize(("module", "variant"), ALL)
@pytest.mark.parametrize("task", [*common.TASKS, "wnli"])
def test_every_config_builds_its_method(module, variant, task):
    config = module.get_config(task + variant)
    assert config.task == task
    assert config.epochs > 0 and config.learning_rate > 0 and config.batch_size > 0
    method = methods.create(head="head/.*", **config.method.to_dict())
    assert methods.from_json(method.to_json()) == method


@pytest.mark.parametrize(
    ("module", "argument", "known"),
    [
        (roberta_base_lora, "rte,skript", "paper.*script"),
        (roberta_base_adapter_d, "rte,0.3M", "small.*large"),
        (roberta_large_adapter_p, "rte,3.0M", "small.*large"),
        (roberta_large_adapter_h, "rte,big", "small.*large"),
        (gpt2_medium_adapter_l, "e2e,big", "small.*large"),
        (gpt2_large_adapter_l, "e2e,big", "small.*large"),
    ],
)
def test_unknown_variant_is_named(module, argument, known):
    variant = argument.partition(",")[2]
    with pytest.raises(ValueError, match=f"unknown variant '{variant}' in '{argument}'.*{known}"):
        module.get_config(argument)


ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
ENCODERS = {
    "roberta-base": EncoderConfig(
        "roberta", hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
        intermediate_size=3072, **ROBERTA,
    ),
    "roberta-large": EncoderConfig(
        "roberta", hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
        intermediate_size=4096, **ROBERTA,
    ),
}  # fmt: skip


def values_that_train(method, make):
    """Counted on abstract shapes; without the head's, as in the paper."""
    adapted = nnx.eval_shape(lambda: method.insert(make(nnx.Rngs(0)), jax.random.key(0)))
    params, labels = partition.parameters(adapted), method.labels(adapted)
    skipped = (partition.FROZEN, methods.HEAD)
    return partition.count({k: v for k, v in params.items() if labels[k] not in skipped})


# Label and size of the row, its config, its variant, and the line of the file's head that has its scores.
TABLE_2 = [
    ("RoB-base (FT)*", "125.0M", roberta_base_full, "", "paper"),
    ("RoB-base (BitFit)*", "0.1M", roberta_base_bitfit, "", "paper"),
    ("RoB-base (AdptD)*", "0.3M", roberta_base_adapter_d, ",small", "paper, small"),
    ("RoB-base (AdptD)*", "0.9M", roberta_base_adapter_d, ",large", "paper, large"),
    ("RoB-base (LoRA)", "0.3M", roberta_base_lora, "", "paper"),
    ("RoB-large (FT)*", "355.0M", roberta_large_full, "", "paper"),
    ("RoB-large (LoRA)", "0.8M", roberta_large_lora, "", "paper"),
    ("RoB-large (AdptP)†", "3.0M", roberta_large_adapter_p, ",large", "paper, large"),
    ("RoB-large (AdptP)†", "0.8M", roberta_large_adapter_p, ",small", "paper, small"),
    ("RoB-large (AdptH)†", "6.0M", roberta_large_adapter_h, ",large", "paper, large"),
    ("RoB-large (AdptH)†", "0.8M", roberta_large_adapter_h, ",small", "paper, small"),
    ("RoB-large (LoRA)†", "0.8M", roberta_large_lora, ",restricted", "paper†"),
    ("DeB-XXL (FT)*", "1500.0M", deberta_xxl_full, "", "paper"),
    ("DeB-XXL (LoRA)", "4.7M", deberta_xxl_lora, "", "paper"),
]
MODELS = {"RoB-base": "roberta-base", "RoB-large": "roberta-large", "DeB-XXL": "deberta-v2-xxlarge"}


def head_of(module):
    """Title of a file with its row, and the lines of its tables."""
    lines = [re.sub(" +", " ", line).strip("| ") for line in module.__doc__.splitlines()]
    return module.__doc__.split("python -m")[0], lines


def row_of(table, label, size):
    """The row of `experiments.paper.scores`, the home of the paper's numbers."""
    (row,) = [r for r in scores.SCORES[table] if (r.label, r.trained) == (label, size)]
    return row


def test_every_row_of_table_2_is_checked():
    rows = {(row.label, row.trained) for row in scores.SCORES[2]}
    assert {row[:2] for row in TABLE_2} == rows and len(TABLE_2) == 14


@pytest.mark.parametrize(("label", "size", "module", "variant", "line"), TABLE_2)
def test_every_row_of_table_2_has_a_config(label, size, module, variant, line):
    title, lines = head_of(module)
    row = row_of(2, label, size)
    assert f'"{label}"' in title and f" {size}" in title
    assert " | ".join([line, *row.scores]) in lines
    for task in PAPER_ORDER:
        config = module.get_config(task + variant)
        assert config.task == task
        name = config.model.name.removeprefix("microsoft/")
        assert name == row.row.model == MODELS[label.split()[0]]


def count_and_head(module, variant, expected):
    """The config of a GLUE file trains as many values as expected, and its head says so."""
    config = module.get_config("rte" + variant)
    method = methods.create(head=hub.HEAD, **config.method.to_dict())
    name = config.model.name.removeprefix("microsoft/")
    kind = DebertaClassifier if name in deberta_config.SIZES else Classifier
    encoder = {**ENCODERS, **deberta_config.SIZES}[name]
    assert values_that_train(method, lambda rngs: kind(encoder, 2, rngs)) == expected
    assert f"{expected:,} " in " ".join(module.__doc__.split())


# The counts themselves are compared with formulas in test_parameters.py.
@pytest.mark.parametrize(("label", "size", "module", "variant"), [row[:4] for row in TABLE_2])
def test_values_of_table_2_that_train_are_those_in_the_head_of_the_file(
    label, size, module, variant
):
    count_and_head(module, variant, count(row_of(2, label, size).row).trained)


def test_values_that_train_in_the_config_without_a_row():
    count_and_head(roberta_large_bitfit, "", 24 * (7 * 1024 + 4096) + 1024)


# data to text

DATASETS = ["e2e", "webnlg", "dart"]
NLG = {"gpt2-medium": gpt2_medium_lora, "gpt2-large": gpt2_large_lora}
# weight decay, label smoothing, dropout of the LoRA branch, length penalty
TABLE_11 = {
    "e2e": (0.01, 0.1, 0.1, 0.9),
    "webnlg": (0.01, 0.1, 0.1, 0.8),
    "dart": (0.0, 0.0, 0.0, 0.8),
}
# learning rate, epochs and batch size of Li and Liang's baselines as paper.md 5.4 has them
FULL = {"e2e": (5e-5, 5, 10), "webnlg": (1e-5, 10, 6), "dart": (1e-5, 10, 6)}
TOP_2 = {"e2e": (5e-5, 5, 10), "webnlg": (5e-5, 10, 9), "dart": (5e-5, 5, 5)}
ADAPTER_3 = {"e2e": (5e-5, 5, 5), "webnlg": (5e-5, 5, 5), "dart": (5e-5, 5, 5)}
ADAPTER_01 = {"e2e": (8e-5, 10, 5), "webnlg": (5e-5, 10, 5), "dart": (8e-5, 5, 5)}
PREFIX = {"e2e": (8e-5, 5, 10), "webnlg": (5e-5, 5, 5), "dart": (5e-5, 10, 5)}
TABLE_11_RATE = dict.fromkeys(DATASETS, (2e-4, 5, 8))
PREFIX_16 = {"name": "prefix_layer", "prefix": 16, "infix": 0}
# model, config, variant, method, its published or chosen values
BASELINES = [
    ("gpt2-medium", gpt2_medium_full, "", {"name": "full"}, FULL),
    ("gpt2-medium", gpt2_medium_adapter_l, ",small", {"name": "adapter_l", "size": 6}, ADAPTER_01),
    ("gpt2-medium", gpt2_medium_adapter_l, ",large", {"name": "adapter_l", "size": 224}, ADAPTER_3),
    ("gpt2-medium", gpt2_medium_adapter_h, "", {"name": "adapter_h", "size": 112}, TABLE_11_RATE),
    ("gpt2-medium", gpt2_medium_top2, "", {"name": "top_layers", "count": 2}, TOP_2),
    ("gpt2-medium", gpt2_medium_prefix_layer, "", PREFIX_16, PREFIX),
    ("gpt2-large", gpt2_large_full, "", {"name": "full"}, FULL),
    ("gpt2-large", gpt2_large_adapter_l, ",small", {"name": "adapter_l", "size": 8}, ADAPTER_01),
    ("gpt2-large", gpt2_large_adapter_l, ",large", {"name": "adapter_l", "size": 248}, ADAPTER_3),
    ("gpt2-large", gpt2_large_prefix_layer, "", PREFIX_16, PREFIX),
]


def decoding(config):
    return {k: v for k, v in config.decode.items() if k != "batch_size"}


@pytest.mark.parametrize("model", NLG)
@pytest.mark.parametrize("dataset", DATASETS)
def test_table_11(model, dataset):
    config = NLG[model].get_config(dataset)
    decay, smoothing, dropout, penalty = TABLE_11[dataset]
    values = (config.learning_rate, config.epochs, config.batch_size, config.warmup_steps)
    assert values == (2e-4, 5, 8, 500) and config.accumulate == 1 and config.max_grad_norm == 0
    assert (config.weight_decay, config.label_smoothing) == (decay, smoothing)
    assert config.adam.to_dict() == {
        "b1": 0.9, "b2": 0.999, "eps": 1e-6, "epsilon": "after", "no_decay": "",
    }  # fmt: skip
    assert config.method.to_dict() == {
        "name": "lora", "targets": ".*/attention/qkv", "parts": ("q", "v"),
        "fused": ("q", "k", "v"), "rank": 4, "alpha": 32.0, "dropout": dropout,
    }  # fmt: skip
    assert decoding(config) == {
        "beams": 10, "length_penalty": penalty, "no_repeat_ngram": 4, "max_tokens": 64,
    }  # fmt: skip
    assert config.model.name == model and len(config.seeds) == 3
    assert config.data.max_length == 512 and config.data.decode_split == "test"
    assert {config.model[f"{part}_pdrop"] for part in ("embd", "attn", "resid")} == {0.0}
    assert not any(config.data[f"max_{what}"] for what in ("examples", "eval_examples", "prompts"))


@pytest.mark.parametrize(("model", "module", "variant", "method", "published"), BASELINES)
@pytest.mark.parametrize("dataset", DATASETS)
def test_baselines_of_li_and_liang(model, module, variant, method, published, dataset):
    lora, config = NLG[model].get_config(dataset), module.get_config(dataset + variant)
    assert (config.learning_rate, config.epochs, config.batch_size) == published[dataset]
    assert config.method.to_dict() == method and config.model.name == model
    assert config.dataset == dataset
    for name in set(lora) - {"learning_rate", "epochs", "batch_size", "method"}:
        assert config[name] == lora[name], name
    built = methods.create(**method)
    assert methods.from_json(built.to_json()) == built
    if variant in ("", ",small"):
        assert module.get_config(dataset) == config


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("method", ["lora", "lora_all", "full", "none"])
def test_small_configs(dataset, method):
    config = small.get_config(f"{dataset},{method}")
    decay, smoothing, dropout, penalty = TABLE_11[dataset]
    assert (config.dataset, config.epochs > 0) == (dataset, method != "none")
    assert (config.weight_decay, config.label_smoothing) == (decay, smoothing)
    assert config.decode.length_penalty == penalty
    assert config.method.get("dropout", dropout) == dropout
    built = methods.create(**config.method.to_dict())
    assert methods.from_json(built.to_json()) == built
    assert small.get_config(dataset) == small.get_config(f"{dataset},lora")


def test_unknown_method_of_a_small_config_is_named():
    with pytest.raises(ValueError, match=r"unknown method 'lorra' in 'e2e,lorra'; known are"):
        small.get_config("e2e,lorra")


def test_pretraining_config_has_the_fields_of_training():
    config = pretrain.get_config()
    assert config.data.corpora.to_dict() == {"e2e": "texts", "webnlg": "pairs", "dart": "pairs"}
    assert (config.model.n_embd, config.model.n_layer, config.model.n_head) == (256, 4, 4)


# Tables 3, 13 and 14: label and size of the row in Table 3, its config and variant.
TABLE_3 = [
    ("GPT-2 M (FT)*", "354.92M", gpt2_medium_full, ""),
    ("GPT-2 M (AdapterL)*", "0.37M", gpt2_medium_adapter_l, ",small"),
    ("GPT-2 M (AdapterL)*", "11.09M", gpt2_medium_adapter_l, ",large"),
    ("GPT-2 M (AdapterH)", "11.09M", gpt2_medium_adapter_h, ""),
    ("GPT-2 M (FT_Top2)*", "25.19M", gpt2_medium_top2, ""),
    ("GPT-2 M (PreLayer)*", "0.35M", gpt2_medium_prefix_layer, ""),
    ("GPT-2 M (LoRA)", "0.35M", gpt2_medium_lora, ""),
    ("GPT-2 L (FT)*", "774.03M", gpt2_large_full, ""),
    ("GPT-2 L (AdapterL)", "0.88M", gpt2_large_adapter_l, ",small"),
    ("GPT-2 L (AdapterL)", "23.00M", gpt2_large_adapter_l, ",large"),
    ("GPT-2 L (PreLayer)*", "0.77M", gpt2_large_prefix_layer, ""),
    ("GPT-2 L (LoRA)", "0.77M", gpt2_large_lora, ""),
]


def test_every_row_of_table_3_is_checked():
    assert [row[:2] for row in TABLE_3] == [(r.label, r.trained) for r in scores.SCORES[3]]


def quoted(row):
    """A row's scores by data set, as the heads quote them; Adapter H has E2E's only."""
    yield "e2e", " | ".join(row.scores)
    for table, dataset in ((14, "webnlg"), (13, "dart")):
        same = [r.scores for r in scores.SCORES[table] if r.row is row.row]
        assert len(same) == ("AdapterH" not in row.label)
        for numbers in same:
            size = len(numbers) // 3  # BLEU, MET and TER, on WebNLG each of three parts
            groups = [numbers[size * i : size * (i + 1)] for i in range(3)]
            yield dataset, " | ".join(", ".join(group) for group in groups)


@pytest.mark.parametrize(("label", "size", "module", "variant"), TABLE_3)
def test_every_row_of_table_3_has_a_config(label, size, module, variant):
    title, lines = head_of(module)
    row = row_of(3, label, size)
    assert f'"{label.rstrip("*")}"' in title and f" {size} " in title
    line = "paper" + variant.replace(",", ", ")
    for dataset, numbers in quoted(row):
        assert f"{dataset}, {line} | {numbers}" in lines
    for dataset in DATASETS:
        config = module.get_config(dataset + variant)
        model = {"M": "gpt2-medium", "L": "gpt2-large"}[label.split()[1]]
        assert config.dataset == dataset and config.model.name == model == row.row.model


@pytest.mark.parametrize(("label", "size", "module", "variant"), TABLE_3)
def test_values_that_train_are_those_in_the_head_of_the_file(label, size, module, variant):
    config = module.get_config("e2e" + variant)
    method = methods.create(**config.method.to_dict())
    expected = count(row_of(3, label, size).row).trained
    decoder = SIZES[config.model.name]
    assert values_that_train(method, lambda rngs: GPT2(decoder, rngs)) == expected
    assert f"{expected:,} " in " ".join(module.__doc__.split())


@pytest.mark.parametrize("point", ["q,8", "k,8", "v,8", "o,8", "qk,4", "qv,4", "qkvo,2"])
def test_points_of_table_5_have_one_budget(point):
    """18M values in GPT-3; in a model of 6 layers, 384 wide, 6 x 8 x (384 + 384)."""
    config = minilm_weights.get_config(f"sst2,{point}")
    method = methods.create(head=hub.HEAD, **config.method.to_dict())
    sizes = EncoderConfig(
        "bert", vocab_size=50, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
        intermediate_size=384, max_position_embeddings=16, type_vocab_size=2,
    )  # fmt: skip
    adapted = nnx.eval_shape(
        lambda: method.insert(Classifier(sizes, 2, nnx.Rngs(0)), jax.random.key(0))
    )
    assert method.summary(adapted).counts()["lora"] == 36_864
    assert config.method.alpha == 16.0 and len(config.seeds) == 3


@pytest.mark.parametrize("argument", ["sst2", "sst2,qv", "sst2,qx,4", "sst2,qv,many", "sst2,,4"])
def test_wrong_points_are_explained(argument):
    with pytest.raises(ValueError, match="is not TASK,WEIGHTS,RANK"):
        minilm_weights.get_config(argument)
