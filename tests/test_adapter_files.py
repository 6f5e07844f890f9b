"""The two files of an adapter folder belong together, hold what an adapter has, and survive any kill."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.numpy import save as to_safetensors

import lora_jax as lj
from lora_jax import adapter_files, adapters, warm_start
from lora_jax.errors import FileError, InputError, MissingFileError

METHOD = lj.lora("query", rank=2, alpha=4)
LABELS = {"query/lora/a": "lora", "query/lora/b": "lora"}


class Model(nnx.Module):
    def __init__(self, rngs):
        self.query = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        return self.query(x)


def factors(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"query/lora/a": (4, 2), "query/lora/b": (2, 4)}
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}


def base():
    return Model(nnx.Rngs(0))


def save(folder, values=None, **more):
    mark = adapters.fingerprint(adapters.base_parameters(base()))
    return lj.save_adapter(folder, values or factors(), LABELS, METHOD, mark, {"score": 1}, **more)


def rewrite(folder, change):
    """Changes adapter.json by hand."""
    path = folder / "adapter.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


def retensor(folder, metadata=None, **changed):
    path = folder / "adapter.safetensors"
    tensors = {**load_file(path), **{name.replace("__", "/"): v for name, v in changed.items()}}
    path.write_bytes(to_safetensors({k: v for k, v in tensors.items() if v is not None}, metadata))


def as_of_an_earlier_version(folder):
    rewrite(folder, lambda d: d.pop("tensors_sha256"))
    retensor(folder)


# --- Digests --------------------------------------------------------------------------------------


def test_each_file_holds_the_digest_of_the_other(tmp_path):
    save(tmp_path)
    description = json.loads((tmp_path / "adapter.json").read_text())
    with safe_open(tmp_path / "adapter.safetensors", "np") as file:
        assert set(file.metadata()) == {"description_sha256"}
    assert len(description["tensors_sha256"]) == 64
    assert description["format"] == "lora_jax adapter 1"  # which earlier versions read, too


def test_notes_may_be_edited_and_the_json_formatted_anew(tmp_path):
    save(tmp_path)
    rewrite(tmp_path, lambda d: d.update(notes={"who": "me", "a": [1, None]}))
    assert lj.load_adapter(tmp_path).notes == {"who": "me", "a": [1, None]}


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["method"][0]["arguments"]["targets"]["query"].update(alpha=400),
        lambda d: d["method"][0]["arguments"]["targets"]["query"].update(scaling="alpha/sqrt(r)"),
        lambda d: d["method"][0]["arguments"]["targets"].update(
            d["method"][0]["arguments"]["targets"].pop("query") and {".*": {"rank": 2}}
        ),
        lambda d: d["groups"].update({"query/lora/a": "head"}),
        lambda d: d.update(base="0" * 64),
        lambda d: d.update(state=[]),
    ],
    ids=["alpha", "scaling", "targets", "groups", "base", "state"],
)  # fmt: skip
def test_a_description_that_was_changed_is_refused(tmp_path, change):
    save(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(
        FileError, match=r"adapter\.json: found another description.*but notes.*save_adapter"
    ):
        lj.load_adapter(tmp_path)


def test_the_order_of_targets_counts(tmp_path):
    """The first one that names a layer gives its settings."""
    method = lj.lora({"query": {"alpha": 1}, ".*": {"alpha": 9}}, rank=2)
    lj.save_adapter(tmp_path, factors(), LABELS, method, "print")

    def turn(description):
        arguments = description["method"][0]["arguments"]
        arguments["targets"] = dict(reversed(arguments["targets"].items()))

    rewrite(tmp_path, turn)
    with pytest.raises(FileError, match="another description"):
        lj.load_adapter(tmp_path)


def test_tensors_of_another_adapter_are_refused(tmp_path):
    one, other = save(tmp_path / "one"), save(tmp_path / "other", factors(1))
    shutil.copy(one / "adapter.safetensors", other / "adapter.safetensors")
    message = (
        r"other/adapter\.safetensors: found other bytes.*other/adapter\.json belongs to.*Copy both"
    )
    with pytest.raises(FileError, match=message):
        lj.load_adapter(other)


def test_a_digest_on_one_side_only_is_refused(tmp_path):
    save(tmp_path)
    rewrite(tmp_path, lambda d: d.pop("tensors_sha256"))
    with pytest.raises(
        FileError, match=r"adapter\.json, tensors_sha256: found nothing.*names its descr"
    ):
        lj.load_adapter(tmp_path)
    as_of_an_earlier_version(save(tmp_path / "other"))
    digest = adapter_files._sha256(tmp_path / "other/adapter.safetensors")
    rewrite(tmp_path / "other", lambda d: d.update(tensors_sha256=digest))
    with pytest.raises(FileError, match="another description"):
        lj.load_adapter(tmp_path / "other")


def test_folders_of_earlier_versions_load(tmp_path):
    as_of_an_earlier_version(save(tmp_path))
    adapter = lj.load_adapter(tmp_path)
    assert adapter.method == METHOD and adapter.notes == {"score": 1}
    assert all(np.array_equal(v, factors()[p]) for p, v in adapter.values.items())
    assert lj.attach(base(), adapter)


# --- Keys and types -------------------------------------------------------------------------------


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("method"), "method: found nothing, expected a list"),
        (lambda d: d.update(method={}), r"method: found \{\}, expected a list"),
        (lambda d: d.update(method=[]), "method: found 0 parts"),
        (lambda d: d.update(method=d["method"] * 101), "method: found 101 parts"),
        (lambda d: d.update(method=["lora"]), r"method\[0\]: a part of a method has `name` and `arguments`"),
        (lambda d: d["method"][0].update(more=1), r"method\[0\]: a part of a method"),
        (lambda d: d["method"][0].update(name=["lora"]), r"method\[0\]: unknown method \['lora'\]; known"),
        (lambda d: d["method"][0].update(name="loro"), r"method\[0\]: unknown method 'loro'; known"),
        (lambda d: d["method"][0]["arguments"].update(zz=1), r"method\[0\]: method 'lora' takes .*\['zz'\]"),
        (lambda d: d["method"][0]["arguments"].update(plus={"name": "full"}), "no argument 'plus'"),
        (lambda d: d.update(groups=[]), r"groups: found \[\], expected an object"),
        (lambda d: d["groups"].update(x=1), r"groups\.x: found 1, expected a string"),
        (lambda d: d.update(base=None), "base: found None, expected a string"),
        (lambda d: d.update(notes="x"), "notes: found 'x', expected an object"),
        (lambda d: d.update(state="x"), "state: found 'x', expected a list"),
        (lambda d: d.update(state=[1]), r"state\[0\]: found 1, expected a string"),
        (lambda d: d.update(state=["query/lora/a"]), "state: found a leaf that"),
        (lambda d: d.update(format=1), "format: found 1, expected a string"),
        (lambda d: d.update(tensors_sha256=5), "tensors_sha256: found 5, expected a string"),
        (lambda d: d.update(rank=8), "rank: found a key that this version does not know"),
    ],
)  # fmt: skip
def test_wrong_descriptions_name_the_file_and_the_key(tmp_path, change, message):
    as_of_an_earlier_version(save(tmp_path))
    rewrite(tmp_path, change)
    with pytest.raises(InputError, match=message) as caught:
        lj.load_adapter(tmp_path)
    assert f"{tmp_path / 'adapter.json'}, " in str(caught.value)


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("rank", "8", "rank must be a positive integer for target 'query', got '8'"),
        ("rank", 2.0, "rank must be a positive integer"), ("rank", True, "rank must be"),
        ("rank", 10**12, "rank must be at most 2,147,483,647"),
        ("alpha", 1e308, r"target 'query': alpha .*got 1e\+308, which is infinite in float32"),
        ("alpha", 1e-60, "got 1e-60, which is 0 in float32"),
        ("alpha", "4", "alpha must be a positive finite"),
        ("alpha", 10**400, "alpha must be a positive finite"),
        ("dropout", 1, r"dropout must be a number in \[0, "),
        ("dropout", "no", r"dropout must be a number .*got 'no'"), ("std", -1, "std must be a finite"),
        ("std", 1e30, "std must be at most 1000"), ("parts", "qv", "parts must be a list of names, got 'qv'"),
        ("parts", [1], "parts must be a list of names"), ("fused", ["q", "q"], "fused has a name twice"),
        ("fused_sizes", [-8, 12], "a size in fused_sizes must be a positive integer, got -8"),
        ("fused_sizes", 4, "fused_sizes must be a list of sizes"),
        ("scaling", ["alpha/r"], "scaling must be"),
        ("init", {}, "init must be 'kaiming', 'gaussian', "), ("axes", 5, "axes must have one letter"),
        ("axes", "i" * 65 + "o", "axes must have one letter"), ("magnitude", "yes", "magnitude must be True"),
        ("too_large", [], "too_large must be 'error', 'cap' or 'skip'"), ("size", 3, r"unknown \['size'\]"),
    ],
)  # fmt: skip
def test_wrong_settings_name_the_file_and_the_setting(tmp_path, argument, value, message):
    as_of_an_earlier_version(save(tmp_path))
    rewrite(
        tmp_path,
        lambda d: d["method"][0]["arguments"]["targets"]["query"].update({argument: value}),
    )
    with pytest.raises(InputError, match=message) as caught:
        lj.load_adapter(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'adapter.json'}, method[0]: ")


@pytest.mark.parametrize(
    "text",
    [
        '{"format": ' + "[" * 100_000, '{"a": ' * 100_000, "[" * 100 + "]" * 100,
        '{"format": ' + "9" * 10_000 + "}",
        '{"format": "\\ud800"}', '"lora"', "{'a': 1}", "\x00", "",
    ],
    ids=["lists", "objects", "list", "integer", "surrogate", "text", "quotes", "nul", "empty"],
)  # fmt: skip
def test_what_is_no_json_object_is_named(tmp_path, text):
    save(tmp_path)
    (tmp_path / "adapter.json").write_text(text)
    with pytest.raises(FileError) as caught:
        lj.load_adapter(tmp_path)
    assert str(tmp_path / "adapter.json") in str(caught.value)


def test_a_million_targets_are_refused(tmp_path):
    as_of_an_earlier_version(save(tmp_path))
    many = [f"t{number}" for number in range(10**6)]
    rewrite(tmp_path, lambda d: d["method"][0]["arguments"].update(targets=many))
    with pytest.raises(InputError, match="1,000,000 of them are more than 10,000; write a regular"):
        lj.load_adapter(tmp_path)


# --- Tensors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.int8, np.bool_, np.int32, np.uint8, np.int64])
def test_factors_of_integers_are_refused(tmp_path, kind):
    as_of_an_earlier_version(save(tmp_path))
    retensor(tmp_path, query__lora__a=np.ones((4, 2), kind))
    with pytest.raises(
        FileError, match=r"adapter\.safetensors, tensor query/lora/a: found type .*F32"
    ):
        lj.load_adapter(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_factors_that_are_not_finite_are_refused(tmp_path, value):
    as_of_an_earlier_version(save(tmp_path))
    odd = np.ones((4, 2), np.float32)
    odd[:, 0] = value
    retensor(tmp_path, query__lora__a=odd)
    with pytest.raises(
        InputError, match=r"adapter\.safetensors: 4 of 8 values of query/lora/a are not f"
    ):
        lj.load_adapter(tmp_path)


def test_values_that_are_not_finite_are_not_saved(tmp_path):
    save(tmp_path / "a")
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    bad = {**factors(), "query/lora/b": jnp.full((2, 4), jnp.nan)}
    for folder in (tmp_path / "a", tmp_path / "new"):
        with pytest.raises(
            InputError, match="is not written: 8 of 8 values of query/lora/b are not finite"
        ):
            save(folder, bad)
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
    assert not (tmp_path / "new").exists()
    with pytest.raises(
        InputError, match="query/lora/a has type int32; trained leaves are floating"
    ):
        save(tmp_path / "new", {**factors(), "query/lora/a": np.ones((4, 2), np.int32)})


def test_adapters_made_in_code_are_checked_when_they_are_applied(tmp_path):
    adapter = lj.load_adapter(save(tmp_path))
    for bad, message in (
        (np.full((4, 2), np.nan, np.float32), "8 of 8 values of query/lora/a are not finite"),
        (np.ones((4, 2), np.int8), "query/lora/a has type int8"),
        (
            np.full((4, 2), 1e300),
            r"query/lora/a has values up to 1e\+300, which float32 .* cannot hold",
        ),
        (np.ones((2, 4), np.float32), r"query/lora/a has shape \(2, 4\), the model needs \(4, 2\)"),
    ):
        changed = dataclasses.replace(adapter, values={**adapter.values, "query/lora/a": bad})
        with pytest.raises(InputError, match=f"mine: {message}"):
            lj.attach(base(), changed, where="mine")
        trainable = {path: jnp.asarray(value) for path, value in factors().items()}
        with pytest.raises(InputError, match=f"mine: {message}"):
            warm_start.transfer_group(changed, trainable, LABELS, "lora", "mine")


class Counting(nnx.Module):
    """Statistics of several types, one of which may be infinite."""

    def __init__(self, rngs):
        self.query = nnx.Linear(4, 4, rngs=rngs)
        self.least = nnx.BatchStat(jnp.full(4, jnp.inf))
        self.calls = nnx.BatchStat(jnp.zeros((), jnp.int32))


def test_state_has_the_types_of_the_model(tmp_path):
    model = Counting(nnx.Rngs(0))
    adapted = METHOD.insert(model, jax.random.key(0))
    adapted.least[...] = jnp.asarray([1, 2, jnp.inf, 3.0])
    adapted.calls[...] = jnp.asarray(7, jnp.int32)
    lj.save(tmp_path, adapted, METHOD, model)
    loaded = lj.load(tmp_path, model)
    assert loaded.calls.dtype == jnp.int32 and int(loaded.calls[...]) == 7
    np.testing.assert_array_equal(loaded.least[...], adapted.least[...])
    adapter = lj.load_adapter(tmp_path)
    for name, value, message in (
        ("calls", np.float32(7), "calls has type float32, the model needs int32"),
        ("least", np.full(4, np.nan, np.float32), "4 of 4 values of least are not finite"),
        ("least", np.ones(4, np.int32), "least has type int32, the model needs float32"),
        (
            "least",
            np.full(4, -np.inf, np.float32),
            "least has infinite values where the base has oth",
        ),
    ):
        changed = dataclasses.replace(adapter, state={**adapter.state, name: np.asarray(value)})
        with pytest.raises(InputError, match=message):
            lj.attach(model, changed)


# --- Integers in the model ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", [lj.full(), lj.bitfit() + lj.full(), lj.top_layers(1)], ids=lambda method: method.name
)
def test_integers_do_not_train(method):
    model = base()
    model.query.kernel = nnx.Param(jnp.ones((4, 4), jnp.int8))
    if method.name == "top_layers":
        method = lj.head_only("query/.*")
    with pytest.raises(
        InputError, match=r"query/kernel has type int8 and would train .* Convert it"
    ):
        method.labels(method.insert(model, jax.random.key(0)))
    frozen = lj.bitfit()
    assert frozen.labels(frozen.insert(model, jax.random.key(0)))["query/kernel"] == "frozen"


# --- What is no adapter ---------------------------------------------------------------------------


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}")
    return folder


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "of PEFT .*from_peft --adapter="),
        (["adapter_model.bin"], r"of PEFT .*from_peft --adapter="),
        (["config.json", "model.safetensors"], "is the folder of a model .*Name it as the model"),
        (["config.json", "pytorch_model.bin"], "folder of a model .*from_loralib .*pytorch_model.bin"),
        (["model.safetensors.index.json", "config.json"], "is the folder of a model"),
        (["roberta_base_lora_mnli.bin"], r"from_loralib --checkpoint=.*lora_mnli\.bin --alpha"),
        (["config.json", "metrics.jsonl"], "folder of a run without an adapter.*It has none yet"),
        (["config.json", "seed_0/adapter/adapter.json"], "without an adapter.*seed_0/adapter"),
        (["config.json", "model/model.safetensors"], "trained a whole model, .*model; it has no adapter"),
        (["rank_4/adapter/adapter.json", "rank_1/adapter/adapter.json", "page.md"],
         "several runs; name one of them: .*rank_1, .*rank_4"),
    ],
)  # fmt: skip
def test_other_folders_get_the_recipe(tmp_path, names, message):
    touch(tmp_path, *names)
    with pytest.raises(InputError, match=message) as caught:
        lj.load(tmp_path, base())
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lora.bin", "from_loralib --checkpoint=.*lora.bin"), ("x.safetensors", "from_loralib"),
        ("adapter.safetensors", "give the folder that holds it"), ("notes.txt", "is a file. An adapter of"),
    ],
)  # fmt: skip
def test_files_get_the_recipe(tmp_path, name, message):
    touch(tmp_path, name)
    with pytest.raises(InputError, match=message):
        lj.load_adapter(tmp_path / name)


def test_nothing_is_named_as_before(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            MissingFileError, match=r"adapter\.json is missing; an adapter folder holds"
        ):
            lj.load_adapter(folder)


# --- Kills ----------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


class Killing:
    """From its n-th write on, nothing reaches the disk; the n-th itself is half done."""

    def __init__(self, monkeypatch, count):
        self.left = count
        for name in ("write_bytes", "replace", "unlink", "rename"):
            monkeypatch.setattr(Path, name, self._around(name, getattr(Path, name)))

    def _around(self, name, function):
        def call(path, *arguments, **named):
            self.left -= 1
            if self.left == 0 and name == "write_bytes":
                function(path, arguments[0][: len(arguments[0]) // 2])
            if self.left <= 0:
                raise Killed
            return function(path, *arguments, **named)

        return call


def values_in(folder):
    values = lj.load_adapter(folder).values
    return [
        seed
        for seed in range(3)
        if all(np.array_equal(values[p], v) for p, v in factors(seed).items())
    ]


def killed_after(folder, seed, count):
    """Saves the adapter of a seed and is killed at the count-th write; whether it was."""
    with pytest.MonkeyPatch.context() as patch:
        Killing(patch, count)
        try:
            save(folder, factors(seed))
        except Killed:
            return True
    return False


@pytest.mark.parametrize("earlier", [False, True], ids=["digests", "earlier version"])
def test_a_killed_save_leaves_the_old_adapter_or_the_new_one(tmp_path, earlier):
    """Killed at any write, and killed again at any write of the next save."""
    seen = set()
    for first in range(1, 7):
        for second in range(1, 8):
            folder = save(tmp_path / f"{first} {second}", factors(0))
            if earlier:
                as_of_an_earlier_version(folder)
            was_killed = killed_after(folder, 1, first)
            (found,) = values_in(folder)
            assert found in ((0, 1) if was_killed else (1,))
            if not killed_after(folder, 2, second):
                assert values_in(folder) == [2]
                left = {path.name for path in folder.iterdir() if path.name[0] != "."}
                assert left == {"adapter.json", "adapter.safetensors"}
                continue
            (again,) = values_in(folder)
            assert again in (found, 2)
            seen.add((found, again))
            save(folder, factors(2))
            assert values_in(folder) == [2]
    assert seen == {(0, 0), (0, 2), (1, 1), (1, 2)}


def test_a_killed_first_save_is_no_adapter_or_whole(tmp_path):
    results = []
    for count in range(1, 9):
        folder = tmp_path / str(count)
        killed_after(folder, 1, count)
        try:
            results.append(values_in(folder))
        except MissingFileError:
            results.append(None)
    assert results == sorted(results, key=lambda r: r is not None) and results[-1] == [1]


def test_a_copy_of_a_folder_that_was_killed_is_whole(tmp_path):
    """Between the two renames the tensors still lie beside their name."""
    for count in range(1, 9):
        folder = save(tmp_path / str(count), factors(0))
        killed_after(folder, 1, count)
        if (folder / adapter_files.NEXT).exists() and values_in(folder) == [1]:
            copy = shutil.copytree(folder, tmp_path / "copy")
            assert values_in(copy) == [1]
            return
    pytest.fail("no kill left that state")


def test_an_adapter_that_is_replaced_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    folder, read = save(tmp_path / "a", factors(0)), adapter_files.descriptions.read
    before = []

    def read_and_replace(path):
        record = read(path)
        if not before:
            before.append(1)
            save(folder, factors(1))
        return record

    monkeypatch.setattr(adapter_files.descriptions, "read", read_and_replace)
    assert values_in(folder) == [1]


def test_a_full_disk_keeps_the_old_adapter(tmp_path, monkeypatch):
    folder, write = save(tmp_path / "a", factors(0)), adapter_files.write_bytes

    def full(path, content):
        if path.name == "adapter.json":
            raise OSError(28, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(adapter_files, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        save(folder, factors(1))
    assert values_in(folder) == [0]
    assert {path.name for path in folder.iterdir()} == {"adapter.json", "adapter.safetensors"}


def test_notes_that_could_not_be_read_again_are_refused(tmp_path):
    nested = [1]
    for _ in range(80):
        nested = [nested]
    for notes in ({"x": object()}, {"x": nested}, {"x": 10**5000}, {"x": "\ud800"}):
        with pytest.raises(InputError):
            lj.save_adapter(tmp_path / "a", factors(), LABELS, METHOD, "print", notes)
    assert not (tmp_path / "a").exists()
    lj.save_adapter(tmp_path / "a", factors(), LABELS, METHOD, "print", {"x": float("nan")})
    assert lj.load_adapter(tmp_path / "a").notes == {"x": None}


def test_other_tensors_beside_are_not_lost(tmp_path):
    save_file({"x": np.zeros(2)}, tmp_path / "mine.safetensors")
    save(tmp_path)
    assert (tmp_path / "mine.safetensors").exists()
