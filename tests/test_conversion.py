"""Updates of other kinds become LoRA's and the model computes the same."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lora_jax


class Model(nnx.Module):
    def __init__(self, rngs):
        self.inner = nnx.Linear(6, 8, rngs=rngs)
        self.qkv = nnx.Linear(8, 12, rngs=rngs)
        self.head = nnx.Linear(12, 2, rngs=rngs)
        self.norm = nnx.LayerNorm(12, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.norm(self.qkv(jnp.tanh(self.inner(x))))))


FUSED = {"parts": ("q", "v"), "fused": ("q", "k", "v")}
METHODS = {
    "pissa": lora_jax.lora({"inner": {}, "qkv": FUSED}, rank=2, alpha=3, init="pissa"),
    "olora": lora_jax.lora({"inner": {"rank": 3}, "qkv": FUSED}, rank=2, init="olora", bias="all"),
    "lora_fa": lora_jax.lora("inner", rank=2, gradient="lora_fa"),
    "with a bias of B": lora_jax.lora("inner", rank=2, alpha=5, b_bias=True, head="head/.*"),
    "with norms": lora_jax.lora("inner", rank=2, init="pissa") + lora_jax.norms(),
    "in two parts": lora_jax.lora("inner", rank=2, init="pissa") + lora_jax.leaves("head/.*"),
}


def changed(method):
    """A base and the model with the method, whose values are random."""
    base = Model(nnx.Rngs(0))
    adapted = method.insert(base, jax.random.key(0))
    random = np.random.default_rng(0)
    labels = method.labels(adapted)
    for path, variable in nnx.to_flat_state(nnx.state(adapted, nnx.Param)):
        if labels["/".join(map(str, path))] != lora_jax.FROZEN:
            variable[...] = variable[...] + 0.3 * random.normal(size=variable.shape)
    return base, adapted


@pytest.mark.parametrize("name", METHODS)
def test_the_model_stays_the_same_as_lora(name, tmp_path):
    method = METHODS[name]
    base, adapted = changed(method)
    plain, as_lora = lora_jax.to_lora(adapted, method)
    assert as_lora.name.startswith("lora")
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 6)), jnp.float32)
    np.testing.assert_allclose(plain(x), adapted(x), rtol=1e-5, atol=1e-5)
    assert np.abs(plain(x) - base(x)).max() > 0.05
    lora_jax.save(tmp_path, plain, as_lora, base)
    np.testing.assert_array_equal(lora_jax.load(tmp_path, base)(x), plain(x))
    lora_jax.analysis.factor_pairs.from_adapter(lora_jax.load_adapter(tmp_path))


def test_the_nearest_update_of_a_rank_is_that_of_the_singular_values():
    method = lora_jax.lora("inner", rank=4, magnitude=True)
    base, adapted = changed(method)
    with pytest.raises(ValueError, match="no rank of its own"):
        lora_jax.to_lora(adapted, method)
    delta = np.asarray(
        lora_jax.merge(adapted).inner.kernel[...] - base.inner.kernel[...], np.float64
    )
    u, s, v = np.linalg.svd(delta)
    for rank in (1, 3, 6):
        plain, _ = lora_jax.to_lora(adapted, method, rank=rank)
        found = lora_jax.merge(plain).inner.kernel[...] - base.inner.kernel[...]
        np.testing.assert_allclose(found, (u[:, :rank] * s[:rank]) @ v[:rank], atol=1e-5)
    exact = lora_jax.lora("inner", rank=2, init="pissa")
    base, adapted = changed(exact)
    delta = np.asarray(
        lora_jax.merge(adapted).inner.kernel[...] - base.inner.kernel[...], np.float64
    )
    u, s, v = np.linalg.svd(delta)
    found = lora_jax.merge(lora_jax.to_lora(adapted, exact, rank=1)[0]).inner.kernel[...]
    np.testing.assert_allclose(
        found - base.inner.kernel[...], np.outer(u[:, 0] * s[0], v[0]), atol=1e-5
    )


# Of grouped queries: k has 3 outputs, and LoRA has one rank for all parts of a layer.
UNEQUAL = {"parts": ("q", "k"), "fused": ("q", "k", "v"), "fused_sizes": (6, 3, 3)}


@pytest.mark.parametrize(
    ("method", "needed"),
    [
        (lora_jax.lora({"qkv": UNEQUAL}, rank=2, alpha=3, init="pissa"), 4),
        (lora_jax.vera({"qkv": UNEQUAL}, rank=7), 6),
        (lora_jax.loha({"qkv": UNEQUAL}, rank=2), 4),
    ],
)
def test_parts_of_unequal_sizes_have_the_rank_of_the_smallest(method, needed):
    base, adapted = changed(method)
    message = (
        f"update of qkv needs rank {needed}, and the smallest of its parts q, k allows 3: .*rank=3"
    )
    with pytest.raises(ValueError, match=message):
        lora_jax.to_lora(adapted, method)
    plain, _ = lora_jax.to_lora(adapted, method, rank=3)
    before = np.asarray(base.qkv.kernel[...], np.float64)
    whole, found = (
        np.asarray(lora_jax.merge(model).qkv.kernel[...], np.float64) - before
        for model in (adapted, plain)
    )
    for start, stop in ((0, 6), (6, 9)):
        u, s, v = np.linalg.svd(whole[:, start:stop], full_matrices=False)
        nearest = (u[:, :3] * s[:3]) @ v[:3]
        np.testing.assert_allclose(found[:, start:stop], nearest, atol=1e-5)
    np.testing.assert_array_equal(found[:, 9:], 0)


def test_an_update_that_is_switched_off_is_refused():
    method = METHODS["pissa"]
    _, adapted = changed(method)
    with (
        lora_jax.disabled(adapted),
        pytest.raises(ValueError, match=r"the update of inner is switched off; .*lora_jax\.enable"),
    ):
        lora_jax.to_lora(adapted, method)


def test_what_inserts_other_things_is_refused_by_name():
    method = lora_jax.lora("inner", rank=2) + lora_jax.norms()
    model = Model(nnx.Rngs(0))
    lora_jax.to_lora(method.insert(model, jax.random.key(0)), method)
    tokens = lora_jax.norms()
    with pytest.raises(ValueError, match="norms cannot become LoRA: it inserts nothing"):
        lora_jax.to_lora(tokens.insert(model, jax.random.key(0)), tokens)


def test_what_inserts_no_updates_is_refused():
    method = lora_jax.bitfit()
    with pytest.raises(ValueError, match="inserts nothing"):
        lora_jax.to_lora(method.insert(Model(nnx.Rngs(0)), jax.random.key(0)), method)
