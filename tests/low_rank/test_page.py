"""The Python blocks of docs/layers.md run as they stand, and their layers merge to what they compute."""

import re
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

import lora_jax
from lora_jax.low_rank import layers
from tests.low_rank.layer_cases import FLOAT32, adapted_copy, random_input, randomise

PAGE = Path(__file__).parents[2] / "docs/layers.md"


@pytest.fixture(scope="module")
def page():
    """What all blocks of the page define, one after the other."""
    names, before = {}, dict(layers._LORA_LAYERS)
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S):
        exec(code, names)
    yield names
    layers._LORA_LAYERS.clear()
    layers._LORA_LAYERS.update(before)


CALLS = {
    "Projection": (("btd,dnh->btnh", (4, 3, 5)), "__call__", (2, 6, 4)),
    "Dense": ((4, 5), "__call__", (3, 4)),
    "ScaledEmbed": ((10, 6), "__call__", (3, 4)),
    "ScaledEmbed.attend": ((10, 6), "attend", (3, 6)),
    "Table": ((10, 6), "__call__", (3, 4)),
    "Table.decode": ((10, 6), "decode", (3, 6)),
}


@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_blocks_of_the_page(page, name, magnitude):
    arguments, method, shape = CALLS[name]
    table = name in ("ScaledEmbed", "Table")
    base = page[name.partition(".")[0]](*arguments, rngs=nnx.Rngs(0))
    layer = adapted_copy(base, magnitude=magnitude)
    x = random_input(shape, 10 if table else None)
    expected = getattr(base, method)(x)
    np.testing.assert_allclose(getattr(layer, method)(x), expected, rtol=1e-5, atol=1e-5)
    randomise(layer.lora, 1)
    result, merged = getattr(layer, method)(x), lora_jax.merge(layer)
    assert type(merged) is type(base)
    assert not np.allclose(result, expected, atol=0.1)
    np.testing.assert_allclose(result, getattr(merged, method)(x), **FLOAT32)
