"""A pool on small models: each row's result is that of its adapter alone, whatever else is there."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pool_adapters
import pytest
from flax import nnx
from pool_adapters import TwoLayers, alone, call

import lora_jax
from lora_jax.adapters import load_adapter
from lora_jax.errors import InputError
from lora_jax.low_rank.layers import adapted_layers
from lora_jax.pool import AdapterPool, beside, route
from lora_jax.pool.updates import PooledPair

# Rows one after the other sum in another order than rows together: a few units in the last place.
CLOSE = {"rtol": 2e-6, "atol": 2e-6}
X = jnp.asarray(np.random.default_rng(0).standard_normal((6, 8)), jnp.float32)
BOTH = lora_jax.lora(["first", "second"], rank=3, alpha=6)
WIDE = lora_jax.lora("second", rank=2, alpha=1, scaling="alpha/sqrt(r)", b_bias=True)
FIRST = lora_jax.lora("first", rank=5, alpha=5)
METHODS = {"both": BOTH, "wide": WIDE, "first": FIRST}


def run(model, x):
    return model(x)


@pytest.fixture(scope="module")
def base():
    return TwoLayers()


@pytest.fixture(scope="module")
def adapters(base):
    return {
        name: pool_adapters.adapter(base, method, seed)
        for seed, (name, method) in enumerate(METHODS.items())
    }


@pytest.fixture
def pool(base, adapters):
    made = AdapterPool(base, list(METHODS.values()), capacity=3)
    for name, adapter in adapters.items():
        made.add(name, adapter)
    return made


def expected(base, adapters, names, x):
    rows = []
    for number, name in enumerate(names):
        model = base if name is None else alone(base, adapters[name])
        rows.append(call(run, model, x[number : number + 1])[0])
    return np.stack(rows)


@pytest.mark.parametrize("form", ["rows", "tiles", "beside"])
@pytest.mark.parametrize("sequence", [(), (4,), (0,)])
def test_every_row_has_its_own_adapter(base, adapters, pool, form, sequence):
    names = ["first", None, "wide", "both", "first", "wide"]
    x = jnp.broadcast_to(X.reshape(6, *[1] * len(sequence), 8), (6, *sequence, 8)) * 1.5
    answer = pool.compiled(run, form=form)
    np.testing.assert_allclose(answer(names, x), expected(base, adapters, names, x), **CLOSE)


@pytest.mark.parametrize("tokens", [1, 17, 200])
@pytest.mark.parametrize("device", ["tpu", "gpu"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_form_goes_by_device_and_shape(
    base, adapters, pool, monkeypatch, device, tokens, packed
):
    """Side by side on TPUs, but for long rows and many slots; on GPUs where tokens have their own slots."""
    chosen = []

    def noted(*args, **kwargs):
        chosen.append(original(*args, **kwargs))
        return chosen[-1]

    original = PooledPair._form
    monkeypatch.setattr(PooledPair, "_form", noted)
    monkeypatch.setattr(jax, "default_backend", lambda: device)
    monkeypatch.setattr(beside, "_FEW_COLUMNS", 16)  # the pool has 4 slots of rank 3 or 5
    monkeypatch.setattr(beside, "_FEW_COLUMNS_BY_TOKEN", 16)
    names = ["first", None, "wide", "both", "first", "wide"]
    x = jnp.broadcast_to(X[:, None], (6, tokens, 8)) * 1.5
    of_rows = pool.slots_of(names)
    slots = np.repeat(of_rows[:, None], tokens, axis=1) if packed else of_rows

    @jax.jit
    def run_slots(with_slots, frozen, x):
        model = pool.model(with_slots, frozen)
        route(model, slots)
        return model(x)

    found = run_slots(pool.slots, pool.frozen, x)
    np.testing.assert_allclose(found, expected(base, adapters, names, x), **CLOSE)
    first = {"tpu": "tiles" if packed else "beside" if tokens == 1 else "rows"}
    first["gpu"] = "tiles" if packed else "rows"
    second = {"tpu": "beside", "gpu": "beside" if packed else "rows"}  # 12 columns only
    assert chosen == [first[device], second[device]]


def test_the_base_is_exact(base, pool):
    answer = pool.compiled(run)
    np.testing.assert_array_equal(answer([None] * 6, X), call(run, base, X))


@pytest.mark.parametrize("form", ["rows", "tiles", "beside"])
def test_a_nan_stays_in_its_rows(base, adapters, form):
    pool = AdapterPool(base, list(METHODS.values()), capacity=3)
    for name, adapter in adapters.items():
        pool.add(name, pool_adapters.with_nan(adapter) if name == "both" else adapter)
    names = ["first", "both", None, "wide", "both", "first"]
    found = np.asarray(pool.compiled(run, form=form)(names, X))
    clean = [0, 2, 3, 5]
    assert np.isnan(found[[1, 4]]).any(axis=1).all()
    reference = expected(base, adapters, [names[i] for i in clean], X[np.array(clean)])
    np.testing.assert_allclose(found[clean], reference, **CLOSE)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [np.inf, np.nan, 3.4e38])
def test_a_b_that_is_not_finite_reaches_its_own_rows_only(base, adapters, value, dtype):
    """Also where it is too large for the type of the factors on the device, or of the layer's result."""
    broken = dataclasses.replace(adapters["both"], values=dict(adapters["both"].values))
    broken.values["second/lora/b"] = np.asarray(broken.values["second/lora/b"]).copy()
    broken.values["second/lora/b"][0, 0] = value
    pool = AdapterPool(base, list(METHODS.values()), capacity=3, dtype=dtype)
    for name, adapter in adapters.items():
        pool.add(name, broken if name == "both" else adapter)
    names = ["first", "both", None, "wide", "both", "first"]
    for x in (X, X.astype("float16")):
        found = np.asarray(pool.compiled(run, form="beside")(names, x), np.float32)
        own = found[[1, 4]]
        assert (np.isnan(own) | (abs(own) > 1e4)).any(axis=1).all()
        clean = [0, 2, 3, 5]
        reference = expected(base, adapters, [names[i] for i in clean], X[np.array(clean)])
        np.testing.assert_allclose(found[clean], reference, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("form", ["rows", "tiles", "beside"])
def test_magnitudes_of_dora(base, adapters, form):
    """Also beside adapters without any, which stay as exact as they are; a NaN stays where it is."""
    dora = lora_jax.lora(["first", "second"], rank=2, magnitude=True)
    own = {**adapters, "dora": pool_adapters.adapter(base, dora, 7)}
    pool = AdapterPool(base, [*METHODS.values(), dora], capacity=4)
    for name, adapter in own.items():
        pool.add(name, adapter)
    pool.add("broken", pool_adapters.with_nan(own["dora"]))
    names = ["first", "dora", None, "wide", "both", "dora"]
    answer = pool.compiled(run, form=form)
    for x in (X, X[:, None] * np.ones((1, 3, 1), np.float32)):
        np.testing.assert_allclose(answer(names, x), expected(base, own, names, x), **CLOSE)
    np.testing.assert_array_equal(answer([None] * 6, X), call(run, base, X))
    names[1] = "broken"
    found = np.asarray(answer(names[:5], X[:5]))
    assert np.isnan(found[1]).all()
    clean = [0, 2, 3, 4]
    reference = expected(base, own, [names[i] for i in clean], X[np.array(clean)])
    np.testing.assert_allclose(found[clean], reference, **CLOSE)


def test_factors_in_bfloat16_are_rounded_once(adapters):
    base = TwoLayers()
    base.first.dtype = base.second.dtype = jnp.bfloat16
    pool = AdapterPool(base, list(METHODS.values()), capacity=3, dtype="bfloat16")
    for name, adapter in adapters.items():
        pool.add(name, adapter)
    assert {str(leaf.dtype) for leaf in pool.slots.values()} == {"bfloat16"}
    names = ["first", None, "wide", "both", "first", "wide"]
    whole = AdapterPool(base, list(METHODS.values()), capacity=3)
    for name, adapter in adapters.items():
        whole.add(name, adapter)
    x = X.astype("bfloat16")
    for form in ("rows", "tiles", "beside"):
        found = pool.compiled(run, form=form)(names, x)
        np.testing.assert_array_equal(found, whole.compiled(run, form=form)(names, x))


def test_a_nan_in_a_row_stays_there(base, adapters, pool):
    x = X.at[1].set(jnp.nan)
    names = ["first", "both", "first", "wide", "both", None]
    for form in ("rows", "tiles", "beside"):
        found = np.asarray(pool.compiled(run, form=form)(names, x))
        assert np.isnan(found[1]).all()
        clean = [0, 2, 3, 4, 5]
        reference = expected(base, adapters, [names[i] for i in clean], X[np.array(clean)])
        np.testing.assert_allclose(found[clean], reference, **CLOSE)


def test_a_hundred_adapters_pass_through_eight_slots(base):
    """Without compiling: the function and the writing of a slot are one program each."""
    pool = AdapterPool(base, [BOTH], capacity=8)
    adapters = {f"t{i}": pool_adapters.adapter(base, BOTH, i) for i in range(100)}
    for name, adapter in adapters.items():
        pool.add(name, adapter)
    traced = []
    answer = pool.compiled(lambda model, x: (traced.append(1), model(x))[1])
    for start in range(0, 100, 6):
        names = [f"t{(start + i) % 100}" for i in range(6)]
        reference = expected(base, adapters, names, X)
        np.testing.assert_allclose(answer(names, X), reference, **CLOSE)
    assert len(traced) == 1
    assert pool._slots._write._cache_size() == 1
    assert len(pool.resident) == 8


def test_the_least_recently_used_one_leaves(pool, base, adapters):
    pool.add("fourth", pool_adapters.adapter(base, BOTH, 9))
    pool.slots_of(["both", "wide", "first"])
    pool.slots_of(["both"])
    pool.slots_of(["fourth"])
    assert pool.resident == ["first", "both", "fourth"]
    first = pool.slots_of(["first"])
    assert pool.slots_of(["wide"], in_use=["first", "fourth"]) != first
    assert pool.resident == ["fourth", "first", "wide"]


def test_adapters_on_disk_come_back(base, adapters, tmp_path):
    pool = AdapterPool(base, list(METHODS.values()), capacity=2, in_memory=1)
    for name, adapter in adapters.items():
        adapter.save(tmp_path / name)
        pool.add(name, tmp_path / name)
    assert pool.in_memory == ["first"]
    names = ["both", "both", "wide", "wide", "both", None]
    answer = pool.compiled(run)
    np.testing.assert_allclose(answer(names, X), expected(base, adapters, names, X), **CLOSE)
    assert len(pool.in_memory) == 1
    pool_adapters.adapter(base, FIRST, 77).save(tmp_path / "first")
    with pytest.raises(InputError, match="another adapter than when it was added"):
        pool.slots_of(["first"])


def test_a_folder_with_another_scale_is_another_adapter(base, adapters, tmp_path):
    pool = AdapterPool(base, list(METHODS.values()), capacity=2, in_memory=1)
    for name in ("both", "wide"):
        adapters[name].save(tmp_path / name)
        pool.add(name, tmp_path / name)
    louder = dataclasses.replace(
        adapters["both"], method=lora_jax.lora(["first", "second"], rank=3, alpha=60)
    )
    louder.save(tmp_path / "both")
    with pytest.raises(InputError, match="another adapter than when it was added"):
        pool.slots_of(["both"])


def test_adapters_from_memory_are_not_forgotten(base, adapters):
    pool = AdapterPool(base, list(METHODS.values()), capacity=2, in_memory=1)
    for name, adapter in adapters.items():
        pool.add(name, adapter)
    assert pool.in_memory == list(METHODS)


def test_a_removed_slot_is_free(base, pool):
    pool.slots_of(["both", "wide", "first"])
    pool.remove("wide")
    assert "wide" not in pool and pool.names == ["both", "first"]
    pool.add("wide", pool_adapters.adapter(base, BOTH, 5))
    answer = pool.compiled(run)
    found = answer(["wide"] * 6, X)
    reference = call(run, alone(base, pool_adapters.adapter(base, BOTH, 5)), X)
    np.testing.assert_allclose(found, reference, **CLOSE)
    assert set(pool.resident) == {"both", "first", "wide"}


def test_saved_adapters_and_runs_are_taken(base, adapters, tmp_path, pool):
    adapters["both"].save(tmp_path / "run" / "adapter")
    pool.add("again", tmp_path / "run")
    np.testing.assert_array_equal(
        pool["again"].values["first/lora/a"], load_adapter(tmp_path / "run").values["first/lora/a"]
    )


def test_too_many_in_a_batch(pool, base):
    pool.add("fourth", pool_adapters.adapter(base, BOTH, 9))
    before = pool.resident
    with pytest.raises(InputError, match="4 different adapters, and the pool room for 3"):
        pool.slots_of(pool.names)
    assert pool.resident == before


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (lora_jax.lora("first", rank=6), "room for \\(8, 5\\)"),
        (
            lora_jax.lora("first", rank=2, magnitude=True),
            "first/lora/ratio, and the pool has no room",
        ),
        (lora_jax.lora("first", rank=2, bias="all"), "first/bias \\(bias\\)"),
        (lora_jax.bitfit(), "\\(bias\\)"),
        (lora_jax.full(), "no form with slots"),
        (lora_jax.lora("first", rank=2, head="second/.*"), "'second/\\.\\*'"),
    ],
)
def test_what_has_no_slot_is_refused(base, pool, method, message):
    other = pool_adapters.adapter(base, method, 0)
    with pytest.raises(InputError, match=message):
        pool.add("other", other)
    assert pool.names == list(METHODS)


