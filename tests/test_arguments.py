"""Public functions refuse arguments of another kind in words, before they do anything."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lora_jax as lj
from lora_jax.arguments import FOLDER, check
from lora_jax.errors import InputError, InputTypeError
from lora_jax.training import ArrayBatches, Trainer, TrainSettings
from tests.training.small_runs import Model, arrays, loss

pytestmark = pytest.mark.wrong_types
METHOD = lj.lora("up", rank=2, head="head/.*")


@pytest.fixture(scope="module")
def model():
    return Model(nnx.Rngs(0))


@pytest.fixture(scope="module")
def adapted(model):
    return METHOD.insert(model, jax.random.key(0))


@pytest.fixture(scope="module")
def folder(model, adapted, tmp_path_factory):
    return lj.save(tmp_path_factory.mktemp("saved") / "adapter", adapted, METHOD, model)


CALLS = {
    "load: base must be an nnx.Module, a model itself; got 'm', of type str":
        lambda f, m, a: lj.load(f, "m"),
    "load: base must be an nnx.Module, a model itself; got <class .*Model'>, a class: make an object":
        lambda f, m, a: lj.load(f, Model),
    "load: folder must be the path of a folder; got None, of type NoneType":
        lambda f, m, a: lj.load(None, m),
    "load: folder must be the path of a folder; got b'x', of type bytes": lambda f, m, a: lj.load(b"x", m),
    "attach: adapter must be an Adapter, from lora_jax.load_adapter": lambda f, m, a: lj.attach(m, f),
    "attach: model must be an nnx.Module": lambda f, m, a: lj.attach(None, lj.load_adapter(f)),
    "load_adapter: folder must be the path": lambda f, m, a: lj.load_adapter(3),
    "save: method must be a Method, such as lora_jax.lora": lambda f, m, a: lj.save(f, a, None, m),
    "save: notes must be a mapping of JSON values, or None; got 'x'":
        lambda f, m, a: lj.save(f, a, METHOD, m, "x"),
    "save: adapted must be an nnx.Module": lambda f, m, a: lj.save(f, None, METHOD, m),
    "save_adapter: labels must be a mapping": lambda f, m, a: lj.save_adapter(f, {}, None, METHOD, ""),
    r"\+: the other side must be a Method": lambda f, m, a: METHOD + None,
    "insert: model must be an nnx.Module": lambda f, m, a: METHOD.insert(3, jax.random.key(0)),
    "insert: key must be a random key": lambda f, m, a: METHOD.insert(m, 0),
    "labels: adapted must be an nnx.Module": lambda f, m, a: METHOD.labels(None),
    "optimizer: labels must be a mapping from path to group": lambda f, m, a: lj.optimizer(None, {}),
    "fingerprint: params must be a mapping by path": lambda f, m, a: lj.fingerprint(None),
    "AdapterPool: methods must be a list of methods, such as": lambda f, m, a: lj.AdapterPool(m, METHOD),
    r"AdapterPool: methods\[0\] must be a Method, such as": lambda f, m, a: lj.AdapterPool(m, ["lora"]),
    "base_parameters: model must be": lambda f, m, a: lj.base_parameters(None),
    "parameters: model must be": lambda f, m, a: lj.parameters(None),
    "split: model must be": lambda f, m, a: lj.split(None, {}),
    "split: labels must be": lambda f, m, a: lj.split(m, None),
    "merge: model must be": lambda f, m, a: lj.merge(None),
    "strip: model must be": lambda f, m, a: lj.strip(3),
    "enable: model must be": lambda f, m, a: lj.enable(None),
    "disabled: model must be": lambda f, m, a: lj.disabled(None).__enter__(),
    "seed_dropout: model must be": lambda f, m, a: lj.seed_dropout(None, jax.random.key(0)),
    "moved: frozen must be": lambda f, m, a: lj.moved(None, m),
    "verify: adaptation must be a Method, or the model with it": lambda f, m, a: lj.verify(m, None),
    "trainable: method must be a Method": lambda f, m, a: lj.trainable(None, m),
    "register: base must be the class of the layers": lambda f, m, a: lj.register(None),
    "Trainer: settings must be TrainSettings, such as": lambda f, m, a: Trainer(m, METHOD, {}),
    "Trainer: method must be a Method": lambda f, m, a: Trainer(m, None, TrainSettings()),
}  # fmt: skip


@pytest.mark.parametrize("says", CALLS)
def test_arguments_of_another_kind_are_named(folder, model, adapted, says):
    with pytest.raises(InputTypeError, match="^" + says):
        CALLS[says](folder, model, adapted)


def test_every_public_function_that_takes_a_model_refuses_none():
    """The functions that take one of these as the first argument all say so."""
    for name in (
        "merge",
        "strip",
        "enable",
        "parameters",
        "base_parameters",
        "moved",
        "fingerprint",
    ):
        arguments = (None, None) if name == "moved" else (None,)
        with pytest.raises(InputTypeError, match=f"^{name}: "):
            getattr(lj, name)(*arguments)


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_a_path_that_names_nothing_is_refused(model, path):
    """Path("") would be the current folder."""
    with pytest.raises(InputError, match=f"load: folder .* got {re.escape(repr(path))}$"):
        lj.load(path, model)
    check("load", "folder", "x", FOLDER)


def test_keys_that_become_one_are_not_lost(folder, model, adapted, tmp_path):
    with pytest.raises(
        ValueError, match=r"notes must be JSON \(\[1, '1'\] has keys that are one key"
    ):
        lj.save(tmp_path / "x", adapted, METHOD, model, {1: 2, "1": 3})
    assert not (tmp_path / "x").exists()


def _fit(folder, *, batches=None, of=loss, **arguments):
    trainer = Trainer(Model(nnx.Rngs(0)), METHOD, TrainSettings(epochs=1, learning_rate=0.01))
    return trainer.fit(batches or ArrayBatches(arrays(), 8), of, folder, **arguments)


class _Batches:
    """Three batches an epoch, whatever it says."""

    def __init__(self, per_epoch, given):
        self.per_epoch, self._given, self._all = per_epoch, given, ArrayBatches(arrays(), 8)

    def epoch(self, epoch, start=0):
        return iter(list(self._all.epoch(epoch))[: self._given][start:])

    def count(self, batch):
        return self._all.count(batch)


SCALAR = "the loss must return one floating-point number, .*; got "


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"batches": [1, 2]}, "fit: batches must be batches with per_epoch, epoch and count"),
        ({"validation": [1]}, "fit: validation must be batches"),
        ({"evaluate": 3}, "fit: evaluate must be a function, or None"),
        ({"evaluate": lambda model: None}, r"evaluate must return a mapping .* got None of type NoneType"),
        ({"of": None}, "fit: loss must be a function"),
        ({"of": lambda model, batch, key: 1}, SCALAR + "1 of type int"),
        ({"of": lambda model, batch, key: None}, SCALAR + "None of type NoneType"),
        ({"of": lambda model, batch, key: model(batch["x"])[:, 0]}, SCALAR + r"an array of shape \(8,\)"),
        ({"of": lambda model, batch, key: jnp.int32(3)}, SCALAR + r"an array of shape \(\) and type int32"),
        ({"seed": "x"}, "seed must be an integer from 0 to 2,147,483,646, got 'x'"),
        ({"seed": -1}, "seed must be an integer"), ({"seed": True}, "seed must be an integer"),
        ({"seed": 2**32 + 1}, "seed must be an integer"),  # whose key is that of 1
        ({"headline": 3}, "fit: headline must be a text"),
        ({"batches": _Batches(3, 2)}, r"batches.epoch\(0, 2\) gives 0 batches, but per_epoch is 3"),
        ({"batches": _Batches(3, 0)}, r"batches.epoch\(0, 0\) gives 0 batches, but per_epoch is 3"),
        ({"batches": _Batches(2, 3)}, r"batches.epoch\(0, 1\) gives more batches, but per_epoch is 2"),
        ({"batches": _Batches(0, 0)}, "per_epoch of the batches must be a positive integer, got 0"),
    ],
)  # fmt: skip
def test_what_is_given_to_fit_is_checked(tmp_path, arguments, says):
    with pytest.raises(InputError, match=says):
        _fit(tmp_path / "run", **arguments)


def test_a_loss_without_the_parameters_is_told(tmp_path, caplog):
    _fit(tmp_path / "one", of=lambda model, batch, key: jnp.mean(batch["y"] ** 2))
    assert "all gradients of the first step are 0. Does the loss depend on" in caplog.text
    caplog.clear()
    _fit(tmp_path / "two")
    assert not caplog.records


def test_a_headline_that_is_no_number_is_told(tmp_path, caplog):
    result = _fit(tmp_path / "run", evaluate=lambda model: {"f1": np.nan}, headline="f1")
    assert "train epoch 1: the headline 'f1' is not a number" in caplog.text
    assert result.progress.best == 1
