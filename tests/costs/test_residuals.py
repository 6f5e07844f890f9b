"""What the backward pass keeps, by tracing: of a known function, and of our models, which must not grow."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from absl import app
from jax.sharding import AbstractDevice, AbstractMesh

import lora_jax
from benchmarks import residuals as benchmark
from lora_jax import partition
from lora_jax.costs import residuals


def test_of_a_known_function():
    """sin(x w) keeps its cosine for w's gradient, and x."""
    w, x = jnp.zeros((3, 5)), jnp.zeros((7, 3))
    kept = residuals.residuals(lambda w, x: jnp.sin(x @ w).sum(), w, x)
    assert sorted(array.shape for array in kept) == [(7, 3), (7, 5)]
    assert partition.size_bytes(kept) == 4 * (21 + 35)


def test_what_does_not_grow_is_not_counted():
    kept = lambda depth, length: 100 + 7 * depth + 2 * length + 3 * depth * length  # noqa: E731
    assert residuals.per_token(kept) == 3


# Widths of two bytes a value. An encoder: inputs of two norms (2), of GELU (4), q, k, v (3), the input of
# the adapted layers (1), and the results of A. All matrices keep the inputs of their A, as full
# fine-tuning keeps those of its products: of q, k, v (1), of the output (1), of up (1) and down (4).
# Llama: two norms, q (1), k and v (0.5), the input of q and v, gate and up (3.5 each).
@pytest.mark.parametrize(
    ("name", "kind", "most"),
    [
        ("roberta-large", "LoRA", 10.1),
        ("roberta-large", "LoRA on all", 16.2),
        ("roberta-large", "full", 16.0),
        ("gpt2-large", "LoRA", 10.1),
        ("gpt2-large", "full", 16.0),
        ("llama-3-8b", "LoRA", 11.6),
        ("llama-3-8b", "LoRA on all", 17.1),
        ("llama-3-8b", "full", 17.0),
    ],
)
def test_what_our_models_keep(name, kind, most):
    of = benchmark.MODELS[name]
    assert benchmark.widths(of, of.methods[kind]) <= most


@pytest.mark.parametrize("kind", ["TPU v5 lite", "NVIDIA H100 80GB HBM3"])
@pytest.mark.parametrize(("name", "most"), [("gpt2-large", 10.1), ("llama-3-8b", 12.6)])
def test_what_they_keep_with_a_kernel_of_attention(kind, name, most):
    """The same, and of heads of 128 the result of attention, with a number for every query and head."""
    of, platform = benchmark.MODELS[name], kind.split()[0].replace("NVIDIA", "gpu").lower()

    def kept(depth, length):  # of rows that kernels take
        return benchmark.kept_bytes(benchmark.make(of, of.methods["LoRA"], depth, 1, 32 * length))

    device = AbstractDevice(kind, None, platform)
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        assert residuals.per_token(kept) / 32 / (2 * of.width) <= most


def test_a_branch_with_dropout_keeps_one_dropped_input_for_each():
    of = benchmark.MODELS["roberta-large"]
    method = lora_jax.lora(".*/(query|value)", rank=8, dropout=0.1, head="head/.*")
    assert benchmark.widths(of, method) <= 11.1


def test_a_stack_that_recomputes_keeps_its_inputs_only():
    of = benchmark.MODELS["roberta-large"]

    def kept(depth, length):
        return benchmark.kept_bytes(
            benchmark.make(of, of.methods["LoRA"], depth, 1, length, "full")
        )

    assert residuals.per_token(kept) == pytest.approx(2 * of.width)


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("models", ["roberta_large"], "--models: no 'roberta_large'; they are roberta-large, gpt2"),
        ("methods", ["lora"], "--methods: no 'lora'; they are LoRA, LoRA on all, full"),
        ("remat", ["half"], "--remat: no 'half'; they are none, full, dots"),
        ("topology", "h100", "--topology: topology 'h100' must be h100: and a number of GPUs"),
    ],
)
def test_what_there_is_not_is_named(flag, value, says, monkeypatch):
    given = {"models": ["gpt2-large"], "methods": ["full"], "remat": ["none"], "topology": "h100:1"}
    for name, of_flag in {**given, flag: value}.items():
        monkeypatch.setattr(
            benchmark, f"_{name.upper()}", SimpleNamespace(value=of_flag), raising=False
        )
    with pytest.raises(app.UsageError, match=says):
        benchmark.main([])
