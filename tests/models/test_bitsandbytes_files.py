"""Folders that bitsandbytes has packed: what is read of them, and what is refused."""

from __future__ import annotations

import json

import bitsandbytes_folders as folders
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_parity import LOGITS_TOLERANCE, difference, run, torch_logits
from safetensors.numpy import load_file, save_file

import lora_jax
from lora_jax.errors import FileError, InputError
from lora_jax.models import hub, model_files
from lora_jax.models.model_files import WEIGHTS
from lora_jax.quantisation.four_bits import FourBits
from lora_jax.quantisation.int8 import Int8
from lora_jax.quantisation.layers import packed_weight, quantised_layers

functional = pytest.importorskip("bitsandbytes").functional
torch = pytest.importorskip("torch")

FORMATS = {"nf4": FourBits("nf4"), "fp4": FourBits("fp4", double=False), "int8": Int8()}
READ = [case for case in folders.CASES if case != "narrow"]


def read(folder, base_format, dtype=jnp.float32):
    config = hub.read_decoder_config(folder, base_format=base_format)
    hub.check(folder, config)
    return hub.load_decoder(folder, config, dtype)


def packed_modules(model):
    """The packed layers of transformers' model, by the name of their weight."""
    kinds = ("Linear4bit", "Linear8bitLt")
    named = {f"{name}.weight": m for name, m in model.named_modules() if type(m).__name__ in kinds}
    assert len(named) in (2 * 4, 2 * 7)
    return named


def unpacked(module):
    """The values of a packed layer of bitsandbytes (out, in), float32."""
    weight = module.weight
    if weight.dtype == torch.int8:
        return functional.int8_vectorwise_dequant(weight.data, weight.SCB).numpy()
    return functional.dequantize_4bit(weight.data, weight.quant_state).float().numpy()


@pytest.mark.parametrize("case", folders.CASES)
def test_values_are_those_of_bitsandbytes(case):
    """Bit for bit; in `narrow` blocks go on from one row to the next."""
    folder = folders.folder(case)
    files = model_files.open_files(folder)
    for name, module in packed_modules(folders.load(folder)).items():
        expected = unpacked(module)
        expected = expected.T if "gpt2" in case else expected
        assert files.shapes[name] == expected.shape
        ours = files.read([name], jnp.float32)[name]
        np.testing.assert_array_equal(ours, expected, err_msg=name)
    assert not [name for name in files.shapes if "absmax" in name or "SCB" in name]


@pytest.mark.parametrize("case", READ)
def test_stored_matrices_mean_the_same_packed(case):
    folder = folders.folder(case)
    plain, packed = read(folder, "float"), read(folder, "stored")
    layers = quantised_layers(packed)
    assert len(layers) == (4 if "gpt2" in case else 7)
    wanted = next(form for name, form in FORMATS.items() if name in case)
    given = "bfloat16" if "bfloat16" in case else "float32"
    for layer in layers.values():
        assert packed_weight(layer)[1].format == wanted
        assert packed_weight(layer)[1].dtype == given  # as the file has it, whatever is asked for
    values = lora_jax.parameters(lora_jax.dequantise(packed))
    for path, value in lora_jax.parameters(plain).items():
        np.testing.assert_array_equal(values[path].astype(jnp.float32), value, err_msg=path)


@pytest.mark.parametrize("case", [case for case in READ if "bfloat16" not in case])
def test_logits_are_those_of_transformers_with_bitsandbytes(case):
    folder = folders.folder(case)
    with torch.no_grad():
        expected = torch_logits(folders.load(folder))
    assert difference(run(read(folder, "stored")), expected) < LOGITS_TOLERANCE


def test_shards_and_the_form_by_its_name_give_the_same_arrays(tmp_path):
    folder = folders.folder("nf4")
    tensors, named = load_file(folder / WEIGHTS), {}
    for file, part in (
        ("a.safetensors", sorted(tensors)[::2]),
        ("b.safetensors", sorted(tensors)[1::2]),
    ):
        save_file({name: tensors[name] for name in part}, tmp_path / file)  # matrices in both
        named |= dict.fromkeys(part, file)
    (tmp_path / model_files.INDEX).write_text(json.dumps({"weight_map": named}))
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    expected = lora_jax.parameters(read(folder, "stored"))
    for place, base_format in ((tmp_path, "stored"), (folder, "nf4")):
        found = lora_jax.parameters(read(place, base_format))
        assert found.keys() == expected.keys()
        for path, value in expected.items():
            np.testing.assert_array_equal(found[path], value, err_msg=path)
    other = read(folder, "int8")  # packed anew
    assert {packed_weight(q)[1].format for q in quantised_layers(other).values()} == {Int8()}


def packed_anew(values, **arguments):
    """The tensors of a matrix as bitsandbytes packs it, by what comes behind the name of its layer."""
    codes, state = functional.quantize_4bit(torch.tensor(values), **arguments)
    parts = {f"weight.{name}": value.numpy() for name, value in state.as_dict(packed=True).items()}
    return {"weight": codes.numpy(), **parts}


