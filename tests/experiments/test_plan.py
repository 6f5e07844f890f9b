"""Plans of small models for a TPU host, against sizes counted by hand."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from configs.plan import stable_diffusion_lora
from configs.pod import deberta_xxl_lora, gpt2_large_lora, gpt3_175b_lora, roberta_large_lora
from experiments.plan import abstract_step, denoising, models, tables
from experiments.plan.figures import StepFigures
from experiments.plan.planner import Planner
from experiments.plan.report import report, search
from experiments.plan.variants import Variant, compared, configured
from lora_jax import methods
from lora_jax.costs import chips, compiled, topologies
from lora_jax.errors import InputError
from lora_jax.models import deberta_config, encoder
from lora_jax.models import gpt2 as gpt2_model
from lora_jax.models.diffusion.unet_config import UNetConfig
from lora_jax.sharding.mesh import make_mesh

TOPOLOGY = "v5e:2x2"
FULL = Variant(name="full", method=methods.full(), base_dtype="bfloat16")


@pytest.fixture(scope="module", autouse=True)
def small_models(optimised):
    """The configs' models by name, with small sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")
        patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        small = gpt2_model.GPT2Config(256, 3, 4, vocab_size=1003, n_positions=256)
        for name in ("gpt2-large", "gpt3-175b"):
            patch.setitem(gpt2_model.SIZES, name, small)
        large = dataclasses.replace(
            encoder.SIZES["roberta-large"], hidden_size=256, num_hidden_layers=2,
            num_attention_heads=4, intermediate_size=512, vocab_size=1003,
        )  # fmt: skip
        patch.setitem(encoder.SIZES, "roberta-large", large)
        yield


def small_plan(config, **mesh):
    config.rows, config.length, config.outputs = 8, 128, 16
    config.mesh.update({"data": 1, "fsdp": 1, "model": 1, **mesh})
    return config


@pytest.fixture
def gpt2():
    return small_plan(gpt2_large_lora.get_config(), fsdp=2, model=2)


@pytest.fixture
def planner(gpt2, tmp_path):
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu")
    return Planner(gpt2, TOPOLOGY, tmp_path)


def one_device():
    return make_mesh({}, jax.devices()[:1])


