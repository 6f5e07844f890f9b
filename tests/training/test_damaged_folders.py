"""Folders of `Trainer.fit` that were damaged: what is refused, what is made again, and what is said."""

import json
import shutil

import pytest

from lora_jax import files, locking, run_files
from lora_jax.digests import of_file
from lora_jax.errors import FileError, FolderInUseError, InputError, MissingFileError
from lora_jax.training import event_file
from tests.training import small_runs
from tests.training.small_runs import KILLED, STEPS, fit, same_result


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a whole run, and what it gave."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, fit(folder)


@pytest.fixture(scope="module")
def half_done(tmp_path_factory):
    return small_runs.half_done(tmp_path_factory.mktemp("half"))


@pytest.fixture
def copy(tmp_path):
    def make(folder):
        shutil.copytree(folder, tmp_path / "run")
        return tmp_path / "run"

    return make


def test_a_finished_run_has_digests_and_no_lock(finished):
    folder, result = finished
    record = json.loads((folder / "result.json").read_text())
    assert record == result.record
    names = {"adapter/adapter.json", "adapter/adapter.safetensors", "metrics.jsonl", "result.json"}
    assert record["digests"].keys() == names
    assert record["digests"]["metrics.jsonl"] == of_file(folder / "metrics.jsonl")
    assert not list(folder.rglob(locking.NAME))


@pytest.mark.parametrize(
    ("damage", "kind", "says"),
    [
        (lambda d: shutil.rmtree(d / "adapter"), MissingFileError, "adapter/adapter.json is missing"),
        (lambda d: (d / "adapter/adapter.json").unlink(), MissingFileError, "adapter.json is missing"),
        (lambda d: (d / "adapter/adapter.safetensors").write_bytes(b""), FileError, "digest differs"),
        (lambda d: (d / "result.json").write_text('{"config":'), FileError, "result.json, line 1"),
        (lambda d: (d / "result.json").write_text("[]"), FileError, "a JSON object"),
        (lambda d: (d / "config.json").write_text("{"), FileError, "config.json, line 1"),
    ],
)  # fmt: skip
def test_a_finished_run_that_is_damaged_is_refused(finished, copy, damage, kind, says):
    folder = copy(finished[0])
    damage(folder)
    with pytest.raises(kind, match=says):
        fit(folder)


def change(path, edit):
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def test_a_score_that_was_changed_in_a_record_is_seen(finished, copy):
    folder = copy(finished[0])
    change(folder / "result.json", lambda record: record["best"].update(loss=0.0))
    with pytest.raises(FileError, match=r"result.json: found content that is not what the run"):
        fit(folder)


def test_a_record_is_made_again_from_the_checkpoints(finished, copy):
    folder = copy(finished[0])
    (folder / "result.json").unlink()
    assert same_result(fit(folder), finished[1])


def test_the_record_of_another_run_is_refused(finished, copy):
    folder = copy(finished[0])
    change(folder / "result.json", lambda record: record["config"].update(learning_rate=0.5))
    with pytest.raises(FileError, match="result.json, config: found learning_rate: 0.02 in config"):
        fit(folder)
    (folder / "config.json").unlink()  # then the record says what the run was
    with pytest.raises(InputError, match="holds a run with another config .*0.5 there"):
        fit(folder)


def test_records_without_digests_are_read_if_they_are_whole(finished, copy):
    folder = copy(finished[0])
    change(folder / "result.json", lambda record: record.pop("digests"))
    assert same_result(fit(folder), finished[1])
    change(folder / "result.json", lambda record: record.update(step="8"))
    with pytest.raises(FileError, match="result.json, step: found '8', expected an integer"):
        fit(folder)
    (folder / "adapter/adapter.json").unlink()
    with pytest.raises(MissingFileError, match=r"adapter.json is missing"):
        fit(folder)


def test_a_damaged_log_of_a_finished_run_is_told(finished, copy, caplog):
    folder = copy(finished[0])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("{}\n")
    assert same_result(fit(folder), finished[1])
    assert "metrics.jsonl: found content that is not what the run wrote" in caplog.text


def test_an_adapter_is_copied_back_from_its_whole_copy(tmp_path, caplog):
    for place in ("adapter", "seed_0/adapter", "seed_1/adapter"):
        for name in ("adapter.json", "adapter.safetensors"):
            files.write_text(
                tmp_path / place / name, name + place[5:6] * (place == "seed_1/adapter")
            )
    record = run_files.signed(tmp_path, {"config": {}})
    run_files.check(tmp_path, record)
    shutil.rmtree(tmp_path / "adapter")
    (tmp_path / "seed_0/adapter/adapter.json").touch()
    run_files.check(tmp_path, record)
    assert "adapter was missing; it is copied from" in caplog.text
    assert (tmp_path / "adapter/adapter.json").read_text() == "adapter.json"
    (tmp_path / "seed_0/adapter/adapter.json").write_text("damaged")
    with locking.exclusive(tmp_path), pytest.raises(FolderInUseError):
        run_files.check(tmp_path, record)
    run_files.check(tmp_path, record)
    assert (tmp_path / "seed_0/adapter.damaged/adapter.json").read_text() == "damaged"
    shutil.rmtree(tmp_path / "seed_1/adapter")
    with pytest.raises(MissingFileError, match="seed_1/adapter/adapter.json is missing"):
        run_files.check(tmp_path, record)


def test_a_killed_run_is_resumed(finished, half_done, copy, caplog):
    assert same_result(fit(copy(half_done)), finished[1])
    assert not caplog.records


