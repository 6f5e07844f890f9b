"""The subspace analysis from adapter folders to figures and tables, against numpy in float64."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import commands
import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from configs.subspace import common, minilm_sst2, roberta_base_mnli
from configs.subspace import folders as of_folders
from experiments.convert import loralib
from experiments.reproduce import outcome
from experiments.reproduce.catalogue import catalogue
from experiments.subspace import analysis, updates
from lora_jax import adapters, methods, partition
from lora_jax.analysis import plots
from lora_jax.errors import FileError
from lora_jax.models import hub

TARGETS = r".*/attention/(query|value)"


def _save(folder, model_folder, rank, seed, targets=TARGETS):
    """An adapter with random factors on the model, as training would leave it."""
    config = hub.read_config(model_folder)
    model = hub.load_classifier(model_folder, config, 2, jax.random.key(0))
    return _save_adapter(
        folder, model, methods.lora(targets, rank=rank, alpha=16, head=hub.HEAD), seed
    )


def _save_adapter(folder, model, method, seed):
    adapted = method.insert(model, jax.random.key(seed))
    labels = method.labels(adapted)
    _, trainable, _ = partition.split(adapted, labels)
    random = np.random.default_rng(seed)
    trainable = {
        path: random.normal(size=value.shape).astype(np.float32)
        for path, value in trainable.items()
    }
    base = adapters.fingerprint(adapters.base_parameters(model, hub.HEAD))
    return adapters.save_adapter(
        folder, trainable, labels, method, base, {"seed": seed, "task": "rte"}
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_model):
    root = tmp_path_factory.mktemp("adapters")
    return {
        "small": str(_save(root / "small", tiny_model, 3, 0)),
        "large": str(_save(root / "large" / "adapter", tiny_model, 8, 1).parent),  # a run folder
        "other": str(_save(root / "other", tiny_model, 8, 2)),
    }


@pytest.fixture(scope="module")
def analysed(folders, tiny_model, tmp_path_factory):
    config = common.subspace_config(
        folders, (("small", "large"), ("large", "other")), str(tiny_model)
    )
    config.directions = ("a", "delta_out")
    config.layers = (2,)
    workdir = tmp_path_factory.mktemp("analysis")
    return analysis.analyse(config, workdir), workdir


@pytest.fixture
def file_names(monkeypatch):
    """The names of the files of figures that are made but not rendered, which takes seconds."""
    names = set()
    monkeypatch.setattr(plots, "save", lambda figure, path: names.add(path.name))
    return names


def _factors(folders, name, weight):
    folder = Path(folders[name])
    folder = folder / "adapter" if (folder / "adapter").exists() else folder
    values = load_file(folder / "adapter.safetensors")
    stem = f"encoder/layers/block/attention/{weight}/lora"
    return (np.asarray(values[f"{stem}/{side}"], np.float64) for side in "ab")


def _find(rows, **keys):
    (row,) = [row for row in rows if all(row[k] == v for k, v in keys.items())]
    return row


def test_similarity_of_a_is_that_of_its_right_singular_vectors(analysed, folders):
    rows = analysed[0]["similarity"]
    for weight in ("query", "value"):
        a, other_a = (next(_factors(folders, name, weight)) for name in ("small", "large"))
        for layer in (1, 2):
            # The paper's A is (r, d): the transpose of ours.
            u, v = (np.linalg.svd(x[layer - 1].T)[2].T for x in (a, other_a))
            for i, j in ((1, 1), (2, 2), (1, 8), (3, 8)):
                expected = np.linalg.norm(u[:, :i].T @ v[:, :j]) ** 2 / min(i, j)
                row = _find(
                    rows, pair="small / large", directions="a", weight=weight, layer=layer, i=i, j=j
                )
                assert row["phi"] == pytest.approx(expected, abs=2e-6)  # float32
                assert row["chance"] == pytest.approx(max(i, j) / 32)
                assert row["shared"] == pytest.approx(min(i, j) * expected, abs=2e-6)


def test_similarity_of_outputs_is_that_of_the_updates_left_singular_vectors(analysed, folders):
    rows = analysed[0]["similarity"]
    bases = []
    for name in ("large", "other"):
        a, b = _factors(folders, name, "value")
        bases.append(np.linalg.svd((a[1] @ b[1]).T)[0])  # Delta W = (a b)^T
    expected = np.linalg.norm(bases[0][:, :4].T @ bases[1][:, :4]) ** 2 / 4
    row = _find(
        rows, pair="large / other", directions="delta_out", weight="value", layer=2, i=4, j=4
    )
    assert row["phi"] == pytest.approx(expected, abs=2e-6)


def test_table_7_against_dense_matrices(analysed, folders, tiny_model):
    rows = analysed[0]["amplification"]
    tensors = load_file(Path(tiny_model) / "model.safetensors")
    for layer in (0, 1):
        key = f"encoder.layer.{layer}.attention.self.query.weight"
        w = np.asarray(tensors.get(key, tensors.get(f"bert.{key}")), np.float64)  # (out, in)
        a, b = _factors(folders, "small", "query")
        delta = 16 / 3 * (a[layer] @ b[layer]).T
        u, s, vt = np.linalg.svd(delta)
        row = _find(rows, adapter="small", weight="query", layer=layer + 1)
        inside = np.linalg.norm(u[:, :3].T @ w @ vt[:3].T)
        assert row["in_delta"] == pytest.approx(inside, rel=1e-4)
        assert row["delta_norm"] == pytest.approx(np.linalg.norm(s), rel=1e-5)
        assert row["factor"] == pytest.approx(np.linalg.norm(s) / inside, rel=1e-4)
        top = np.linalg.svd(w, compute_uv=False)[:3]
        assert row["in_weight"] == pytest.approx(np.linalg.norm(top), rel=1e-5)
        assert row["in_random_expected"] == pytest.approx(np.linalg.norm(w) * 3 / 32, rel=1e-5)


def test_weight_directions_are_the_input_side(analysed, folders, tiny_model):
    rows = analysed[0]["weight_directions"]
    tensors = load_file(Path(tiny_model) / "model.safetensors")
    key = "encoder.layer.1.attention.self.value.weight"
    w = np.asarray(tensors.get(key, tensors.get(f"bert.{key}")), np.float64)
    a, _ = _factors(folders, "large", "value")
    top = np.linalg.svd(w)[2][:3].T  # 10% of 32 directions
    of_a = np.linalg.svd(a[1].T)[2][:8].T
    row = _find(rows, adapter="large", weight="value", layer=2)
    assert (row["of_W"], row["of_update"]) == (3, 8)
    assert row["phi"] == pytest.approx(np.linalg.norm(top.T @ of_a) ** 2 / 3, abs=1e-5)
    assert row["chance"] == pytest.approx(8 / 32)


def test_parts_of_a_fused_projection(tmp_path, file_names):
    """GPT-2's W_v is the last third of c_attn, whose weight is (in, 3 out)."""
    sizes = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 8}
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(
        tmp_path / "base"
    )
    model = hub.load_decoder(tmp_path / "base", hub.read_decoder_config(tmp_path / "base"))
    targets = {".*/qkv": {"rank": 2, "parts": ("q", "v"), "fused": ("q", "k", "v")}}
    _save_adapter(tmp_path / "adapter", model, methods.lora(targets, alpha=6), 0)
    config = common.subspace_config({"x": str(tmp_path / "adapter")}, (("x:q", "x:v"),))
    config.model = str(tmp_path / "base")
    tables = analysis.analyse(config, tmp_path / "out")
    assert {row["weight"] for row in tables["amplification"]} == {"q", "v"}

    values = load_file(tmp_path / "adapter" / "adapter.safetensors")
    stem = next(path for path in values if path.endswith("/v/a"))[:-1]
    a, b = (np.asarray(values[stem + side], np.float64)[1] for side in "ab")
    weight = load_file(tmp_path / "base" / "model.safetensors")
    w = np.asarray(weight["transformer.h.1.attn.c_attn.weight"], np.float64)[:, 32:].T  # (out, in)
    u, values_of_delta, vt = np.linalg.svd(3 * (a @ b.reshape(2, 16)).T)
    row = _find(tables["amplification"], weight="v", layer=2)
    assert row["in_delta"] == pytest.approx(np.linalg.norm(u[:, :2].T @ w @ vt[:2].T), rel=1e-5)
    assert row["delta_norm"] == pytest.approx(np.linalg.norm(values_of_delta), rel=1e-5)


