"""The data-to-text experiment on a tiny GPT-2: records, resume, evaluation, other data, errors."""

import json
import shutil

import jax
import numpy as np
import pytest
import transformers

from configs.nlg import small
from experiments import nlg
from experiments.runs import decoding
from experiments.runs.data_to_text import DataToTextTask
from experiments.runs.run import Run, run_all
from lora_jax import partition
from lora_jax.adapters import load_adapter
from lora_jax.data import data_to_text
from lora_jax.data.pairs import by_context, clean
from lora_jax.decoding.beam import beam_search
from lora_jax.metrics import files, generation, meteor, ptb
from lora_jax.training import loop

OPTIONS = {
    "epochs": 2, "batch_size": 4, "warmup_steps": 2, "learning_rate": 0.02, "log_every": 1,
    "checkpoint_every": 3, "decode.beams": 2, "decode.max_tokens": 6, "decode.batch_size": 4,
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("no_java")


@pytest.fixture(scope="module")
def tiny(tiny_nlg):
    return tiny_nlg


@pytest.fixture(scope="module")
def config(tiny):
    def make(argument="e2e,lora", **changes):
        values = small.get_config(argument)
        values.update_from_flattened_dict(
            {**OPTIONS, "model.name": str(tiny / "gpt2"), "data.source": str(tiny)}
        )
        values.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
        return values

    return make


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """Three seeds on E2E: the folder and the record."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, run_all(DataToTextTask, config(seeds=(0, 1, 2)), folder)


RECORD = {
    "task", "method", "model", "headline", "split", "test", "missing", "notes", "seeds", "config",
    "inputs", "digests",
    "parameters", "memory", "versions", "device", "process", "warm_start",
}  # fmt: skip
TRAINED = {
    "adapter", "best", "last", "steps", "seconds", "compile_seconds", "waiting_seconds",
    "examples_per_second", "tokens_per_second", "padding_efficiency", "flops",
    "flops_per_second_and_device", "mfu", "layers",
}  # fmt: skip
SEED = {
    "step", "history", "best", "seconds", "compile_seconds", "evaluation_seconds", "waiting_seconds",
    "examples", "flops", "tokens", "slots", "diverged", "best_epoch", "last", "shapes", "test", "missing",
    "metric_notes", "decode",
}  # fmt: skip


def test_record_of_three_seeds(finished):
    folder, result = finished
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    assert result.keys() == RECORD | TRAINED
    assert all(record.keys() == SEED for record in result["seeds"].values())
    assert [result[key] for key in ("task", "method", "headline", "split")] == [
        "e2e", "lora", "loss", "test",
    ]  # fmt: skip
    assert list(result["test"]) == ["bleu", "nist", "rouge_l", "cider"]
    for name, value in result["test"].items():
        scores = [result["seeds"][seed]["test"][name] for seed in ("0", "1", "2")]
        assert value["values"] == scores
        assert value["mean"] == pytest.approx(np.mean(scores))
        assert value["std"] == pytest.approx(np.std(scores, ddof=1))
    losses = {int(seed): record["best"]["loss"] for seed, record in result["seeds"].items()}
    assert result["adapter"]["seed"] == min(losses, key=losses.get)
    for seed, record in result["seeds"].items():
        history = [metrics["loss"] for metrics in record["history"]]
        assert record["best"]["loss"] == min(history) == history[record["best_epoch"] - 1]
        notes = load_adapter(folder / f"seed_{seed}/adapter").notes
        assert notes["epoch"] == record["best_epoch"] and notes["seed"] == int(seed)
        assert record["decode"]["prompts"] == 7 and record["decode"]["tokens_per_second"] > 0
    assert result["steps"] == 2 * 5  # 19 rows in batches of 4, two epochs
    assert result["parameters"]["lora"] == 2 * 2 * 2 * 16 * 4  # layers, q and v, A and B
    assert result["layers"] == [
        {"path": "layers/block/attention/qkv", "rank": 4, "parts": ["q", "v"]}
    ]
    assert "no working Java" in result["missing"]["meteor"]
    assert "needs Java" in result["notes"]["rouge_l"] and "missing: no working" in nlg.table(result)
    chosen = folder / f"seed_{result['adapter']['seed']}/adapter/adapter.safetensors"
    assert (folder / "adapter/adapter.safetensors").read_bytes() == chosen.read_bytes()


def test_the_files_score_as_the_record_says(finished, tiny):
    folder, result = finished
    references = files.read_references(folder / "seed_1/references.txt")
    test = by_context(data_to_text.read("e2e", "test", str(tiny)))
    assert references == test.references and [len(texts) for texts in references] == [2] * 7
    texts = files.read_hypotheses(folder / "seed_1/predictions.txt")
    assert generation.e2e(texts, references).values == result["seeds"]["1"]["test"]


def test_a_finished_run_is_read_back_and_another_config_refused(finished, config):
    folder, result = finished
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    again = run_all(DataToTextTask, config(seeds=(0, 1, 2)), folder)
    assert again == json.loads(json.dumps(result)) and nlg.table(again) == nlg.table(result)
    with pytest.raises(ValueError, match=r"decode.length_penalty: 0.9 there, 0.8 now"):
        run_all(DataToTextTask, config(seeds=(0, 1, 2), decode__length_penalty=0.8), folder)
    assert stamps == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_evaluation_reproduces_the_run_and_takes_meteor_where_it_is(
    finished, config, tmp_path, monkeypatch
):
    folder, result = finished
    seed = str(result["adapter"]["seed"])
    monkeypatch.setattr(ptb, "stanford_tokens", lambda texts, _: ptb.python_tokens(texts))
    monkeypatch.setattr(meteor, "score", lambda system, others, _: (0.25, [0.25] * len(system)))
    found = nlg.evaluate(config(eval_only=True, adapter=str(folder)), tmp_path / "evaluation")
    expected = {**result["seeds"][seed]["test"], "meteor": 0.25}
    assert found["test"] == expected and found["missing"] == {}
    one, two = folder / f"seed_{seed}/predictions.txt", tmp_path / "evaluation/predictions.txt"
    assert one.read_bytes() == two.read_bytes()
    record = json.loads((tmp_path / "evaluation/evaluation.json").read_text())
    made_from = {name: record.pop(name) for name in ("inputs", "config")}
    assert record == {"adapter": str(folder), **json.loads(json.dumps(found))}
    assert set(made_from["inputs"]) == {"model", "tokenizer", "decoded data", "adapter"}


def test_merged_decode_is_that_of_the_unmerged_model(finished, config, tmp_path):
    task = DataToTextTask(config(eval_only=True, adapter=str(finished[0])))
    run = Run(task, 0, tmp_path)
    trained = run.trainer.load(finished[0] / "seed_0")
    found, texts = task.decoding.decode(run.trained(trained))
    untrained, frozen, differs = run.trainer.trainable, run.trainer.frozen, False

    @jax.jit
    def search(params, tokens, lengths):
        model = partition.join(run.trainer.structure, params, frozen)
        return beam_search(model, tokens, lengths, task.decoding.search)

    for prompt, tokens, score in zip(
        task.decoding.prompts[:3], found.tokens, found.scores, strict=False
    ):
        lengths = np.array([len(prompt)])
        one, other = (search(params, prompt[None], lengths) for params in (trained, untrained))
        assert one.tokens[0, : one.lengths[0]].tolist() == tokens
        assert float(one.scores[0]) == pytest.approx(score, abs=1e-5)  # W + BA in float32
        differs |= other.tokens[0, : other.lengths[0]].tolist() != tokens
    assert differs  # the adapter has an effect at all
    plain = task.tokenizer.decode(found.tokens[0])
    assert texts[0] == clean(plain)


def test_another_adapter_in_the_same_evaluation_folder_is_refused(finished, config, tmp_path):
    folder, result = finished
    first, second = (config(eval_only=True, adapter=str(folder / f"seed_{s}")) for s in (0, 1))
    assert nlg.evaluate(first, tmp_path)["test"] == result["seeds"]["0"]["test"]
    with pytest.raises(ValueError, match=r"holds a run with another config .adapter: "):
        nlg.evaluate(second, tmp_path)


class Killed(BaseException):
    pass


def test_killed_in_training_then_in_decoding_gives_the_same_bytes(
    finished, config, tmp_path, monkeypatch
):
    """The run is killed in training; the resumed one dies between two batches of decoding."""
    whole, killed = finished[0], tmp_path / "killed"
    values, decode_all, log_step, steps = (
        config(),
        decoding.decode_all,
        loop._log_step,
        iter(range(9)),
    )

    def seventh(*arguments):
        if next(steps) == 6:
            raise Killed
        return log_step(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "_log_step", seventh)
        run_all(DataToTextTask, values, killed)
    assert not (killed / "seed_0/predictions.jsonl").exists()
    assert any((killed / "seed_0/checkpoints").iterdir())

    def dying(search, *arguments, **options):
        calls = iter(range(9))

        def once(*batch):
            if next(calls):
                raise Killed
            return search(*batch)

        return decode_all(once, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(decoding, "decode_all", dying)
        run_all(DataToTextTask, values, killed)
    assert len((killed / "seed_0/predictions.jsonl").read_text().splitlines()) == 2
    found, expected = (
        r["seeds"]["0"] for r in (run_all(DataToTextTask, values, killed), finished[1])
    )
    assert all(found[key] == expected[key] for key in ("test", "best", "last", "tokens", "slots"))
    for name in ("adapter/adapter.safetensors", "adapter/adapter.json", "metrics.jsonl",
                 "predictions.txt", "references.txt"):  # fmt: skip
        one, two = (folder / "seed_0" / name for folder in (whole, killed))
        assert one.read_bytes() == two.read_bytes(), name


def test_without_a_split_to_decode_a_run_trains_the_same_and_writes_no_texts(
    config, finished, tmp_path
):
    result = run_all(DataToTextTask, config(data__decode_split=""), tmp_path / "run")
    expected, found = finished[1]["seeds"]["0"], result["seeds"]["0"]
    assert all(found[key] == expected[key] for key in ("history", "best", "tokens", "slots"))
    assert result["test"] == {} and not {"test", "decode", "missing"} & found.keys()
    assert "decoded data" not in result["inputs"]
    assert not list((tmp_path / "run").glob("**/predictions.txt"))
    assert "nothing decoded" in nlg.table(result) and "not decoded" not in nlg.table(result)
    assert run_all(DataToTextTask, config(data__decode_split=""), tmp_path / "run") == result


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"dataset": "e3e"},
            r"config.dataset must be 'e2e', 'webnlg', .* or 'wnli_text', got 'e3e'. Did you mean 'e2e'",
        ),
        ({"data.source": "/nowhere"}, r"No e2e train file.*/nowhere is not a folder"),
        (
            {"data.decode_split": "dev"},
            r"decode_split must be 'train', 'valid', 'test' or '', got 'dev'",
        ),
        (
            {"data.decode_split": "", "epochs": 0},
            r"decode_split is '', .* without training .* name one of \['train', 'valid', 'test'\]",
        ),
        ({"model.name": "/no/model"}, r"model folder /no/model does not exist"),
        ({"decode.beams": 0}, r"config.decode.beams must be an integer from 1 to 1,000, got 0"),
        (
            {"decode.max_tokens": 128},
            r"config.decode.max_tokens is 128, .* lower it to 127 or less",
        ),
    ],
)
def test_bad_input_is_named_and_claims_no_folder(config, tmp_path, change, says):
    values = config()
    values.update_from_flattened_dict(change)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        run_all(DataToTextTask, values, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_of_another_kind_and_an_adapter_of_another_method(
    finished, config, tiny_model, tmp_path
):
    with pytest.raises(ValueError, match=r"model_type 'bert', expected one of gpt2"):
        run_all(DataToTextTask, config(model__name=str(tiny_model)), tmp_path / "bert")
    adapter = str(finished[0])
    with pytest.raises(ValueError, match="was trained by another method(.|\n)*Use the method"):
        nlg.evaluate(config("e2e,full", eval_only=True, adapter=adapter), tmp_path / "full")
    assert not list(tmp_path.iterdir())


def test_an_added_token_never_becomes_one_of_a_prefix(config, tiny_nlg, tmp_path):
    """Its id would be that of the first special token of the method, which is trained."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_nlg / "gpt2", folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["pub"])
    tokenizer.save_pretrained(folder)
    values = config("e2e,prefix_embed", model__name=str(folder))
    with pytest.raises(ValueError, match=r"the token 'pub' with id \d+, expected ids below"):
        run_all(DataToTextTask, values, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# tests/experiments/test_glue.py trains every method; here those whose decoding differs in kind.
DECODED = ("full", "top2", "adapter_l", "prefix_layer", "lora_prefix_embed")
METHODS = [
    pytest.param(name, marks=[pytest.mark.slow] * (name not in DECODED))
    for name in small.METHODS
    if name not in ("lora", "none")
]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_decodes_and_decodes_the_same_when_loaded(config, tmp_path, method):
    run = config(f"e2e,{method}", epochs=1)
    if run.method.name == "top_layers":
        run.method.count = 1  # the tiny model has two layers
    if run.method.name == "adapter_d":
        run.method.layers = 1
    result = run_all(DataToTextTask, run, tmp_path / "run")
    adapter = load_adapter(tmp_path / "run/adapter")
    stored = sum(value.size for value in adapter.values.values())
    assert adapter.method.name == result["method"]
    assert stored == result["parameters"]["trainable"] > 0
    texts = files.read_hypotheses(tmp_path / "run/seed_0/predictions.txt")
    run.eval_only, run.adapter = True, str(tmp_path / "run")
    nlg.evaluate(run, tmp_path / "again")
    assert files.read_hypotheses(tmp_path / "again/predictions.txt") == texts
    # Validation loss before and after: the loaded adapter is the one that was judged.
    assert result["seeds"]["0"]["history"][-1]["loss"] < 12