@pytest.mark.parametrize(
    "damage",
    [
        lambda step: shutil.rmtree(step / "state"),
        lambda step: (step / "state/_METADATA").write_text(""),
        lambda step: (step / "record/metadata").unlink(),
        lambda step: flip(max(step.rglob("*/d/*"), key=lambda path: path.stat().st_size)),
        lambda step: [shutil.rmtree(step), step.mkdir()],
        lambda step: (step / "_CHECKPOINT_METADATA").write_text("[" * 100_000),
    ],
    ids=["half-deleted", "empty metadata", "no record", "a flipped byte", "empty", "nested"],
)
def test_a_run_goes_back_to_the_newest_whole_checkpoint(finished, half_done, copy, caplog, damage):
    folder = copy(half_done)
    damage(folder / "checkpoints/8")
    assert same_result(fit(folder), finished[1])
    (told,) = [record.message for record in caplog.records if record.name.startswith("lora_jax")]
    assert "checkpoint 8 is damaged" in told and "going on from checkpoint 6" in told
    assert (folder / "checkpoints_damaged/8.damaged").is_dir()
    adapter = "adapter/adapter.safetensors"
    assert (folder / adapter).read_bytes() == (finished[0] / adapter).read_bytes()
    log = (folder / "metrics.jsonl").read_text()
    assert log == (finished[0] / "metrics.jsonl").read_text()


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_checkpoints_without_digests_are_read_to_check_them(finished, half_done, copy, caplog):
    folder = copy(half_done)
    for path in folder.rglob("digests.json"):
        path.unlink()
    shutil.copytree(folder, folder.parent / "whole")
    assert same_result(fit(folder.parent / "whole"), finished[1]) and not caplog.messages
    (folder / "checkpoints/8/state/manifest.ocdbt").write_bytes(b"")
    assert same_result(fit(folder), finished[1])
    assert "going on from checkpoint 6" in caplog.text


def test_a_run_without_a_whole_checkpoint_does_not_start_anew_by_itself(half_done, copy):
    folder = copy(half_done)
    for step in (folder / "checkpoints").iterdir():
        shutil.rmtree(step / "record")
    with pytest.raises(InputError, match=f"{folder}/checkpoints: no checkpoint is whole .*delete"):
        fit(folder)
    shutil.rmtree(folder / "checkpoints")
    assert fit(folder).progress.step == STEPS


def test_a_checkpoint_of_another_model_is_not_taken_for_damage(half_done, copy):
    folder = copy(half_done)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"rank": 2', '"rank": 3'))
    with pytest.raises(InputError, match="checkpoints/8 is a checkpoint of another model, method"):
        fit(folder, rank=3)
    assert (folder / "checkpoints/8").is_dir()


@pytest.mark.parametrize("whole", [True, False])
def test_a_best_adapter_that_is_gone_is_an_error(half_done, copy, whole):
    folder = copy(half_done)
    if whole:
        change(folder / "adapter/adapter.json", lambda values: values["notes"].update(epoch=0))
    else:
        shutil.rmtree(folder / "adapter")
    with pytest.raises(InputError, match=r"adapter should hold the adapter of epoch 1.*delete"):
        fit(folder)


def test_checkpoints_without_settings_are_refused(half_done, copy):
    folder = copy(half_done)
    (folder / "config.json").unlink()
    with pytest.raises(MissingFileError, match=r"config.json is missing, but .* has checkpoints"):
        fit(folder)


@pytest.mark.parametrize(
    ("lost", "says"),
    [(0, "1 of 10 lines are damaged"), (9, "1 of 10 lines are damaged"), (None, "10 of 10 lines")],
)
def test_a_log_that_is_damaged_before_the_checkpoint_is_told_and_kept(
    finished, half_done, copy, caplog, lost, says
):
    folder = copy(half_done)
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    if lost is None:
        path.unlink()
    else:
        lines[lost] = lines[lost][:7] + "\n" * (lost < 9)
        path.write_text("".join(lines[:10]))
    damaged = path.read_bytes() if path.exists() else None
    assert same_result(fit(folder), finished[1])
    assert says in caplog.text
    if damaged is not None:
        assert (folder / "metrics.jsonl.damaged").read_bytes() == damaged
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == STEPS


def test_a_full_disk_names_the_file_and_the_run_goes_on_later(
    finished, half_done, copy, monkeypatch
):
    folder = copy(half_done)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(event_file.EventsWriter, "flush", full)
        with pytest.raises(OSError, match=r"No space left on device: .*/run/tensorboard"):
            fit(folder)
    with monkeypatch.context() as patch:
        import orbax.checkpoint as ocp

        patch.setattr(ocp.CheckpointManager, "save", full)
        with pytest.raises(OSError, match=r"No space left on device: .*/run/checkpoints"):
            fit(folder)
    assert same_result(fit(folder), finished[1])


def test_two_programs_in_one_folder(half_done, copy):
    folder = copy(half_done)
    with locking.exclusive(folder), pytest.raises(FolderInUseError, match="is in use by process"):
        fit(folder)
    with (
        locking.exclusive(folder),
        pytest.raises(InputError, match="holds a run with another conf"),
    ):
        fit(folder, rank=3)


def test_a_run_whose_lock_was_taken_over_stops(half_done, copy, monkeypatch):
    folder = copy(half_done)
    monkeypatch.setattr(locking, "_MOMENTS", (0.0,))
    before = sorted(path.name for path in (folder / "checkpoints").iterdir())

    def steal(step):
        if step == KILLED:
            (folder / locking.NAME).unlink()

    with pytest.raises(FolderInUseError, match="was lost"):
        fit(folder, at_step=steal)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == before
    assert not (folder / "result.json").exists()
