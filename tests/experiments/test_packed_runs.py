"""Runs over packed bases: LoftQ from a config, and what later commands make of such a run."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tune_files
from ml_collections import ConfigDict

import lora_jax
from configs.nlg import small as nlg_small
from configs.sweep.common import sweep_config
from configs.tune import small
from experiments import tune
from experiments.convert import merged, sources
from experiments.runs import fields, tuned
from experiments.runs.data_to_text import DataToTextTask
from experiments.runs.run import Run
from experiments.runs.tune import TuneTask
from experiments.sweep.local import run_sweep
from lora_jax import adapters, partition
from lora_jax.data.batch import Inputs
from lora_jax.errors import InputError
from lora_jax.low_rank.layers import delta
from lora_jax.methods.loftq import loftq
from lora_jax.models import hub
from lora_jax.quantisation.layers import packed_weight, quantised_layers

OPTIONS = {
    "epochs": 1, "batch_size": 4, "learning_rate": 1e-3, "samples.count": 0, "samples.max_tokens": 4,
    "method.rank": 4, "data.held_out": 2, "data.max_length": 64, "log_every": 1,
    "model.base_format": "nf4",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of width 64, which blocks of 64 divide, and examples."""
    root = tmp_path_factory.mktemp("packed")
    tune_files.write_model(root / "gpt2", chat=False, width=64)
    tune_files.write_lines(root / "x.jsonl", tune_files.pairs(14))
    return root


@pytest.fixture(scope="module")
def config(folder):
    def make(**changes):
        values = small.get_config()
        values.update_from_flattened_dict(OPTIONS)
        values.model.name, values.data.train = str(folder / "gpt2"), str(folder / "x.jsonl")
        values.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
        return values

    return make


def logits(model):
    tokens = jnp.arange(3, 33, dtype=jnp.int32)[None]
    places = jnp.arange(30, dtype=jnp.int32)
    inputs = Inputs(tokens, jnp.ones_like(tokens), places[None], jnp.zeros_like(tokens))
    return np.asarray(model(inputs, jnp.zeros_like(places), places))


def read(folder, form):
    return hub.load_decoder(folder, hub.read_decoder_config(folder, base_format=form))


def assert_nearest(adapted, original, fused=1):
    """Updates are the best matrices of their rank for the error of packing, by NumPy in float64."""
    whole = partition.parameters(original)
    for path, layer in quantised_layers(adapted).items():
        values, updates = (np.asarray(a) for a in (packed_weight(layer)[1].values(), delta(layer)))
        for number, matrix in enumerate(np.asarray(whole[f"{path}/kernel"], np.float64)):
            width = len(matrix)
            lost = matrix.reshape(width, -1) - values[number].reshape(width, -1)
            found = updates[number].reshape(width, -1)
            count = fused if "qkv" in path else 1
            pairs = (np.split(side, count, axis=1) for side in (lost, found))
            for wanted, update in zip(*pairs, strict=True):
                u, s, v = np.linalg.svd(wanted, full_matrices=False)
                best = u[:, :4] * s[:4] @ v[:4]
                np.testing.assert_allclose(update, best, atol=2e-5 * np.abs(wanted).max() + 1e-6)


@pytest.mark.slow
def test_a_run_starts_at_what_packing_lost(config, folder):
    run = Run(TuneTask(config(loftq=True)), 0, None)
    start = run.trainer.model(run.trainer.trainable)
    assert_nearest(start, read(folder / "gpt2", "float"))
    plain = Run(TuneTask(config()), 0, None).trainer
    assert run.trainer.base == plain.base  # one step leaves the base as packing gives it


def test_the_same_for_data_to_text(folder, tmp_path, tiny_nlg):
    values = nlg_small.get_config("e2e,lora_all")
    values.update_from_flattened_dict(
        {
            "model.name": str(folder / "gpt2"), "data.source": str(tiny_nlg), "model.base_format": "nf4",
            "loftq": True, "method.rank": 4, "data.max_length": 100, "decode.max_tokens": 6,
        }
    )  # fmt: skip
    run = Run(DataToTextTask(values), 0, None)
    assert_nearest(run.trainer.model(run.trainer.trainable), read(folder / "gpt2", "float"))


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "run"
    tune.tune(config(loftq=True), workdir)
    return workdir


