"""Models that are read packed: GGUF's blocks as they are stored, and the named forms."""

from __future__ import annotations

import gguf
import gguf_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from decoder_parity import run
from flax import nnx
from random_models import from_shapes

import lora_jax
from lora_jax.data.batch import Inputs
from lora_jax.errors import FileError, InputError
from lora_jax.gguf.container import Container
from lora_jax.models import hub
from lora_jax.models.encoder import Classifier, EncoderConfig
from lora_jax.models.gpt2 import GPT2, GPT2Config
from lora_jax.quantisation.ggml import Ggml
from lora_jax.quantisation.layers import packed_weight, quantised_layers

NAMES = [
    f"blk.{layer}.{part}.weight"
    for layer in range(3)
    for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
]
TABLE = "token_embd.weight"


def kinds_of(kind, table=None):
    kinds = dict.fromkeys(NAMES, gguf.GGMLQuantizationType[kind])
    return {**kinds, TABLE: gguf.GGMLQuantizationType[table]} if table else kinds


def read(path, base_format, dtype=jnp.float32):
    config = hub.read_decoder_config(path, base_format=base_format)
    hub.check(path, config)
    return hub.load_decoder(path, config, dtype)


@pytest.mark.parametrize(
    ("name", "kind", "table"),
    [("llama", "Q4_1", "Q8_0"), ("qwen2", "Q8_0", "Q5_0"), ("mistral", "Q4_0", None)],
)
def test_what_a_file_packs_stays_packed_and_means_the_same(tmp_path, name, kind, table):
    path = tmp_path / "model.gguf"
    gguf_models.write(path, name, kinds=kinds_of(kind, table))
    packed, plain = read(path, "stored"), read(path, "float")
    layers = quantised_layers(packed)
    assert len(layers) == 7 + bool(table)
    forms = {path: packed_weight(layer)[1].format for path, layer in layers.items()}
    assert forms["layers/block/feed_forward/down"] == Ggml(kind)
    if table:
        assert forms["embeddings/token"] == Ggml(table)
    unpacked = lora_jax.parameters(lora_jax.dequantise(packed))
    for place, value in lora_jax.parameters(plain).items():
        np.testing.assert_array_equal(unpacked[place], value, err_msg=place)
    logits = np.asarray(run(plain))
    np.testing.assert_allclose(run(packed), logits, atol=1e-5 * np.abs(logits).max())
    half = quantised_layers(read(path, "stored", jnp.bfloat16))
    assert {packed_weight(layer)[1].dtype for layer in half.values()} == {"bfloat16"}


def test_a_file_that_mixes_types_in_a_stack_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    mixed = kinds_of("Q4_0") | {NAMES[6]: gguf.GGMLQuantizationType.Q8_0}
    gguf_models.write(path, "llama", kinds=mixed)
    with pytest.raises(FileError, match=r"blk\.1\.ffn_down.*type Q4_0.*Q8_0, as .*--pure"):
        read(path, "stored")
    assert read(path, "q8_0")  # packed anew
    gguf_models.write(path, "llama")
    with pytest.raises(InputError, match="no packed tensor"):
        read(path, "stored")


def test_a_folder_is_packed_when_it_is_read(tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"no packed tensor.*base_format='stored' needs"):
        read(tmp_path, "stored")
    plain = read(tmp_path, "float")
    for form in ("nf4", "int8", "q5_1"):
        packed = read(tmp_path, form)
        assert "lm_head" not in quantised_layers(packed) and len(quantised_layers(packed)) == 7
        other = lora_jax.parameters(lora_jax.quantise(plain, format=form))
        for path, value in lora_jax.parameters(packed).items():
            np.testing.assert_array_equal(value, other[path], err_msg=path)
    with pytest.raises(InputError, match="base_format must be one of float, stored, nf4"):
        read(tmp_path, "int3")
    with pytest.raises(InputError, match=r"bitsandbytes has NF4.*lora_jax\.dequantise"):
        hub.save_decoder(tmp_path / "new", read(tmp_path, "q4_0"))