def test_lora_against_full_on_a_host(planner, gpt2, capsys):
    """Arguments by hand: the base in bfloat16 over fsdp x model, Adam's moments for what trains."""
    method = configured(gpt2, None)
    lora = planner.figures(method, gpt2.mesh.to_dict(), 8)
    full = planner.figures(FULL, gpt2.mesh.to_dict(), 8)
    d, layers, rank = 256, 3, 4
    factors = layers * 2 * 2 * d * rank
    assert lora.trainable == factors
    assert lora.total == full.total + factors
    matrices, embeddings = layers * 12 * d * d, (1003 + 256) * d
    vectors = layers * (4 * d + 2 * d) + 2 * d  # norms and the biases of width d: whole everywhere
    split_vectors = layers * (3 * d + 4 * d)  # biases of qkv and up: over model
    batch = 4 * 8 // 2 * 128 * 4 + 4 * 8 * 16 * 4  # rows over fsdp; slots whole
    weights = matrices // 4 + embeddings // 2 + vectors + split_vectors // 2
    by_hand = {"lora": 2 * weights + 3 * 4 * factors // 2 + batch, "full": 3 * 4 * weights + batch}
    mesh = make_mesh(gpt2.mesh.to_dict(), planner.devices)
    for name, trained, found in (("lora", method, lora), ("full", FULL, full)):
        step = abstract_step.build(gpt2, trained, mesh, 8)
        counters = 100  # of the optimizer, and the key: a few words
        assert compiled.argument_bytes(step.arguments) - by_hand[name] in range(counters)
        # the TPU's layouts pad vectors to tiles; token types, which a decoder does not read, are out
        assert found.arguments == pytest.approx(by_hand[name], rel=0.01)
    assert lora.peak < full.peak and lora.fits and full.fits
    assert lora.traffic["all-reduce"] < full.traffic["all-reduce"]
    assert sum(lora.traffic.values()) < sum(full.traffic.values())
    # 3 products per weight; LoRA does without those of the weights' gradients
    assert 0.6 < lora.flops / full.flops < 0.75
    assert lora.compute_seconds == lora.flops / (4 * 197e12)
    text = tables.comparison({"lora": lora, "full": full}, planner.chip)
    assert f"| trained values | {factors:,} | {full.trainable:,} |" in text
    assert "| fits v5e (16.00 GiB) | yes | yes |  |" in text
    title = tables.title(lora, gpt2)
    assert "gpt2-large" in title and "4 devices; data=1, fsdp=2, model=2; 8 rows" in title
    assert report(planner, gpt2, None) == f"{title}\n{text}"
    # the file knows both now, another planner compiles nothing
    again = Planner(gpt2, TOPOLOGY, planner.path.parent)
    again._compile = None
    assert again.figures(method, gpt2.mesh.to_dict(), 8) == lora
    keys = [json.loads(line)["key"] for line in planner.path.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 2


def test_search_ranks_what_fits(gpt2):
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu")
    gpt2.search.model, gpt2.search.rows = (1, 3, 4), (4, 6)
    planner = Planner(gpt2, TOPOLOGY, None)
    method = configured(gpt2, None)
    found = [(mesh, rows) for mesh, rows in planner.candidates(method)]
    # 3 divides neither heads nor devices; 6 rows do not divide by 4
    assert found == [
        ({"data": 4, "fsdp": 1, "model": 1}, 4),
        ({"data": 2, "fsdp": 2, "model": 1}, 4),
        ({"data": 1, "fsdp": 4, "model": 1}, 4),
        ({"data": 1, "fsdp": 1, "model": 4}, 4),
        ({"data": 1, "fsdp": 1, "model": 4}, 6),
    ]
    tiny = dataclasses.replace(planner.chip, memory_bytes=1000)
    planner.chip = tiny
    with pytest.raises(ValueError, match="weights and optimizer state alone"):
        search(planner, method)


def step(rows, peak, fits, seconds):
    return StepFigures(
        topology=TOPOLOGY, devices=4, mesh={"data": 4, "fsdp": 1, "model": 1}, method="lora()",
        rows=rows, tokens=rows * 100, trainable=1, total=2, arguments=1, temporaries=1, peak=peak,
        fits=fits, traffic={"all-gather": 2**20} if fits else {}, flops=1,
        compute_seconds=seconds, link_seconds=seconds / 2, compile_seconds=1.0,
    )  # fmt: skip


def test_ranking_puts_the_fastest_that_fits_first():
    steps = [step(4, 2**30, True, 2.0), step(64, 2**35, False, 0.1), step(8, 2**31, True, 1.0)]
    _, _, *lines = tables.ranking(steps).splitlines()
    assert [line.split("|")[4].strip() for line in lines] == ["8", "4", "64"]
    assert lines[0] == "| 4 | 1 | 1 | 8 | 2.00 GiB | yes | 1.00 MiB | 800 | 533 |"
    assert lines[2] == "| 4 | 1 | 1 | 64 | 32.00 GiB | no | - | - | - |"


def test_what_does_not_fit_has_no_traffic_in_the_table():
    steps = {"lora": step(8, 2**33, True, 1.0), "full": step(8, 2**35, False, 1.0)}
    text = tables.comparison(steps, chips.by_name("v5e"))
    assert "| fits v5e (16.00 GiB) | yes | no |  |" in text
    assert "| all-gather, sent per device and step | 1.00 MiB | - | - |" in text
    assert "| at least, by links | 0.5 s | - | - |" in text


def test_three_variants_on_a_gpu():
    """Ratios to the last one; the share of a GPU's memory that JAX must be given, rounded up."""
    first, second, last = (step(8, n * 2**30, n < 40, 2.0) for n in (8, 10, 40))
    steps = {"a": first, "b": second, "full": last}
    text = tables.comparison(steps, chips.by_name("rtx4090"))
    head, _, *rows = text.splitlines()
    assert head == "|  | a | b | full | a / full | b / full |"
    assert {row.count("|") for row in rows} == {7}
    assert "| peak, per device | 8.00 GiB | 10.00 GiB | 40.00 GiB | 0.200 | 0.250 |" in rows
    assert "| fits rtx4090 (23.52 GiB) | yes | yes | no |  |  |" in rows
    assert "| XLA_PYTHON_CLIENT_MEM_FRACTION at least | 0.35 | 0.43 | - |  |  |" in rows
    assert "MEM_FRACTION" not in tables.comparison(steps, chips.by_name("v5e"))


def test_what_a_plan_compares():
    config = roberta_large_lora.get_config()
    own, full = compared(config, "head/.*")
    assert (own.name, full.name) == ("lora", "full") and own == configured(config, "head/.*")
    assert own.base_dtype == full.base_dtype == "bfloat16"
    assert str(own.method) != str(full.method)


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (
            {"data": 2, "fsdp": 2, "modle": 1},
            "unknown axis 'modle'; the axes are run, data, fsdp, model",
        ),
        ({"data": 3}, "data=3 x fsdp=1 x model=1 = 3 is not the number of devices, 4"),
        ({"data": -1, "model": 3}, "does not divide the number of devices, 4"),
    ],
)
def test_wrong_meshes_are_refused_before_anything_is_compiled(planner, gpt2, mesh, message):
    planner._compile = None
    with pytest.raises(ValueError, match=message):
        planner.figures(FULL, mesh, 8)