def test_medians_over_layers_are_scores_of_experiments_reproduce(analysed):
    tables, workdir = analysed
    scores = outcome.read(catalogue()["table_7/minilm/analysis"], workdir).scores
    weights = {row["weight"] for row in tables["spectra"]}
    for weight in weights:
        of_weight = [row for row in tables["amplification"] if row["weight"] == weight]
        factors = [row["factor"] for row in of_weight if row["adapter"] == "large"]
        assert len(factors) == 2 and scores[f"large {weight}: factor"] == (np.mean(factors),)
        pair = {"pair": "small / large", "directions": "a", "weight": weight, "i": 1, "j": 1}
        phi = [row["phi"] for row in tables["similarity"] if pair.items() <= row.items()]
        assert len(phi) == 2 and scores[f"small / large {weight}: phi"] == (np.mean(phi),)
    whole = json.loads((workdir / "analysis.json").read_text())
    changed = workdir / "changed"
    changed.mkdir()
    (changed / "analysis.json").write_text(json.dumps({**whole, "adapters": []}))
    with pytest.raises(FileError, match="its digest differs"):
        outcome.read(catalogue()["table_7/minilm/analysis"], changed)


def test_files_hold_the_rows(analysed):
    tables, workdir = analysed
    written = json.loads((workdir / "analysis.json").read_text())
    assert written["tables"]["spectra"] == tables["spectra"]
    assert written["config"]["directions"] == ["a", "delta_out"]
    for name, rows in tables.items():
        with (workdir / "tables" / f"{name}.csv").open() as file:
            read = list(csv.DictReader(file))
        assert len(read) == len(rows)
        assert list(read[0]) == list(rows[0])
    text = (workdir / "analysis.md").read_text()
    figures = {path.name for path in (workdir / "figures").iterdir()}
    assert figures == {part.split(")")[0] for part in text.split("](figures/")[1:]}
    assert {
        "spectra.png", "effective_ranks.png", "amplification.png",
        "similarity_small_large_a.png", "similarity_large_other_a_minus_chance.png",
        "weight_directions_small_query.png",
    } <= figures  # fmt: skip


