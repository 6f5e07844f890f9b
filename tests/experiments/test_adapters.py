"""experiments.adapters: adapter folders listed, checked, shown, compared, combined and reduced."""

import json
import shutil

import commands
import jax
import numpy as np
import pytest
from flax import nnx

import lora_jax
from experiments.adapters import combining, listing
from experiments.runs import named_adapters
from lora_jax.adapters import load_adapter
from lora_jax.analysis.factor_pairs import from_adapter
from lora_jax.errors import InputError


class Model(nnx.Module):
    def __init__(self):
        self.query = nnx.Linear(8, 6, rngs=nnx.Rngs(0))
        self.value = nnx.Linear(8, 6, rngs=nnx.Rngs(1))
        self.head = nnx.Linear(6, 2, rngs=nnx.Rngs(2))


def save(folder, seed, rank, targets=("query", "value"), head=None):
    """An adapter with random factors."""
    model, method = Model(), lora_jax.lora(list(targets), rank=rank, alpha=2 * rank, head=head)
    adapted = method.insert(model, jax.random.key(0))
    labels = method.labels(adapted)
    _, trainable, _ = lora_jax.split(adapted, labels)
    random = np.random.default_rng(seed)
    values = {p: random.standard_normal(v.shape).astype(np.float32) for p, v in trainable.items()}
    base = lora_jax.fingerprint(lora_jax.base_parameters(model, "head/.*"))
    notes = {"model": "base", "metrics": {"accuracy": 0.8125}}
    return lora_jax.save_adapter(folder, values, labels, method, base, notes)


@pytest.fixture
def folders(tmp_path):
    return save(tmp_path / "all/one", 1, 2), save(tmp_path / "all/two", 2, 3, ("value",))


def deltas(folder):
    pairs = from_adapter(load_adapter(folder))
    return {name: pair.scale * (pair.a @ pair.b)[0] for name, pair in pairs.items()}


def test_a_list_of_all_below_a_folder(folders, tmp_path):
    text, errors = listing.listed(listing.found([str(tmp_path)]))
    base = load_adapter(folders[0]).base[:12]
    assert errors == [] and len(text.splitlines()) == 4
    assert f"| {folders[0]} | lora | 2 | 56 | 0.00 MiB | base | {base} | accuracy 0.8125 |" in text
    assert f"| {folders[1]} | lora | 3 | 42 |" in text


def test_damaged_folders_are_named(folders, tmp_path):
    file = folders[1] / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    text, errors = listing.listed(listing.found([str(tmp_path)]))
    assert str(folders[1]) not in text and len(errors) == 1 and str(file) in errors[0]
    with pytest.raises(FileNotFoundError, match=r"/nowhere is not a folder"):
        listing.found(["/nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="there is no adapter at or below"):
        listing.found([str(tmp_path / "empty")])


def test_every_update_is_shown(folders):
    rows = listing.updates(load_adapter(folders[0])).splitlines()[2:]
    for row, (name, delta) in zip(rows, deltas(folders[0]).items(), strict=True):
        norm, most = np.linalg.norm(delta), np.linalg.norm(delta, 2)
        assert row.startswith(f"| {name} | 1 | 2 | 2 | {norm:.4g} | {most:.4g} | ")


def test_adapters_are_compared_by_cosine(folders, tmp_path):
    one, two = map(load_adapter, folders)
    rows = listing.compared(one, two).splitlines()[2:]
    a, b = deltas(folders[0])["value"], deltas(folders[1])["value"]
    cosine = np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)
    assert rows[1] == (
        f"| value | 2 | 3 | {np.linalg.norm(a):.4g} | {np.linalg.norm(b):.4g} | {cosine:.3f} |"
    )
    norm = np.linalg.norm(deltas(folders[0])["query"])
    assert rows[0] == f"| query | 2 | - | {norm:.4g} | - | - |"
    assert listing.compared(one, one).count("| 1.000 |") == 2


def test_folders_with_commas_are_named_as_sweeps_name_them(folders, tmp_path):
    """Flags split at commas, and a point of a sweep is called `learning_rate=0.01,method=lora,seed=0`."""
    points = [tmp_path / f"rate=0.0{n},method=lora,seed=0" for n in (1, 2)]
    for place, folder in zip(points, folders, strict=False):
        shutil.copytree(folder, place)
    one, other = points
    text = f"a={one},{other},b={folders[0]}"
    assert list(named_adapters.named(text.split(","))) == ["a", str(other), "b"]
    with pytest.raises(FileNotFoundError, match="rate=0.09"):
        named_adapters.named(f"a={tmp_path}/rate=0.09,method=lora".split(","))


def test_combined_and_reduced_folders(folders, tmp_path):
    adapters = named_adapters.named([f"a={folders[0]}", str(folders[1])])
    assert list(adapters) == ["a", str(folders[1])]
    weights = named_adapters.weights(["2", "-1"], adapters)
    lines = combining.combined(adapters, weights, tmp_path / "sum", by="cat")
    one, two = deltas(folders[0]), deltas(folders[1])
    found = deltas(tmp_path / "sum")
    np.testing.assert_allclose(found["value"], 2 * one["value"] - two["value"], atol=1e-5)
    np.testing.assert_allclose(found["query"], 2 * one["query"], atol=1e-5)
    assert lines[0].startswith(f"adapter: {tmp_path / 'sum'} (2 updates of rank 2 to 5, ")
    with pytest.raises(InputError, match="exists already"):
        combining.combined(adapters, weights, tmp_path / "sum", by="cat")
    lines = combining.reduced(load_adapter(folders[0]), tmp_path / "rated", rank=1)
    assert "accuracy" in load_adapter(folders[0]).notes["metrics"]
    assert "metrics" not in load_adapter(tmp_path / "rated").notes  # nobody measured these values
    with pytest.raises(InputError, match="gives 'a' two weights"):
        named_adapters.weights(["a=1", "a=2"], adapters)
    lines = combining.reduced(load_adapter(tmp_path / "sum"), tmp_path / "small", rank=1)
    values = np.linalg.svd(found["value"], compute_uv=False)
    far = np.linalg.norm(values[1:]) / np.linalg.norm(values)
    assert f"| value | {far:.4g} | {far:.4g} |" in lines[1]


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["1"], "one number for each of the 2"),
        (["a=1", "2"], "one number for each"),
        (["a=x"], "'x'"),
        (["a=nan"], "'nan', expected a number"),
    ],
)
def test_wrong_weights_are_named(folders, texts, says):
    adapters = named_adapters.named([f"a={folders[0]}", f"b={folders[1]}"])
    with pytest.raises(InputError, match=says):
        named_adapters.weights(texts, adapters)


def test_two_adapters_of_one_name(folders):
    with pytest.raises(InputError, match="two adapters are called 'a'"):
        named_adapters.named([f"a={folders[0]}", f"a={folders[1]}"])


def test_the_command(folders, tmp_path):
    def run(*arguments):
        return commands.run("experiments.adapters", *arguments)

    made = run(
        "combine", f"--adapters=a={folders[0]},b={folders[1]}", "--weights=a=1,b=0.5", "--by=svd",
        "--rank=2", f"--output={tmp_path / 'new'}",
    )  # fmt: skip
    assert made.returncode == 0 and "distance from the exact sum" in made.stdout, made.stderr
    notes = json.loads((tmp_path / "new/adapter.json").read_text())["notes"]
    assert notes["combination"]["weights"] == {"a": 1.0, "b": 0.5} and notes["model"] == "base"
    wrong = run("combine", f"--adapters=a={folders[0]}")
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: give one of nine commands")
