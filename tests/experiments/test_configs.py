"""Configs against the paper: Tables 9 and 11, what each variant changes, the numbers they quote."""

import re

import jax
import pytest
from flax import nnx

from configs.glue import (
    common,
    roberta_base_bitfit,
    roberta_base_full,
    roberta_base_lora,
    roberta_large_bitfit,
    roberta_large_full,
    roberta_large_lora,
)
from configs.nlg import (
    gpt2_large_full,
    gpt2_large_lora,
    gpt2_medium_full,
    gpt2_medium_lora,
    small,
)
from configs.pretrain import small as pretrain
from lora_jax import methods, partition
from lora_jax.models.decoder import SIZES, Decoder

ALL = [
    roberta_base_bitfit, roberta_base_full, roberta_base_lora,
    roberta_large_bitfit, roberta_large_full, roberta_large_lora,
]  # fmt: skip


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
    found = (
        config.batch_size, config.epochs, config.learning_rate, config.method.alpha,
        config.data.max_length,
    )  # fmt: skip
    assert found == expected
    assert config.method.rank == 8 and config.warmup_ratio == 0.06 and config.weight_decay == 0.1


@pytest.mark.parametrize("module", ALL)
@pytest.mark.parametrize("task", [*common.TASKS, "wnli"])
def test_every_config_builds_its_method(module, task):
    config = module.get_config(task)
    assert config.task == task
    assert config.epochs > 0 and config.learning_rate > 0 and config.batch_size > 0
    method = methods.create(head="head/.*", **config.method.to_dict())
    assert methods.from_json(method.to_json()) == method


def test_unknown_variant_is_named():
    with pytest.raises(ValueError, match=r"unknown variant 'skript'.*paper.*script"):
        roberta_base_lora.get_config("rte,skript")


# data to text

DATASETS = ["e2e", "webnlg", "dart"]
NLG = {
    "gpt2-medium": (gpt2_medium_lora, gpt2_medium_full),
    "gpt2-large": (gpt2_large_lora, gpt2_large_full),
}
# weight decay, label smoothing, dropout of the LoRA branch, length penalty
TABLE_11 = {
    "e2e": (0.01, 0.1, 0.1, 0.9),
    "webnlg": (0.01, 0.1, 0.1, 0.8),
    "dart": (0.0, 0.0, 0.0, 0.8),
}
# learning rate, epochs and batch size of the fine-tuning baselines of Li and Liang
FULL = {"e2e": (5e-5, 5, 10), "webnlg": (1e-5, 10, 6), "dart": (1e-5, 10, 6)}


def decoding(config):
    return {k: v for k, v in config.decode.items() if k != "batch_size"}


@pytest.mark.parametrize("model", NLG)
@pytest.mark.parametrize("dataset", DATASETS)
def test_table_11(model, dataset):
    config = NLG[model][0].get_config(dataset)
    decay, smoothing, dropout, penalty = TABLE_11[dataset]
    found = (config.learning_rate, config.epochs, config.batch_size, config.warmup_steps)
    assert found == (2e-4, 5, 8, 500) and config.accumulate == 1 and config.max_grad_norm == 0
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


@pytest.mark.parametrize("model", NLG)
@pytest.mark.parametrize("dataset", DATASETS)
def test_fine_tuning_of_li_and_liang(model, dataset):
    lora, config = (module.get_config(dataset) for module in NLG[model])
    assert (config.learning_rate, config.epochs, config.batch_size) == FULL[dataset]
    assert config.method.to_dict() == {"name": "full"} and config.model.name == model
    for name in set(lora) - {"learning_rate", "epochs", "batch_size", "method"}:
        assert config[name] == lora[name], name


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


# Values that train, of the whole model's: counted by hand as 12 d^2 + 13 d a layer, (V + P + 2) d.
COUNTS = {"gpt2-medium": (393_216, 354_823_168), "gpt2-large": (737_280, 774_030_080)}


@pytest.mark.parametrize("model", NLG)
def test_values_that_train_are_those_in_the_head_of_the_file(model):
    for module, expected in zip(NLG[model], COUNTS[model], strict=True):
        method = methods.create(**module.get_config("e2e").method.to_dict())

        def make(method=method):
            return method.insert(Decoder(SIZES[model], nnx.Rngs(0)), jax.random.key(0))

        adapted = nnx.eval_shape(make)
        _, trainable, _ = partition.split(adapted, method.labels(adapted))
        assert partition.count(trainable) == expected
        assert f"{expected:,} " in module.__doc__


# Tables 3, 14 and 13 as paper.md has them (its `FT*` and `LoRA` rows of M and L).
QUOTED = {
    gpt2_medium_lora: (
        "70.4±.1 | 8.85±.02 | 46.8±.2 | 71.8±.1 | 2.53±.02",
        "46.7±.4, 62.1±.2, 55.3±.2 | .38, .44, .41 | .46, .33, .39",
        "47.1±.2 | .39 | .46",
    ),
    gpt2_medium_full: (
        "68.2 | 8.62 | 46.2 | 71.0 | 2.47",
        "27.7, 64.2, 46.5 | .30, .45, .38 | .76, .33, .53",
        "46.2 | .39 | .46",
    ),
    gpt2_large_lora: (
        "70.4±.1 | 8.89±.02 | 46.8±.2 | 72.0±.2 | 2.47±.02",
        "48.4±.3, 64.0±.3, 57.0±.1 | .39, .45, .42 | .45, .32, .38",
        "47.5±.1 | .39 | .45",
    ),
    gpt2_large_full: (
        "68.5 | 8.78 | 46.0 | 69.9 | 2.45",
        "43.1, 65.3, 55.5 | .38, .46, .42 | .53, .33, .42",
        "47.0 | .39 | .46",
    ),
}


@pytest.mark.parametrize("module", QUOTED, ids=lambda module: module.__name__)
def test_head_of_the_file_quotes_the_paper(module):
    lines = [re.sub(" +", " ", line).strip("| ") for line in module.__doc__.splitlines()]
    for dataset, numbers in zip(DATASETS, QUOTED[module], strict=True):
        assert f"{dataset}, paper | {numbers}" in lines
    label = module.__doc__.split("parameters")[0]
    size = {"medium": ("M", "354.92M", "0.35M"), "large": ("L", "774.03M", "0.77M")}
    letter, full, lora = size[module.__name__.split("_")[1]]
    kind = ("FT", full) if module.__name__.endswith("full") else ("LoRA", lora)
    assert f'Row "GPT-2 {letter} ({kind[0]})", {kind[1]} ' in label
