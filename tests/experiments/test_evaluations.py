"""Folders of evaluations are of their config and inputs, as those of runs; and lengths of examples."""

import json

import pytest

from configs.glue import minilm
from configs.nlg import small
from experiments import glue, nlg
from experiments.runs import folder
from experiments.runs.data_to_text import DataToTextTask
from experiments.runs.run import run_all
from lora_jax.errors import FileError, InputError

pytestmark = pytest.mark.usefixtures("no_java")


def config(tiny_model, tiny_glue, task="rte", **changes):
    result = minilm.get_config(f"{task},head_only")
    result.update_from_flattened_dict({
        "model.name": str(tiny_model), "data.source": str(tiny_glue), "data.max_length": 48,
        "data.max_examples": 8, "epochs": 1, "batch_size": 8, "seeds": (0,),
    })  # fmt: skip
    result.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return result


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model, tiny_glue):
    path = tmp_path_factory.mktemp("evaluated") / "run"
    run_all(glue.task, config(tiny_model, tiny_glue), path)
    return path


def test_an_evaluation_has_a_folder_of_its_own(run, tiny_model, tiny_glue, tmp_path):
    of = {"eval_only": True, "adapter": str(run)}
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    ours = config(tiny_model, tiny_glue, **of)
    with pytest.raises(
        InputError, match=f"{run} holds a run with another config .*eval_only: False"
    ):
        glue.evaluate(ours, run)
    for inside in ("seed_0", "evaluation"):
        with pytest.raises(InputError, match=f"{run}/{inside} lies in {run}, the folder of a run"):
            glue.evaluate(ours, run / inside)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    first = glue.evaluate(ours, tmp_path / "e")
    assert glue.evaluate(ours, tmp_path / "e") == first  # again
    files = {path.name: path.read_bytes() for path in (tmp_path / "e").iterdir()}
    assert files.keys() == {
        "config.json", "inputs.json", "evaluation.json", "outputs_validation.tsv"
    }  # fmt: skip
    other = config(tiny_model, tiny_glue, data__max_eval_examples=5, **of)
    with pytest.raises(InputError, match="data.max_eval_examples: 0 there, 5 now"):
        glue.evaluate(other, tmp_path / "e")
    assert {path.name: path.read_bytes() for path in (tmp_path / "e").iterdir()} == files
    for name in ("config.json", "inputs.json"):  # as earlier versions left it
        (tmp_path / "e" / name).unlink()
    with pytest.raises(
        InputError, match="holds an evaluation with another config .*max_eval_examp"
    ):
        glue.evaluate(other, tmp_path / "e")
    assert glue.evaluate(ours, tmp_path / "e") == first
    with pytest.raises(
        InputError, match=f"{tmp_path}/e/x lies in {tmp_path}/e, the folder of a run"
    ):
        run_all(glue.task, config(tiny_model, tiny_glue), tmp_path / "e/x")


def test_texts_are_not_decoded_into_a_run(run, tiny_nlg):
    values = small.get_config("e2e,lora")
    values.update_from_flattened_dict({
        "model.name": str(tiny_nlg / "gpt2"), "data.source": str(tiny_nlg), "eval_only": True,
        "adapter": str(run),
    })  # fmt: skip
    with pytest.raises(InputError, match=f"{run} holds a run with another config"):
        nlg.evaluate(values, run)


@pytest.mark.parametrize("name", ["seed_0", "seed_0/checkpoints", "seed_0/tensorboard"])
def test_a_file_in_the_place_of_a_folder_is_named_before_data_are_read(
    tiny_model, tiny_glue, tmp_path, name
):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(FileError, match=f"run/seed_0.*: found .*file .*{path.name}|in its place"):
        run_all(
            lambda _: pytest.fail("reads data"), config(tiny_model, tiny_glue), tmp_path / "run"
        )


@pytest.mark.parametrize(
    ("workdir", "says"),
    [
        ("/proc/x", "a place where no folder can be made"),
        ("x" * 300, "a place where no folder can be made .File name too long"),
        ("a\0b", "has a NUL character"),
        ("/dev/null/x", "found the file /dev/null above it"),
    ],
)
def test_places_where_no_folder_can_be(run, tiny_model, tiny_glue, workdir, says):
    with pytest.raises(InputError, match=says):
        run_all(glue.task, config(tiny_model, tiny_glue), run.parent / workdir)


def test_a_lock_that_is_a_folder(tiny_model, tiny_glue, tmp_path):
    (tmp_path / "in_use.lock").mkdir()
    with pytest.raises(
        FileError, match=r"in_use.lock: found a folder, expected the file of a lock"
    ):
        run_all(glue.task, config(tiny_model, tiny_glue), tmp_path)


def test_folders_of_other_programs_are_no_runs(tmp_path):
    for name, values in (("model", {"n_embd": 3}), ("other", {"seed": 1}), ("broken", None)):
        (tmp_path / name).mkdir()
        text = "{" if values is None else json.dumps(values)
        (tmp_path / name / "config.json").write_text(text)
        assert not folder.is_run(tmp_path / name)
        folder.check_place(tmp_path / name / "run")


def test_a_length_that_leaves_no_text_is_refused(tiny_model, tiny_glue):
    for length, says in ((3, "config.data.max_length: of 3 tokens .* 3 are special .* at least 5"),
                         (4, "of 4 tokens")):  # fmt: skip
        with pytest.raises(InputError, match=says):
            glue.task(config(tiny_model, tiny_glue, data__max_length=length))
    task = glue.task(config(tiny_model, tiny_glue, data__max_length=5))
    assert all(len(set(row.tolist()) - {101, 102}) >= 1 for row in task.train.ids)
    assert all(len(row) == 5 for row in task.train.ids)  # a token of either text


def test_lengths_of_texts_name_their_fields(tiny_nlg):
    def values(**changes):
        result = small.get_config("e2e,lora")
        result.update_from_flattened_dict({
            "model.name": str(tiny_nlg / "gpt2"), "data.source": str(tiny_nlg),
            **{name.replace("__", "."): value for name, value in changes.items()},
        })  # fmt: skip
        return result

    with pytest.raises(
        InputError, match=r"config.decode.max_tokens is 65536, .* lower it to \d+ or"
    ):
        DataToTextTask(values(decode__max_tokens=65536))
    most = DataToTextTask(values(decode__max_tokens=5, data__max_length=100)).max_length - 1
    assert DataToTextTask(values(decode__max_tokens=most, data__max_length=100))
    with pytest.raises(InputError, match=f"lower it to {most} or less"):
        DataToTextTask(values(decode__max_tokens=most + 1, data__max_length=100))
    with pytest.raises(InputError, match="config.data.max_length, e2e train: Row 0"):
        DataToTextTask(values(decode__max_tokens=2, data__max_length=5)).prepare()
