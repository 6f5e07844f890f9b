"""The quickstart on a tiny model: both methods, scores per phenomenon, the printed table."""

import pytest

from configs import quickstart as configs
from experiments import predict, quickstart
from experiments.runs.run import run_all
from lora_jax.data import sentiment

pytestmark = pytest.mark.usefixtures("no_java")


def test_both_runs_and_their_table(tiny_model, tmp_path):
    results = []
    for method in ("head_only", "lora"):
        config = configs.get_config(method)
        config.model.name, config.epochs = str(tiny_model), 1
        config.data.max_examples, config.data.max_eval_examples = 96, 60
        results.append(run_all(quickstart.task, config, tmp_path / method))
    for result in results:
        parts = [result["last"][kind]["median"] for kind in sentiment.PHENOMENA]
        # Equal shares of every phenomenon, so the whole is the mean of the parts.
        assert result["last"]["accuracy"]["median"] == pytest.approx(sum(parts) / len(parts))
    answers, scores = predict.predict_rows(tmp_path / "lora", "")
    assert scores == results[1]["seeds"]["0"]["best"] and len(answers) == 60
    assert {answer["label"] for answer in answers} == {"negative", "positive"}
    text = quickstart.table(*results)
    assert all(kind in text for kind in sentiment.PHENOMENA)
    assert f"{results[1]['parameters']['trainable']:,}" in text
