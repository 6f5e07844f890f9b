"""Pre-training a tiny GPT-2 on the three corpora, and the data-to-text experiment on that model."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers

from configs.nlg import small as nlg_config
from configs.pretrain import small
from experiments import nlg, pretrain
from experiments.runs.data_to_text import DataToTextTask
from experiments.runs.record import chosen_adapter, scores_record
from experiments.runs.run import run_all
from lora_jax.adapters import load_adapter
from lora_jax.data import completions, data_to_text
from lora_jax.data.pairs import by_context
from lora_jax.metrics import files
from lora_jax.training.checkpoints import Checkpoints

pytestmark = pytest.mark.usefixtures("no_java")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """E2E txt, WebNLG json with seen and unseen categories, DART json with a partial train set."""
    root = tmp_path_factory.mktemp("corpora")
    random = np.random.default_rng(0)
    pick = lambda *words: str(random.choice(words))  # noqa: E731
    for folder in ("nlg/e2e", "nlg/webnlg_2017", "nlg/dart"):
        (root / folder).mkdir(parents=True)
    for split, short, count in (("train", "train", 17), ("valid", "dev", 5), ("test", "test", 6)):
        lines, entries, dart = [], [], []
        for i in range(count):
            name, kind = f"{pick('Blue', 'Rice')} {pick('Boat', 'Mill')} {i}", pick("pub", "bar")
            text = f"{name} is a {pick('nice', 'small')} {kind} ."
            lines.append(f"name : {name} | Type : {kind}||{text} \n")
            entry = {
                "category": "Artist" if split == "test" and i % 3 == 2 else "Food",
                "modifiedtripleset": [{"subject": name, "property": "type", "object": kind}],
                "lexicalisations": [{"comment": "good", "lex": text}] * 2,
            }
            entries.append({str(i + 1): entry})
            dart.append({"tripleset": [[name, "TYPE", kind]], "annotations": [{"text": text}]})
        (root / f"nlg/e2e/{split}.txt").write_text("".join(lines))
        (root / f"nlg/webnlg_2017/{short}.json").write_text(json.dumps({"entries": entries}))
        short = "train.partial" if split == "train" else short
        (root / f"nlg/dart/{short}.json").write_text(json.dumps(dart))
    return root


@pytest.fixture(scope="module")
def config(corpora):
    def make(**changes):
        values = small.get_config()
        values.update_from_flattened_dict({
            "data.source": str(corpora), "tokenizer.vocab_size": 300, "batch_size": 8,
            "warmup_steps": 2, "epochs": 2, "log_every": 1, "model.n_embd": 16,
            "model.n_layer": 1, "model.n_head": 2, "model.n_positions": 96, **changes,
        })  # fmt: skip
        return values

    return make


@pytest.fixture(scope="module")
def pretrained(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    return folder, pretrain.pretrain(config(), folder)


def test_record_and_what_is_learned(pretrained, config):
    folder, record = pretrained
    assert record.keys() == {
        "digests", "inputs",
        "task", "parameters", "documents", "notes", "best", "last", "steps", "seconds",
        "examples_per_second", "tokens_per_second", "padding_efficiency", "flops",
        "flops_per_second_and_device", "mfu", "memory", "versions",
        "device", "seeds", "config", "compile_seconds", "waiting_seconds", "process",
    }  # fmt: skip
    assert record["documents"] == 17 + 2 * 17 + 17 and record["steps"] == 2 * 9
    assert record["parameters"]["trainable"] == record["parameters"]["total"]
    assert record["notes"]["e2e"] == "" and "partial train set" in record["notes"]["dart"]
    history = [metrics["loss"] for metrics in record["seeds"]["0"]["history"]]
    assert record["best"]["loss"]["values"] == [min(history)] and history[1] < history[0]
    stamp = (folder / "model/model.safetensors").stat().st_mtime_ns
    assert pretrain.pretrain(config(), folder) == json.loads(json.dumps(record))
    assert (folder / "model/model.safetensors").stat().st_mtime_ns == stamp


def test_documents_are_texts_or_pairs_and_all_but_the_first_token_is_learned(pretrained, config):
    folder, _ = pretrained
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    end = tokenizer.eos_token_id
    assert tokenizer.convert_ids_to_tokens(end) == "<|endoftext|>" and len(tokenizer) <= 300
    rows = pretrain.documents(pretrain.read_corpora(config(), "train"), tokenizer, 96)
    assert (rows.starts == 1).all() and len(rows) == 68
    assert all(ids[-1] == end for ids in rows.ids)
    e2e, webnlg = rows.ids[17], rows.ids[34]  # DART, E2E, WebNLG
    assert e2e[0] == end and list(e2e).count(end) == 2 and "name :" not in tokenizer.decode(e2e)
    assert list(webnlg).count(end) == 2 and " : type : " in tokenizer.decode(webnlg)


def test_model_and_loss_are_those_of_transformers(pretrained, corpora, config):
    """The saved folder, read by transformers alone, gives the validation loss of the record."""
    folder, record = pretrained
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    model = transformers.GPT2LMHeadModel.from_pretrained(folder / "model").eval()
    assert model.config.eos_token_id == tokenizer.eos_token_id
    rows = pretrain.documents(pretrain.read_corpora(config(), "valid"), tokenizer, 96)
    total = count = 0.0
    with torch.no_grad():
        for ids in rows.ids:
            row = torch.tensor(ids).long()[None]
            total += float(model(row, labels=row).loss) * (len(ids) - 1)
            count += len(ids) - 1
    gap = abs(total / count - record["best"]["loss"]["median"])
    print(f"\nvalidation loss against transformers: {gap:.1e}")
    assert gap < 5e-6  # float32 sums of two libraries, loss near 5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data.corpora.e2e": "text"}, "corpora.e2e must be 'texts' or 'pairs', got 'text'"),
        ({"data.source": "/nowhere"}, "/nowhere is not a folder"),
    ],
)
def test_bad_input_is_named(config, tmp_path, change, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        pretrain.pretrain(config(**change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_config_in_the_same_folder_is_refused(pretrained, config):
    with pytest.raises(ValueError, match="epochs: 2 there, 3 now"):
        pretrain.pretrain(config(epochs=3), pretrained[0])


# the data-to-text experiment on this model


@pytest.fixture(scope="module")
def experiment(pretrained, corpora):
    def run(argument, folder, **changes):
        values = nlg_config.get_config(argument)
        values.update_from_flattened_dict({
            "model.name": str(pretrained[0] / "model"), "data.source": str(corpora),
            "batch_size": 8, "warmup_steps": 2, "log_every": 1, "decode.beams": 2,
            "decode.max_tokens": 6, "decode.batch_size": 6, "seeds": (4,), **changes,
        })  # fmt: skip
        return run_all(DataToTextTask, values, folder), values

    return run


@pytest.mark.slow
def test_webnlg_has_scores_of_all_seen_and_unseen(experiment, tmp_path):
    result, _ = experiment("webnlg,lora", tmp_path, epochs=1)
    assert set(result["test"]) == {
        "bleu", "ter", "bleu_seen", "ter_seen", "bleu_unseen", "ter_unseen",
    }  # fmt: skip
    assert set(result["missing"]) == {"meteor", "meteor_seen", "meteor_unseen"}
    mean = lambda name: result["test"][name]["mean"]  # noqa: E731
    # TER is the mean over inputs: 4 of the 6 are seen.
    assert mean("ter") == pytest.approx((4 * mean("ter_seen") + 2 * mean("ter_unseen")) / 6)
    assert len(files.read_references(tmp_path / "seed_4/references.txt")) == 6


@pytest.mark.slow
def test_full_fine_tuning_decodes_too(experiment, tmp_path):
    result, _ = experiment("e2e,full", tmp_path, epochs=1)
    adapter = load_adapter(tmp_path / "adapter")
    assert set(adapter.groups.values()) == {"base"} and result["method"] == "full"
    assert result["parameters"]["trainable"] == sum(v.size for v in adapter.values.values())


@pytest.mark.slow
def test_dart_notes_its_partial_training_set(experiment, tmp_path, capsys):
    result, _ = experiment("dart,lora_all", tmp_path, epochs=1)
    note = "partial train set: train.partial.json has 17 of the 62,659 texts"
    assert (
        result["notes"]["train"].startswith(note)
        and f"dart train: {note}" in capsys.readouterr().out
    )
    assert set(result["test"]) == {"bleu", "ter"} and note in nlg.table(result)
    # rank 16 on qkv, output, up and down of one layer of width 16
    assert result["parameters"]["lora"] == 16 * (16 + 48 + 16 + 16 + 2 * (16 + 64))


def test_no_epochs_score_the_base_and_write_no_adapter(experiment, tmp_path):
    result, values = experiment("e2e,none", tmp_path)
    assert values.epochs == 0 and result["method"] == "none"
    assert "best" not in result and "adapter" not in result and result["seeds"]["4"]["decode"]
    names = {path.name for path in tmp_path.rglob("*")}
    assert names == {
        "config.json", "inputs.json", "result.json", "seed_4", "predictions.jsonl", "predictions.txt",
        "references.txt",
    }  # fmt: skip
    assert nlg.table(result).startswith("e2e test  none")
    again, _ = experiment("e2e,none", tmp_path)
    assert again["test"] == result["test"]


def test_every_row_of_the_test_set_is_decoded_from_its_own_prompt(experiment, corpora, tmp_path):
    result, values = experiment("e2e,none", tmp_path, **{"data.max_prompts": 4})
    tokenizer = transformers.AutoTokenizer.from_pretrained(values.model.name)
    test = by_context(data_to_text.read("e2e", "test", str(corpora))).take(4)
    model = transformers.GPT2LMHeadModel.from_pretrained(values.model.name).eval()
    lines = [
        json.loads(x) for x in (tmp_path / "seed_4/predictions.jsonl").read_text().splitlines()
    ]
    found = {i: line for line in lines[1:] for i in line["indices"]}
    assert sorted(found) == [0, 1, 2, 3] and result["seeds"]["4"]["decode"]["prompts"] == 4
    for i, prompt in enumerate(completions.prompts(test, tokenizer)):
        at = found[i]["indices"].index(i)
        tokens = found[i]["tokens"][at]
        with torch.no_grad():
            chances = model(torch.tensor([[*prompt, *tokens]])).logits[0].log_softmax(-1)
        total = sum(float(chances[len(prompt) - 1 + k, t]) for k, t in enumerate(tokens))
        # The score of each is its own prompt's: no 4-gram can repeat within 6 tokens but by chance.
        assert found[i]["scores"][at] == pytest.approx(total / len(tokens) ** 0.9, abs=2e-4)


def test_a_blank_reference_beside_others_is_left_out(experiment, tmp_path):
    texts = [{"text": "A is a pub ."}, {"text": " "}]
    (tmp_path / "test.json").write_text(
        json.dumps([{"tripleset": [["A", "TYPE", "pub"]], "annotations": texts}])
    )
    experiment("dart,none", tmp_path / "run", **{"data.source": str(tmp_path)})
    assert files.read_references(tmp_path / "run/seed_4/references.txt") == [["A is a pub ."]]


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"warmup_steps": 11}, "warm-up of 11 updates is longer than the run of 3"),
        ({"label_smoothing": 1.5}, "config.label_smoothing must be a number in"),
        ({"adam.epsilon": "early"}, "adam.epsilon must be 'after' or 'before'"),
        ({"init_adapter": "/no/run"}, "/no/run/adapter.json is missing"),
    ],
)
def test_bad_settings_of_training_claim_no_folder(experiment, tmp_path, change, says):
    """Else the corrected command is refused: the folder holds a run with another config."""
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        experiment("e2e,lora", tmp_path, **change)
    assert not (tmp_path / "config.json").exists()


def seed_record(loss, missing):
    test = {"bleu": 0.5} | ({} if missing else {"meteor": 0.25})
    return {
        "test": test, "missing": missing, "metric_notes": {}, "step": 1, "examples": 1, "tokens": 1,
        "slots": 1, "seconds": 1.0, "compile_seconds": 0.5, "flops": 8, "best_epoch": 1,
        "best": {"loss": loss}, "last": {"loss": loss},
    }  # fmt: skip


def test_a_metric_that_one_seed_lacks_is_missing():
    records = [seed_record(1.0, {}), seed_record(2.0, {"meteor": "Java was killed"})]
    result = scores_record(records, {})
    assert list(result["test"]) == ["bleu"] and result["missing"] == {"meteor": "Java was killed"}


def test_a_seed_that_diverged_is_not_the_best():
    records = {0: seed_record(float("nan"), {}), 1: seed_record(2.0, {})}
    assert chosen_adapter(records, "loss", smaller=True) == {"seed": 1, "epoch": 1}


def _permuted(folder):
    """Reverses the ids of some tokens: the same text becomes other numbers of the same length."""
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    ids = values["model"]["vocab"]
    some = [token for token, i in ids.items() if 30 <= i < 250]
    ids |= dict(zip(some, [ids[token] for token in reversed(some)], strict=True))
    path.write_text(json.dumps(values))


@pytest.mark.slow
def test_a_run_is_of_the_tokenizer_that_it_made(pretrained, config, tmp_path, monkeypatch):
    _, expected = pretrained
    assert "tokenizer made here" in expected["inputs"]
    saved = Checkpoints.save

    def killed(self, step, *arguments):
        saved(self, step, *arguments)
        if step == 2:
            raise KeyboardInterrupt

    run, kept = tmp_path / "run", tmp_path / "kept"
    values = config(checkpoint_every=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "save", killed)
        pretrain.pretrain(values, run)
    shutil.copytree(run / "tokenizer", kept)
    for without_list in (False, True):
        _permuted(run / "tokenizer")
        if without_list:
            (run / "inputs.json").unlink()
        with pytest.raises(
            ValueError, match=r"run on other inputs: tokenizer made here \(\w{12} there"
        ):
            pretrain.pretrain(values, run)
        shutil.rmtree(run / "tokenizer")
        if not without_list:
            shutil.copytree(kept, run / "tokenizer")
    record = pretrain.pretrain(values, run)  # made anew, it is the same
    assert record["inputs"] == expected["inputs"] and record["best"] == expected["best"]
    _permuted(run / "tokenizer")
    with pytest.raises(ValueError, match="run on other inputs: tokenizer made here"):
        pretrain.pretrain(values, run)
    shutil.rmtree(run / "tokenizer")
    assert pretrain.pretrain(values, run)["best"] == record["best"]
