"""experiments.structure on tiny folders: losses against transformers, structure against numpy, errors."""

import csv
import dataclasses
import json

import commands
import jax
import numpy as np
import pytest
import tiny_folders
import torch
import transformers
import tune_files
from matplotlib.markers import MarkerStyle
from pool_adapters import adapter as random_adapter

import lora_jax
from experiments.runs import named_adapters
from experiments.structure import figures, page
from experiments.structure.measuring import Settings, measure
from lora_jax.adapters import load_adapter
from lora_jax.errors import InputError
from lora_jax.models import hub

TARGETS = ".*/(qkv|up)"
METHODS = {
    "lora": lora_jax.lora(TARGETS, rank=2, alpha=4),
    "dora": lora_jax.lora(TARGETS, rank=2, magnitude=True),
    "top": lora_jax.top_layers(1),
}
LENGTH, RANK = 50, 1


def save(folder, model, method, of=None):
    """A folder of an adapter with random values, on a base of this name; the base's own leaves move less."""
    made = random_adapter(model, method, 0, 0.3)
    adapted = method.insert(model, jax.random.key(0))
    _, now, _ = lora_jax.split(adapted, method.labels(adapted))
    values = {
        path: value if "/lora/" in path else np.asarray(now[path]) + 0.1 * value
        for path, value in made.values.items()
    }
    notes = {} if of is None else {"model": str(of)}
    return lora_jax.save_adapter(folder, values, made.groups, method, made.base, notes)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A tiny GPT-2, a run folder, adapter folders, and a text."""
    root = tmp_path_factory.mktemp("structure")
    tune_files.write_model(root / "model")
    model = hub.load_decoder(root / "model", hub.read_decoder_config(root / "model"))
    for name, method in METHODS.items():
        place = root / name / "adapter" if name == "lora" else root / name
        save(place, model, method, root / "model")
    rows = tune_files.pairs(12, seed=5)
    (root / "text.txt").write_text("\n".join(f"{r['prompt']}\n{r['completion']}" for r in rows))
    return root


@pytest.fixture(scope="module")
def measured(root):
    settings = Settings(rank=RANK, text=str(root / "text.txt"), length=LENGTH)
    adapters = named_adapters.named([f"{name}={root / name}" for name in METHODS])
    return measure(adapters, settings), settings


def rows_by_name(results):
    return {(row.name, row.form): row for row in results.rows}


def models(root, name):
    """The model with an adapter as trained, and as converted where it can be."""
    folder = root / "model"
    base = hub.load_decoder(folder, hub.read_decoder_config(folder))
    adapted = lora_jax.attach(base, load_adapter(root / name))
    if name == "top":
        return {"as trained": adapted}
    plain = lora_jax.to_lora(adapted, METHODS[name], rank=RANK)[0]
    return {"as trained": lora_jax.merge(adapted), f"rank {RANK}": lora_jax.merge(plain)}


def loss_by_torch(folder, root):
    """The mean over all tokens but the first of every piece, one piece after another."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(root / "model")
    ids = tokenizer((root / "text.txt").read_text(), add_special_tokens=False)["input_ids"]
    total = count = 0
    for start in range(0, len(ids), LENGTH):
        piece = torch.tensor([ids[start : start + LENGTH]])
        with torch.no_grad():
            logits = theirs(piece).logits[0, :-1].double()
        total += torch.nn.functional.cross_entropy(logits, piece[0, 1:], reduction="sum").item()
        count += piece.shape[1] - 1
    return total / count, count


def test_losses_are_those_of_transformers(root, measured, tmp_path):
    results, _ = measured
    base, count = loss_by_torch(root / "model", root)
    assert results.tokens == count > 3 * LENGTH
    # float32 logits, of a vocabulary of 330 and in another order of summation
    assert results.base_loss == pytest.approx(base, rel=2e-6)
    rows = rows_by_name(results)
    assert set(rows) == {
        ("lora", "as trained"), ("lora", "rank 1"), ("dora", "as trained"), ("dora", "rank 1"),
        ("top", "as trained"),
    }  # fmt: skip
    for name, form in (("lora", "as trained"), ("dora", "rank 1")):
        row = rows[name, form]
        hub.save_decoder(tmp_path / name / form, models(root, name)[form], eos_token_id=0)
        expected, _ = loss_by_torch(tmp_path / name / form, root)
        assert row.loss == pytest.approx(expected, rel=2e-6)
        assert results.forgetting(row) == pytest.approx(expected - base, abs=2e-5)
        assert abs(expected - base) > 1e-3


