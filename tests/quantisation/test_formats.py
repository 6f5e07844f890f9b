"""The packed forms against the `gguf` package and bitsandbytes: equal bytes, equal values."""

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from lora_jax.errors import InputError
from lora_jax.gguf.layouts import LAYOUTS
from lora_jax.gguf.packing import PACK
from lora_jax.quantisation import codebooks
from lora_jax.quantisation.four_bits import FourBits, pack_scales
from lora_jax.quantisation.ggml import Ggml
from lora_jax.quantisation.int8 import Int8
from lora_jax.quantisation.registry import FORMATS, format_of

bitsandbytes = pytest.importorskip("bitsandbytes")
torch = pytest.importorskip("torch")
functional = bitsandbytes.functional

ROWS = 12
RNG = np.random.default_rng(0)


def unpacked(form, arrays, axis):
    """The values (rows, inputs) of a matrix whose arrays have blocks at `axis`."""
    moved = {}
    for name, array in arrays.items():
        own = array.ndim == 1  # of the whole matrix
        moved[name] = jnp.asarray(array if own or axis else np.moveaxis(array, 0, -1))
    values = np.asarray(jax.jit(form.unpack, static_argnums=1)(moved, axis))
    return (values if axis else np.moveaxis(values, -1, 0)).reshape(ROWS, -1)


def random_blocks(kind, blocks=3):
    """Bytes (rows, blocks, size) whose scales are finite numbers."""
    form = Ggml(kind)
    size = sum(count * np.dtype(dtype).itemsize for _, dtype, count in LAYOUTS[kind].fields)
    arrays = form.from_blocks(RNG.integers(0, 256, (ROWS, blocks, size), dtype=np.uint8))
    for name in {"scale", "least"} & arrays.keys():
        arrays[name] = RNG.normal(size=arrays[name].shape).astype(np.float16)
    return form, arrays


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_values_of_ggufs_blocks_are_those_of_ggml(kind, axis):
    form, arrays = random_blocks(kind)
    raw = form.to_blocks(arrays)
    reference = gguf.quants.dequantize(raw.reshape(ROWS, -1), GGMLQuantizationType[kind])
    np.testing.assert_array_equal(unpacked(form, arrays, axis), reference)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_blocks_become_arrays_and_the_same_blocks_again(kind):
    form, arrays = random_blocks(kind)
    again = form.from_blocks(form.to_blocks(arrays))
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)
        assert again[name].dtype == array.dtype


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("size", [1.0, 1e-3, 300.0])
def test_weights_are_packed_as_ggml_packs_them(kind, size):
    rows = (size * RNG.normal(size=(ROWS, 256))).astype(np.float32)
    rows[0, :32], rows[1, :32] = 0, 0.5
    packed = Ggml(kind).to_blocks(Ggml(kind).pack(rows)).reshape(ROWS, -1)
    reference = gguf.quants.quantize(rows, GGMLQuantizationType[kind])
    np.testing.assert_array_equal(packed, reference)


def theirs(rows, code, block, double):
    packed, state = functional.quantize_4bit(
        torch.tensor(rows), blocksize=block, quant_type=code, compress_statistics=double
    )
    return packed.numpy().reshape(-1), state


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("code", ["nf4", "fp4"])
def test_four_bits_are_those_of_bitsandbytes(code, block, double, axis):
    rows = RNG.normal(size=(ROWS, 1024)).astype(np.float32)
    rows[0, :128] = 0
    form = FourBits(code, block, double)
    arrays = form.pack(rows)
    packed, state = theirs(rows, code, block, double)
    np.testing.assert_array_equal(arrays["codes"].reshape(-1), packed)
    if double:
        # PyTorch adds in an order that depends on the machine, so means differ in the last bits.
        offset = np.float32(state.offset.item())
        np.testing.assert_allclose(arrays["offset"][0], offset, rtol=1e-6)
        exact = FourBits(code, block, double=False).pack(rows)["absmax"]
        arrays |= pack_scales(exact, offset)
        np.testing.assert_array_equal(arrays["nested"], state.state2.absmax.numpy())
    np.testing.assert_array_equal(arrays["absmax"].reshape(-1), state.absmax.numpy())
    reference = functional.dequantize_4bit(torch.tensor(packed)[:, None], state).numpy()
    np.testing.assert_array_equal(unpacked(form, arrays, axis), reference)


def test_maps_are_those_of_bitsandbytes():
    np.testing.assert_array_equal(codebooks.dynamic_map(), functional.create_dynamic_map().numpy())
    for name, book in (("nf4", codebooks.NF4), ("fp4", codebooks.FP4)):
        reference = functional.get_4bit_type(name, device="cpu").numpy()
        np.testing.assert_array_equal(book, reference)


@pytest.mark.parametrize("axis", [0, 1])
def test_int8_of_whole_rows_is_that_of_bitsandbytes(axis):
    rows = RNG.normal(size=(ROWS, 96)).astype(np.float32)
    arrays = Int8().pack(rows)
    # bitsandbytes takes float16; without outliers the values are these in float32.
    codes, absmax, _ = torch.ops.bitsandbytes.int8_vectorwise_quant(torch.tensor(rows))
    np.testing.assert_array_equal(arrays["codes"][:, 0], codes.numpy())
    np.testing.assert_array_equal(arrays["absmax"][:, 0], absmax.numpy())
    reference = functional.int8_vectorwise_dequant(codes, absmax).numpy()
    np.testing.assert_array_equal(unpacked(Int8(), arrays, axis), reference)