def test_a_kernel_for_other_devices_is_refused(gpt2):
    for kernel, topology, this in (("cudnn", "v5e:2x2", "tpu"), ("splash", "h100:1", "gpu")):
        gpt2.model.attention = kernel
        with pytest.raises(
            InputError, match=f"'{kernel}', which computes on .*and this is a {this}"
        ):
            Planner(gpt2, topology, None)


def test_rows_and_heads_that_do_not_divide(planner, gpt2):
    with pytest.raises(ValueError, match=r"data x fsdp = 4 does not divide the batch's 6 rows"):
        planner.figures(FULL, {"data": 4}, 6)
    with pytest.raises(ValueError, match="model=8 does not divide the model's 4 attention heads"):
        abstract_step.build(gpt2, FULL, _fake(model=8), 8)
    with pytest.raises(ValueError, match=r"fsdp=3 does not divide the axis 'embed' of .*has 256"):
        abstract_step.build(gpt2, FULL, _fake(fsdp=3), 9)


def _fake(**sizes):
    """A mesh of more devices than there are, for checks that come first."""
    shape = tuple(sizes.get(axis, 1) for axis in ("data", "fsdp", "model"))
    return Mesh(np.array([*jax.devices() * int(np.prod(shape))][: int(np.prod(shape))]).reshape(shape),
                ("data", "fsdp", "model"))  # fmt: skip


def test_deberta_is_planned_as_the_encoders_are():
    config = deberta_xxl_lora.get_config()
    assert (models.head_pattern(config), models.heads(config)) == ("head/.*", 24)
    made = jax.eval_shape(lambda: nnx.state(models.make(models.model_config(config, "bfloat16"))))
    assert sum(leaf.size for leaf in jax.tree.leaves(made)) == 1_564_549_632 + 2_363_906


