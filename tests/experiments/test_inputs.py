"""A folder is of its data, tokenizer and weights: nothing is resumed or read back with others."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs.glue import minilm
from experiments import glue, nlg
from experiments.runs import classification
from experiments.runs.data_to_text import DataToTextTask
from experiments.runs.run import run_all
from experiments.sweep.local import run_sweep
from lora_jax import adapter_files, inputs
from lora_jax.adapters import load_adapter, save_adapter
from tests.experiments.sweep_runs import glue_sweep

pytestmark = pytest.mark.usefixtures("no_java")


class Made:
    """A run of a few steps with a model and data of its own."""

    def __init__(self, root, tiny_model, tiny_glue):
        self.root, self.model, self.data, self.run = (
            root,
            root / "model",
            root / "glue",
            root / "run",
        )
        shutil.copytree(tiny_model, self.model)
        shutil.copytree(tiny_glue, self.data)
        self.config = minilm.get_config("rte,head_only")
        self.config.update_from_flattened_dict({
            "model.name": str(self.model), "data.source": str(self.data), "data.max_length": 48,
            "epochs": 1, "batch_size": 8, "seeds": (0,),
        })  # fmt: skip
        self.record = run_all(glue.task, self.config, self.run)


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_model, tiny_glue):
    return Made(tmp_path_factory.mktemp("inputs"), tiny_model, tiny_glue)


@pytest.fixture
def whole_again(made, tmp_path):
    """The folders as they were, whatever a test does to them."""
    kept = tmp_path / "kept"
    shutil.copytree(made.root, kept)
    yield made
    shutil.rmtree(made.root)
    shutil.copytree(kept, made.root)


def _edit(path, change):
    lines = path.read_text().split("\n")
    path.write_text("\n".join(change(lines)))


def _flipped(lines):
    other = {"entailment": "not_entailment", "not_entailment": "entailment"}
    rows = [line.split("\t") for line in lines]
    return ["\t".join([*row[:-1], other.get(row[-1], row[-1])]) for row in rows]


def _weights(made):
    tensors = load_file(made.model / "model.safetensors")
    name = next(name for name in tensors if "query.weight" in name)
    tensors[name] = np.array(tensors[name])
    tensors[name][0, 0] += 1
    save_file(tensors, made.model / "model.safetensors", {"format": "pt"})


CHANGES = {
    "flipped labels": ("train data", lambda made: _edit(made.data / "RTE/train.tsv", _flipped)),
    "fewer rows": (
        "train data", lambda made: _edit(made.data / "RTE/train.tsv", lambda x: [*x[:-9], ""])),
    "another order": (
        "train data",
        lambda made: _edit(made.data / "RTE/train.tsv", lambda x: [x[0], *x[-2:0:-1], ""])),
    "other dev data": (
        "validation data", lambda made: _edit(made.data / "RTE/dev.tsv", _flipped)),
    "another tokenizer": (
        "tokenizer", lambda made: (made.model / "tokenizer_config.json").write_text(json.dumps(
            json.loads((made.model / "tokenizer_config.json").read_text()) | {"note": 1}))),
    "other weights": ("model", _weights),
}  # fmt: skip


@pytest.mark.parametrize("state", ["finished", "killed"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_run_on_other_inputs_is_neither_resumed_nor_read_back(whole_again, change, state):
    made = whole_again
    if state == "killed":
        (made.run / "result.json").unlink()
    before = {path: path.read_bytes() for path in made.run.rglob("*") if path.is_file()}
    name, function = CHANGES[change]
    function(made)
    with pytest.raises(
        ValueError, match=rf"run holds a run on other inputs: {name} \(\w{{12}} there"
    ):
        run_all(glue.task, made.config, made.run)
    assert {path: path.read_bytes() for path in made.run.rglob("*") if path.is_file()} == before


def test_the_same_inputs_are_read_back_wherever_they_come_from(whole_again):
    made = whole_again
    assert set(made.record["inputs"]) == {"model", "tokenizer", "train data", "validation data"}
    assert run_all(glue.task, made.config, made.run)["best"] == made.record["best"]
    (made.run / "inputs.json").unlink()  # a folder of an earlier version
    assert run_all(glue.task, made.config, made.run)["best"] == made.record["best"]


def test_a_broken_list_of_inputs_is_named(whole_again):
    (whole_again.run / "inputs.json").write_text('{"model": 3}')
    with pytest.raises(ValueError, match=r"inputs.json, model: found 3, expected a string"):
        run_all(glue.task, whole_again.config, whole_again.run)


@pytest.mark.slow
def test_finished_points_of_a_sweep_are_of_their_data(tiny_model, tiny_glue, tmp_path, monkeypatch):
    grids = {"a": {"learning_rate": (0.01, 0.02)}}
    small = {"epochs": 1, "data__max_examples": 8, "data__max_eval_examples": 4, "batch_size": 8}
    config = glue_sweep(tiny_model, tiny_glue, grids, method="head_only", runs=2, **small)
    run_sweep(config, tmp_path / "sweep")
    run_sweep(config, tmp_path / "sweep")  # nothing to do
    for path in (tmp_path / "sweep/points").iterdir():
        assert json.loads((path / "result.json").read_text())["inputs"].keys() == {
            "model", "tokenizer", "train data", "validation data"
        }  # fmt: skip
    monkeypatch.setattr(classification, "_digest", lambda examples: "of others")
    more = glue_sweep(
        tiny_model, tiny_glue, {**grids, "b": {"learning_rate": (0.03,)}}, method="head_only",
        runs=2, **small,
    )  # fmt: skip
    for changed in (config, more):
        with pytest.raises(ValueError, match="holds a run on other inputs: train data"):
            run_sweep(changed, tmp_path / "sweep")
    assert len(list((tmp_path / "sweep/points").iterdir())) == 2
    for name in ("inputs.json", "result.json"):  # then their results say it, then the checkpoints
        for path in (tmp_path / "sweep/points").iterdir():
            (path / name).unlink()
        with pytest.raises(ValueError, match="holds a run on other inputs: train data"):
            run_sweep(config, tmp_path / "sweep")
        assert not list((tmp_path / "sweep/points").glob("*/inputs.json"))
    monkeypatch.undo()
    assert len(run_sweep(config, tmp_path / "sweep").finished()) == 2


def test_texts_decoded_from_other_inputs_are_not_scored(tiny_nlg, tmp_path):
    """The test file is exchanged for one of the same length between two evaluations."""
    from configs.nlg import small

    config = small.get_config("e2e,lora")
    data = tmp_path / "data"
    shutil.copytree(tiny_nlg, data)
    config.update_from_flattened_dict({
        "model.name": str(data / "gpt2"), "data.source": str(data), "epochs": 0,
        "decode.beams": 1, "decode.max_tokens": 2, "decode.batch_size": 4, "seeds": (0,),
        "data.max_prompts": 3,
    })  # fmt: skip
    run = tmp_path / "run"
    first = run_all(DataToTextTask, config, run)
    assert set(first["inputs"]) == {"model", "tokenizer", "decoded data"}
    (path,) = (p for p in data.rglob("test.txt"))
    path.write_text(path.read_text().replace("name :", "nam :"))
    with pytest.raises(ValueError, match="run on other inputs: decoded data"):
        run_all(DataToTextTask, config, run)
    (run / "result.json").unlink()
    (run / "inputs.json").unlink()  # as a run of an earlier version that was killed
    with pytest.raises(ValueError, match=r"predictions.jsonl.*inputs"):
        run_all(DataToTextTask, config, run)
    assert nlg.table(first)


def _run_with_start(made, root):
    """A run that starts from the adapter of another, which lies in a folder of its own."""
    config = minilm.get_config("rte,lora")
    config.update_from_flattened_dict({
        **{name: made.config[name] for name in ("epochs", "batch_size", "seeds")},
        "model.name": str(made.model), "data.source": str(made.data), "data.max_length": 24,
        "data.max_examples": 16, "data.max_eval_examples": 8, "learning_rate": 0.01,
    })  # fmt: skip
    run_all(glue.task, config, root / "first")
    config.init_adapter, config.seeds = str(root / "first"), (1,)
    return config, run_all(glue.task, config, root / "run")


@pytest.fixture(scope="module")
def started(made, tmp_path_factory):
    root = tmp_path_factory.mktemp("started")
    return root, *_run_with_start(made, root)


@pytest.mark.parametrize("state", ["finished", "killed", "killed, without its inputs"])
def test_the_adapter_that_starts_a_run_is_one_of_its_inputs(started, tmp_path, state):
    root, config, record = started
    adapter = load_adapter(root / "first/adapter")
    assert record["inputs"]["init_adapter"] == adapter_files.digest(adapter)
    shutil.copytree(root / "run", tmp_path / "run")
    if state != "finished":
        (tmp_path / "run/result.json").unlink()
    if "without" in state:
        (tmp_path / "run/inputs.json").unlink()
    assert run_all(glue.task, config, tmp_path / "run")["best"] == record["best"]  # the same
    kept = tmp_path / "kept"
    shutil.move(root / "first", kept)
    try:
        with pytest.raises(ValueError, match=r"first/adapter.json is missing"):
            run_all(glue.task, config, tmp_path / "run")
        values = {path: 2 * value for path, value in adapter.values.items()}
        save_adapter(
            root / "first", values, adapter.groups, adapter.method, adapter.base, adapter.notes
        )
        with pytest.raises(
            ValueError, match=r"other inputs: init_adapter \(\w{12} there, \w{12} now\)"
        ):
            run_all(glue.task, config, tmp_path / "run")
    finally:
        shutil.rmtree(root / "first", ignore_errors=True)
        shutil.move(kept, root / "first")


@pytest.mark.parametrize("state", ["finished", "killed"])
def test_without_its_list_of_inputs_a_run_is_still_of_them(whole_again, state):
    made = whole_again
    (made.run / "inputs.json").unlink()
    if state == "killed":
        (made.run / "result.json").unlink()
    before = {path: path.read_bytes() for path in made.run.rglob("*") if path.is_file()}
    _edit(made.data / "RTE/train.tsv", _flipped)
    with pytest.raises(ValueError, match=r"run on other inputs: train data \(\w{12} there"):
        run_all(glue.task, made.config, made.run)
    assert {path: path.read_bytes() for path in made.run.rglob("*") if path.is_file()} == before


def test_folders_of_earlier_versions_lack_what_came_later(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    inputs.write(tmp_path, {"train data": "a"})
    inputs.check(tmp_path, {"train data": "a", "init_adapter": "b"}, "")
    with pytest.raises(ValueError, match="train data"):
        inputs.check(tmp_path, {"init_adapter": "b"}, "")
    inputs.write(tmp_path, {"train data": "a", "init_adapter": "c"})
    with pytest.raises(ValueError, match="init_adapter"):
        inputs.check(tmp_path, {"train data": "a", "init_adapter": "b"}, "")


@pytest.mark.slow
def test_no_epochs_decode_what_the_adapter_starts(tiny_nlg, tmp_path):
    """What `init_adapter` starts is decoded: the texts are those of evaluating that adapter."""
    from configs.nlg import small

    config = small.get_config("e2e,lora")
    config.update_from_flattened_dict({
        "model.name": str(tiny_nlg / "gpt2"), "data.source": str(tiny_nlg), "epochs": 1,
        "decode.beams": 1, "decode.max_tokens": 8, "decode.batch_size": 4, "seeds": (0,),
        "data.max_prompts": 3, "warmup_steps": 0, "learning_rate": 0.3,
    })  # fmt: skip
    run_all(DataToTextTask, config, tmp_path / "trained")
    config.epochs = 0
    untrained = run_all(DataToTextTask, config, tmp_path / "untrained")
    config.init_adapter = str(tmp_path / "trained")
    started = run_all(DataToTextTask, config, tmp_path / "started")
    texts = {
        name: (tmp_path / name / "seed_0/predictions.txt").read_text()
        for name in ("trained", "untrained", "started")
    }
    assert texts["started"] == texts["trained"] != texts["untrained"]
    assert (untrained["method"], started["method"]) == ("none", "lora")
    assert started["warm_start"] == config.init_adapter and untrained["warm_start"] is None
    config.init_adapter = str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="nowhere/adapter.json is missing"):
        run_all(DataToTextTask, config, tmp_path / "lost")
