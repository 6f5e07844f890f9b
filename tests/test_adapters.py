"""Checks of adapter folders: what comes back, what is refused, and that nothing is half written."""

import contextlib
import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as to_safetensors

import lora_jax
from lora_jax import adapters, warm_start
from lora_jax.errors import FileError, InputError
from lora_jax.low_rank import layers

KEY = jax.random.key(0, impl="rbg")
HEAD = "head/.*"
METHOD = lora_jax.lora(
    {
        r".*/query": {"rank": 2},
        r".*/qkv": {"rank": 3, "parts": ("q", "v"), "fused": ("q", "k", "v")},
        "embed": {"rank": 1},
    },
    alpha=4,
    dropout=0.1,
    bias="all",
    head=HEAD,
)


class Model(nnx.Module):
    def __init__(self, rngs, outputs=3, extra=False):
        zeros = nnx.initializers.zeros
        if extra:
            self.before = nnx.Linear(8, 8, rngs=rngs, kernel_init=zeros)
        self.embed = nnx.Embed(10, 8, rngs=rngs, embedding_init=zeros)
        self.block = nnx.Dict(
            query=nnx.Linear(8, 8, rngs=rngs, kernel_init=zeros),
            qkv=nnx.Linear(8, 24, rngs=rngs, kernel_init=zeros),
        )
        self.head = nnx.Linear(8, outputs, rngs=rngs, kernel_init=zeros)

    def __call__(self, ids):
        x = self.embed(ids)
        q, k, v = jnp.split(self.block["qkv"](self.block["query"](x)), 3, axis=-1)
        return self.head(x + jnp.tanh(q * k) * v)


def randomise(model, seed, only=nnx.Param):
    rng = np.random.default_rng(seed)
    for _, variable in nnx.to_flat_state(nnx.state(model, only)):
        variable[...] = jnp.asarray(rng.normal(size=variable.shape), variable.dtype)
    return model


def run_of(method, base, seed):
    """A model that `method` adapted, with random trained leaves."""
    adapted = method.insert(base, KEY)
    labels = method.labels(adapted)
    structure, trainable, frozen = lora_jax.split(adapted, labels)
    rng = np.random.default_rng(seed)
    trainable = {
        p: jnp.asarray(rng.normal(size=v.shape), v.dtype) for p, v in sorted(trainable.items())
    }
    return types.SimpleNamespace(
        method=method, labels=labels, structure=structure, trainable=trainable, frozen=frozen,
        base=adapters.fingerprint(adapters.base_parameters(base, HEAD)),
    )  # fmt: skip


def save(folder, run, **notes):
    return lora_jax.save_adapter(
        folder, run.trainable, run.labels, run.method, run.base, notes or None
    )


def bits(params):
    return {path: np.asarray(value).tobytes() for path, value in params.items()}


@pytest.fixture(scope="module")
def base():
    return randomise(Model(nnx.Rngs(0)), 0)


@pytest.fixture
def run(base):
    return run_of(METHOD, base, 1)


@pytest.fixture
def folder(tmp_path, run):
    return save(tmp_path / "runs" / "adapter", run, model="tiny", score=0.5)


def without_digests(folder):
    """Makes the folder one of an earlier version, whatever it holds."""
    path = folder / adapters.DESCRIPTION
    description = json.loads(path.read_text())
    description.pop("tensors_sha256", None)
    path.write_text(json.dumps(description))
    weights = folder / adapters.WEIGHTS
    with contextlib.suppress(SafetensorError):
        weights.write_bytes(to_safetensors(load_file(weights)))


def files(folder):
    return sorted(path.name for path in folder.iterdir())


# --- Round trip -----------------------------------------------------------------------------------


def test_round_trip_keeps_bits(folder, run, base):
    adapter = lora_jax.load_adapter(folder)
    assert bits(adapter.values) == bits(run.trainable)
    assert adapter.method == run.method
    assert adapter.groups == {path: run.labels[path] for path in run.trainable}
    assert set(adapter.groups.values()) == {"lora", "bias", "head"}  # the head is saved too
    assert adapter.base == run.base
    assert adapter.notes == {"model": "tiny", "score": 0.5}

    fresh = run_of(adapter.method, base, 2)
    values = adapters.apply_adapter(adapter, fresh.trainable, fresh.base)
    assert bits(values) == bits(run.trainable)
    ids = jnp.arange(10)
    first = lora_jax.join(run.structure, run.trainable, run.frozen)
    second = lora_jax.join(fresh.structure, values, fresh.frozen)
    np.testing.assert_array_equal(first(ids), second(ids))