def test_deberta_is_planned_for_a_gpu(monkeypatch):
    """The step that is handed to the compiler is that of the model's kind, and the page is of the card."""
    small = dataclasses.replace(
        deberta_config.SIZES["deberta-v2-xxlarge"], hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=24, vocab_size=50, max_position_embeddings=32,
        position_buckets=8,
    )  # fmt: skip
    monkeypatch.setitem(deberta_config.SIZES, "deberta-v2-xxlarge", small)
    monkeypatch.setattr(topologies, "devices", lambda _: jax.devices()[:1])
    config = small_plan(deberta_xxl_lora.get_config(), data=-1)
    config.length = 32
    traced = []

    def compile_(self, variant, mesh, sizes, rows, runs):
        traced.append(abstract_step.build(config, variant, mesh, rows))
        return dataclasses.replace(step(rows, 2**33, True, 1.0), trainable=traced[-1].trainable)

    monkeypatch.setattr(Planner, "_compile", compile_)
    text = report(Planner(config, "h100:1", None), config, models.head_pattern(config))
    assert "| fits h100 (79.11 GiB) | yes | yes |  |" in text
    factors, head = 2 * 2 * 2 * 16 * 16, 16 * 16 + 16 + 2 * 16 + 2
    assert f"| trained values | {factors + head:,} | " in text
    assert [each.flops > 0 for each in traced] == [True, True]


def test_configs_of_the_three_models(small_models):
    for module, size, heads in (
        (gpt3_175b_lora, "gpt3-175b", None),
        (gpt2_large_lora, "gpt2-large", None),
        (roberta_large_lora, "roberta-large", "head/.*"),
    ):
        config = module.get_config()
        assert config.model.size == size and config.base_dtype == "bfloat16"
        assert models.head_pattern(config) == heads
        small_plan(config)
        method = configured(config, heads)
        step = abstract_step.build(config, method, one_device(), 8)
        assert 0 < step.trainable < step.total / 3 and step.flops > 0
    with pytest.raises(ValueError, match=r"unknown variant 'x'; known are \['qv8', 'qv4', 'v2'\]"):
        gpt3_175b_lora.get_config("x")
    config.model.size = "gpt5"
    with pytest.raises(ValueError, match="unknown model 'gpt5'; known are .*gpt3-175b"):
        models.model_config(config, "bfloat16")


@pytest.mark.parametrize("runs", [1, 2])
@pytest.mark.slow
def test_the_step_of_a_plan_runs(gpt2, runs):
    """The compiled program is the trainer's: it takes the plan's arguments and trains."""
    small_plan(gpt2)
    gpt2.base_dtype = "float32"
    method = configured(gpt2, None)
    step = abstract_step.build(gpt2, method, one_device(), 8)
    if runs > 1:
        step = abstract_step.build_runs(gpt2, method, one_device(), 8, runs)
    zeros = jax.tree.map(
        lambda leaf: (
            jax.random.split(jax.random.key(0), leaf.size).reshape(leaf.shape)
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else np.zeros(leaf.shape, leaf.dtype)
        ),
        step.arguments,
    )
    trainable, *_, metrics = step.function(*zeros)
    assert trainable.keys() == step.arguments[0].keys()
    assert metrics["loss"].shape == ((runs,) if runs > 1 else ())
    assert np.isfinite(metrics["loss"]).all()
    assert chips.by_topology(TOPOLOGY).memory_bytes > compiled.argument_bytes(step.arguments)


def test_stable_diffusion_is_planned_by_pictures(monkeypatch):
    small = UNetConfig(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        cross_attention_dim=12, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    monkeypatch.setitem(denoising.SIZES, "stable-diffusion-v1-5", small)
    config = stable_diffusion_lora.get_config()
    config.length = 64
    mesh = make_mesh({}, jax.devices()[:1])
    lora, full = (
        denoising.of_plan(config, variant, mesh, rows=2) for variant in compared(config, None)
    )
    assert lora.total == full.total + lora.trainable
    assert lora.trainable == sum(
        4 * (leaf.shape[0] + leaf.shape[1])
        for path, leaf in full.arguments[0].items()
        if path.endswith(("to_q/kernel", "to_k/kernel", "to_v/kernel", "to_out/kernel"))
    )
    assert 0 < lora.flops < full.flops
    for field, value, message in (
        ("length", 60, r"config.length=60 .* a square: 4096"),
        ("runs", 2, r"a plan is of one run"),
    ):
        config[field] = value
        with pytest.raises(InputError, match=message):
            denoising.of_plan(config, compared(config, None)[0], mesh, 2, config.runs)
        config.length = 64