def test_later_commands_read_the_base_that_was_trained_over(finished, folder):
    adapter = adapters.load_adapter(finished / "adapter")
    base = read(folder / "gpt2", "nf4")
    assert adapter.base == lora_jax.fingerprint(lora_jax.base_parameters(base))
    wanted = logits(adapters.attach(base, adapter))
    talk = tuned.Tuned(tuned.of_run(finished))
    np.testing.assert_array_equal(logits(talk.model), wanted)
    whole = merged.load(sources.source(sources.Named(run=str(finished))))
    np.testing.assert_allclose(logits(whole), wanted, atol=1e-4 * np.abs(wanted).max())
    # It is the trained model: nearer to LoftQ's start than to that of the method.
    with pytest.raises(ValueError, match="another base"):
        adapters.attach(read(folder / "gpt2", "float"), adapter)


@pytest.mark.slow
def test_more_steps_make_a_base_of_their_own_which_is_saved(config, folder, tmp_path):
    """As docs/quantised.md says: the base as a folder, the factors as an adapter that starts a run."""
    method = lora_jax.methods.create(**config().method.to_dict())
    adapted = loftq(read(folder / "gpt2", "float"), method, jax.random.key(0), steps=3)
    base = lora_jax.strip(adapted)
    hub.save_decoder(tmp_path / "base", base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "base" / name).write_bytes((folder / "gpt2" / name).read_bytes())
    lora_jax.save(tmp_path / "start", adapted, method, base)
    plain = lora_jax.parameters(read(folder / "gpt2", "nf4"))
    assert any(not np.array_equal(plain[p], v) for p, v in lora_jax.parameters(base).items())
    given = config(
        init_adapter=str(tmp_path / "start"), model__name=str(tmp_path / "base"),
        model__base_format="stored",
    )  # fmt: skip
    run = Run(TuneTask(given), 0, None)
    begun = run.trainer.model(run.trainer.started(str(tmp_path / "start")))
    np.testing.assert_allclose(logits(begun), logits(adapted), rtol=1e-5, atol=1e-5)
    tune.tune(given, tmp_path / "run")
    again = read(tmp_path / "base", "stored")
    for path, value in lora_jax.parameters(base).items():
        np.testing.assert_array_equal(lora_jax.parameters(again)[path], value, err_msg=path)
    adapter = adapters.load_adapter(tmp_path / "run" / "adapter")
    talk = tuned.Tuned(tuned.of_run(tmp_path / "run"))
    np.testing.assert_array_equal(logits(talk.model), logits(adapters.attach(again, adapter)))
    # The plain packing of the same weights is another base.
    with pytest.raises(ValueError, match="another base"):
        adapters.attach(read(folder / "gpt2", "nf4"), adapter)


REFUSED = {
    "float": ({"model__base_format": "float"}, "base_format='float' no matrix is packed. Set .*='nf4'"),
    "stored": ({"model__base_format": "stored"}, "the file has no values but the packed ones"),
    "method": ({"method": {"name": "bitfit"}}, "config.method is 'bitfit', which has none"),
    "adapter": ({"init_adapter": "x"}, "loftq=True and config.init_adapter='x' contradict"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_where_nothing_was_lost_loftq_is_refused(config, case):
    changes, message = REFUSED[case]
    values = config(loftq=True)
    for name, value in changes.items():
        at, last = (values.model, "base_format") if "model" in name else (values, name)
        at[last] = value
    with pytest.raises(InputError, match=message):
        fields.check_run(values)


@pytest.mark.slow
@pytest.mark.parametrize(("form", "start"), [("int8", False), ("nf4", True)])
def test_a_sweep_over_a_packed_base_gives_what_its_runs_alone_give(config, tmp_path, form, start):
    """Two ranks in one program over one packed base, with and without LoftQ."""
    grids = {"a": {"method": {"rank": (2, 4)}}}
    given = sweep_config("tune", config(loftq=start, model__base_format=form), grids)
    given.runs_per_program = 2
    run_sweep(given, tmp_path / "sweep")
    points = sorted(p.parent for p in (tmp_path / "sweep").rglob("result.json"))
    assert len(points) == 2
    for point in points[:1]:  # the one that is padded
        values = json.loads((point / "config.json").read_text())
        assert values["loftq"] == start and values["model"]["base_format"] == form
        values["mesh"]["run"] = 1
        alone = tmp_path / "alone" / point.name
        tune.tune(ConfigDict(values), alone)
        one, other = (adapters.load_adapter(place / "adapter") for place in (point, alone))
        assert one.base == other.base and one.values.keys() == other.values.keys()
        for path, value in other.values.items():
            np.testing.assert_allclose(one.values[path], value, rtol=0, atol=1e-5, err_msg=path)
        found, wanted = (
            json.loads((place / "result.json").read_text())["last"]["loss"]["mean"]
            for place in (point, alone)
        )
        assert found == pytest.approx(wanted, rel=1e-5)
