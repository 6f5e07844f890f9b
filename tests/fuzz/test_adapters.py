"""Adapter folders with anything in them: loading one ends in an error of this project, or in that adapter.

A folder of one of several methods is changed in its JSON, its tensors or its bytes. Whole folders hold
digests, so a change that is accepted must be one without effect, such as of a note. Folders of earlier
versions hold none; of them what is accepted must be an adapted model with finite numbers.
"""

import collections
import copy
import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import state_models
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from safetensors.numpy import save as to_safetensors

import lora_jax as lj
from lora_jax import adapters
from lora_jax.errors import InputError
from lora_jax.models.gpt2 import GPT2, GPT2Config
from tests.fuzz.fixed_settings import fixed_settings

pytestmark = pytest.mark.wrong_types

HEAD = "head/.*"
METHODS = {
    "lora": lj.lora({"linear": {"rank": 2}}, alpha=4, bias="lora_only", head=HEAD),
    "full": lj.full(head=HEAD),
    "fused": lj.lora(
        {
            ".*/qkv": {"rank": 2, "parts": ("q", "v"), "fused": ("q", "k", "v")},
            ".*/feed_forward/.*": {"rank": 1, "too_large": "cap"},
        },
        exclude=".*/feed_forward/norm",
    ),
    "dora": lj.lora("all-linear", rank=3, magnitude=True, scaling="alpha/sqrt(r)"),
    "bitfit": lj.bitfit(),
    "top_layers": lj.top_layers(1),
    "prefix_embed": lj.prefix_embed(2, 1),
    "prefix_layer+adapter_p": lj.prefix_layer(1) + lj.adapter_p(3),
    "adapter_d": lj.adapter_d(2, 1),
}


def model_of(name):
    if name in ("lora", "full"):
        return state_models.Model(nnx.Rngs(0))
    config = GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=11, n_positions=16)
    return GPT2(config, nnx.Rngs(0))


def everything(model):
    """The structure of a model with all its settings, and the bits of its arrays."""
    graphdef, state = nnx.split(model)
    leaves = {
        "/".join(map(str, path)): leaf.get_raw_value() for path, leaf in nnx.to_flat_state(state)
    }
    return graphdef, {
        path: np.asarray(
            jax.random.key_data(v) if jnp.issubdtype(v.dtype, jax.dtypes.prng_key) else v
        )
        for path, v in leaves.items()
    }


class Case:
    """A base, a folder of one method on it, and the adapted model."""

    def __init__(self, name, folder):
        self.name, self.base, method = name, model_of(name), METHODS[name]
        adapted = method.insert(self.base, jax.random.key(0))
        labels = method.labels(adapted)
        _, trainable, frozen = lj.split(adapted, labels)
        rng = np.random.default_rng(0)
        trainable = {p: rng.normal(size=v.shape).astype(np.float32) for p, v in trainable.items()}
        mark = adapters.fingerprint(adapters.base_parameters(self.base, method.head))
        state = {p: np.asarray(v) + 1 for p, v in frozen.items() if p.endswith(("/mean", "/var"))}
        notes = {"model": "tiny", "metrics": {"accuracy": 0.5}, "seeds": [1, 2]}
        adapters.save_adapter(folder, trainable, labels, method, mark, notes, state=state)
        self.json = json.loads((folder / adapters.DESCRIPTION).read_text())
        self.tensors = load_file(folder / adapters.WEIGHTS)
        self.bytes = {f.name: f.read_bytes() for f in folder.iterdir()}
        self.graphdef, self.leaves = everything(lj.attach(self.base, lj.load_adapter(folder)))


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return [Case(name, tmp_path_factory.mktemp("case") / "adapter") for name in METHODS]


# --- Changes --------------------------------------------------------------------------------------

ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 9), st.floats(), st.text(max_size=6),
    st.sampled_from([
        10**9, -(10**9), 10**4000, 1e308, -1e308, 1e-320, 2**31, 2**63, "", "(", "(a+)+b", "(.*)*x", "a{e}",
        "[", ".*", "x" * 5000, "(a{1000}){1000}", "all-linear", "type:Linear", "type:", [], {}, [[]], [{}],
        {"name": "lora"}, ["q"], ["q", "q"], [0], [-1], [10**9], [8, 8, 8], [True], "lora", "cap", "skip",
        "io", "gaussian", "alpha/sqrt(r)", [None] * 50,
    ]),
    st.integers(2, 90).map(lambda depth: _nested(depth)),
    st.dictionaries(st.text(max_size=3), st.integers(0, 3), max_size=3),
)  # fmt: skip