def relative_error(form, rows):
    arrays = {name: jnp.asarray(array) for name, array in form.pack(rows).items()}
    values = np.asarray(form.unpack(arrays, 1), np.float64).reshape(rows.shape)
    return np.sqrt(np.mean((values - rows) ** 2))


# Errors of N(0, 1) as bitsandbytes has them, and bits by counting: 4 + 8/64 + 32/(64 256).
@pytest.mark.parametrize(
    ("form", "error", "bits"),
    [
        (FourBits("nf4", 64), 0.0920, 4.127),
        (FourBits("nf4", 32), 0.0873, 4.254),
        (FourBits("nf4", 64, double=False), 0.0920, 4.5),
    ],
)
def test_errors_and_bits_of_nf4(form, error, bits):
    rows = np.random.default_rng(1).normal(size=(256, 1024)).astype(np.float32)
    assert relative_error(form, rows) == pytest.approx(error, rel=0.01)
    assert form.bits(1024, 4096) == pytest.approx(bits, rel=1e-3)


@pytest.mark.parametrize(
    ("form", "bits"), [(Ggml("Q8_0"), 8.5), (Int8(), 8.03125), (Int8(64), 8.5)]
)
def test_errors_of_integers_are_those_of_rounding(form, bits):
    rows = np.random.default_rng(1).normal(size=(256, 1024)).astype(np.float32)
    arrays = form.pack(rows)
    steps = arrays["scale"] if "scale" in arrays else arrays["absmax"] / 127
    # Rounding to multiples of a step is off by step / sqrt(12), but for the largest value of a block.
    inexact = 1 - 1 / form.width(1024)
    expected = np.sqrt(np.mean(steps.astype(np.float64) ** 2) / 12 * inexact)
    assert relative_error(form, rows) == pytest.approx(expected, rel=0.01)
    assert form.bits(256, 1024) == pytest.approx(bits, rel=1e-3)


def unpacked_in(form, arrays, dtype):
    """How many values are not finite, by unpacking all of them."""
    values = unpacked(form, arrays, 1).astype(jnp.dtype(dtype))
    return int((~np.isfinite(values)).sum())


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_values_of_ggufs_blocks_that_are_not_finite_are_found_by_their_scales(kind, dtype):
    form, arrays = random_blocks(kind)
    assert not form.not_finite(arrays, dtype)
    bound = np.repeat(form.largest(arrays), form.width(768), axis=1)
    assert (np.abs(unpacked(form, arrays, 1)) <= bound).all()
    for name in {"scale", "least"} & arrays.keys():
        for number in (np.inf, np.nan, 65504, -65504, 40):
            changed = arrays | {name: arrays[name].copy()}
            changed[name][5, 1] = number
            assert form.not_finite(changed, dtype) == unpacked_in(form, changed, dtype)
            if not np.isfinite(number):
                assert form.not_finite(changed, dtype) > 0


LARGE = {  # 65520 is what float16 rounds up to infinity
    "absmax": (np.nan, np.inf, 3e38, 2e36, 65520, 65519, -1e30),
    "nested": (np.nan, np.inf, 3e38, 1e5), "offset": (np.nan, 3e38, -70000, 65519),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "form", [FourBits("nf4"), FourBits("fp4", double=False), Int8(), Int8(64)], ids=str
)
def test_values_of_bitsandbytes_that_are_not_finite_are_found_by_their_scales(form, dtype):
    rows = RNG.normal(size=(ROWS, 1024)).astype(np.float32)
    arrays = form.pack(rows)
    arrays["codes"][2] = np.iinfo(arrays["codes"].dtype).min  # -128, which only files have
    assert not form.not_finite(arrays, dtype)
    for name, numbers in LARGE.items():
        if name not in arrays or arrays[name].dtype == np.uint8:
            continue
        for number in numbers:
            for row in (2, 3):
                changed = arrays | {name: arrays[name].copy()}
                changed[name].reshape(-1)[row % len(changed[name].reshape(-1))] = number
                assert form.not_finite(changed, dtype) == unpacked_in(form, changed, dtype)


@pytest.mark.wrong_types
def test_sizes_that_a_format_does_not_have_are_refused():
    with pytest.raises(InputError, match="do not divide rows of 96 inputs; blocks of 32 would"):
        FourBits("nf4", 64).width(96)
    with pytest.raises(InputError, match="rows of 33 inputs; int8 needs no blocks"):
        Ggml("Q4_0").width(33)
    with pytest.raises(InputError, match="block of nf4 must be one of 32, 64"):
        FourBits("nf4", 48)
    with pytest.raises(InputError, match="code must be nf4 or fp4"):
        FourBits("nf5")
    with pytest.raises(InputError, match="Q4_K is read from files"):
        Ggml("Q4_K").pack(np.zeros((1, 256), np.float32))
    with pytest.raises(InputError, match="kind must be one of Q4_0"):
        Ggml("Q3_K")
    with pytest.raises(InputError, match="format must be one of nf4"):
        format_of("int3")
    assert format_of(FORMATS["nf4"]) is FORMATS["nf4"]