def test_medians_and_ranges_over_layers(analysed):
    tables, workdir = analysed
    two = [
        r["norm"] for r in tables["spectra"] if r["adapter"] == "small" and r["weight"] == "query"
    ]
    shown = f"{np.median(two):.3g} ({min(two):.3g} to {max(two):.3g})"
    assert f"| small | query | 3 | {shown} |" in (workdir / "analysis.md").read_text()


def test_without_a_base_there_is_no_table_7(folders, tmp_path, file_names):
    config = common.subspace_config({"small": folders["small"]}, (("small:query", "small:value"),))
    config.layers = (2,)
    tables = analysis.analyse(config, tmp_path)
    assert set(tables) == {"spectra", "similarity"}
    assert {row["pair"] for row in tables["similarity"]} == {"small:query / small:value"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adapters": {}}, "config.adapters is empty"),
        ({"comparisons": (("small", "huge"),)}, "no adapter 'huge'"),
        ({"comparisons": (("small:key", "large"),)}, "'small:key' is not one of the weights"),
        ({"comparisons": (("small:query", "large"),)}, "no layer in common"),
        ({"directions": ("c",)}, r"config.directions must be a tuple.* each 'a', 'b', .*got"),
        ({"weights": "nothing"}, "matches no adapted layer of large"),
        ({"layers": (3,)}, r"\[3\] are not layers from 1 to 2"),
        (
            {"comparisons": (("small", "large", "small"),)},
            "config.comparisons must be .* a tuple of 2",
        ),
        ({"adapters": "x"}, "config.adapters must be folders by name, got 'x'"),
        (
            {"adapters": {"small": 3}},
            "config.adapters.small must be a text that is not empty, got 3",
        ),
    ],
)
def test_wrong_configs_say_what_is_wrong(folders, tmp_path, file_names, change, message):
    config = common.subspace_config(folders, (("small", "large"),))
    with config.unlocked(), config.ignore_type():
        for name, value in change.items():
            config[name] = value
    with pytest.raises(ValueError, match=message):
        analysis.analyse(config, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not file_names


def test_adapters_of_different_bases_are_not_compared(folders, tmp_path, file_names):
    adapter = adapters.load_adapter(folders["other"])

    def saved(base):
        return adapters.save_adapter(
            tmp_path / "x", adapter.values, adapter.groups, adapter.method, base
        )

    both = {"large": folders["large"], "x": str(saved("0" * 64))}
    config = common.subspace_config(both, (("large", "x"),))
    config.directions, config.layers = ("a",), (1,)
    with pytest.raises(ValueError, match="'large' and 'x' are of different bases .*000000000000"):
        analysis.analyse(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    config.comparisons = ()
    analysis.analyse(config, tmp_path / "spectra")  # each for itself
    saved(adapters.UNKNOWN_BASE)  # of a converted file: not known to be another
    config.comparisons = (("large", "x"),)
    analysis.analyse(config, tmp_path / "unknown")


def test_updates_are_put_onto_their_own_base_only(folders, tiny_model, tmp_path, file_names):
    adapter = adapters.load_adapter(folders["small"])
    adapters.save_adapter(tmp_path, adapter.values, adapter.groups, adapter.method, "0" * 64)
    config = common.subspace_config({"x": str(tmp_path)}, model=str(tiny_model))
    config.layers = (1,)
    with pytest.raises(ValueError, match="trained on another base"):
        analysis.analyse(config, tmp_path / "out")


def test_a_damaged_adapter_is_named(folders, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    for name in ("adapter.json", "adapter.safetensors"):
        (folder / name).write_bytes((Path(folders["small"]) / name).read_bytes())
    save_file({"x": np.zeros(2, np.float32)}, folder / "adapter.safetensors")
    with pytest.raises(ValueError, match="broken"):
        analysis.analyse(common.subspace_config({"x": str(folder)}), tmp_path / "out")


def test_the_released_adapter_by_command(real_data, tmp_path):
    """Norms of the released RoBERTa-base adapter as `paper.md` section 6.3 lists them."""
    name = "adapters/microsoft_lora_roberta_base_mnli/roberta_base_lora_mnli.safetensors"
    loralib.from_loralib(real_data / name, tmp_path / "adapter", alpha=16)
    result = commands.run(
        "experiments.subspace", f"--workdir={tmp_path / 'out'}",
        f"--config=configs/subspace/roberta_base_mnli.py:{tmp_path / 'adapter'}",
        "--config.directions=('a',)", "--config.layers=(12,)",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "Spectra of the effective updates" in result.stdout
    rows = json.loads((tmp_path / "out" / "analysis.json").read_text())["tables"]["spectra"]
    norms = [row["norm"] / 2 for row in rows if row["weight"] == "query"]  # scale 16/8
    assert norms == pytest.approx(
        [4.81, 3.90, 3.80, 4.44, 4.62, 4.72, 5.11, 6.13, 6.16, 6.92, 7.21, 6.39], abs=0.006
    )
    shares = [row["energy_of_largest"] for row in rows if row["weight"] == "query"]
    assert shares == pytest.approx(
        [0.63, 0.44, 0.43, 0.39, 0.32, 0.34, 0.43, 0.69, 0.54, 0.84, 0.94, 0.99], abs=0.006
    )


def test_short_names_are_the_shortest_ends_that_differ():
    assert updates.short_names(
        ["layers/first/block/query", "layers/last_2/block/query", "layers/block/value", "down"]
    ) == {
        "layers/first/block/query": "first/block/query",
        "layers/last_2/block/query": "last_2/block/query",
        "layers/block/value": "value",
        "down": "down",
    }
    assert updates.short_names(["query", "block/query"]) == {
        "query": "query",
        "block/query": "block/query",
    }


def test_weights_of_other_widths_get_figures_of_their_own(tiny_model, tmp_path, file_names):
    for name, seed in (("x", 0), ("y", 1)):
        _save(tmp_path / name, tiny_model, 2, seed, targets=r".*/(query|down)")
    config = common.subspace_config({n: str(tmp_path / n) for n in "xy"}, (("x", "y"),))
    config.directions, config.layers = ("a",), (1,)
    analysis.analyse(config, tmp_path / "out")
    assert {"similarity_x_y_a_query.png", "similarity_x_y_a_down.png"} <= file_names


def test_sides_of_different_widths_are_not_compared(tiny_model, tmp_path, file_names):
    _save(tmp_path / "x", tiny_model, 2, 0, targets=r".*/(query|up)")
    config = common.subspace_config({"x": str(tmp_path / "x")}, (("x:query", "x:up"),))
    config.directions = ("b",)
    with pytest.raises(ValueError, match="lie in spaces of 32 and 64 dimensions"):
        analysis.analyse(config, tmp_path / "out")


def test_configs_name_their_adapters():
    config = minilm_sst2.get_config("runs/x")
    assert config.adapters.r64b == "runs/x/r64/seed_1/adapter"
    assert {name for pair in config.comparisons for name in pair} == set(config.adapters)
    assert roberta_base_mnli.get_config("folder").adapters.r8 == "folder"


def test_adapters_named_on_the_command_line():
    config = of_folders.get_config("r8=runs/a,r64=runs/b,other=c")
    assert config.adapters.to_dict() == {"r8": "runs/a", "r64": "runs/b", "other": "c"}
    assert config.comparisons == (("r8", "r64"), ("r8", "other"), ("r64", "other"))
    for wrong in ("", "r8", "=folder", "r8=", "r8=a,r8=b"):
        with pytest.raises(ValueError, match="is not NAME=FOLDER"):
            of_folders.get_config(wrong)