def _nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def places(value, path=()):
    """All keys and indices of nested JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in inner:
        yield (*path, key)
        if isinstance(child, dict | list):
            yield from places(child, (*path, key))


@st.composite
def changed_json(draw, case):
    content = copy.deepcopy(case.json)
    every = list(places(content))
    of_method = [place for place in every if place[0] == "method"]
    *path, key = draw(st.sampled_from(draw(st.sampled_from([every, of_method]))))
    holder = content
    for part in path:
        holder = holder[part]
    action = draw(st.sampled_from(["set", "set", "set", "remove", "add", "rename", "reverse"]))
    if action == "set":
        holder[key] = draw(ODD)
    elif action == "remove":
        del holder[key]
    elif action == "add" and isinstance(holder, list):
        holder.append(draw(ODD))
    elif action == "add":
        names = [
            "rank",
            "alpha",
            "plus",
            "name",
            "dropout",
            "layers",
            "exclude",
            "axes",
            "std",
            "zz",
        ]
        holder[draw(st.sampled_from(names))] = draw(ODD)
    elif action == "rename" and isinstance(holder, dict):
        holder[draw(st.sampled_from(["", "other", "(", "a/b", "lora"]))] = holder.pop(key)
    elif action == "reverse" and isinstance(holder, dict):
        items = list(holder.items())[::-1]
        holder.clear()
        holder.update(items)
    text = json.dumps(content)
    if draw(st.integers(0, 40)) == 0:
        text = text.replace('"notes":', '"notes":' + "[" * 100_000, 1)
    return text


@st.composite
def changed_tensors(draw, case):
    tensors = dict(case.tensors)
    name = draw(st.sampled_from(sorted(tensors)))
    value = tensors[name].copy()
    action = draw(
        st.sampled_from(["nan", "inf", "type", "shape", "remove", "add", "value", "large", "swap"])
    )
    if action in ("nan", "inf", "value", "large"):
        value.reshape(-1)[0] = {"nan": np.nan, "inf": -np.inf, "value": 3.5, "large": 3e38}[action]
        tensors[name] = value
    elif action == "type":
        kinds = ["float16", "float64", "int8", "bool", "int32", "uint8", "int64"]
        tensors[name] = value.astype(draw(st.sampled_from(kinds)))
    elif action == "shape":
        tensors[name] = draw(st.sampled_from([value.reshape(-1), value[None], value[..., :0]]))
    elif action == "remove":
        del tensors[name]
    elif action == "add":
        tensors[draw(st.sampled_from(["", "x", name + "/more"]))] = value
    else:
        other = draw(st.sampled_from(sorted(tensors)))
        tensors[name], tensors[other] = tensors[other], tensors[name]
    return to_safetensors(tensors, draw(st.sampled_from([None, {"format": "pt"}])))


@st.composite
def changed_bytes(draw, content):
    data = bytearray(content)
    action = draw(st.sampled_from(["flip", "flip", "cut", "insert", "delete", "shuffle"]))
    at = draw(st.integers(0, len(data) - 1))
    if action == "flip":
        data[at] ^= draw(st.integers(1, 255))
    elif action == "cut":
        del data[at:]
    elif action == "insert":
        data[at:at] = draw(st.binary(min_size=1, max_size=9))
    elif action == "delete":
        del data[at : at + draw(st.integers(1, 40))]
    else:
        middle = list(data[at : at + 30])
        random.Random(at).shuffle(middle)
        data[at : at + 30] = middle
    return bytes(data)


@st.composite
def changed_folder(draw, cases, earlier):
    """A case, and the bytes of its two files, one of them changed."""
    case = draw(st.sampled_from(cases))
    files, what = dict(case.bytes), draw(st.sampled_from(["json", "json", "tensors", "bytes"]))
    if what == "json":
        files[adapters.DESCRIPTION] = draw(changed_json(case)).encode()
    elif what == "tensors":
        files[adapters.WEIGHTS] = draw(changed_tensors(case))
    else:
        name = draw(st.sampled_from(sorted(files)))
        files[name] = draw(changed_bytes(files[name]))
    if earlier:
        key = case.json["tensors_sha256"].encode()
        files[adapters.DESCRIPTION] = files[adapters.DESCRIPTION].replace(
            b', "tensors_sha256": "' + key + b'"', b""
        ).replace(b',\n  "tensors_sha256": "' + key + b'"', b"")  # fmt: skip
        if what != "tensors" and files[adapters.WEIGHTS] == case.bytes[adapters.WEIGHTS]:
            files[adapters.WEIGHTS] = to_safetensors(case.tensors)
    return case, what, files


# --- The property ---------------------------------------------------------------------------------


def kind_of_result(case, folder, *, earlier):
    """Loads the folder and puts it onto its base; what came of it."""
    try:
        adapter = lj.load_adapter(folder)
    except (InputError, OSError) as error:
        assert str(folder) in str(error), error
        return f"refused by load_adapter: {type(error).__name__}"
    try:
        adapted = lj.attach(case.base, adapter, where=str(folder))
    except InputError as error:
        assert str(folder) in str(error), error
        return f"refused by attach: {type(error).__name__}"
    graphdef, leaves = everything(adapted)
    same = graphdef == case.graphdef and leaves.keys() == case.leaves.keys()
    same = same and all(leaves[p].tobytes() == v.tobytes() for p, v in case.leaves.items())
    assert earlier or same
    numbers = [v for v in leaves.values() if jnp.issubdtype(v.dtype, jnp.floating)]
    assert all(np.isfinite(v).all() for v in numbers)
    return "taken, the same adapter" if same else "taken, another adapter (no digests)"


def fuzz(cases, folder, record_property, examples, *, earlier):
    counts = collections.Counter()

    @fixed_settings(examples)
    @given(changed_folder(cases, earlier))
    def run(changed):
        case, what, files = changed
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        counts[f"{what}: {kind_of_result(case, folder, earlier=earlier)}"] += 1

    run()
    for kind, count in sorted(counts.items()):
        record_property(kind, count)
        print(f"{count:6} {kind}")
    return counts


@pytest.mark.parametrize("earlier", [False, True], ids=["digests", "earlier version"])
def test_changed_folders_are_refused_or_without_effect(cases, tmp_path, record_property, earlier):
    counts = fuzz(cases, tmp_path / "adapter", record_property, 250, earlier=earlier)
    assert any("refused by load_adapter" in kind for kind in counts)
    assert any(
        "taken, the same adapter" in kind for kind in counts
    )  # so the changes are not all gross


@pytest.mark.slow
@pytest.mark.parametrize("earlier", [False, True], ids=["digests", "earlier version"])
def test_thousands_of_changed_folders(cases, tmp_path, record_property, earlier):
    counts = fuzz(cases, tmp_path / "adapter", record_property, 4000, earlier=earlier)
    assert len(counts) >= 5