@pytest.mark.parametrize("block", [32, 128, pytest.param(4096, marks=pytest.mark.slow)])
def test_other_sizes_of_blocks(tmp_path, block):
    rng = np.random.default_rng(0)
    stems = [f"model.layers.{layer}.mlp.down_proj." for layer in (0, 1)]
    values = rng.normal(size=(2, 64, 128)).astype(np.float32)

    def change(tensors):
        kept = {k: v for k, v in tensors.items() if "down_proj" not in k}
        for stem, matrix in zip(stems, values, strict=True):
            parts = packed_anew(matrix, blocksize=block, quant_type="fp4", compress_statistics=True)
            kept |= {stem + name: value for name, value in parts.items()}
        return kept

    folder = folders.rewrite("nf4", tmp_path, change)
    theirs = packed_modules(folders.load(folder))
    ours = model_files.open_files(folder).read([f"{stem}weight" for stem in stems], jnp.float32)
    for name, value in ours.items():
        np.testing.assert_array_equal(value, unpacked(theirs[name]))
    if block > 128:
        with pytest.raises(
            FileError, match=r"0\.mlp\.down_proj.*blocks of 4096.*\(64, 128\).*'float'"
        ):
            read(folder, "stored")
        return
    layer = quantised_layers(read(folder, "stored"))["layers/block/feed_forward/down"]
    assert packed_weight(layer)[1].format == FourBits("fp4", block)


def test_rows_that_blocks_do_not_divide_stay_float():
    folder = folders.folder("narrow")
    assert read(folder, "float")
    with pytest.raises(
        FileError,
        match=r"tensor model\.layers\.0\.\S+: found nf4 in blocks of 64 with double.*rows of 40",
    ):
        read(folder, "stored")


Q = "model.layers.1.self_attn.q_proj"
STATE = f"{Q}.weight.quant_state.bitsandbytes__nf4"


def state(**changes):
    """Changes keys of the JSON of a matrix; ... takes one away."""

    def change(tensors):
        values = json.loads(tensors[STATE].tobytes()) | changes
        kept = {k: v for k, v in values.items() if v is not ...}
        return {**tensors, STATE: np.frombuffer(json.dumps(kept).encode(), np.uint8)}

    return change


def without(*names):
    return lambda tensors: {k: v for k, v in tensors.items() if k not in names}


def put(name, value):
    return lambda tensors: {**tensors, name: value(tensors[name])}


def renamed(name, new):
    return lambda tensors: {new if k == name else k: v for k, v in tensors.items()}


def text(content):
    return put(STATE, lambda _: np.frombuffer(content, np.uint8))


