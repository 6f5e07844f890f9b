"""The values of every type equal those of the gguf package, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from lora_jax.gguf import blocks, layouts
from lora_jax.gguf.kinds import KINDS

NUMBERS = {kind.name: number for number, kind in KINDS.items()}
PACKED = [name for name in blocks.READ if KINDS[NUMBERS[name]].values > 1]
HALVES = {  # where a block has numbers in float16
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2],
    "Q6_K": [208],
}  # fmt: skip


def random_blocks(name, count=500, seed=0):
    """Random bytes; numbers in float16 are finite."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (count, KINDS[NUMBERS[name]].size), dtype=np.uint8)
    for start in HALVES.get(name, []):
        half = rng.normal(0, 10.0 ** rng.integers(-7, 4, count), count).astype(np.float16)
        half[::50] = -0.0
        raw[:, start : start + 2] = half[:, None].view(np.uint8)
    return raw


def test_the_types_are_those_of_ggml():
    """All that the package knows, by number; later versions of it may know more."""
    theirs = {int(k): (k.name, *sizes) for k, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {number: theirs[number] for number in KINDS} == {n: tuple(k) for n, k in KINDS.items()}


@pytest.mark.parametrize("name", blocks.READ)
def test_values_are_those_of_gguf(name):
    raw = random_blocks(name)
    wanted = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name]).reshape(len(raw), -1)
    found = blocks.dequantise(name, raw)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))
    if name in PACKED:
        assert np.isfinite(wanted).all() and len(np.unique(np.abs(wanted))) > 500


@pytest.mark.parametrize("name", PACKED)
def test_fields_are_all_of_a_block_and_become_it_again(name):
    raw = random_blocks(name)
    arrays = layouts.fields(name, raw)
    assert sum(array.nbytes for array in arrays.values()) == raw.nbytes
    np.testing.assert_array_equal(layouts.blocks(name, arrays), raw)
    assert layouts.width(name) == KINDS[NUMBERS[name]].values


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("half", [np.nan, np.inf, -np.inf])
def test_a_scale_that_is_not_finite_spoils_its_values_in_silence(name, half):
    """NumPy warns of such products, and pytest makes no error of it: who reads the values looks."""
    raw = random_blocks(name)
    start = HALVES[name][0]
    raw[3, start : start + 2] = np.float16([half]).view(np.uint8)
    with np.errstate(all="ignore"):
        wanted = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name]).reshape(500, -1)
    with np.errstate(all="raise"):
        found = blocks.dequantise(name, raw)
    np.testing.assert_array_equal(found, wanted)
    assert not np.isfinite(found[3]).all() and np.isfinite(np.delete(found, 3, 0)).all()
