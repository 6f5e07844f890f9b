"""The Python blocks of docs/linen.md run as they stand."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import lora_jax
from lora_jax.linen import calls

PAGE = Path(__file__).parents[2] / "docs/linen.md"


def test_blocks_of_the_page(tmp_path, monkeypatch, registry):
    monkeypatch.chdir(tmp_path)
    before, names = dict(calls.FORMS), {"print": lambda *_: None}
    try:
        for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S):
            exec(code, names)
        module, ids, params = names["module"], names["ids"], names["params"]
        start = module.apply({"params": params}, ids, train=False)
        merged = module.apply({"params": names["merged"]}, ids, train=False)
        assert not np.allclose(merged, start, atol=0.05)
        np.testing.assert_allclose(names["again"](ids, train=False), merged, rtol=1e-4, atol=1e-5)

        own, x = names["Projection"](5), jnp.ones((2, 4))
        model = lora_jax.linen.as_nnx(own, own.init(jax.random.key(0), x), x)
        adapted = lora_jax.lora("", rank=2).insert(model, jax.random.key(0))
        adapted.lora.b[...] = jnp.ones((2, 5))
        expected = own.apply(lora_jax.linen.variables(lora_jax.merge(adapted)), x)
        np.testing.assert_allclose(adapted(x), expected, rtol=1e-5, atol=1e-6)
    finally:
        calls.FORMS.clear()
        calls.FORMS.update(before)