def test_attach_gives_the_trained_model_and_leaves_the_base(folder, run, base):
    before = bits(lora_jax.parameters(base))
    fresh = nnx.clone(base)
    fresh.head = randomise(Model(nnx.Rngs(0)), 7).head  # the head is the adapter's, not the base's
    attached = lora_jax.attach(fresh, lora_jax.load_adapter(folder), head=HEAD)
    trained = lora_jax.join(run.structure, run.trainable, run.frozen)
    ids = jnp.arange(10)
    np.testing.assert_array_equal(attached(ids), trained(ids))
    assert bits(lora_jax.parameters(base)) == before
    randomise(fresh, 8)
    with pytest.raises(ValueError, match=r"runs/x was trained on another base"):
        lora_jax.attach(fresh, lora_jax.load_adapter(folder), head=HEAD, where="runs/x")


@pytest.mark.parametrize(
    "method",
    [
        lora_jax.full(head=HEAD), lora_jax.head_only(HEAD), lora_jax.bitfit(head=HEAD),
        METHOD + lora_jax.bitfit(),
    ],
    ids=lambda method: method.name,
)  # fmt: skip
def test_round_trip_of_other_methods(tmp_path, base, method):
    run = run_of(method, base, 1)
    adapter = lora_jax.load_adapter(save(tmp_path, run))
    assert bits(adapter.values) == bits(run.trainable) and adapter.method == method


def test_round_trip_of_bfloat16_leaves(tmp_path, run):
    run.trainable = {p: v.astype(jnp.bfloat16) for p, v in run.trainable.items()}
    adapter = lora_jax.load_adapter(save(tmp_path, run))
    assert bits(adapter.values) == bits(run.trainable)
    values = adapters.apply_adapter(adapter, run.trainable, run.base)
    assert all(value.dtype == jnp.bfloat16 for value in values.values())


def test_round_trip_of_scalars_and_views(tmp_path, base):
    """A logit scale is a leaf without axes; a transposed array is not contiguous."""
    trainable = {
        "scale": jnp.float32(3.5),
        "matrix": np.arange(6.0, dtype=np.float32).reshape(2, 3).T,
    }
    labels = dict.fromkeys(trainable, "base")
    folder = lora_jax.save_adapter(tmp_path, trainable, labels, lora_jax.full(), "print")
    adapter = lora_jax.load_adapter(folder)
    assert {p: v.shape for p, v in adapter.values.items()} == {"scale": (), "matrix": (3, 2)}
    values = adapters.apply_adapter(adapter, trainable, "print")
    np.testing.assert_array_equal(values["matrix"], trainable["matrix"])
    assert float(values["scale"]) == 3.5


def test_apply_returns_the_types_of_the_model(folder, run):
    adapter = lora_jax.load_adapter(folder)
    half = {p: v.astype(jnp.bfloat16) for p, v in run.trainable.items()}
    values = adapters.apply_adapter(adapter, half, run.base)
    assert bits(values) == bits(half)


def test_leaves_are_found_by_path_not_by_order(folder, run, base):
    """KerasHub numbers the layers: one layer more and every factor lands elsewhere."""
    longer = randomise(Model(nnx.Rngs(0), extra=True), 0)
    fresh = run_of(METHOD, longer, 2)
    fresh.trainable.pop("before/bias")
    values = adapters.apply_adapter(lora_jax.load_adapter(folder), fresh.trainable, run.base)
    assert bits(values) == bits(run.trainable)


def test_training_goes_on_after_loading(folder, base):
    """Keras sets A = B = 0 on loading: both gradients vanish and the factors stay zero."""
    fresh = run_of(METHOD, base, 2)
    start = adapters.apply_adapter(lora_jax.load_adapter(folder), fresh.trainable, fresh.base)
    optimizer = optax.adam(0.01)

    @jax.jit
    def step(trainable, state, frozen):
        def objective(trainable):
            model = lora_jax.join(fresh.structure, trainable, frozen)
            return jnp.mean((model(jnp.arange(10)) - 1) ** 2)

        updates, state = optimizer.update(jax.grad(objective)(trainable), state)
        return optax.apply_updates(trainable, updates), state

    trainable, state = start, optimizer.init(start)
    for _ in range(2):
        trainable, state = step(trainable, state, fresh.frozen)
    for path, value in trainable.items():
        assert np.any(value != start[path]), path
        assert np.any(start[path])


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["block/query/lora/a", "block/qkv/lora/v/b", "head/bias"])
def test_leaf_missing_in_the_adapter_is_refused(tmp_path, run, path):
    whole = dict(run.trainable)
    del run.trainable[path]
    adapter = lora_jax.load_adapter(save(tmp_path, run))
    with pytest.raises(ValueError, match=rf"tiny does not fit: missing \['{path}'\]"):
        adapters.apply_adapter(adapter, whole, run.base, where="tiny")


