"""The method ia3 on whole models: counts, folders, combinations, quantised bases, and what it refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from bert_like import INNER, WIDTH, Block
from flax import linen, nnx

import lora_jax
from lora_jax.errors import InputError
from lora_jax.methods import from_json
from lora_jax.models.encoder import Encoder, EncoderConfig
from tests.low_rank.layer_cases import randomise

KEY = jax.random.key(0)
TARGETS = ["key", "value", "down"]
BERT_BASE = EncoderConfig(
    "bert", vocab_size=30522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
    intermediate_size=3072, max_position_embeddings=512, type_vocab_size=2,
)  # fmt: skip
X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, WIDTH)), jnp.float32)


def adapted_block(method=None, base=None):
    """With random vectors."""
    base = Block() if base is None else base
    adapted = (method or lora_jax.ia3(TARGETS, "down")).insert(base, KEY)
    for name in TARGETS:
        randomise(getattr(adapted, name).lora, 1)
    return base, adapted


def test_bert_base_has_as_many_trained_values_as_in_peft():
    with torch.device("meta"):
        theirs = transformers.BertModel(transformers.BertConfig())
    down = r".*layer\.\d+\.output\.dense"
    targets = rf".*\.(key|value)|{down}"
    model = peft.get_peft_model(
        theirs, peft.IA3Config(target_modules=targets, feedforward_modules=down)
    )
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    method = lora_jax.ia3(["key", "value", "feed_forward/down"], "feed_forward/down")
    adapted = nnx.eval_shape(lambda: method.insert(Encoder(BERT_BASE, nnx.Rngs(0)), KEY))
    assert method.summary(adapted).counts()["lora"] == count == 12 * (2 * 768 + 3072)
    norms = lora_jax.norms()
    labelled = nnx.eval_shape(lambda: norms.insert(Encoder(BERT_BASE, nnx.Rngs(0)), KEY))
    assert norms.summary(labelled).counts()["norms"] == 25 * 2 * 768


def test_summary_settings_and_json():
    method = lora_jax.ia3(
        {"key": {}, "value": {}, "down": {}}, feed_forward="down", exclude="value"
    )
    with pytest.raises(InputError, match="no layer left"):
        method.insert(Block(), KEY)
    method = lora_jax.ia3(TARGETS, feed_forward="down", bias="lora_only")
    assert from_json(method.to_json()) == method
    assert from_json(lora_jax.ia3("all-linear").to_json()) == lora_jax.ia3("all-linear")
    summary = method.summary(method.insert(Block(), KEY))
    rows = {row.path: row for row in summary.layers}
    assert {path: row.how for path, row in rows.items()} == {
        "key": "a factor for every output", "value": "a factor for every output",
        "down": "a factor for every input",
    }  # fmt: skip
    assert all(row.rank is None and row.scale is None for row in rows.values())
    counts = summary.counts()
    assert counts["lora"] == 2 * WIDTH + INNER and counts["bias"] == 3 * WIDTH
    assert "rank" not in str(method) and "alpha" not in str(summary)


def test_saved_and_loaded_bit_for_bit_and_with_bitfit(tmp_path):
    for method in (
        lora_jax.ia3(TARGETS, "down"),
        lora_jax.ia3(TARGETS, "down") + lora_jax.bitfit(),
    ):
        base, adapted = adapted_block(method)
        if len(method.spec) > 1:
            adapted.key.bias[...] = jnp.arange(WIDTH, dtype=jnp.float32)
        folder = lora_jax.save(tmp_path / method.name, adapted, method, base)
        again = lora_jax.load(folder, base)
        np.testing.assert_array_equal(again(X), adapted(X))
        np.testing.assert_allclose(lora_jax.merge(again)(X), adapted(X), rtol=1e-4, atol=1e-5)


def test_verified_compiled_and_over_runs():
    lora_jax.verify(Block(), lora_jax.ia3(TARGETS, "down"), X).check()
    _, adapted = adapted_block()
    np.testing.assert_allclose(
        nnx.jit(lambda m, x: m(x))(adapted, X), adapted(X), rtol=1e-5, atol=1e-6
    )
    graphdef, vectors, rest = nnx.split(adapted, nnx.LoRAParam, ...)
    runs = jax.tree.map(lambda v: jnp.stack([v, jnp.ones_like(v)]), vectors)
    both = jax.vmap(lambda v: nnx.merge(graphdef, v, rest)(X))(runs)
    np.testing.assert_allclose(both[0], adapted(X), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(both[1], Block()(X), rtol=1e-4, atol=1e-5)


def test_quantised_base():
    packed = lora_jax.quantise(Block(), format="int8")
    _, adapted = adapted_block(base=packed)
    floating = lora_jax.dequantise(packed)
    _, same = adapted_block(base=floating)
    np.testing.assert_allclose(adapted(X), same(X), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(lora_jax.merge(adapted)(X), same(X), rtol=1e-4, atol=1e-4)


def test_bfloat16_activations_keep_their_type():
    layer = nnx.Linear(4, 4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    for inputs in (None, ""):
        adapted = lora_jax.ia3("", inputs).insert(layer, KEY)
        assert adapted(X[..., :4].astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("of_inputs", [False, True])
def test_linen(of_inputs):
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.DenseGeneral((2, 3), name="up", bias_init=linen.initializers.ones)(x)
            return linen.DenseGeneral(
                4, axis=(-2, -1), name="down", bias_init=linen.initializers.ones
            )(x)

    model = lora_jax.linen.as_nnx(Net(), Net().init(KEY, X), X)
    method = lora_jax.ia3(["up", "down"], ["up", "down"] if of_inputs else None)
    adapted = method.insert(model, KEY)
    np.testing.assert_array_equal(adapted(X), model(X))
    for name in ("up", "down"):
        randomise(getattr(adapted, name).lora, 1)
    np.testing.assert_allclose(lora_jax.merge(adapted)(X), adapted(X), rtol=1e-4, atol=1e-4)
    assert np.abs(adapted(X) - model(X)).max() > 0.1


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"targets": "key", "feed_forward": "down"}, "names layers that no target names .down.*belong in both"),
     ({"targets": TARGETS, "feed_forward": "down", "exclude": "down"}, "'down'.*no layer left"),
     ({"targets": TARGETS, "feed_forward": "zzz"}, "feed_forward rule 'zzz' matches no path"),
     ({"targets": {"key": {"rank": 3}}}, "unknown .*rank.*known are .'fused', 'fused_sizes', 'parts'"),
     ({"targets": "key", "bias": "some"}, "bias must be")],
)  # fmt: skip
def test_what_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        lora_jax.ia3(**arguments).insert(Block(), KEY)
