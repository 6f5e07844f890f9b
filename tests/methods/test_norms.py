"""Layer-norm tuning: which leaves train, and that they train as in peft."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from bert_like import NORMS, WIDTH, Block, blocks, compare_training
from flax import linen, nnx

import lora_jax
from lora_jax.errors import InputError
from lora_jax.models.parts import RMSNorm

torch.set_num_threads(1)
KEY = jax.random.key(0)


def trained(method, model):
    labels = method.labels(method.insert(model, KEY))
    return {path for path, group in labels.items() if group == "norms"}


def test_five_steps_are_pefts():
    theirs, ours = blocks()
    model = peft.get_peft_model(theirs, peft.LNTuningConfig(target_modules=list(NORMS)))
    inside = model.base_model.model
    parameters = {
        f"{name}/{'scale' if own == 'weight' else own}": p
        for name in NORMS
        for own, p in getattr(inside, name).ln_tuning_layers["default"].named_parameters()
    }
    method = lora_jax.norms()
    adapted = method.insert(ours, KEY)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert method.summary(adapted).counts()["trainable"] == count == 4 * WIDTH
    x, target = np.random.default_rng(0).normal(size=(2, 3, 5, WIDTH)).astype(np.float32)
    result = compare_training(
        lambda: model(torch.tensor(x)), parameters, method, adapted,
        lambda m: m(jnp.asarray(x)), target, 1e-3,
    )  # fmt: skip
    whole = model.merge_and_unload()
    for name in NORMS:
        there = getattr(whole, name).weight.detach()
        np.testing.assert_allclose(getattr(result, name).scale[...], there, rtol=1e-4)
    np.testing.assert_allclose(
        result(jnp.asarray(x)), whole(torch.tensor(x)).detach(), rtol=1e-3, atol=1e-4
    )


class MyNorm(nnx.LayerNorm):
    """A subclass, under a name that says nothing."""


class Mixed(nnx.Module):
    """Every norm, and a linear layer called norm."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.a = nnx.LayerNorm(4, rngs=rngs)
        self.b = nnx.BatchNorm(4, rngs=rngs)
        self.c = nnx.GroupNorm(4, num_groups=2, rngs=rngs)
        self.d = nnx.RMSNorm(4, rngs=rngs)
        self.e = MyNorm(4, rngs=rngs)
        self.f = RMSNorm(4, rngs=rngs)
        self.g = nnx.LayerNorm(4, use_bias=False, use_scale=False, rngs=rngs)
        self.norm = nnx.Linear(4, 4, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)


ALL = {"a/scale", "a/bias", "b/scale", "b/bias", "c/scale", "c/bias", "d/scale", "e/scale",
       "e/bias", "f/scale"}  # fmt: skip


def test_norms_are_found_by_class():
    model = Mixed()
    assert trained(lora_jax.norms(), model) == ALL
    assert trained(lora_jax.norms(targets=nnx.LayerNorm), model) == {"a/scale", "a/bias"}
    assert trained(lora_jax.norms(targets="[ad]"), model) == {"a/scale", "a/bias", "d/scale"}
    assert trained(lora_jax.norms(exclude=["b", "c", "e"]), model) == {
        "a/scale", "a/bias", "d/scale", "f/scale",
    }  # fmt: skip
    method = lora_jax.norms(head="head/.*", exclude="a")
    assert lora_jax.methods.from_json(method.to_json()) == method
    labels = method.labels(nnx.eval_shape(lambda: method.insert(model, KEY)))
    assert labels["head/kernel"] == "head" and labels["norm/kernel"] == "frozen"
    both = lora_jax.lora("norm", rank=2) + lora_jax.norms()
    groups = both.labels(both.insert(model, KEY))
    assert {p for p, group in groups.items() if group == "norms"} == ALL
    assert groups["norm/lora/a"] == "lora"


def test_norms_of_linen_are_found(tmp_path):
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.RMSNorm()(linen.LayerNorm()(linen.Dense(4)(x)))

    x = jnp.ones((2, 4))
    model = lora_jax.linen.as_nnx(Net(), Net().init(KEY, x), x)
    expected = {"LayerNorm_0/scale", "LayerNorm_0/bias", "RMSNorm_0/scale"}
    assert trained(lora_jax.norms(), model) == expected


def test_saved_and_loaded(tmp_path):
    base, method = Block(), lora_jax.norms()
    adapted = method.insert(base, KEY)
    adapted.first.scale[...] = jnp.arange(WIDTH, dtype=jnp.float32)
    lora_jax.save(tmp_path / "a", adapted, method, base)
    again = lora_jax.load(tmp_path / "a", base)
    np.testing.assert_array_equal(again.first.scale[...], adapted.first.scale[...])
    np.testing.assert_array_equal(again.second.bias[...], base.second.bias[...])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"targets": "norm"}, "names no norm, but norm; the norms of the model are a, b, c, d, e"),
     ({"targets": "a/scale"}, "norms takes the modules that hold them"),
     ({"targets": "a", "exclude": "b"}, "excludes nothing"),
     ({"targets": "a", "exclude": "a"}, "no norm is left"),
     ({"targets": "zzz"}, "matches no path")],
)  # fmt: skip
def test_targets_without_effect_are_errors(arguments, message):
    with pytest.raises(InputError, match=message):
        lora_jax.norms(**arguments).insert(Mixed(), KEY)


def test_a_model_without_norms_is_an_error():
    with pytest.raises(InputError, match=r"Linear has no norm.*lora_jax\.leaves"):
        lora_jax.norms().insert(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), KEY)
