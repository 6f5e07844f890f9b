"""What the parts of benchmarks.accelerator count, choose and make, on the CPU."""

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import random_batches
from benchmarks.accelerator_parts import attention_kernels, catalogue, random_leaves, train_steps
from benchmarks.accelerator_parts.programs import DoesNotFit, Program
from benchmarks.accelerator_parts.setting import Setting
from benchmarks.accelerator_parts.workloads import Try, workload
from lora_jax.costs import chips
from lora_jax.models.attention.attend import attend
from lora_jax.models.attention.spans import of_segments

ROOT = Path(__file__).parents[2]


def setting(tmp_path):
    return Setting("small", time.monotonic() + 60, 0.1, tmp_path / "found.json")


def test_flops_of_lora_on_a_decoder():
    """By hand: two for a value of a matrix and a token, forward and towards the inputs; six of a factor."""
    of = workload("llama-3-8b lora", small=True)
    config, rows, length, rank = of.config, 3, of.length, 16
    width, inner, own = config.hidden_size, config.intermediate_size, config.hidden_size
    shared = config.head_size * config.num_key_value_heads
    sides = [(width, own), (width, shared), (width, shared), (own, width)]
    sides += [(width, inner), (width, inner), (inner, width)]
    matrices = sum(a * b for a, b in sides)
    factors = rank * sum(a + b for a, b in sides)
    # Scores and mix: forward, and twice that back.
    attention = 3 * 2 * 2 * length * own
    layers = config.num_hidden_layers * (4 * matrices + 6 * factors + attention)
    expected = rows * length * (layers + 4 * width * config.vocab_size)
    assert train_steps.model_flops(train_steps.made(of, Try(rows))) == expected


def test_utilisation(monkeypatch):
    """A step of 0.2 s with 9.89e13 FLOPs on an H100, which has 9.89e14 a second in bfloat16: a half."""
    monkeypatch.setattr(chips, "by_device_kind", lambda _: chips.by_name("h100"))
    found = train_steps.figures(0.2, 100, int(9.89e13))
    assert found["mfu"] == pytest.approx(0.5)
    assert found["tokens_per_second"] == pytest.approx(500)
    assert found["flops_per_token"] == pytest.approx(9.89e11)


@pytest.mark.slow
def test_the_first_try_that_runs_is_measured(tmp_path):
    def measure(one):
        if one.remat == "none":
            raise DoesNotFit(100, 10, "it takes")
        if one.rows > 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying")
        if one.attention == "auto":
            raise ValueError("no such kernel")
        of.report(fits=True)

    of = setting(tmp_path)
    tries = Try(2), Try(2, "full"), Try(1, "full"), Try(0, "full"), Try(1, "full", "xla")
    train_steps.first_that_runs(of, tries, measure)
    assert (of.found["fits"], of.found["attention"]) == (True, "xla")
    assert [refused["why"] for refused in of.found["refused"]] == [
        "DoesNotFit: does not fit: it takes 100 of 10 bytes",
        "JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying",
        "ValueError: no such kernel",
    ]
    train_steps.first_that_runs(of, tries[:2], measure)
    assert of.found["fits"] is False
    with pytest.raises(ValueError, match="no such kernel"):
        train_steps.first_that_runs(of, tries[:4], measure)


def test_what_does_not_fit_is_not_run():
    """Arguments that are too large are known before compiling; temporaries from the compiler."""
    of = workload("gpt2-medium lora", small=True)
    made = train_steps.made(of, of.tries[0])
    program = Program(made, None)
    arguments = program.predicted["arguments"]
    assert program.predicted["temporaries"] > 0
    with pytest.raises(DoesNotFit, match="weights, state and batch alone"):
        Program(made, arguments // 2)
    with pytest.raises(DoesNotFit, match="predicts"):
        Program(made, program.predicted["peak"] - 1)
    Program(made, program.predicted["peak"])


def test_weights_are_made_in_their_types():
    of = workload("llama-2-7b qlora", small=True)
    shapes = train_steps.made(of, of.tries[0]).arguments[2]
    leaves = random_leaves.leaves(shapes)
    assert {p: (v.shape, v.dtype) for p, v in leaves.items()} == {
        p: (v.shape, v.dtype) for p, v in shapes.items()
    }
    assert {str(leaf.dtype) for leaf in leaves.values()} == {"bfloat16", "uint8", "float32"}
    codes = next(leaf for path, leaf in leaves.items() if path.endswith("/codes"))
    assert len(np.unique(codes)) == 256
    table = leaves["embeddings/token/embedding"].astype(jnp.float32)
    assert float(jnp.std(table)) == pytest.approx(0.02, rel=0.05)
    scales = [leaf for path, leaf in leaves.items() if path.endswith("/scale")]
    assert scales
    assert all((leaf == 1).all() for leaf in scales)


def test_batches_predict_the_next_tokens():
    batch = random_batches.completion(3, 5, 50)
    tokens = batch.inputs.tokens
    used = batch.weights > 0
    assert used.sum() == 3 * 4
    nexts = tokens[batch.rows[used], batch.columns[used] + 1]
    np.testing.assert_array_equal(nexts, batch.labels[used])


def test_a_wrong_kernel_fails(tmp_path, monkeypatch):
    """One that looks at later tokens; XLA's own in bfloat16 is right, and so the rest is recorded."""

    def wrong(q, k, v, spans, kernel):
        every = of_segments(jnp.zeros(spans.first.shape, jnp.int32), causal=False)
        return attend(q, k, v, spans if kernel == "xla" else every, kernel=kernel)

    of = setting(tmp_path)
    attention_kernels.measure(of)
    assert {k: v["right"] for k, v in of.found["of_kernels"].items()} == {
        "auto": True,
        "xla": True,
    }
    monkeypatch.setattr(attention_kernels, "attend", wrong)
    with pytest.raises(AssertionError, match="auto"):
        attention_kernels.measure(of)
    assert {k: v["right"] for k, v in of.found["of_kernels"].items()} == {
        "auto": False,
        "xla": True,
    }
    assert of.found["of_kernels"]["xla"]["seconds"] > 0


def test_only_what_the_page_names_is_needed():
    """What the test environment has besides is not there on a borrowed machine."""
    absent = (
        "torch",
        "transformers",
        "tokenizers",
        "grain",
        "datasets",
        "peft",
        "ml_collections",
        "scipy",
    )
    modules = {part.target.partition(":")[0] for part in catalogue.PARTS}
    modules.add("benchmarks.accelerator")
    program = f"import sys; sys.modules.update(dict.fromkeys({absent}))\n" + "\n".join(
        f"import {module}" for module in sorted(modules)
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_every_workload_is_small_and_full():
    """Those of full size are traced, which takes no memory; the small ones are of the same kinds."""
    for part in catalogue.PARTS:
        if not part.argument:
            continue
        full, small = (workload(part.argument, size) for size in (False, True))
        assert dataclasses.asdict(full.method) == dataclasses.asdict(small.method)
        assert type(full.config) is type(small.config)
        assert full.config.depth > small.config.depth
        made = train_steps.made(full, full.tries[0])
        assert jax.eval_shape(made.train, *made.arguments)[-1]["loss"].shape == ()
