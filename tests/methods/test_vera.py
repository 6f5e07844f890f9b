"""VeRA as a method: shared values over layers, the paper's counts, folders, packed bases, and refusals."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lora_jax
from lora_jax import methods
from lora_jax.errors import InputError
from lora_jax.low_rank import layers
from lora_jax.low_rank.weights import WeightView
from lora_jax.models.encoder import SIZES, Classifier
from tests.low_rank.layer_cases import random_input, randomise

KEY = jax.random.key(0)


class Model(nnx.Module):
    """A table, layers of different sizes, one of them fused, and a head."""

    def __init__(self, width=6):
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(11, width, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.up = nnx.Linear(width, 2 * width, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, rngs=rngs)
        self.head = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, ids):
        q, k, v = jnp.split(self.qkv(self.embed(ids)), 3, axis=-1)
        return self.head(self.down(jnp.tanh(self.up(q * k + v))))


ADAPTED = lora_jax.vera(["up", "down", "embed"], rank=16)
IDS = jnp.asarray([[1, 2, 3], [10, 0, 5]])


def inserted(method, base=None):
    """An adapted model with random vectors."""
    adapted = method.insert(base or Model(), KEY)
    for path, layer in layers.adapted_layers(adapted).items():
        for name, (member, view) in layer.lora.members_with_weights(WeightView(layer)).items():
            member.randomise(view, jax.random.fold_in(KEY, len(path + name)), 0.5)
    return adapted


def test_layers_share_the_values_of_the_largest():
    adapted = ADAPTED.insert(Model(), KEY)
    up, down, table = adapted.up.lora, adapted.down.lora, adapted.embed.lora
    np.testing.assert_array_equal(up.shared_a[...], down.shared_a[:6])
    np.testing.assert_array_equal(down.shared_b[...], up.shared_b[:, :6])
    np.testing.assert_array_equal(table.shared_b[...], up.shared_b[:, :6])
    bound = math.sqrt(6 / 12)  # of the 12 inputs of `down`
    assert 0.9 * bound < np.abs(up.shared_a[...]).max() <= bound
    # A lookup is a sum of one row.
    np.testing.assert_allclose(table.shared_a[...], down.shared_a[:11] * math.sqrt(12), rtol=1e-6)


def test_size_of_a_can_be_given():
    method = lora_jax.vera("up", rank=16, fan_in=12)
    up = method.insert(Model(), KEY).up.lora
    np.testing.assert_array_equal(
        up.shared_a[...], ADAPTED.insert(Model(), KEY).up.lora.shared_a[...]
    )
    assert methods.from_json(method.to_json()) == method
    own = lora_jax.vera("up", rank=16).insert(Model(), KEY).up.lora
    np.testing.assert_allclose(own.shared_a[...], up.shared_a[...] * math.sqrt(2), rtol=1e-6)


def test_values_come_from_the_seed_and_not_from_the_key():
    one, other = (ADAPTED.insert(Model(), jax.random.key(i)) for i in (0, 1))
    np.testing.assert_array_equal(one.up.lora.shared_a[...], other.up.lora.shared_a[...])
    seeded = lora_jax.vera("up", rank=16, seed=1).insert(Model(), KEY)
    assert not np.isin(seeded.up.lora.shared_a[...], one.up.lora.shared_a[...]).any()


def test_counts_of_the_paper_for_roberta_base():
    """Section 3.2: |layers| * (outputs + rank)."""
    method = lora_jax.vera(r".*/(query|value)", rank=1024, head="head/.*")
    abstract = nnx.eval_shape(
        lambda: method.insert(Classifier(SIZES["roberta-base"], 2, nnx.Rngs(0)), KEY)
    )
    labels, params = method.labels(abstract), lora_jax.parameters(abstract)
    trained = sum(math.prod(params[p].shape) for p, group in labels.items() if group == "lora")
    assert trained == 12 * 2 * (1024 + 768) == 43_008


def test_exact_counts_with_parts_and_all_linear():
    method = lora_jax.vera(
        {"qkv": {"parts": ("q", "v"), "fused": ("q", "k", "v")}, "all-linear": {"rank": 2}}, rank=7
    )
    adapted = method.insert(Model(), KEY)
    assert method.summary(adapted).counts()["trainable"] == 2 * (7 + 6) + (2 + 12) + (2 + 6)
    assert set(adapted.qkv.lora.members()) == {"q", "v"}
    np.testing.assert_array_equal(
        adapted.qkv.lora.q.shared_b[...], adapted.qkv.lora.v.shared_b[...]
    )
    adapted, base = inserted(method), Model()
    merged = lora_jax.merge(adapted)
    np.testing.assert_array_equal(merged.qkv.kernel[:, 6:12], base.qkv.kernel[:, 6:12])
    np.testing.assert_allclose(merged(IDS), adapted(IDS), rtol=1e-4, atol=1e-5)
    assert np.abs(np.asarray(adapted(IDS) - base(IDS))).max() > 0.01
    assert "rank 7, d from 0.1, A and B from seed 0, dropout 0, q,v of q,k,v" in str(
        method.summary(adapted)
    )


@pytest.mark.parametrize("plus", [None, lora_jax.bitfit(), lora_jax.leaves("qkv/kernel")])
def test_saved_and_loaded_bit_for_bit_without_the_matrices(tmp_path, plus):
    method = ADAPTED if plus is None else ADAPTED + plus
    base, adapted = Model(), inserted(method)
    if plus is not None:
        for path, group in method.labels(adapted).items():
            if group not in ("lora", lora_jax.FROZEN):
                leaf = getattr(getattr(adapted, path.split("/")[0]), path.split("/")[1])
                leaf[...] = leaf[...] + 0.5
    folder = lora_jax.save(tmp_path, adapted, method, base)
    loaded = lora_jax.load(folder, base)
    np.testing.assert_array_equal(loaded(IDS), adapted(IDS))
    assert np.abs(np.asarray(loaded(IDS) - base(IDS))).max() > 0.01
    held = lora_jax.load_adapter(folder)
    assert held.method == method and not [p for p in held.values if "shared" in p]
    assert not [path for path in held.state if "shared" in path]


def test_matrices_of_another_origin_are_saved(tmp_path):
    base, adapted = Model(), inserted(ADAPTED)
    adapted.up.lora.shared_a[...] = adapted.up.lora.shared_a[...] + 1
    loaded = lora_jax.load(lora_jax.save(tmp_path, adapted, ADAPTED, base), base)
    np.testing.assert_array_equal(loaded(IDS), adapted(IDS))


def test_on_a_packed_base():
    base = Model(32)
    packed = lora_jax.quantise(base, ["up", "down"], format="int8")
    adapted = inserted(lora_jax.vera(["up", "down"], rank=4), packed)
    x = random_input((3, 32))
    np.testing.assert_allclose(
        adapted.up(x) - packed.up(x),
        ((x @ adapted.up.lora.shared_a[...]) * adapted.up.lora.lambda_d[...])
        @ adapted.up.lora.shared_b[...]
        * adapted.up.lora.lambda_b[...],
        rtol=1e-4,
        atol=1e-4,
    )
    np.testing.assert_allclose(lora_jax.merge(adapted)(IDS), adapted(IDS), rtol=1e-3, atol=1e-4)


def test_verified_compiled_and_over_runs():
    base = Model()
    assert "passed" in str(lora_jax.verify(base, ADAPTED, IDS))
    adapted = inserted(ADAPTED)
    expected = adapted(IDS)
    np.testing.assert_allclose(
        nnx.jit(lambda m, x: m(x))(adapted, IDS), expected, rtol=1e-4, atol=1e-5
    )
    structure, trainable, frozen = lora_jax.split(adapted, ADAPTED.labels(adapted))
    runs = jax.tree.map(lambda v: jnp.stack([v, 2 * v]), trainable)
    outputs = jax.vmap(lambda one: lora_jax.join(structure, one, frozen)(IDS))(runs)
    np.testing.assert_allclose(outputs[0], expected, rtol=1e-4, atol=1e-5)
    doubled = lora_jax.join(structure, jax.tree.map(lambda v: 2 * v, trainable), frozen)
    np.testing.assert_allclose(outputs[1], doubled(IDS), rtol=1e-4, atol=1e-5)


def test_restarted_and_of_lower_precision():
    base = nnx.Linear(6, 5, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    adapted = lora_jax.vera("", rank=4, d_initial=0.2).insert(base, KEY)
    x = jnp.ones((3, 6), jnp.bfloat16)
    randomise(adapted.lora, 1)
    assert adapted(x).dtype == jnp.bfloat16 and np.any(adapted(x) != base(x))
    assert all(v.dtype == jnp.float32 for v in adapted.lora.factors(WeightView(adapted)))
    adapted.lora.restart(WeightView(adapted))
    np.testing.assert_array_equal(adapted(x), base(x))
    np.testing.assert_array_equal(adapted.lora.lambda_d[...], np.float32([0.2] * 4))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"rank": 0}, "rank must be a positive integer"),
        ({"d_initial": 0}, "d_initial must be a positive"),
        ({"seed": -1}, "seed must be an? integer from 0"),
        ({"fan_in": -1}, "fan_in must be an? integer from 0"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"targets": {"up": {"alpha": 2}}}, "VeRA has no alpha, its trained vectors are the scale"),
        ({"targets": {"up": {"too_large": "cap"}}}, "rank may be of any size"),
        ({"targets": {"up": {"init": "kaiming"}}}, "unknown"),
        ({"targets": {}}, "vera needs at least one target"),
    ],
)
def test_refuses_what_has_no_meaning(arguments, message):
    with pytest.raises(InputError, match=message):
        lora_jax.vera(**{"targets": "up", **arguments})


def test_refuses_layers_without_an_update_and_tools_for_loras_factors():
    class Unknown(nnx.Module):
        def __init__(self):
            self.inner = nnx.LayerNorm(4, rngs=nnx.Rngs(0))

    with pytest.raises(TypeError, match="inner is a .*LayerNorm"):
        lora_jax.vera("inner").insert(Unknown(), KEY)
    with pytest.raises(InputError, match="takes LoRA's factors"):
        methods.stored_settings.refuse_other_updates(ADAPTED, "this")
