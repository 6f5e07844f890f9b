"""Rows of tokens that train, and whole parameters that do: against a model with other numbers in it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lora_jax

KEY = jax.random.key(0)
IDS = jnp.array([[1, 4, 2], [4, 4, 0]])


class Tied(nnx.Module):
    """Tokens to logits, by one table or by two."""

    def __init__(self, tied=True):
        rngs = nnx.Rngs(0)
        self.token = nnx.Embed(6, 4, rngs=rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.lm_head = None if tied else nnx.Linear(4, 6, use_bias=False, rngs=rngs)

    def __call__(self, ids):
        x = jnp.tanh(self.norm(self.token(ids)))
        return self.token.attend(x) if self.lm_head is None else self.lm_head(x)


def with_rows(weight, numbers, rows):
    return jnp.asarray(weight).at[jnp.array(numbers)].set(rows)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_stand_in_the_place_of_others(tied):
    """As in a table with these rows, for lookups and for logits, and with the same gradients."""
    base, rng = Tied(tied), np.random.default_rng(0)
    chosen = {"token": [4, 1]} if tied else {"token": [4, 1], "lm_head": [0]}
    method = lora_jax.token_rows(chosen)
    adapted = method.insert(base, KEY)
    np.testing.assert_allclose(adapted(IDS), base(IDS), rtol=1e-5, atol=1e-6)
    labels = method.labels(adapted)
    expected = {f"{name}/rows/values": "rows" for name in chosen}
    assert {p: g for p, g in labels.items() if g != "frozen"} == expected
    structure, trainable, frozen = lora_jax.split(adapted, labels)
    rows = {
        path: jnp.asarray(rng.normal(size=v.shape), jnp.float32) for path, v in trainable.items()
    }

    def loss(rows):
        return jnp.sum(lora_jax.join(structure, rows, frozen)(IDS) ** 2)

    def loss_of_whole(rows):
        other = nnx.clone(base)
        other.token.embedding[...] = with_rows(
            base.token.embedding[...], [4, 1], rows["token/rows/values"]
        )
        if not tied:
            kernel = with_rows(base.lm_head.kernel[...].T, [0], rows["lm_head/rows/values"])
            other.lm_head.kernel[...] = kernel.T
        return jnp.sum(other(IDS) ** 2)

    got, wanted = (jax.value_and_grad(f)(rows) for f in (loss, loss_of_whole))
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-5)
    for path, gradient in wanted[1].items():
        np.testing.assert_allclose(got[1][path], gradient, rtol=1e-4, atol=1e-5)
    merged = lora_jax.merge(lora_jax.join(structure, rows, frozen))
    assert nnx.graphdef(merged) == nnx.graphdef(base)
    assert jnp.sum(merged(IDS) ** 2) == pytest.approx(float(wanted[0]), rel=1e-5)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"token": [6]}, r"token has 6 rows, and row 6 is asked for"),
        ({"norm": [1]}, r"norm is a LayerNorm; rows of tokens are those of an nnx.Embed"),
        ({"nothing": [1]}, r"'nothing' matches no path"),
    ],
)
def test_rows_that_are_not_there(rows, message):
    with pytest.raises(ValueError, match=message):
        lora_jax.token_rows(rows).insert(Tied(), KEY)


def test_two_names_of_one_table():
    with pytest.raises(ValueError, match=r"'token' and '.\*oken' both name token"):
        lora_jax.token_rows({"token": [1], ".*oken": [2]}).insert(Tied(), KEY)


def test_merged_rows_that_the_type_cannot_hold():
    adapted = lora_jax.token_rows({"token": [1]}).insert(Tied(), KEY)
    adapted.token.rows.values[...] += 1e6
    with pytest.raises(
        ValueError, match=r"rows of tokens has merged values up to 1e\+06, which float16"
    ):
        lora_jax.merge(adapted, jnp.float16)


@pytest.mark.parametrize("rows", [{}, {"token": []}, {"token": [1, 1]}, {"token": [-1]}])
def test_no_rows(rows):
    with pytest.raises(
        ValueError, match=r"rows must be|token_rows of 'token'|the number of a token"
    ):
        lora_jax.token_rows(rows)


def test_stored_and_read_again():
    method = lora_jax.token_rows({"token": [1, 4]}) + lora_jax.leaves("norm/scale")
    assert lora_jax.methods.from_json(method.to_json()) == method
    assert "rows" in str(method.summary(method.insert(Tied(), KEY)))


def test_whole_parameters_train():
    method = lora_jax.lora("token", rank=2) + lora_jax.leaves("norm/(scale|bias)")
    labels = method.labels(method.insert(Tied(), KEY))
    trained = {path for path, group in labels.items() if group == "leaves"}
    assert trained == {"norm/scale", "norm/bias"} and labels["token/embedding"] == "frozen"
    with pytest.raises(ValueError, match="matches no path"):
        lora_jax.leaves("nothing").labels(Tied())


def test_an_update_for_lookups_only():
    """The logits are against the table as it was; such an update cannot be merged."""
    base = Tied()
    adapted = lora_jax.lora("token", rank=2, lookup_only=True).insert(base, KEY)
    adapted.token.lora.a[...] = jax.random.normal(KEY, adapted.token.lora.a.shape)
    table = base.token.embedding[...] + adapted.token.lora.a[...] @ adapted.token.lora.b[...]
    expected = base.token.attend(jnp.tanh(base.norm(table[IDS])))
    np.testing.assert_allclose(adapted(IDS), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="for lookups only"):
        lora_jax.merge(adapted)
    with pytest.raises(ValueError, match="lookup_only is for tables"):
        lora_jax.lora("lm_head", rank=2, lookup_only=True).insert(Tied(tied=False), KEY)
