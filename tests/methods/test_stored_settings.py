"""Checks of the settings of layers known by their paths only, against those of the model itself."""

import jax
import pytest
from flax import nnx
from hf_like import CausalLM

import lora_jax as lj
from lora_jax import adapters
from lora_jax.analysis import factor_pairs
from lora_jax.low_rank import layers
from lora_jax.methods.stored_settings import settings_of_layer

KEY = jax.random.key(0)
OWN = {"q_proj": {"alpha": 3}, "model/layers/0/self_attn/v_proj": {"rank": 2}, ".*/[vk]_proj": {}}


def pairs_of(method):
    adapted = nnx.eval_shape(lambda: method.insert(CausalLM(), KEY))
    return layers.adapted_layers(adapted)


@pytest.mark.parametrize(
    "method",
    [
        lj.lora("q_proj", rank=2, alpha=6),
        lj.lora(OWN, rank=6, alpha=12, too_large="cap", scaling="alpha/sqrt(r)"),
        lj.lora("all-linear", rank=6, alpha=3, too_large="cap", exclude="up_proj"),
        lj.lora(r".*(proj|tokens)", rank=3, exclude=nnx.Embed),
        lj.lora({"type:Linear": {"alpha": 2}, "embed_tokens": {"alpha": 2}}, rank=2),
        lj.lora("q_proj", rank=2, alpha=6, layers=[0, 1])
        + lj.lora("q_proj", rank=2, alpha=5, layers=2),
        lj.lora("all-linear", rank=2, exclude="q_proj") + lj.lora("q_proj", rank=2, alpha=5),
        lj.lora({"q_proj": {"rank": 3, "alpha": 1}, "all-linear": {"rank": 2, "alpha": 7}}),
    ],
    ids=range(8),
)
def test_settings_are_those_that_the_model_shows(method):
    adapted = pairs_of(method)
    assert adapted
    for path, layer in adapted.items():
        pair = layer.lora
        settings = settings_of_layer(method, path, pair.rank, adapted)
        assert (settings.scale, settings.alpha, settings.rank) == (
            pair.scale,
            pair.alpha,
            pair.rank,
        )


@pytest.mark.parametrize(
    "method",
    [
        lj.lora({"type:Linear": {"alpha": 2}, "type:Embed": {"alpha": 3}}, rank=2),
        lj.lora("q_proj", rank=2, layers=0) + lj.lora("q_proj", rank=2, alpha=5, layers=-1),
    ],
)
def test_what_only_the_model_shows_is_an_error(method):
    adapted = pairs_of(method)
    with pytest.raises(
        ValueError, match="leave open which settings .* has; put the adapter onto its model"
    ):
        for path, layer in adapted.items():
            settings_of_layer(method, path, layer.lora.rank, adapted)


@pytest.mark.parametrize("path, rank", [("other", 2), ("model/layers/0/self_attn/q_proj", 3)])
def test_layers_that_no_target_means(path, rank):
    with pytest.raises(
        ValueError, match=f"no target of .* matches its factors at {path}, of rank {rank}"
    ):
        settings_of_layer(lj.lora("q_proj", rank=2), path, rank, [path])


def test_pairs_of_a_folder_are_those_of_its_model(tmp_path):
    method = lj.lora("all-linear", rank=6, alpha=9, too_large="cap")
    model = method.insert(CausalLM(), KEY)
    _, trainable, _ = lj.split(model, labels := method.labels(model))
    lj.save_adapter(tmp_path, trainable, labels, method, adapters.UNKNOWN_BASE)
    stored = factor_pairs.from_adapter(lj.load_adapter(tmp_path))
    of_model = factor_pairs.from_model(model)
    assert stored.keys() == of_model.keys()
    assert {pair.scale for pair in stored.values()} == {1.5}
    assert {path: p.rank for path, p in stored.items()} == {
        path: p.rank for path, p in of_model.items()
    }
    assert {pair.rank for pair in stored.values()} == {4, 6}


def test_factors_of_the_users_own_are_no_pairs(tmp_path):
    """Leaves called `lora/a` that train as something else."""

    class Own(CausalLM):
        def __init__(self, rngs=None):
            super().__init__(rngs)
            self.head = nnx.Dict(lora=nnx.Dict(a=nnx.Param(jax.numpy.ones((2, 2)))))

    method = lj.lora("q_proj", rank=2, head="head/.*")
    model = method.insert(Own(), KEY)
    _, trainable, _ = lj.split(model, labels := method.labels(model))
    assert "head/lora/a" in trainable
    lj.save_adapter(tmp_path, trainable, labels, method, adapters.UNKNOWN_BASE)
    assert len(factor_pairs.from_adapter(lj.load_adapter(tmp_path))) == 3