def test_structure_is_that_of_the_merged_weights(root, measured):
    """qkv is (layers, inputs, 3, outputs)."""
    base = hub.load_decoder(root / "model", hub.read_decoder_config(root / "model"))
    before = np.asarray(base.layers.block.attention.qkv.kernel[...], np.float64)
    rows = rows_by_name(measured[0])
    for name in ("lora", "dora"):
        for form, model in models(root, name).items():
            after = np.asarray(model.layers.block.attention.qkv.kernel[...], np.float64)
            row = rows[name, form]
            (path,) = (path for path in row.structures if path.endswith("qkv"))
            one = row.structures[path]
            for layer in range(2):
                w0, w1 = (w[layer].reshape(w.shape[1], -1) for w in (before, after))
                values = np.linalg.svd(w1 - w0, compute_uv=False)
                shown = one.values[layer]
                np.testing.assert_allclose(shown, values[: len(shown)], atol=1e-5)
                v0, v1 = (np.linalg.svd(w, full_matrices=False)[2] for w in (w0, w1))
                count = sum(np.abs(v0 @ v).max() < 0.5 for v in v1[:10])
                assert one.intruders[layer] == count
    assert {rows["lora", "as trained"].mean("rank"), rows["dora", "rank 1"].mean("rank")} == {2, 1}
    assert rows["lora", "as trained"].matrices == 4
    assert rows["top", "as trained"].matrices == 4  # of the last layer alone


def test_files_hold_the_rows(measured, tmp_path):
    results, settings = measured
    page.write(tmp_path, results, settings)
    text = (tmp_path / "structure.md").read_text()
    assert "top is not converted" in text and "Forgetting: " not in text
    record = json.loads((tmp_path / "structure.json").read_text())
    assert record["base_loss"] == results.base_loss and record["settings"]["rank"] == RANK
    assert [(r["adapter"], r["form"]) for r in record["rows"]] == list(rows_by_name(results))
    assert record["rows"][0]["forgetting"] == results.forgetting(results.rows[0])
    assert record["rows"][0]["intruders"] == results.rows[0].intruders
    with (tmp_path / "matrices.csv").open() as file:
        read = list(csv.DictReader(file))
    assert len(read) == sum(len(s.rank) for r in results.rows for s in r.structures.values())
    found = {path.name for path in (tmp_path / "figures").iterdir()}
    assert found == {"spectra.png", "forgetting.png"}


def test_figures_hold_the_numbers(measured):
    results, _ = measured
    (axis,) = figures.spectra(results).axes
    assert [line.get_label() for line in axis.get_lines()] == list(METHODS)
    trained = [row for row in results.rows if row.form == "as trained"]
    for line, row in zip(axis.get_lines(), trained, strict=True):
        values = np.concatenate([s.values[s.norm > 0, :2] for s in row.structures.values()])
        np.testing.assert_allclose(line.get_ydata()[:2], np.median(values, axis=0))
    assert axis.get_yscale() == "log"
    (axis,) = figures.forgetting(results).axes
    points = [line for line in axis.get_lines() if line.get_marker() not in ("None", None)]
    for line, row in zip(points, results.rows, strict=True):
        assert (line.get_xdata()[0], line.get_ydata()[0]) == (
            row.intruders,
            results.forgetting(row),
        )
        assert (line.get_markerfacecolor() == "none") == (row.form != "as trained")


def test_an_adapter_without_matrices_has_its_forgetting(root, tmp_path):
    """BitFit changes no matrix: beside others it costs nobody their numbers, and has a loss of its own."""
    model = hub.load_decoder(root / "model", hub.read_decoder_config(root / "model"))
    save(tmp_path / "bias", model, lora_jax.bitfit(), root / "model")
    adapters = named_adapters.named([f"lora={root / 'lora'}", f"bias={tmp_path / 'bias'}"])
    settings = Settings(rank=RANK, text=str(root / "text.txt"), length=LENGTH)
    results = measure(adapters, settings)
    assert [(row.name, row.matrices) for row in results.rows] == [
        ("lora", 4), ("lora", 4), ("bias", 0)
    ]  # fmt: skip
    adapted = lora_jax.attach(model, load_adapter(tmp_path / "bias"))
    hub.save_decoder(tmp_path / "tuned", adapted, eos_token_id=0)
    expected, _ = loss_by_torch(tmp_path / "tuned", root)
    assert results.rows[-1].loss == pytest.approx(expected, rel=2e-6)
    page.write(tmp_path / "out", results, settings)
    text = (tmp_path / "out/structure.md").read_text()
    assert "bias (as trained) changes no weight matrix: it has no structure." in text
    cells = next(line for line in text.splitlines() if line.startswith("| bias | as trained"))
    assert cells.split("|")[3:10] == [" 0 ", *[" – "] * 6]
    (axis,) = figures.spectra(results).axes
    assert [line.get_label() for line in axis.get_lines()] == ["lora"]
    labels = [text.get_text() for text in figures.forgetting(results).legends[0].get_texts()]
    assert labels == ["lora", "bias", "open: as LoRA of rank 1"]
    without = measure(adapters, Settings(rank=RANK))
    assert [row.name for row in without.rows] == ["lora", "lora"]
    assert any(note.startswith("bias (as trained) changes no weight") for note in without.notes)
    alone = measure(named_adapters.named([f"bias={tmp_path / 'bias'}"]), settings)
    page.write(tmp_path / "alone", alone, settings)
    assert {path.name for path in (tmp_path / "alone/figures").iterdir()} == {"forgetting.png"}