def test_leaf_the_model_lacks_is_refused(folder, run):
    adapter = lora_jax.load_adapter(folder)
    del run.trainable["block/query/lora/a"]
    with pytest.raises(ValueError, match=r"not in the model \['block/query/lora/a'\]"):
        adapters.apply_adapter(adapter, run.trainable, run.base)


def test_adapter_of_another_method_is_refused(folder, base):
    other = run_of(lora_jax.lora(r".*/query", rank=2, head=HEAD), base, 2)
    with pytest.raises(ValueError, match="does not fit"):
        adapters.apply_adapter(lora_jax.load_adapter(folder), other.trainable, other.base)


def test_leaf_of_another_shape_is_refused(folder, run):
    run.trainable["block/query/lora/a"] = jnp.zeros((8, 4))
    with pytest.raises(ValueError, match=r"block/query/lora/a has shape \(8, 2\).* \(8, 4\)"):
        adapters.apply_adapter(lora_jax.load_adapter(folder), run.trainable, run.base)


def test_another_base_is_refused_and_the_right_one_named(folder, run, base):
    other = nnx.clone(base)
    other.embed.embedding[...] = other.embed.embedding[...].at[3, 2].add(0.5)
    fresh = run_of(METHOD, other, 2)
    with pytest.raises(
        ValueError, match=rf"another base.*{run.base[:12]}.*{fresh.base[:12]}.*tiny"
    ):
        adapters.apply_adapter(lora_jax.load_adapter(folder), fresh.trainable, fresh.base)


@pytest.mark.parametrize("name", [adapters.WEIGHTS, adapters.DESCRIPTION])
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        lora_jax.load_adapter(folder)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        lora_jax.load_adapter(tmp_path / "nowhere")


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated_weights_are_refused(folder, size):
    path = folder / adapters.WEIGHTS
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"adapter\.safetensors: found other bytes.*truncated"):
        lora_jax.load_adapter(folder)
    without_digests(folder)  # as earlier versions saved it
    with pytest.raises(FileError, match=r"adapter\.safetensors: found no readable.*truncated"):
        lora_jax.load_adapter(folder)


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": ', b"\xff\xfe\x00"])
def test_broken_json_is_refused(folder, content):
    (folder / adapters.DESCRIPTION).write_bytes(content)
    with pytest.raises(ValueError, match=r"adapter\.json"):
        lora_jax.load_adapter(folder)


@pytest.mark.parametrize(
    "content", [[], {}, {"format": "lora_jax adapter 999"}, {"peft_type": "LORA"}]
)
def test_other_formats_are_refused(folder, content):
    (folder / adapters.DESCRIPTION).write_text(json.dumps(content))
    expected = (
        "expected 'lora_jax adapter 1'" if content != [] else r"found \[\], expected a JSON object"
    )
    with pytest.raises(ValueError, match=expected):
        lora_jax.load_adapter(folder)


@pytest.mark.parametrize("key", ["method", "groups", "base", "notes"])
def test_description_without_a_field_is_refused(folder, key):
    path = folder / adapters.DESCRIPTION
    description = json.loads(path.read_text())
    del description[key]
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match=key):
        lora_jax.load_adapter(folder)


def test_files_that_disagree_are_refused(folder):
    path = folder / adapters.DESCRIPTION
    description = json.loads(path.read_text())
    del description["groups"]["head/bias"]
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"found another description.*all keys but notes"):
        lora_jax.load_adapter(folder)
    without_digests(folder)
    with pytest.raises(ValueError, match=r"disagree about \['head/bias'\]"):
        lora_jax.load_adapter(folder)


# --- Fingerprint ----------------------------------------------------------------------------------


def test_fingerprint_is_equal_for_float32_and_bfloat16_copies(base):
    params = adapters.base_parameters(base, HEAD)
    half = {path: value.astype(jnp.bfloat16) for path, value in params.items()}
    back = {path: np.asarray(value.astype(jnp.float32)) for path, value in half.items()}
    backwards = dict(reversed(params.items()))
    prints = {adapters.fingerprint(p) for p in (params, half, back, backwards)}
    assert len(prints) == 1


def test_fingerprint_of_the_adapted_models_base_is_that_of_the_base(base, run):
    kept = {
        path: value
        for path, value in lora_jax.parameters(METHOD.insert(base, KEY)).items()
        if "/lora/" not in path
    }
    head = {path for path in kept if path.startswith("head/")}
    assert adapters.fingerprint({p: v for p, v in kept.items() if p not in head}) == run.base


