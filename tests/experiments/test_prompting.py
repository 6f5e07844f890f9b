"""Few-shot prompting from GLUE's files and a model to a record, against PyTorch; tuned models, too."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import transformers

from configs.nlg import small
from configs.prompting import any_decoder, smollm2
from experiments import prompting
from experiments.paper.scores import TABLE_8
from experiments.report.records import find
from experiments.runs.data_to_text import DataToTextTask
from experiments.runs.prompting import Prompting, means
from experiments.runs.run import run_all
from lora_jax.data import glue, glue_prompts, glue_tasks
from lora_jax.decoding import scored as scored_module
from lora_jax.decoding.scored import Scored

NAMES = ("entailment", "neutral", "contradiction")
ANSWERS = (" True", " Neither", " False")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """MNLI of short texts: 12 training examples, 5 dev examples."""
    root = tmp_path_factory.mktemp("glue")
    (root / "MNLI").mkdir()
    for name, count in (("train", 12), ("dev_matched", 5)):
        rows = [f"{i}\ta pub {i}\tno bar {i % 4}\t{NAMES[i % 3]}" for i in range(count)]
        lines = ["index\tsentence1\tsentence2\tgold_label", *rows]
        (root / "MNLI" / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def llama(tiny_nlg, tmp_path_factory):
    """A random Llama with the tokenizer of the tiny GPT-2, and room for demonstrations."""
    folder = tmp_path_factory.mktemp("llama")
    for path in (tiny_nlg / "gpt2").iterdir():
        if path.name.startswith("tokenizer"):
            shutil.copy(path, folder / path.name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512,
        initializer_range=0.3, bos_token_id=0, eos_token_id=0,
    )).eval()  # fmt: skip
    model.save_pretrained(folder)
    return folder, model, tokenizer


def config(data, model, **changes):
    values = any_decoder.get_config("mnli")
    values.model.name, values.data.source = str(model), str(data)
    values.update_from_flattened_dict({"shots": 1, "seeds": (0, 3), **changes})
    return values


@pytest.fixture(scope="module")
def finished(data, llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompting") / "run"
    return folder, prompting.run(config(data, llama[0]), folder)


def torch_sums(llama, prompts):
    """The log likelihood of every answer behind every prompt, one whole text at a time."""
    _, model, tokenizer = llama
    sums = []
    for prompt in prompts:
        start = len(tokenizer(prompt)["input_ids"])
        for answer in ANSWERS:
            ids = torch.tensor([tokenizer(prompt + answer)["input_ids"]])
            with torch.no_grad():
                logs = model(ids).logits[0].log_softmax(-1)
            places = range(start, ids.shape[1])
            sums.append(sum(logs[n - 1, ids[0, n]].item() for n in places))
    return np.array(sums).reshape(-1, len(ANSWERS))


def test_the_record_has_pytorch_s_answers(finished, data, llama):
    folder, result = finished
    task = glue_tasks.task("mnli")
    train, dev = (glue.read(task, split, str(data)) for split in ("train", "validation_matched"))
    ask = "{}\nQuestion: {}. True, False or Neither?\nAnswer:".format
    for seed in (0, 3):
        shown = glue_prompts.demonstrations(train, 1, NAMES, seed)
        texts = zip(shown.first, shown.second, shown.labels, strict=True)
        head = "".join(f"{ask(a, b)}{ANSWERS[label]}\n\n" for a, b, label in texts)
        queries = [head + ask(a, b) for a, b in zip(dev.first, dev.second, strict=True)]
        sums = torch_sums(llama, queries)
        lines = (folder / f"seed_{seed}/answers.jsonl").read_text().splitlines()
        answers = [json.loads(line) for line in lines]
        ours = [[own["log_likelihoods"][name] for name in NAMES] for own in answers]
        np.testing.assert_allclose(ours, sums, rtol=1e-4, atol=1e-4)  # float32 on both sides
        assert [a["label"] for a in answers] == [NAMES[label] for label in dev.labels]
        assert [a["prediction"] for a in answers] == [NAMES[i] for i in sums.argmax(1)]
        tokens = [len(llama[2](answer)["input_ids"]) for answer in ANSWERS]
        wanted = {
            "accuracy": sums,
            "accuracy_per_token": sums / tokens,
            "accuracy_unconditional": sums - torch_sums(llama, ["Answer:"]),
        }
        assert result["seeds"][str(seed)]["test"] == {
            name: np.mean(values.argmax(1) == dev.labels) for name, values in wanted.items()
        }
    values = [result["seeds"][str(seed)]["test"]["accuracy"] for seed in (0, 3)]
    assert result["test"]["accuracy"]["values"] == values
    assert (
        values[0] == values[1] and result["interval"] is None
    )  # which says nothing of the next draw
    others = {seed: {"test": {"accuracy": value}} for seed, value in enumerate((0.4, 0.6))}
    assert means(others, "accuracy").value == pytest.approx(0.5)
    assert result["prompting"] == {
        "form": "question", "shots": 1, "demonstrations": 3, "examples": 5, "classes": 3, "majority": 0.4
    }  # fmt: skip
    assert result["parameters"]["total"] == sum(p.numel() for p in llama[1].parameters())
    shown = prompting.table(result)
    assert re.search(rf"accuracy +{100 * np.mean(values):.2f} ±", shown) and "chance 33.3" in shown


def test_a_finished_run_is_read_back_and_others_are_refused(finished, data, llama):
    folder, result = finished
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Prompting, "score", lambda *_: pytest.fail("scored again"))
        assert prompting.run(config(data, llama[0]), folder) == json.loads(json.dumps(result))
    with pytest.raises(ValueError, match="another config .shots: 1 there, 2 now"):
        prompting.run(config(data, llama[0], shots=2), folder)
    with pytest.raises(ValueError, match="holds nothing but its own"):
        prompting.run(config(data, llama[0]), folder / "inside")
    train = data / "MNLI/train.tsv"
    before = train.read_text()
    train.write_text(before.replace("a pub 3", "a pub 33"))
    with pytest.raises(ValueError, match="run on other inputs: train data"):
        prompting.run(config(data, llama[0]), folder)
    train.write_text(before)
    assert {"result.json", "seed_0/predictions.jsonl", "seed_3/answers.jsonl"} <= set(
        result["digests"]
    )


def test_a_model_that_gives_no_numbers_is_wrong_and_told(data, llama, tmp_path, monkeypatch):
    """Of equals the first class is chosen, of what is no number none."""

    def scored(*_, **__):
        sums = np.full((6, 3), -1.0)
        sums[1, 2], sums[5] = np.nan, 0
        return Scored(sums.ravel(), 1, 1.0)

    monkeypatch.setattr(scored_module, "score_all", scored)
    result = prompting.run(config(data, llama[0], seeds=(0,)), tmp_path / "run")
    lines = (tmp_path / "run/seed_0/answers.jsonl").read_text().splitlines()
    chosen = [json.loads(line)["prediction"] for line in lines]
    assert chosen == ["entailment", None, *["entailment"] * 3]
    assert result["seeds"]["0"]["predicted"] == [4, 0, 0]
    assert result["test"]["accuracy"]["mean"] == 2 / 5  # two of five are of the first class
    assert result["notes"]["accuracy"].startswith("1 of 5 queries count as wrong")


@pytest.mark.slow
def test_a_tuned_model_is_asked_in_the_texts_it_was_trained_on(data, tiny_nlg, tmp_path):
    """The right classes' log likelihoods are the validation loss of the run; prefixes are in their places."""
    run = small.get_config("mnli_text,lora_prefix_embed")
    run.update_from_flattened_dict({
        "model.name": str(tiny_nlg / "gpt2"), "data.source": str(data), "data.decode_split": "",
        "data.max_length": 96, "epochs": 1, "batch_size": 4, "warmup_steps": 1, "learning_rate": 0.02,
        "method.plus.prefix": 3, "method.plus.infix": 2,
    })  # fmt: skip
    trained = run_all(DataToTextTask, run, tmp_path / "run")
    asked = config(
        data, tiny_nlg / "gpt2", form="text", shots=0, seeds=(0,), adapter=str(tmp_path / "run")
    )
    result = prompting.run(asked, tmp_path / "asked")
    lines = (tmp_path / "asked/seed_0/answers.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    right = sum(answer["log_likelihoods"][answer["label"]] for answer in answers)
    rows = DataToTextTask(run)._tokenised("valid")
    loss = trained["best"]["loss"]["mean"]
    assert -right / rows.outputs(range(len(rows))) == pytest.approx(loss, rel=1e-5)
    assert result["method"] == "lora+prefix_embed" and "adapter" in result["inputs"]
    (record,) = find([tmp_path / "asked"]).prompted
    assert record.method == "lora+prefix_embed" and record.shots == 0
    asked.task = "rte"
    with pytest.raises(ValueError, match="trained on the task 'mnli_text', not on 'rte_text'"):
        prompting.run(asked, tmp_path / "other")


def test_what_cannot_be_asked_says_why(data, llama, tmp_path):
    for changes, message in (
        ({"shots": 0}, "with config.shots=0 nothing is drawn.*set config.seeds="),
        ({"shots": 5}, "5 demonstrations of class 'entailment' are wanted, and .* has 4"),
        ({"task": "stsb"}, "config.task must be "),
        ({"form": "chat"}, "config.form must be "),
        ({"shots": -1}, "config.shots must be "),
        ({"shots": 4}, "longest prompt has .* tokens.*at most 512"),
    ):
        with pytest.raises(ValueError, match=message):
            prompting.run(config(data, llama[0], **changes), tmp_path / "run")
        assert not (tmp_path / "run/result.json").exists()


def test_the_head_of_the_config_has_table_8():
    lines = [line for line in smollm2.__doc__.splitlines() if line.startswith("| f")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {name: tuple(scores) for name, *scores in cells} == dict(TABLE_8)