@pytest.mark.parametrize(
    ("remat", "forms"),
    [
        ("none", ("nf4", "q8_0")),
        pytest.param("none", ("int8", "q4_1"), marks=pytest.mark.slow),
        pytest.param("full", ("nf4", "int8", "q4_1", "q8_0"), marks=pytest.mark.slow),
    ],
)
def test_a_step_keeps_no_unpacked_copy_of_the_base(remat, forms):
    """Temporary memory over a packed base is that over a floating-point one, to half a layer's weights."""
    sizes = GPT2Config(128, 6, 2, vocab_size=64, n_positions=32, remat=remat)
    base = from_shapes(lambda: GPT2(sizes, nnx.Rngs(0)), scale=0.05)
    method = lora_jax.lora(".*/(qkv|output|up|down)", rank=2)
    layer = 12 * 128 * 128 * 4
    used = {}
    for form in ("float", *forms):
        model = base if form == "float" else lora_jax.quantise(base, format=form)
        adapted = method.insert(model, jax.random.key(0))
        structure, trainable, frozen = lora_jax.split(adapted, method.labels(adapted))

        def loss(trainable, frozen, structure=structure):
            tokens = jnp.arange(16)[None]
            inputs = Inputs(tokens, jnp.ones_like(tokens), tokens, jnp.zeros_like(tokens))
            model = lora_jax.join(structure, trainable, frozen)
            return jnp.mean(model(inputs, jnp.zeros(16, int), jnp.arange(16)) ** 2)

        program = jax.jit(jax.grad(loss)).lower(trainable, frozen).compile()
        used[form] = program.memory_analysis().temp_size_in_bytes
    for form, size in used.items():
        assert size < used["float"] + layer, (form, size, used["float"])


def test_encoders_and_gpt2_are_packed_too():
    encoder = EncoderConfig(
        "bert", vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=20, type_vocab_size=2, layer_norm_eps=1e-6,
    )  # fmt: skip
    for make in (
        lambda: Classifier(encoder, 3, nnx.Rngs(0)),
        lambda: GPT2(GPT2Config(64, 2, 4, vocab_size=50), nnx.Rngs(0)),
    ):
        packed = lora_jax.quantise(from_shapes(make))
        assert not any("head" in path or "embed" in path for path in quantised_layers(packed))
        assert len(quantised_layers(packed)) in (4, 7)


def test_a_form_that_does_not_fit_is_refused_with_one_that_does(tmp_path):
    gguf_models.write(tmp_path / "model.gguf", "llama")  # of width 32
    with pytest.raises(
        InputError, match=r"base_format='nf4' does not fit .*rows of 32.*'int8' fits"
    ):
        read(tmp_path / "model.gguf", "nf4")
    assert quantised_layers(read(tmp_path / "model.gguf", "int8"))


def test_scales_of_a_file_that_are_not_finite_are_refused_in_both_forms(tmp_path):
    path = tmp_path / "model.gguf"
    gguf_models.write(path, "llama", kinds=kinds_of("Q8_0"))
    start = Container(path).tensors["blk.1.attn_v.weight"].start
    data = bytearray(path.read_bytes())
    for scale in (b"\x00\x7c", b"\x00\x7e"):  # infinite, NaN
        data[start : start + 2] = scale
        path.write_bytes(data)
        for base_format in ("float", "stored"):
            with pytest.raises(FileError, match=r"blk\.1\.attn_v.*values that are not finite"):
                read(path, base_format)
    data[start : start + 2] = b"\xff\x7b"  # 65504, times integers
    path.write_bytes(data)
    for base_format in ("float", "stored"):
        assert jnp.isfinite(run(read(path, base_format))).all()
        with pytest.raises(FileError, match=r"blk\.1\.attn_v.* too large.*float16"):
            read(path, base_format, jnp.float16)


def test_a_folder_whose_values_a_form_cannot_hold_is_refused(tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = 1e7
    model.save_pretrained(tmp_path)
    with pytest.raises(FileError, match=r"1\.mlp\.up_proj.*too large.*q8_0.*base_format='float'"):
        read(tmp_path, "q8_0")
    assert read(tmp_path, "nf4")
    with pytest.raises(FileError, match=r"1\.mlp\.up_proj.*too large.*float16"):
        read(tmp_path, "nf4", jnp.float16)