def test_other_mistakes(base, adapters, pool):
    with pytest.raises(InputError, match="no adapter 'x'"):
        pool.slots_of(["x"])
    with pytest.raises(InputError, match="there is an adapter 'both' already"):
        pool.add("both", adapters["both"])
    with pytest.raises(InputError, match="trained on another base.* If its base was packed"):
        pool.add("other", pool_adapters.adapter(TwoLayers(4), FIRST, 0))
    with pytest.raises(InputError, match="must not be adapted"):
        AdapterPool(alone(base, adapters["both"]), [BOTH])
    with pytest.raises(InputError, match="at least one"):
        AdapterPool(base, [])
    for capacity in (0, -1, True, 10**9):
        with pytest.raises(InputError, match="capacity"):
            AdapterPool(base, [BOTH], capacity=capacity)
    with pytest.raises(InputError, match="the batch does not say which ones it uses"):
        pool.model()(X)
    model = pool.model()
    route(model, jnp.zeros(5, jnp.int32))
    with pytest.raises(InputError, match="routed as \\(5,\\)"):
        model(X)
    for groups in (0, -1):
        with pytest.raises(InputError, match="groups"):
            route(model, jnp.zeros(6, jnp.int32), groups=groups)
    with pytest.raises(InputError, match="no merged weight"):
        lora_jax.merge(model)


def test_the_base_is_left_alone(base, pool):
    assert not adapted_layers(base)
    assert adapted_layers(pool.model())
    np.testing.assert_array_equal(
        jax.tree.leaves(nnx.state(base))[0], jax.tree.leaves(nnx.state(TwoLayers()))[0]
    )