def _shape(marker):
    style = MarkerStyle(marker)
    return style.get_path().transformed(style.get_transform()).vertices.tobytes()


def test_many_adapters_look_different(measured):
    """Seventeen names share no pair of colour and marker, in either figure."""
    results, _ = measured
    first = results.rows[0]
    rows = [dataclasses.replace(first, name=f"method {n}") for n in range(17)]
    many = dataclasses.replace(results, rows=rows)
    for figure in (figures.spectra(many), figures.forgetting(many)):
        (axis,) = figure.axes
        drawn = [line for line in axis.get_lines() if line.get_label().startswith("method")]
        style = {(line.get_color(), _shape(line.get_marker())) for line in drawn}
        assert len(drawn) == len(style) == 17


def test_an_encoder_has_structure_and_no_loss(tmp_path):
    tiny_folders.write_bert(tmp_path / "bert")
    model = hub.load_classifier(
        tmp_path / "bert", hub.read_config(tmp_path / "bert"), 2, jax.random.key(0)
    )
    method = lora_jax.lora(".*/query", rank=2, head=hub.HEAD)
    save(tmp_path / "one", model, method, tmp_path / "bert")
    adapters = named_adapters.named([f"one={tmp_path / 'one'}"])
    results = measure(adapters, Settings(rank=1))
    assert results.base_loss is None and all(row.loss is None for row in results.rows)
    assert {path for row in results.rows for path in row.structures} == {
        "encoder/layers/block/attention/query"  # and not the head, which is new
    }
    page.write(tmp_path / "out", results, Settings(rank=1))
    text = (tmp_path / "out/structure.md").read_text()
    assert "an encoder with a classification head has no loss per token" in text
    (tmp_path / "text.txt").write_text("the cat runs")
    with pytest.raises(InputError, match="is no decoder, and an encoder .* leave --text out"):
        measure(adapters, Settings(text=str(tmp_path / "text.txt")))


def test_wrong_input_is_named(root, tmp_path):
    lora = named_adapters.named([f"lora={root / 'lora'}"])
    with pytest.raises(InputError, match="--rank"):
        measure(lora, Settings(rank=0))
    with pytest.raises(InputError, match="--epsilon"):
        measure(lora, Settings(epsilon=2.0))
    (tmp_path / "short.txt").write_text("a")
    with pytest.raises(InputError, match=r"short.txt has \d tokens, too few"):
        measure(lora, Settings(text=str(tmp_path / "short.txt")))
    model = hub.load_decoder(root / "model", hub.read_decoder_config(root / "model"))
    save(tmp_path / "bias", model, lora_jax.bitfit(), root / "model")
    with pytest.raises(InputError, match="no weight matrix is changed by biases"):
        measure(named_adapters.named([f"biases={tmp_path / 'bias'}"]), Settings())
    save(tmp_path / "nameless", model, METHODS["lora"])
    nameless = named_adapters.named([f"x={tmp_path / 'nameless'}"])
    with pytest.raises(InputError, match="x does not say what its base was"):
        measure(nameless, Settings())
    other = load_adapter(root / "dora")
    folder = lora_jax.save_adapter(
        tmp_path / "other", other.values, other.groups, other.method, "0" * 64, other.notes
    )
    both = named_adapters.named([f"lora={root / 'lora'}", f"other={folder}"])
    with pytest.raises(InputError, match="'lora' and 'other' are of different bases"):
        measure(both, Settings())


def test_the_command(root, tmp_path):
    out = tmp_path / "out"
    made = commands.run(
        "experiments.structure", f"--adapters=lora={root / 'lora'}", "--rank=2", f"--output={out}", "--k=4",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "| lora | as trained | 4 | 2 |" in made.stdout
    assert "of the first 4 singular" in made.stdout
    assert {path.name for path in out.iterdir()} == {*page.FILES, "figures"}
