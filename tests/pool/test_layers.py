"""Pools on every kind of layer: rows and tiles of rows give what each adapter gives alone."""

import numpy as np
import pool_adapters
import pytest
from flax import nnx
from pool_adapters import alone, call

import lora_jax
from lora_jax.errors import InputError
from lora_jax.pool import AdapterPool, route
from tests.low_rank.layer_cases import CASES, random_input, randomise

# Sums of up to a few hundred products of size about 1, in another order.
CLOSE = {"rtol": 2e-5, "atol": 5e-5}
# Their first axis is no batch: a weight's own maps, contracted, of one example, or not first in the result.
NO_ROWS = {
    "general, axis 0", "general, batch axis", "general, batch axis, inner", "general, two batch axes",
    "general, batch axes in reverse", "einsum, experts", "einsum, output first", "einsum, two kinds of batch",
    "linear, vector", "embed, one index", "conv 1D, no batch", "conv 2D, no batch",
    "conv 2D, no batch, groups", "transposed 1D, no batch, no bias",
}  # fmt: skip


class Model(nnx.Module):
    def __init__(self, make):
        self.layer = make(nnx.Rngs(0))

    def __call__(self, x):
        return self.layer(x)


def run(model, x):
    return model(x)


def case(name, dora=False):
    make, shape, rank = CASES[name]
    base = Model(make)
    randomise(base, 3)
    below = base.layer.num_embeddings if isinstance(base.layer, nnx.Embed) else None
    methods = [
        lora_jax.lora("layer", rank=r, alpha=3, magnitude=dora and r == 1)
        for r in dict.fromkeys((rank, 1))
    ]
    adapters = {
        f"t{i}": pool_adapters.adapter(base, methods[i % len(methods)], i) for i in range(3)
    }
    pool = AdapterPool(base, methods, capacity=3)
    for each, adapter in adapters.items():
        pool.add(each, adapter)
    return base, adapters, pool, random_input(shape, below)


@pytest.mark.parametrize("form", ["rows", "tiles", "beside"])
@pytest.mark.parametrize("name", sorted(set(CASES) - NO_ROWS))
def test_rows_have_their_own_adapters(name, form):
    base, adapters, pool, x = case(name, dora=form == "beside")  # which is apart from the form
    names = [("t2", None, "t0", "t1", "t2", "t0", "t1")[i % 7] for i in range(len(x))]
    found = pool.compiled(run, form=form)(names, x)
    for each in dict.fromkeys(names):
        mine = np.array([i for i, n in enumerate(names) if n == each])
        model = base if each is None else alone(base, adapters[each])
        np.testing.assert_allclose(np.asarray(found)[mine], call(run, model, x)[mine], **CLOSE)


@pytest.mark.parametrize("form", ["rows", "tiles", "beside"])
def test_a_result_without_rows_in_front_is_refused(form):
    _, _, pool, x = case("einsum, output first")
    with pytest.raises(InputError, match="row by row"):
        pool.compiled(run, form=form)(["t0", "t1"], x)


def test_a_table_that_gets_no_rows_is_refused():
    _, _, pool, x = case("embed")
    model = pool.model()
    route(model, np.ones(len(x) + 1, np.int32))
    with pytest.raises(InputError, match="its first axes must be the batch's"):
        model(x)


def test_layers_that_mix_tokens_need_whole_rows():
    _, _, pool, x = case("conv 1D")
    model = pool.model()
    route(model, np.ones(x.shape[:2], np.int32))
    with pytest.raises(InputError, match="treat every token by itself"):
        model(x)
