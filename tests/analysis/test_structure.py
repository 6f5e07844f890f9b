"""Structure of updates: closed forms, a plain numpy reference, and every method of the library."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_models import from_shapes

import lora_jax
from lora_jax.analysis import structure
from lora_jax.analysis.changes import Change, changes
from lora_jax.methods.gradient_start import waiting_weights
from lora_jax.models.encoder import Classifier, EncoderConfig

ENCODER = EncoderConfig(
    architecture="bert", vocab_size=30, hidden_size=16, num_hidden_layers=3,
    num_attention_heads=2, intermediate_size=24, max_position_embeddings=12, type_vocab_size=2,
)  # fmt: skip


def orthonormal(random, d, n):
    return np.linalg.qr(random.normal(size=(d, n)))[0]


def change(before, update, factors=None):
    noise = np.zeros(len(before))
    return Change(path="x", before=before, update=update, factors=factors, noise=noise)


# Closed forms.


@pytest.mark.parametrize("size", [9.0, 4.0])
def test_a_large_orthogonal_direction_is_exactly_one_intruder(size):
    """W_0 = u diag(s) v^T has 20 of 60 directions v; the update u_0 size w^T brings w, outside of them.

    The tuned weight then has the same u, and the same v but the first: (s_0 v_0 + size w), normalised.
    """
    random = np.random.default_rng(0)
    u, v = orthonormal(random, 20, 20), orthonormal(random, 60, 21)
    s = np.linspace(3, 1, 20)
    before = ((u * s) @ v[:, :20].T)[None]
    after = before + size * np.outer(u[:, 0], v[:, 20])[None]
    cosine = 3 / np.hypot(3, size)  # 0.32, and 0.6
    found = structure.largest_cosines(before, after)
    np.testing.assert_allclose(found, [[cosine] + 9 * [1]], rtol=1e-9)
    (count,) = structure.intruders(before, after)
    assert count == (cosine < 0.5) == (size == 9.0)
    assert structure.intruders(before, after, side="inputs")[0] == 0  # u_0 was there before
    turned = np.swapaxes(before, 1, 2), np.swapaxes(after, 1, 2)
    assert structure.intruders(*turned, side="inputs")[0] == count
    assert structure.intruders(*turned)[0] == 0


def test_a_small_update_makes_no_intruder():
    """By Davis and Kahan the vectors turn by at most ||update|| / gap."""
    random = np.random.default_rng(1)
    u, v = orthonormal(random, 24, 16), orthonormal(random, 16, 16)
    before = ((u * np.linspace(16, 1, 16)) @ v.T)[None]  # gaps of 1
    small = 0.05 * np.outer(orthonormal(random, 24, 1), orthonormal(random, 16, 1))[None]
    cosines = structure.largest_cosines(before, before + small, k=16)
    assert structure.intruders(before, before + small)[0] == 0
    assert cosines.min() > np.sqrt(1 - 0.1**2) and cosines.max() <= 1 + 1e-12


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_effective_rank_of_equal_singular_values_is_their_number(rank):
    random = np.random.default_rng(2)
    a, b = 0.7 * orthonormal(random, 12, rank)[None], orthonormal(random, 9, rank).T[None]
    before = random.normal(size=(1, 12, 9))
    for factors in (None, (a, b)):
        found = structure.of_change(change(before, a @ b, factors))
        assert found.rank == rank
        np.testing.assert_allclose(found.effective_rank, rank, rtol=1e-9)
        np.testing.assert_allclose(found.stable_rank, rank, rtol=1e-9)
        np.testing.assert_allclose(found.norm, 0.7 * np.sqrt(rank), rtol=1e-12)
        np.testing.assert_allclose(found.relative, found.norm / np.linalg.norm(before), rtol=1e-12)


def test_a_zero_update_has_rank_0_and_no_effective_rank():
    before = np.random.default_rng(3).normal(size=(1, 6, 5))
    found = structure.of_change(change(before, np.zeros_like(before)))
    assert (found.rank[0], found.relative[0], found.intruders[0]) == (0, 0, 0)
    assert np.isnan(found.effective_rank[0]) and np.isnan(found.stable_rank[0])


# Against numpy, written down as the definitions are, one matrix after another.


def reference(w0, w1, k, epsilon):
    """Of matrices (outputs, inputs), as in the paper: the left singular vectors."""
    left0, left1 = (np.linalg.svd(w, full_matrices=False)[0] for w in (w0, w1))
    count = 0
    for i in range(min(k, left1.shape[1])):
        largest = max(abs(left0[:, j] @ left1[:, i]) for j in range(left0.shape[1]))
        count += largest < epsilon
    s = np.linalg.svd(w1 - w0, compute_uv=False)
    p = s / s.sum()
    effective = np.exp(-sum(x * np.log(x) for x in p if x > 0))
    return count, effective, (s**2).sum() / s[0] ** 2, s


@pytest.mark.parametrize("shape", [(9, 14), (14, 9), (11, 11)])
@pytest.mark.parametrize("epsilon", [0.4, 0.5, 0.7])
def test_random_matrices_against_numpy(shape, epsilon):
    random = np.random.default_rng(4)
    before, update = random.normal(size=(2, 5, *shape))
    found = structure.of_change(change(before, update), k=7, epsilon=epsilon)
    inputs = structure.of_change(change(before, update), k=7, epsilon=epsilon, side="inputs")
    counts = []
    for layer in range(5):
        w0, w1 = before[layer].T, (before + update)[layer].T
        count, effective, stable, values = reference(w0, w1, 7, epsilon)
        assert found.intruders[layer] == count
        assert inputs.intruders[layer] == reference(w0.T, w1.T, 7, epsilon)[0]
        np.testing.assert_allclose(found.effective_rank[layer], effective, rtol=1e-10)
        np.testing.assert_allclose(found.stable_rank[layer], stable, rtol=1e-10)
        np.testing.assert_allclose(found.values[layer], values, rtol=1e-10)
        assert found.rank[layer] == np.linalg.matrix_rank(update[layer])
        counts.append(count)
    assert epsilon == 0.4 or sum(counts) > 0  # random matrices are full of intruders


@pytest.mark.parametrize("shape", [(2, 9, 14), (2, 14, 9)])
@pytest.mark.parametrize("side", ["outputs", "inputs"])
@pytest.mark.parametrize("rank", [9, 3])  # of rank 3 the fourth direction is nothing but rounding
def test_top_directions_are_the_first_of_all(shape, side, rank):
    random = np.random.default_rng(6)
    weights = random.normal(size=(*shape[:2], rank)) @ random.normal(size=(2, rank, shape[2]))
    whole = structure.directions(weights, side)[..., :5]
    top = structure.top_directions(weights, 5, side)
    assert top.shape == whole.shape
    cosines = np.abs(np.sum(top * whole, axis=-2))[:, :rank]
    np.testing.assert_allclose(cosines, 1, rtol=1e-12)
    np.testing.assert_allclose(np.swapaxes(top, 1, 2) @ top, [np.eye(5)] * 2, atol=1e-10)


def test_stacked_matrices_are_the_same_as_single_ones():
    random = np.random.default_rng(5)
    before, a, b = (random.normal(size=s) for s in ((4, 10, 8), (4, 10, 3), (4, 3, 8)))
    whole = structure.of_change(change(before, a @ b, (a, b)))
    for layer in range(4):
        one = slice(layer, layer + 1)
        alone = structure.of_change(change(before[one], (a @ b)[one], (a[one], b[one])))
        for name, value, stacked in zip(alone._fields, alone, whole, strict=True):
            np.testing.assert_allclose(value, stacked[one], rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [({"k": 0}, "k"), ({"epsilon": 0.0}, "epsilon"), ({"epsilon": 1.5}, "epsilon")],
)
def test_wrong_arguments_are_named(arguments, says):
    before = np.eye(4)[None]
    with pytest.raises(ValueError, match=says):
        structure.intruders(before, before, **arguments)


@pytest.mark.wrong_types
def test_another_side_is_refused():
    with pytest.raises(ValueError, match="side"):
        structure.directions(np.eye(3)[None], "left")
    with pytest.raises(ValueError, match="give those of one layer"):
        structure.intruders(np.eye(3)[None], np.eye(4)[None])


# Models: every method.


class Model(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(12, 10, rngs=rngs)
        self.qkv = nnx.Linear(10, 24, rngs=rngs)
        self.words = nnx.Embed(20, 12, rngs=rngs)


FUSED = {"qkv": {"parts": ("q", "v"), "fused": ("q", "k", "v")}}
QKV = {"qkv/q": 2, "qkv/v": 2}
BOTH = ["first", "qkv"]
# Method: the rank of every update by its algebra, of matrices 12 x 10, 10 x 24 (parts 10 x 8), 20 x 12.
METHODS = {
    "lora": (lora_jax.lora(["first", "words"], rank=3, alpha=5), {"first": 3, "words": 3}),
    "lora, parts": (lora_jax.lora(FUSED, rank=2), QKV),
    "rslora": (lora_jax.lora("first", rank=4, scaling="alpha/sqrt(r)"), {"first": 4}),
    "dora": (lora_jax.lora("first", rank=2, magnitude=True), {"first": 10}),
    "pissa": (lora_jax.lora(BOTH, rank=2, init="pissa"), {"first": 4, "qkv": 4}),
    "olora": (lora_jax.lora("first", rank=2, init="olora"), {"first": 4}),
    "lora_ga": (lora_jax.lora("first", rank=2, init="lora_ga"), {"first": 4}),
    "lora_fa": (lora_jax.lora("first", rank=3, gradient="lora_fa"), {"first": 3}),
    "lora_pro": (lora_jax.lora("first", rank=3, gradient="lora_pro"), {"first": 3}),
    "lora+": (lora_jax.lora("first", rank=3, b_rate=16.0), {"first": 3}),
    "vera": (lora_jax.vera(BOTH, rank=5), {"first": 5, "qkv": 5}),
    "adalora": (lora_jax.adalora("first", rank=4, target_rank=2), {"first": 4}),
    "loha": (lora_jax.loha(BOTH, rank=2), {"first": 4, "qkv": 4}),
    "lokr": (lora_jax.lokr("first", rank=2), {"first": 4}),  # of a 3 x 2 and a 4 x 5 matrix, 2 each
    "ia3": (lora_jax.ia3("first"), {"first": 10}),
    "full": (lora_jax.full(), {"first": 10, "qkv": 10, "words": 12}),
    "leaves": (lora_jax.leaves("qkv/kernel"), {"qkv": 10}),
    "token_rows": (lora_jax.token_rows({"words": [1, 4, 7]}), {"words": 3}),
    "lora and leaves": (
        lora_jax.lora("first", rank=2) + lora_jax.leaves("qkv/kernel"),
        {"first": 2, "qkv": 10},
    ),
    "bitfit": (lora_jax.bitfit(), {}),
}


def tuned(method, base, scale=0.3):
    """A model with the method, all of whose trained leaves are moved at random."""
    adapted = method.insert(base, jax.random.key(0))
    if waiting_weights(adapted):
        batches = [jnp.asarray(np.random.default_rng(1).normal(size=(7, 12)), jnp.float32)]
        loss = lambda model, x: jnp.mean(model.first(x) ** 3)  # noqa: E731
        adapted = lora_jax.start_from_gradients(adapted, loss, batches)
    labels, random = method.labels(adapted), np.random.default_rng(0)
    for path, variable in nnx.to_flat_state(nnx.state(adapted, nnx.Param)):
        if labels["/".join(map(str, path))] != lora_jax.FROZEN:
            variable[...] = variable[...] + scale * random.normal(size=variable.shape)
    return adapted


@pytest.fixture(scope="module")
def base():
    return from_shapes(lambda: Model(nnx.Rngs(0)))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_the_rank_of_its_algebra(name, base):
    method, ranks = METHODS[name]
    adapted = tuned(method, base)
    found = structure.of_model(adapted, base)
    assert found.keys() == ranks.keys()
    merged = lora_jax.merge(adapted) if method.insertions and found else adapted
    of_merged = structure.of_model(merged, base)
    for path, one in found.items():
        for value in one:
            assert np.isfinite(value).all()
        # What the merged weight minus the base's is, in float64.
        layer = path.split("/")[0]
        weight = "embedding" if layer == "words" else "kernel"
        before, after = (
            np.asarray(getattr(getattr(m, layer), weight)[...], np.float64) for m in (base, merged)
        )
        part = {"q": slice(0, 8), "v": slice(16, 24)}.get(path.partition("/")[2], slice(None))
        delta = (after - before)[:, part]
        dense = np.linalg.svd(delta, compute_uv=False)
        kept = one.values.shape[-1]
        # Merging rounds to float32: by up to 6e-8 of weights of about 1, in matrices of up to 24 columns.
        np.testing.assert_allclose(one.values[0], dense[:kept], atol=1e-6)
        assert dense[kept:].max(initial=0) < 1e-6
        assert one.rank == [ranks[path]]
        assert path not in of_merged or of_merged[path].rank == [ranks[path]]
        count = reference(before[:, part].T, after[:, part].T, 10, 0.5)[0]
        assert one.intruders == [count]


def test_lora_at_its_start_has_changed_nothing(base):
    method = lora_jax.lora("first", rank=2, init="pissa")
    (found,) = structure.of_model(method.insert(base, jax.random.key(0)), base).values()
    assert found.rank == [0] and found.relative == [0]


def test_a_converted_model_keeps_the_top_singular_values(base):
    for name in ("dora", "pissa", "loha", "ia3"):
        method, _ = METHODS[name]
        adapted = tuned(method, base)
        whole = structure.of_model(adapted, base)
        plain, _ = lora_jax.to_lora(adapted, method, rank=3)
        for path, one in structure.of_model(plain, base).items():
            assert one.rank == [3]
            # The factors are stored in float32.
            np.testing.assert_allclose(one.values[0, :3], whole[path].values[0, :3], rtol=2e-6)


def test_stacked_layers_and_cut_stacks_are_the_layers_of_the_model():
    base = from_shapes(lambda: Classifier(ENCODER, 2, nnx.Rngs(0)))
    method = lora_jax.lora(".*/(query|up)", rank=2, head="head/.*")
    found = structure.of_model(tuned(method, base), base, head="head/.*")
    assert set(found) == {
        "encoder/layers/block/attention/query", "encoder/layers/block/feed_forward/up",
    }  # fmt: skip
    assert all(list(one.rank) == [2, 2, 2] for one in found.values())
    with_head = structure.of_model(tuned(method, base), base)
    assert {path for path in with_head if path.startswith("head/")}
    top = structure.of_model(tuned(lora_jax.top_layers(1), base), base)
    assert len(top) == 6 and all(path.startswith("encoder/layers/block/") for path in top)
    for one in top.values():  # only the last layer trained
        assert list(one.rank[:2]) == [0, 0] and one.rank[2] == 16
    cut = lora_jax.lora(".*/last_1/.*/query", rank=2, cut=(1,))
    (path,) = structure.of_model(tuned(cut, base), base)
    assert path == "encoder/layers/last_1/block/attention/query"


def test_known_directions_change_nothing(base):
    known: structure.Directions = {}
    adapted = tuned(METHODS["lora"][0], base)
    first = structure.of_model(adapted, base, known=known)
    assert known.keys() == {"first", "words"}
    again = structure.of_model(adapted, base, known=known)
    for path, one in again.items():
        np.testing.assert_array_equal(one.cosines, first[path].cosines)
    assert structure.total_intruders(first) == sum(int(s.intruders.sum()) for s in first.values())


def test_rounding_of_a_merged_weight_is_not_rank(base):
    """In bfloat16 the rounding of the sum is all that differs beyond the update."""
    adapted = tuned(lora_jax.lora("first", rank=1), base, scale=0.8)
    merged = lora_jax.merge(adapted, jnp.bfloat16)
    (found,) = structure.of_model(merged, base).values()
    dense = np.linalg.matrix_rank(
        np.asarray(merged.first.kernel[...], np.float64) - np.asarray(base.first.kernel[...])
    )
    assert dense == 10 and found.rank == [1]


def test_another_base_is_refused(base):
    class Other(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(12, 11, rngs=rngs)

    other = from_shapes(lambda: Other(nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"first has \(maps, inputs, outputs\) \(1, 12, 10\)"):
        structure.of_model(tuned(METHODS["lora"][0], base), other)
    with pytest.raises(ValueError, match="not of one base"):
        list(changes(other, base))


class Experts(nnx.Module):
    def __init__(self, rngs):
        self.w = nnx.Param(jax.random.normal(rngs.params(), (3, 12, 10)))
        self.dense = nnx.Linear(64, 64, rngs=rngs)


def test_parameters_and_packed_bases():
    base = from_shapes(lambda: Experts(nnx.Rngs(0)))
    of_parameter = lora_jax.lora({"w": {"axes": "bio"}}, rank=2)
    (found,) = structure.of_model(tuned(of_parameter, base), base).values()
    assert list(found.rank) == [2, 2, 2]
    packed = lora_jax.quantise(base, "dense", format="nf4")
    adapted = tuned(lora_jax.lora("dense", rank=3), packed, scale=0.1)
    for model in (adapted, lora_jax.merge(adapted)):
        assert structure.of_model(model, packed)["dense"].rank == [3]
    # Against the base as it was before, packing is of the update.
    assert structure.of_model(adapted, base)["dense"].rank == [64]