@pytest.mark.parametrize("change", ["value", "sign of one", "path", "shape", "missing", "swapped"])
def test_fingerprint_differs_for_another_base(base, change):
    params = dict(adapters.base_parameters(base, HEAD))
    before = adapters.fingerprint(params)
    kernel = "block/query/kernel"
    if change == "value":
        params[kernel] = params[kernel].at[0, 0].multiply(1.02)  # two bfloat16 steps
    elif change == "sign of one":
        params[kernel] = params[kernel].at[7, 7].multiply(-1)
    elif change == "path":
        params["block/key/kernel"] = params.pop(kernel)
    elif change == "shape":
        params[kernel] = params[kernel].reshape(4, 16)
    elif change == "missing":
        del params[kernel]
    else:
        params[kernel] = params[kernel].T
    assert adapters.fingerprint(params) != before


def test_head_is_no_part_of_the_base(base):
    params = adapters.base_parameters(base, HEAD)
    assert set(params) == set(lora_jax.parameters(base)) - {"head/kernel", "head/bias"}
    assert set(adapters.base_parameters(base, None)) == set(lora_jax.parameters(base))


# --- Warm start -----------------------------------------------------------------------------------


def groups(trainable):
    return {path: "lora" if "/lora/" in path else "head" for path in trainable}


def test_transfer_moves_the_factors_and_leaves_the_head(folder, run):
    """From a task with three classes to one with five."""
    other = randomise(Model(nnx.Rngs(0), outputs=5), 0)
    fresh = run_of(METHOD, other, 2)
    values = warm_start.transfer_group(
        lora_jax.load_adapter(folder), fresh.trainable, groups(fresh.trainable), "lora"
    )
    assert values.keys() == fresh.trainable.keys()
    for path, value in values.items():
        source = run.trainable if "/lora/" in path else fresh.trainable
        np.testing.assert_array_equal(value, source[path])
    assert values["head/kernel"].shape == (8, 5)


def test_transfer_refuses_factors_that_do_not_fit(folder, base, run):
    adapter = lora_jax.load_adapter(folder)
    fewer = {p: v for p, v in run.trainable.items() if p != "embed/lora/a"}
    with pytest.raises(ValueError, match=r"not in the model \['embed/lora/a'\]"):
        warm_start.transfer_group(adapter, fewer, groups(fewer), "lora")
    more = {**run.trainable, "block/key/lora/a": jnp.zeros((8, 2))}
    with pytest.raises(ValueError, match=r"missing \['block/key/lora/a'\]"):
        warm_start.transfer_group(adapter, more, groups(more), "lora")
    with pytest.raises(ValueError, match="has shape"):
        bad = {**run.trainable, "embed/lora/a": jnp.zeros(2)}
        warm_start.transfer_group(adapter, bad, groups(bad), "lora")
    with pytest.raises(ValueError, match="'adapter' does not fit"):
        warm_start.transfer_group(adapter, run.trainable, groups(run.trainable), "adapter")


def test_transfer_of_a_factorless_adapter_is_refused(tmp_path, base, run):
    adapter = lora_jax.load_adapter(save(tmp_path, run_of(lora_jax.head_only(HEAD), base, 1)))
    with pytest.raises(ValueError, match="'lora' does not fit"):
        warm_start.transfer_group(adapter, run.trainable, groups(run.trainable), "lora")


# --- Writing --------------------------------------------------------------------------------------


def test_no_other_files_are_left(folder, run):
    assert files(folder) == sorted([adapters.WEIGHTS, adapters.DESCRIPTION])
    save(folder, run)  # over the old one
    assert files(folder) == sorted([adapters.WEIGHTS, adapters.DESCRIPTION])


def test_interrupted_write_leaves_the_old_adapter(folder, run, base, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(pathlib.Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save(folder, run_of(METHOD, base, 7))
    monkeypatch.undo()
    for name, content in before.items():
        assert (folder / name).read_bytes() == content
    assert bits(lora_jax.load_adapter(folder).values) == bits(run.trainable)
    assert files(folder) == sorted(before), "a temporary file is left"


def test_notes_that_cannot_be_stored_leave_the_old_adapter(folder, run, base):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(TypeError):
        save(folder, run_of(METHOD, base, 7), score=object())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_leaf_without_label_is_refused_before_writing(folder, run):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    run.trainable["other"] = jnp.zeros(2)
    with pytest.raises(InputError, match="no group in `labels` for .'other'"):
        save(folder, run)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_description_can_be_read_without_this_library(folder, run):
    description = json.loads((folder / "adapter.json").read_text())
    assert description["format"] == "lora_jax adapter 1"
    (part,) = description["method"]
    assert part["name"] == "lora"
    assert part["arguments"]["targets"][".*/query"]["rank"] == 2
    assert part["arguments"]["targets"][".*/query"]["alpha"] == 4


def test_loaded_method_builds_the_same_model(folder, base, run):
    adapted = lora_jax.load_adapter(folder).method.insert(base, KEY)
    assert nnx.graphdef(adapted) == run.structure.graphdef
    assert len(layers.adapted_layers(adapted)) == 3