WRONG = {
    "block": (state(blocksize=48), "q_proj.*blocksize: found 48, expected.*32, 64"),
    "other block": (state(blocksize=128), r"absmax: found shape \(64,\), expected 32 values.*size 128"),
    "shape": (state(shape=[64, 63]), r"found shape \(2048, 1\), expected 2,016 values, as .*\[64, 63\]"),
    "one axis": (state(shape=[4096]), r"shape: found \[4096\], expected outputs and inputs"),
    "negative": (state(shape=[-64, -64]), r"shape: found \[-64, -64\]"),
    "type": (state(quant_type="fp4"), "quant_type: found 'fp4', expected 'nf4', as the tensor's name says"),
    "dtype": (state(dtype="int32"), "dtype: found 'int32', expected one of float32"),
    "key": (state(rotation=1), "rotation: found this key"),
    "nested": (state(nested_blocksize=64), "nested_blocksize: found 64, expected 256"),
    "offset": (state(nested_offset=...), "nested_offset: found nothing, expected a finite number"),
    "large": (state(nested_offset=1e300), r"nested_offset: found 1e\+300"),
    "json": (text(b"{quant_type"), "q_proj.*invalid JSON"),
    "object": (text(b"[1]"), r"found \[1\], expected a JSON object"),
    "bytes": (text(b"\xff\xfe"), "not UTF-8"),
    "numbers": (put(STATE, lambda v: v.astype(np.float32)), "found type F32.*JSON in at most"),
    "unknown": (renamed(STATE, f"{Q}.weight.quant_state.bitsandbytes__nf2"), "nf2: found this state"),
    "two": (lambda t: {**t, STATE.replace("nf4", "fp4"): t[STATE]}, "and one for a weight"),
    "no state": (without(STATE), rf"{STATE}: found nothing, expected it, as there is {Q}"),
    "no scales": (without(f"{Q}.weight.absmax"), r"absmax: found nothing"),
    "no map": (without(f"{Q}.weight.quant_map"), r"quant_map: found nothing"),
    "no nested": (without(f"{Q}.weight.nested_absmax"), r"nested_absmax: found nothing"),
    "not double": (without(f"{Q}.weight.nested_absmax", f"{Q}.weight.nested_quant_map"),
                   "nested_blocksize: found this key.*as there is no nested_absmax"),
    "no weight": (without(f"{Q}.weight"), rf"tensor {Q}\.weight: found nothing"),
    "storage": (put(f"{Q}.weight", lambda v: v[:, 0].view(np.int16)), "I16, expected U8.*quant_storage"),
    "short": (put(f"{Q}.weight", lambda v: v[:-1].copy()), r"found shape \(2047, 1\), expected 2,048"),
    "map": (put(f"{Q}.weight.quant_map", lambda v: v[::-1].copy()), "quant_map: found other numbers"),
    "nested map": (put(f"{Q}.weight.nested_quant_map", lambda v: v * np.float32(1.001)), "map: found other"),
    "nan": (put(f"{Q}.weight.nested_absmax", lambda v: v * np.nan), "nested_absmax: found .* not finite"),
    "inf": (put(f"{Q}.weight.nested_absmax", lambda v: v * np.inf), "nested_absmax: found .* not finite"),
    "extra": (lambda t: {**t, f"{Q}.weight.zeros": np.zeros(3, np.float32)}, r"1 extra: .*weight\.zeros"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_named(tmp_path, case):
    change, message = WRONG[case]
    folder = folders.rewrite("nf4", tmp_path, change)
    for base_format in ("float", "stored") if case in ("nan", "inf") else ("stored",):
        with pytest.raises(InputError, match=message) as error:
            read(folder, base_format)
    assert str(folder) in str(error.value)


def both(*changes):
    def change(tensors):
        for one in changes:
            tensors = one(tensors)
        return tensors

    return change


SCB = f"{Q}.SCB"
LARGE = {
    "scales": ("nf4", both(
        put(f"{Q}.weight.nested_absmax", lambda v: v * 0 + 3e38), state(nested_offset=3e38)
    )),
    "rows": ("int8", put(SCB, lambda v: v * 0 + 3e38)),
    "float16": ("nf4", both(*(
        put(f"model.layers.{layer}.self_attn.q_proj.weight.quant_state.bitsandbytes__nf4",
            lambda v: np.frombuffer(v.tobytes().replace(b"float32", b"float16", 1), np.uint8))
        for layer in (0, 1)
    ), state(nested_offset=1e6))),
}  # fmt: skip


@pytest.mark.parametrize("case", LARGE)
def test_finite_parts_whose_values_are_not_are_refused_in_both_forms(tmp_path, case):
    packed, change = LARGE[case]
    folder = folders.rewrite(packed, tmp_path, change)
    for base_format, message in (("float", "too large"), ("stored", "not finite, or too large")):
        with pytest.raises(FileError, match=rf"{Q}\.weight: found values .*{message}"):
            read(folder, base_format)


WRONG_INT8 = {
    "no scales": (without(SCB), "SCB: found nothing, expected it, as there is .*weight_format"),
    "no weight": (without(f"{Q}.weight"), r"q_proj\.weight: found nothing"),
    "neither": (without(SCB, f"{Q}.weight_format"), r"q_proj\.weight: found type I8, expected one of F64"),
    "scales": (put(SCB, lambda v: v[:-1].copy()), r"SCB: found shape \(63,\), expected 64 values"),
    "order": (put(f"{Q}.weight_format", lambda v: np.full_like(v, 2)), "weight_format: found 2, expected 0"),
    "float": (put(f"{Q}.weight", lambda v: v.astype(np.float32)), "found type F32, expected I8"),
    "axis": (put(f"{Q}.weight", lambda v: v.reshape(-1)), r"expected outputs and inputs"),
    "nan": (put(SCB, lambda v: v * np.nan), "SCB: found .* not finite"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_INT8)
def test_what_does_not_fit_llm_int8_is_named(tmp_path, case):
    change, message = WRONG_INT8[case]
    folder = folders.rewrite("int8", tmp_path, change)
    with pytest.raises(FileError, match=message):
        read(folder, "stored")


def test_old_files_of_llm_int8_have_no_mark(tmp_path):
    folder = folders.rewrite("int8", tmp_path, without(f"{Q}.weight_format"))
    assert read(folder, "stored")


def test_a_stack_that_mixes_forms_is_refused(tmp_path):
    def change(tensors):
        kept = {k: v for k, v in tensors.items() if not k.startswith(Q)}
        return {**kept, f"{Q}.weight": np.ones((64, 64), np.float32)}

    folder = folders.rewrite("nf4", tmp_path, change)
    with pytest.raises(
        FileError, match=rf"{Q}.*type F32, expected nf4 in blocks of 64.*q_proj.*'float'"
    ):
        read(folder, "stored")
    assert read(folder, "float") and read(folder, "nf4")
    folder = folders.rewrite("nf4", tmp_path, state(dtype="float16"))
    with pytest.raises(FileError, match="unpacked to float16, expected nf4.*unpacked to float32"):
        read(folder, "stored")
