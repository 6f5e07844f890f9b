"""`experiments.diffusion` from end to end with tiny models: a base, styles, a new digit, own pictures."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

import lora_jax as lj
from configs.diffusion import digits as digits_config
from configs.diffusion import digits_style
from experiments import sample_images
from experiments.diffusion import __main__ as command
from experiments.diffusion import bases, scores, tasks
from experiments.diffusion.drawing import Drawing, draw
from experiments.runs import named_adapters
from lora_jax.errors import InputError

SMALL = {"sampler": "ddim", "steps": 2, "guidance": 2.0, "count": 2, "seed": 0}


def base_config(argument=""):
    config = digits_config.get_config(argument)
    config.model.update({"channels": (4, 8), "heads": 2, "groups": 2, "words": 4})
    config.noise.num_train_timesteps = 20
    config.samples.update(SMALL)
    config.update({"epochs": 2, "batch_size": 128, "warmup_steps": 1})
    config.data.repeats = 1
    return config


def style_config(argument, base):
    config = digits_style.get_config(argument)
    config.samples.update(SMALL)
    config.update({"base": str(base), "epochs": 2, "batch_size": 5})
    config.data.repeats = 2
    return config


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run without the nine, after one epoch and a kill, resumed."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    every, scores.EPOCHS = scores._all_styles, 1
    with pytest.MonkeyPatch.context() as patch:  # a judge of few pictures
        few = lambda *of: {name: values[::24] for name, values in every(*of).items()}  # noqa: E731
        patch.setattr(scores, "_all_styles", few)
        command.run(base_config("without_9"), folder)
    return folder


def test_a_base_writes_its_record_its_model_and_grids(base):
    record = json.loads((base / "result.json").read_text())
    assert record["task"] == "digits" and record["steps"] == 2 * 10
    assert set(record["best"]) == {"loss", "content", "style", "right", "variety"}
    assert [p.name for p in sorted((base / "samples").iterdir())] == [
        "epoch_001.png",
        "epoch_002.png",
    ]
    assert Image.open(base / "samples" / "epoch_001.png").size == (2 * 33 + 1, 9 * 33 + 1)
    # 9 of 10 digits, two of each.
    for place in (base, base / "model"):  # which is known to be of that run
        read = bases.read(str(place), 8, "float32")
        assert tasks.known(read) == tuple(range(9)) and read.shape == (8, 8, 1)
        assert read.name == str(base)


def test_bases_that_are_not_whole(base, tmp_path, capsys):
    """A run that has not ended, one without a model, and a model without its run."""
    shutil.copytree(base / "model", tmp_path / "run/model")
    shutil.copy(base / "config.json", tmp_path / "run/config.json")
    assert tasks.known(bases.read(str(tmp_path / "run"), 8, "float32")) == tuple(range(9))
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'run'} has not ended")
    shutil.move(tmp_path / "run/model", tmp_path / "alone")
    with pytest.raises(InputError, match="is a run of an adapter, or in its first epoch"):
        bases.read(str(tmp_path / "run"), 8, "float32")
    with pytest.raises(InputError, match="is no run of experiments.diffusion on digits"):
        tasks.adapt(style_config("slanted", tmp_path / "alone"), tmp_path / "other")
    assert not capsys.readouterr().out and not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bytes(base, tmp_path, monkeypatch):
    folder, whole = tmp_path / "killed", tasks.Training.evaluated
    shutil.copytree(base / "judge", folder / "judge")

    def killed(self, trainable):
        if self._epoch == 1:
            raise KeyboardInterrupt
        return whole(self, trainable)

    monkeypatch.setattr(tasks.Training, "evaluated", killed)
    with pytest.raises(KeyboardInterrupt):
        tasks.learn(base_config("without_9"), folder)
    monkeypatch.undo()
    tasks.learn(base_config("without_9"), folder)
    for name in ("model/model.safetensors", "samples/epoch_002.png"):
        assert (folder / name).read_bytes() == (base / name).read_bytes(), name


@pytest.fixture(scope="module")
def slanted(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "slanted"
    config = style_config("slanted", base)
    config.ranks = (2,)
    command.run(config, folder)
    return folder


@pytest.mark.slow
def test_a_style_has_a_run_for_each_rank_and_a_page(base, slanted):
    for rank in (2,):
        record = json.loads((slanted / f"rank_{rank}" / "result.json").read_text())
        assert max(layer["rank"] for layer in record["layers"]) == rank  # one channel has no more
        assert record["scores"]["before"]["style"] <= 1 and record["pictures"] == 10
        assert set(record["inputs"]) == {"base", "pictures"}
    page = (slanted / "styles.md").read_text()
    assert "| 2 |" in page and "| base | 0 |" in page and (slanted / "ranks.png").is_file()
    again = tasks.adapt(_of_rank(base, 2), slanted / "rank_2")  # read back
    assert again["scores"] == json.loads((slanted / "rank_2" / "result.json").read_text())["scores"]
    read = bases.read(str(base), 8, "float32")
    adapted = lj.load(slanted / "rank_2", read.model)
    how = Drawing("ddim", 2, 2.0, 0)
    models = (read.model, adapted, lj.merge(adapted))
    drawn = [draw(read, model, ["a one"] * 2, how) for model in models]
    np.testing.assert_allclose(drawn[1], drawn[2], atol=1e-4)
    assert np.abs(drawn[1] - drawn[0]).max() > 1e-3


def _of_rank(base, rank):
    config = style_config("slanted", base)
    config.ranks, config.method.rank = (), rank
    return config


@pytest.mark.slow
def test_adapters_are_mixed_by_weight(base, slanted):
    read = bases.read(str(base), 8, "float32")
    places = named_adapters.places([f"a={slanted}/rank_2", f"b={slanted}/rank_2"])
    found = {n: sample_images.adapters_at(pathlib.Path(p), read) for n, p in places.items()}
    mixed = sample_images.with_adapters(read, found, {"b": -0.25})
    alone = lj.merge(lj.load(slanted / "rank_2", read.model))
    several = lj.AdapterSet(read.model)  # which sums factors, those of one channel too
    for name, of_parts in found.items():
        several.add(name, of_parts["unet"])
    summed = lj.merge(several.model({"a": 1.0, "b": -0.25}))
    models = (read.model, alone, mixed.model, summed)
    of = [lj.partition.parameters(model) for model in models]
    for path, start in of[0].items():
        expected = start + 0.75 * (of[1][path] - start)
        np.testing.assert_allclose(of[2][path], expected, atol=1e-5)
        np.testing.assert_allclose(of[3][path], expected, atol=1e-5)
    with pytest.raises(InputError, match="weights are given for c; the adapters are a, b"):
        sample_images.with_adapters(read, found, {"c": 1.0})


@pytest.mark.slow
def test_a_new_digit_gets_its_word_and_keeps_the_others_by_a_prior(base, tmp_path):
    config = style_config("new_digit", base)
    config.ranks, config.prior.count = (2,), 18
    (record,) = tasks.adapt_all(config, tmp_path / "nine").values()
    assert record["parameters"]["rows"] == 4 and record["pictures"] == 10
    read = bases.read(str(base), 8, "float32")
    adapted = lj.load(tmp_path / "nine" / "rank_2", read.model)
    row = read.words("nine")
    assert row == digits_style.ROW
    assert not np.allclose(adapted.words.rows.values[...], read.model.words.embedding[...][row])


@pytest.mark.slow
def test_pictures_of_a_folder(base, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        values = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(values).save(pictures / f"{number}.png")
    config = style_config("slanted", base)
    config.data.update({"source": str(pictures), "caption": "a new"})
    config.update({"ranks": (), "batch_size": 3})
    command.run(config, tmp_path / "run")
    assert f"adapter: {tmp_path / 'run'}   pictures:" in capsys.readouterr().out
    record = json.loads((tmp_path / "run/result.json").read_text())
    assert record["pictures"] == 3 and record["scores"] == {"before": {}, "after": {}}
    # Two of the first picture's caption, as no others are asked for.
    assert Image.open(tmp_path / "run/after.png").size == (2 * 33 + 1, 33 + 1)
    config.prior.weight = 1.0
    config.prior.captions = ("a dog",)
    with pytest.raises(InputError, match="no word 'dog'"):
        tasks.adapt(config, tmp_path / "other")
    assert not (tmp_path / "other" / "config.json").exists()


def test_what_does_not_fit_is_refused(base, tmp_path):
    config = style_config("slanted", tmp_path)
    with pytest.raises(InputError, match="neither model_index.json"):
        tasks.adapt(config, tmp_path / "run")
    config = style_config("slanted", base)
    config.method = {"name": "bitfit"}
    with pytest.raises(InputError, match="ranks"):
        tasks.adapt_all(config, tmp_path / "run")
    with pytest.raises(ValueError, match="unknown style 'bold'"):
        digits_style.get_config("bold")
    with pytest.raises(ValueError, match="without_0 to without_9"):
        digits_config.get_config("without_x")


def test_settings_are_refused_before_a_prior_is_drawn(base, tmp_path, monkeypatch):
    """By the last of the checks, that of the warm-up."""
    monkeypatch.setattr(tasks, "draw", lambda *_: pytest.fail("a prior was drawn"))
    config = style_config("new_digit", base)
    config.update({"ranks": (), "warmup_ratio": 0.0, "warmup_steps": 99})
    with pytest.raises(InputError, match="the warm-up of 99 updates is longer"):
        tasks.adapt(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_are_refused_before_the_judge_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "scorer", lambda *_, **__: pytest.fail("a judge was made"))
    config = base_config()
    config.warmup_steps = 500
    with pytest.raises(ValueError, match="the warm-up of 500 updates is longer than the run"):
        tasks.learn(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
