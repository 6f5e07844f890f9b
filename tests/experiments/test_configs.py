"""Configs against the paper: hyperparameters of Table 9 and what each variant changes."""

import pytest

from configs.glue import (
    common,
    roberta_base_bitfit,
    roberta_base_full,
    roberta_base_lora,
    roberta_large_bitfit,
    roberta_large_full,
    roberta_large_lora,
)
from lora_jax import methods

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
