"""A sweep over one DeBERTa: its positions are projected by adapted layers, too, of every run by its own."""

from __future__ import annotations

import pytest
import tiny_folders

from configs.glue import deberta_xxl_lora
from configs.sweep.common import sweep_config
from experiments.sweep.local import run_sweep
from tests.experiments.sweep_runs import alone, assert_same, losses, record


@pytest.mark.slow
def test_a_point_is_the_run_alone(tiny_glue, tmp_path):
    model = tmp_path / "model"
    tiny_folders.write_deberta(model, max_position_embeddings=48)
    run = deberta_xxl_lora.get_config("rte")
    run.update_from_flattened_dict({
        "model.name": str(model), "data.source": str(tiny_glue), "data.max_length": 40, "epochs": 1,
        "batch_size": 8, "data.max_examples": 16, "data.max_eval_examples": 8, "log_every": 1,
        "learning_rate": 0.03, "warmup_ratio": 0.0,
    })  # fmt: skip
    grids = {"ranks": {"method": {"rank": (1, 2)}, "seeds": (0,)}}
    config = sweep_config("glue", run, grids)
    config.runs_per_program = 2
    run_sweep(config, tmp_path / "sweep")
    first, second = sorted((tmp_path / "sweep/points").iterdir())
    assert record(first)["config"]["model"]["classifier_dropout"] == 0.2
    assert len(losses(first)) == 2 and losses(first) != losses(second)
    assert_same(second, alone(second, tmp_path / "alone"))
