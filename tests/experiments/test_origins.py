"""Adapters are used on what they were trained on: base, settings of the model, tokenizer, scale and task."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs.glue import minilm
from experiments import glue
from experiments.runs import origins
from experiments.runs.run import run_all
from lora_jax import adapter_files
from lora_jax.adapters import UNKNOWN_BASE, load_adapter, save_adapter

SMALL = {"epochs": 1, "batch_size": 8, "seeds": (0,), "data.max_length": 24, "data.max_examples": 16,
         "data.max_eval_examples": 8, "checkpoint_every": 1}  # fmt: skip


@pytest.fixture(scope="module")
def config(tiny_model, tiny_glue):
    def make(task="rte", **changes):
        values = minilm.get_config(f"{task},lora")
        values.update_from_flattened_dict(
            {**SMALL, "model.name": str(tiny_model), "data.source": str(tiny_glue)}
        )
        values.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
        return values

    return make


@pytest.fixture(scope="module")
def first(config, tmp_path_factory):
    """A run whose adapter moved, and its scores by the adapter."""
    folder = tmp_path_factory.mktemp("origins") / "first"
    run_all(glue.task, config(learning_rate=0.01), folder)
    return folder


def _evaluated(config, adapter, out=None, **changes):
    return glue.evaluate(config(eval_only=True, adapter=str(adapter), **changes), out)


def _model(tiny_model, folder, **changes):
    """A copy of the base whose config.json has other values."""
    shutil.copytree(tiny_model, folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))
    return str(folder)


def _saved_again(source, folder, **changes):
    """An adapter once more, with other notes or another base."""
    adapter = load_adapter(source / "adapter")
    base, notes = changes.get("base", adapter.base), changes.get("notes", adapter.notes)
    save_adapter(folder, adapter.values, adapter.groups, adapter.method, base, notes)
    return folder


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layer_norm_eps": 0.9}, r"layer_norm_eps: 1e-12 there, 0.9 in the model here"),
        ({"num_attention_heads": 1}, r"num_attention_heads: 2 there, 1 in the model here"),
    ],
)
@pytest.mark.parametrize("use", ["adapter", "init_adapter"])
def test_a_model_with_other_settings_is_not_the_adapter_s(
    config, first, tiny_model, tmp_path, changes, says, use
):
    model = _model(tiny_model, tmp_path / "model", **changes)
    with pytest.raises(ValueError, match=says):
        if use == "adapter":
            _evaluated(config, first, model__name=model)
        else:
            run_all(glue.task, config(model__name=model, init_adapter=str(first)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_without_effect_do_not_matter(config, first, tiny_model, tmp_path):
    same = _model(
        tiny_model, tmp_path / "model", transformers_version="0.1", _name_or_path="x",
        dtype="bfloat16", hidden_dropout_prob=0.3, initializer_range=0.5, id2label={"0": "x"},
    )  # fmt: skip
    assert _evaluated(config, first, model__name=same) == _evaluated(config, first)


def _permuted(folder):
    """Exchanges the ids of two words in tokenizer.json, which alone holds the vocabulary."""
    (folder / "vocab.txt").unlink(missing_ok=True)
    values = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary["cat"], vocabulary["dog"] = vocabulary["dog"], vocabulary["cat"]
    (folder / "tokenizer.json").write_text(json.dumps(values))


@pytest.mark.parametrize("use", ["adapter", "init_adapter"])
def test_another_tokenizer_is_not_the_adapter_s(config, first, tiny_model, tmp_path, use):
    model = _model(tiny_model, tmp_path / "model")
    _permuted(tmp_path / "model")
    changes = {"eval_only": use == "adapter", use: str(first), "model__name": model}
    with pytest.raises(ValueError, match=r"another tokenizer \(\w{12} there, \w{12} here\)"):
        glue.task(config(**changes))


def test_the_same_tokenizer_in_other_files_is_the_adapter_s(config, first, tiny_model, tmp_path):
    model = _model(tiny_model, tmp_path / "model")
    path = tmp_path / "model/tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7))
    (tmp_path / "model/vocab.txt").unlink()
    assert _evaluated(config, first, model__name=model) == _evaluated(config, first)


def test_an_adapter_that_does_not_say_its_settings_is_evaluated_with_a_word(
    config, first, tmp_path, capsys
):
    notes = load_adapter(first / "adapter").notes
    assert set(notes[origins.NOTE]) == {"settings", "tokenizer"}
    old = _saved_again(
        first, tmp_path / "old", notes={k: v for k, v in notes.items() if k != origins.NOTE}
    )
    assert _evaluated(config, old) == _evaluated(config, first)
    assert "old does not say its base's settings and tokenizer" in capsys.readouterr().out


def test_an_evaluation_says_what_adapter_it_is_of(config, first, tmp_path):
    _evaluated(config, first, tmp_path / "evaluation")
    record = json.loads((tmp_path / "evaluation/evaluation.json").read_text())
    assert record["inputs"]["adapter"] == adapter_files.digest(load_adapter(first / "adapter"))


def test_an_adapter_s_digest_is_of_its_content(first, tmp_path):
    adapter = load_adapter(first / "adapter")
    other_notes = load_adapter(_saved_again(first, tmp_path / "notes", notes={"a": 1}))
    assert adapter_files.digest(adapter) == adapter_files.digest(other_notes)
    path = next(iter(adapter.values))
    moved = {**adapter.values, path: np.nextafter(adapter.values[path], 9, dtype=np.float32)}
    for changed in ({"values": moved}, {"base": "0" * 64}, {"state": {"x": np.zeros(1)}}):
        other = type(adapter)(**{**vars(adapter), **changed})
        assert adapter_files.digest(adapter) != adapter_files.digest(other), changed


def test_a_warm_start_takes_factors_of_its_base_only(config, first, tiny_model, tmp_path):
    model = tmp_path / "other"
    shutil.copytree(tiny_model, model)
    tensors = load_file(model / "model.safetensors")
    save_file({k: v + 1 for k, v in tensors.items()}, model / "model.safetensors", {"format": "pt"})
    run = tmp_path / "run"
    with pytest.raises(ValueError, match=r"first was trained on another base: its fingerprint"):
        run_all(glue.task, config(model__name=str(model), init_adapter=str(first)), run)
    assert not run.exists()
    unknown = _saved_again(first, tmp_path / "unknown", base=UNKNOWN_BASE)
    run_all(glue.task, config(model__name=str(model), init_adapter=str(unknown)), run)


@pytest.mark.parametrize("change", [{"alpha": 160_000.0}, {"scaling": "alpha/sqrt(r)"}])
def test_a_warm_start_keeps_the_scale_of_the_factors(config, first, tmp_path, change):
    values = config(init_adapter=str(first))
    with values.unlocked():
        values.method.update(change)
    with pytest.raises(
        ValueError,
        match=r"was trained with the scale 2 in front of A B, the method here has .*Give the method",
    ):
        run_all(glue.task, values, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_warm_start_with_other_words_for_the_same_scale(config, first, tmp_path):
    values = config(init_adapter=str(first))
    with values.unlocked():
        values.method.update({"alpha": 16.0 / np.sqrt(8.0), "scaling": "alpha/sqrt(r)"})
    task = glue.task(values)
    model, key = task.model(0)
    from lora_jax.training import Trainer

    started = Trainer(model, task.method, task.settings.train, key=key).started(str(first))
    taken = load_adapter(first / "adapter").values
    factors = [path for path in started if "/lora/" in path]
    assert factors
    for path in factors:
        np.testing.assert_array_equal(started[path], taken[path])


def test_an_adapter_of_another_task_needs_a_word(config, first, tiny_glue, tmp_path):
    data = tmp_path / "glue"
    shutil.copytree(tiny_glue / "RTE", data / "WNLI")
    for path in (data / "WNLI").iterdir():
        text = path.read_text().replace("not_entailment", "0").replace("entailment", "1")
        path.write_text(text)
    changes = {"task": "wnli", "data__source": str(data)}
    with pytest.raises(ValueError, match=r"on the task 'rte', not on 'wnli'.*adapter_task='rte'"):
        _evaluated(config, first, **changes)
    assert "accuracy" in _evaluated(config, first, **changes, adapter_task="rte")
    with pytest.raises(ValueError, match=r"on the task 'rte', not on 'qnli'"):
        _evaluated(config, first, **changes, adapter_task="qnli")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"adapter": "x"}, r"config.adapter is 'x', which a run that trains ignores"),
        ({"eval_only": True}, r'config.eval_only is True and config.adapter is ""'),
        ({"eval_only": True, "adapter": " "}, r'config.adapter is ""'),
        (
            {"eval_only": True, "adapter": "x", "init_adapter": "y"},
            r"config.init_adapter is 'y', which config.eval_only ignores",
        ),
        ({"adapter_task": "rte"}, r"config.adapter_task is 'rte', which is for config.eval_only"),
        (
            {"warmup_ratio": 0.1, "warmup_steps": 3},
            r"warmup_ratio is 0.1 and warmup_steps is 3, of which the second would be ignored",
        ),
    ],
)
def test_options_that_would_be_ignored_are_refused(config, tmp_path, changes, says):
    values = config(**{"warmup_ratio": 0.0, **changes})
    run = glue.evaluate if values.eval_only else lambda v, d: run_all(glue.task, v, d)
    with pytest.raises(ValueError, match=says):
        run(values, tmp_path / "run")
    assert not (tmp_path / "run/config.json").exists()
