"""Plans of decoders of the Llama kind, for a TPU and for GPUs, against sizes counted by hand."""

from __future__ import annotations

import dataclasses
import importlib.util

import commands
import jax
import pytest

from configs.plan import decoder_lora
from experiments.plan import abstract_step, models
from experiments.plan.planner import Planner
from experiments.plan.variants import configured
from lora_jax.models import llama_sizes
from lora_jax.sharding.mesh import make_mesh


@pytest.fixture(scope="module", autouse=True)
def compilers(optimised):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")
        patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        yield


def small_plan(config):
    config.rows, config.length, config.outputs = 8, 128, 16
    return config


def one_device():
    return make_mesh({}, jax.devices()[:1])


def small_llama(**changes):
    return dataclasses.replace(
        llama_sizes.SIZES["llama-2-7b"], hidden_size=256, intermediate_size=384, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, vocab_size=1003, **changes,
    )  # fmt: skip


@pytest.fixture
def llama(monkeypatch):
    """The plan of a decoder of the Llama kind, with small sizes."""
    monkeypatch.setitem(llama_sizes.SIZES, "llama-2-7b", small_llama())
    return small_plan(decoder_lora.get_config("llama-2-7b"))


def llama_bytes(rank):
    """Bytes of the base in bfloat16, and the number of the factors' values, by hand."""
    d, inner, shared, layers = 256, 384, 128, 3
    shapes = [(d, d), (d, shared), (d, shared), (d, d), (d, inner), (d, inner), (inner, d)]
    base = layers * (sum(a * b for a, b in shapes) + 2 * d) + 2 * 1003 * d + d
    return 2 * base, layers * rank * sum(a + b for a, b in shapes)


BATCH_OF_ONE = 3 * 8 * 128 * 4 + 4 * 8 * 16 * 4  # tokens, segments, positions; slots


@pytest.mark.slow
def test_a_plan_of_a_decoder_of_the_llama_kind(llama, tmp_path):
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu")
    planner = Planner(llama, "v5e:1x1", tmp_path)
    found = planner.figures(configured(llama, None), {}, 8)
    base, factors = llama_bytes(rank=64)
    assert found.trainable == factors
    assert found.arguments == pytest.approx(base + 12 * factors + BATCH_OF_ONE, rel=0.01)
    assert found.fits and found.traffic == {}


def test_seven_matrices_of_llama_2_7b():
    """QLoRA's setting, r = 64: 40.0 million values for each 16 of rank of PEFT's `all-linear`."""
    config = decoder_lora.get_config("llama-2-7b")
    step = abstract_step.build(config, configured(config, None), one_device(), 1)
    shapes = [(4096, 4096)] * 4 + [(4096, 11008)] * 3
    assert step.trainable == 32 * 64 * sum(a + b for a, b in shapes) == 159_907_840
    assert step.total - step.trainable == 6_738_415_616  # as published


def test_attention_by_cudnn_costs_the_same_products(llama):
    plain = abstract_step.build(llama, configured(llama, None), one_device(), 8)
    llama.model.attention = "cudnn"
    fused = abstract_step.build(llama, configured(llama, None), one_device(), 8)
    assert fused.flops == plain.flops


def test_models_that_are_not_known():
    config = decoder_lora.get_config("llama2-7b")
    with pytest.raises(ValueError, match="unknown model 'llama2-7b'.*Did you mean 'llama-2-7b'?"):
        models.model_config(config, "bfloat16")


@pytest.fixture
def cuda(monkeypatch):
    if not any(map(importlib.util.find_spec, ("jax_cuda12_plugin", "jax_cuda13_plugin"))):
        pytest.skip("compiling for GPUs needs JAX's plugin for CUDA: pip install jax[cuda12]")
    monkeypatch.setenv("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")


def test_a_plan_for_a_gpu(cuda, llama, tmp_path):
    """Arguments to the byte; cuDNN's attention holds no scores, two hosts send what one does not."""
    llama.length = 1024
    base, factors = llama_bytes(rank=64)
    llama.model.attention = "xla"
    planner = Planner(llama, "rtx4090:1", tmp_path)
    plain = planner.figures(configured(llama, None), {}, 8)
    batch = 3 * 8 * 1024 * 4 + 4 * 8 * 16 * 4
    counters = 100  # of the optimizer, and the key: a few words
    assert plain.arguments - (base + 12 * factors + batch) in range(counters)
    assert plain.fits and plain.traffic == {} and plain.link_seconds == 0
    llama.model.attention = "cudnn"
    fused = Planner(llama, "rtx4090:1", tmp_path).figures(configured(llama, None), {}, 8)
    scores = 2 * 4 * 1024 * 1024 * 4  # of the rows that XLA takes at a time
    assert plain.temporaries - fused.temporaries > scores
    assert fused.flops == plain.flops and fused.arguments == plain.arguments
    hosts = Planner(llama, "h100:2x2", tmp_path).figures(
        configured(llama, None), {"fsdp": 2, "model": 2}, 8
    )
    assert hosts.devices == 4 and hosts.arguments < fused.arguments / 2
    assert hosts.traffic["all-gather"] > 0 and hosts.link_seconds > 0


def test_bfloat16_on_a_gpu_that_has_none(cuda, llama, tmp_path):
    with pytest.raises(ValueError, match="t4 cannot multiply in bfloat16.*base_dtype=float32"):
        Planner(llama, "t4:1", tmp_path).figures(configured(llama, None), {}, 8)
    llama.base_dtype = "float32"
    assert Planner(llama, "t4:1", tmp_path).figures(configured(llama, None), {}, 8).fits


@pytest.mark.parametrize("module", ["experiments.plan", "experiments.pod_plan"])
def test_the_command_and_its_old_name(module):
    done = commands.run(module, "--config=configs/plan/decoder_lora.py", "--topology=h100:16")
    assert done.returncode != 0 and "Did you mean h100:2x8?" in done.stderr
    assert "Traceback" not in done.stderr
