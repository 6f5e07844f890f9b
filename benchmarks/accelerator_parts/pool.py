"""A pool of eight adapters in one batch, against one merged model and against eight in turn."""

from __future__ import annotations

import dataclasses
import statistics

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks import pool_calls, timing
from benchmarks.accelerator_parts import random_leaves
from benchmarks.accelerator_parts.setting import Setting, measured_peak
from benchmarks.accelerator_parts.workloads import DTYPE, TINY_LLAMA
from lora_jax import partition
from lora_jax.models.decoder import Decoder
from lora_jax.models.llama import Llama
from lora_jax.models.llama_sizes import SIZES

ADAPTERS = 8
_MERGED, _POOL, _IN_TURN = "merged, one task", "pool", "merged, eight in turn"
_ANCHOR = "8 to 24% slower than without adapters: vLLM on one TPU v6e, Llama-3.1-8B (vllm#15655)"


def base_model(small: bool) -> Decoder:
    """A decoder of Llama-3.2-1B's shape in bfloat16, its weights made on the device."""
    config = dataclasses.replace(SIZES["llama-3.2-1b"], compute_dtype=DTYPE)
    if small:
        config = dataclasses.replace(config, head_dim=None, **TINY_LLAMA)
    shapes = nnx.eval_shape(lambda: Llama(config, nnx.Rngs(0)))
    structure, params = partition.all_frozen(shapes)
    typed = {
        path: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(DTYPE)) for path, leaf in params.items()
    }
    model = partition.join(structure, {}, random_leaves.leaves(typed))
    assert isinstance(model, Decoder)
    return model


def measure(setting: Setting) -> None:
    """The part: prompts of 8 to 59 tokens, each continued by so many."""
    count, tokens = (ADAPTERS, 2) if setting.small else (64, 32)
    base = base_model(setting.small)
    setting.report(
        model="llama-3.2-1b", adapters=ADAPTERS, prompts=count, tokens=tokens, anchor=_ANCHOR
    )
    inputs = pool_calls.Inputs(count, 128 if setting.small else 30000, tokens)
    adapters = pool_calls.random_adapters(base, ADAPTERS, None)
    calls = {
        _MERGED: pool_calls.merged_in_turn(inputs, base, adapters, 1),
        _POOL: pool_calls.of_pool(inputs, base, adapters, ADAPTERS, ADAPTERS, DTYPE),
        # One model for all shares: eight would each be checked on the host, for seconds.
        _IN_TURN: pool_calls.merged_in_turn(inputs, base, adapters, ADAPTERS, models=1),
    }
    seconds = setting.timed(calls, 20)
    rates = {name: count * tokens / statistics.median(values) for name, values in seconds.items()}
    setting.report(
        tokens_per_second_of=rates,
        tokens_per_second=rates[_POOL],
        # Below 1 the pool is slower.
        of_merged=timing.ratio(seconds, _MERGED, _POOL),
        of_eight_in_turn=timing.ratio(seconds, _IN_TURN, _POOL),
        seconds_of_rounds=seconds,
        measured={"peak": measured_peak()},
    )
