"""The decoder against PyTorch `transformers` and loralib: training, decoding with a cache, files."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import loralib
import numpy as np
import pytest
import torch
import transformers
from decoder_parity import (
    GRADIENT_TOLERANCE,
    LOGITS_TOLERANCE,
    POSITIONS,
    TARGETS,
    VOCAB,
    decode,
    difference,
    logits_and_gradients,
    parameters,
    run,
    torch_logits,
)
from deviations import deviation
from flax import nnx
from safetensors.numpy import load_file, save_file

import lora_jax
from lora_jax import methods, partition
from lora_jax.models import hub
from lora_jax.models.gpt2 import GPT2, SIZES, GPT2Config

# Torch name without the layer -> our path; written out again so that it checks the hub's table.
NAMES = {
    "wte": "embeddings/token",
    "wpe": "embeddings/position",
    "ln_1": "layers/block/attention/norm",
    "attn.c_attn": "layers/block/attention/qkv",
    "attn.c_proj": "layers/block/attention/output",
    "ln_2": "layers/block/feed_forward/norm",
    "mlp.c_fc": "layers/block/feed_forward/up",
    "mlp.c_proj": "layers/block/feed_forward/down",
    "ln_f": "norm",
}
QV = {".*/attention/qkv": {"parts": ("q", "v"), "fused": ("q", "k", "v")}}


def to_ours(named):
    """Torch tensors in the order of layers, as arrays by our path."""
    groups = {}
    for name, tensor in named:
        *module, leaf = name.removeprefix("transformer.").split(".")
        path = NAMES[".".join(module[2:] if module[0] == "h" else module)]
        if module[-1] == "c_attn":  # q, k, v side by side there, an axis of their own here
            tensor = tensor.unflatten(-1, (3, -1))
        if leaf == "weight":
            leaf = "scale" if tensor.ndim == 1 else "kernel" if module[0] == "h" else "embedding"
        groups.setdefault(f"{path}/{leaf}", []).append(tensor.detach().numpy())
    return {k: np.stack(v) if "/block/" in k else v[0] for k, v in groups.items()}


def randomise(named, seed):
    """Random values, biases and norms too, large enough that attention is not flat."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in named:
        p.data.normal_(float("ln_" in name and "weight" in name), 0.2, generator=generator)


def torch_model(layers=2, heads=2, size=16, inner=None):
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=size, n_layer=layers, n_head=heads, n_inner=inner,
        n_positions=POSITIONS, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    randomise(model.named_parameters(), seed=layers + heads)
    return model


def load(folder, dtype=jnp.float32, **overrides):
    folder = hub.find(str(folder))
    return hub.load_decoder(folder, hub.read_decoder_config(folder, **overrides), dtype)


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    model = torch_model(layers=3, heads=4)
    folder = tmp_path_factory.mktemp("gpt2")
    model.save_pretrained(folder)
    return model, folder


@pytest.mark.parametrize(
    "layers, heads, size, inner", [(1, 1, 8, None), (2, 3, 12, 20), (3, 4, 32, None), (3, 2, 16, 7)]
)
def test_logits_and_all_gradients_equal_pytorch(layers, heads, size, inner, tmp_path):
    theirs = torch_model(layers, heads, size, inner)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    np.testing.assert_equal(parameters(ours), to_ours(theirs.named_parameters()))
    expected = torch_logits(theirs)
    torch.nn.functional.cross_entropy(expected, torch.tensor(TARGETS)).backward()
    gradients = to_ours((name, p.grad) for name, p in theirs.named_parameters())
    logits, our_gradients = logits_and_gradients(ours)
    reached = difference(logits, expected), deviation(our_gradients, gradients)
    print(f"\ndeviation: logits {reached[0]:.1e}, gradients {reached[1]:.1e}")
    assert reached[0] < LOGITS_TOLERANCE and reached[1] < GRADIENT_TOLERANCE


@pytest.mark.parametrize("lengths, beams, steps, padding", [
    ((1, 7, 4), 3, 8, 2), ((5, 16), 1, 8, 0), ((2, 3, 1, 9), 5, 12, 0), ((3,), 10, 1, 5),
])  # fmt: skip
def test_cached_decoding_equals_full_passes(saved, lengths, beams, steps, padding):
    """Prompts of different lengths, beams that take each other's pasts, up to the last position."""
    assert max(lengths) + steps <= POSITIONS
    assert decode(load(saved[1]), saved[0], lengths, beams, steps, padding) < LOGITS_TOLERANCE


DROPOUT = {"embd_pdrop": 0.1, "attn_pdrop": 0.2, "resid_pdrop": 0.1}
KEY = jax.random.key(5, impl="unsafe_rbg")  # compiles faster


@pytest.mark.slow  # the encoder's stack is the same code
def test_unroll_and_remat_change_nothing(saved):
    plain, expected = logits_and_gradients(load(saved[1], **DROPOUT), KEY)
    for unroll, remat in ((1, "dots"), (2, "none"), (3, "full")):
        model = load(saved[1], **DROPOUT, unroll=unroll, remat=remat)
        logits, gradients = logits_and_gradients(model, KEY)
        # The same operations, fused in other ways; a recomputed block draws the same dropout.
        assert np.abs(logits - plain).max() < 2e-5
        assert deviation(gradients, expected) < GRADIENT_TOLERANCE
        assert decode(model, saved[0], (2, 5), 2, 2, 0) < LOGITS_TOLERANCE


@pytest.mark.parametrize("name", DROPOUT)
def test_each_dropout_has_an_effect_and_only_with_a_key(saved, name):
    still, model = run(load(saved[1])), load(saved[1], **{name: 0.2})
    np.testing.assert_array_equal(run(model), still)
    np.testing.assert_array_equal(run(load(saved[1]), KEY), still)
    one, again, other = (run(model, k) for k in (KEY, KEY, jax.random.fold_in(KEY, 1)))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-2 and np.abs(one - still).max() > 1e-2


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_bfloat16_is_close(saved, compute_dtype):
    # 8 bits of mantissa: 1e-2 of the largest logit is reached, with the parameters alone and with all
    # products in bfloat16. Logits come in float32.
    model = load(saved[1], jnp.bfloat16, compute_dtype=compute_dtype)
    expected = torch_logits(saved[0])
    assert {v.dtype for v in partition.parameters(model).values()} == {jnp.dtype(jnp.bfloat16)}
    reached = difference(run(model), expected), decode(model, saved[0], (1, 6), 3, 4, 0)
    print(f"\ndeviation bfloat16 {reached}")
    assert max(reached) < 0.05


def test_counts_of_the_paper():
    for name, base, factors in (
        ("gpt2-medium", 354_823_168, 393_216),
        ("gpt2-large", 774_030_080, 737_280),
        ("gpt3-175b", 174_604_259_328, 18_874_368),
    ):
        method = methods.lora(QV, rank=4, alpha=32)
        model = nnx.eval_shape(
            lambda: method.insert(GPT2(SIZES[name], nnx.Rngs(0)), jax.random.key(0))
        )
        sizes, labels = {"frozen": 0, "lora": 0}, method.labels(model)
        for path, shape in partition.parameters(model).items():
            sizes[labels[path]] += int(shape.size)
        assert sizes == {"frozen": base, "lora": factors}


def test_fused_lora_equals_loralib_and_merges(saved):
    base = load(saved[1])
    adapted = methods.lora(QV, rank=3, alpha=32).insert(base, jax.random.key(0))
    np.testing.assert_array_equal(run(adapted), run(base))  # step 0

    theirs = torch_model(layers=3, heads=4)
    factors = {part: [] for part in ("q", "v")}
    for layer, block in enumerate(theirs.transformer.h):
        merged = loralib.MergedLinear(
            16, 48, r=3, lora_alpha=32, enable_lora=[True, False, True], fan_in_fan_out=True,
            merge_weights=False,
        )  # fmt: skip
        randomise(merged.named_parameters(), seed=layer)
        merged.load_state_dict(block.attn.c_attn.state_dict(), strict=False)
        block.attn.c_attn = merged
        for i, part in enumerate(factors):
            a, b = merged.lora_A[3 * i : 3 * i + 3], merged.lora_B[16 * i : 16 * i + 16]
            factors[part].append((a.detach().numpy().T, b.detach().numpy().T[:, None]))
    for part, pairs in factors.items():
        pair = getattr(adapted.layers.block.attention.qkv.lora, part)
        pair.a[...], pair.b[...] = map(np.stack, zip(*pairs, strict=True))
    expected = torch_logits(theirs)
    assert np.abs(np.asarray(run(base)) - expected.detach().numpy()).max() > 1
    final = lora_jax.merge(adapted)
    assert nnx.graphdef(final) == nnx.graphdef(base)
    for model in (adapted, final):
        assert difference(run(model), expected) < LOGITS_TOLERANCE
        assert decode(model, theirs, (2, 5), 2, 3, 1) < LOGITS_TOLERANCE


def rewrite(saved, folder, change, **config):
    """Writes a folder with changed tensors and config, and returns it."""
    save_file(change(load_file(saved[1] / "model.safetensors")), folder / "model.safetensors")
    values = json.loads((saved[1] / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **config}))
    return folder


WTE, BIAS = "transformer.wte.weight", "transformer.h.1.attn.c_attn.bias"
BUFFERS = ("transformer.h.0.attn.bias", "transformer.h.2.attn.masked_bias")
keep = lambda tensors: tensors  # noqa: E731
bare = lambda t: {k.removeprefix("transformer."): v for k, v in t.items()}  # noqa: E731


def test_files_in_use(saved, tmp_path):
    for change in (
        bare,
        lambda t: {**t, **dict.fromkeys(BUFFERS, np.ones((1, 1, 2, 2)))},  # of old versions
        lambda t: {**t, "lm_head.weight": t[WTE].copy()},
    ):
        folder = rewrite(saved, tmp_path, change)
        np.testing.assert_equal(parameters(load(folder)), parameters(load(saved[1])))


def test_sharded_and_saved_again(saved, tmp_path):
    saved[0].save_pretrained(tmp_path / "shards", max_shard_size="3KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 3
    model, new = load(tmp_path / "shards", unroll=3), tmp_path / "new"
    hub.save_decoder(new, model)
    for decoder in (model, load(new)):
        np.testing.assert_equal(parameters(decoder), parameters(load(saved[1])))
    assert hub.read_decoder_config(new) == hub.read_decoder_config(saved[1])
    again = transformers.GPT2LMHeadModel.from_pretrained(new).eval()
    assert torch.equal(torch_logits(again), torch_logits(saved[0]))


def test_a_saved_file_is_the_published_one_bit_for_bit(saved, tmp_path):
    """c_attn is (d, 3d) there and (d, 3, d) here: q, k, v in this order, each contiguous."""
    model = load(saved[1])
    hub.save_decoder(tmp_path / "new", model)
    theirs, ours = (load_file(f / "model.safetensors") for f in (saved[1], tmp_path / "new"))
    assert ours.keys() == theirs.keys() and len(ours) == 2 + 3 * 12 + 2
    for name, value in theirs.items():
        assert ours[name].shape == value.shape and ours[name].dtype == value.dtype, name
        assert ours[name].tobytes() == value.tobytes(), name
    qkv = model.layers.block.attention.qkv
    assert qkv.kernel.shape == (3, 16, 3, 16) and qkv.bias.shape == (3, 3, 16)
    for leaf, name in ((qkv.kernel, "weight"), (qkv.bias, "bias")):
        key = theirs[f"transformer.h.2.attn.c_attn.{name}"][..., 16:32]
        np.testing.assert_array_equal(leaf[...][2, ..., 1, :], key)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_type_of_computation_is_not_of_the_files(saved, tmp_path, name):
    folder = rewrite(saved, tmp_path, keep, **{name: "bfloat16"})
    assert hub.read_decoder_config(folder).compute_dtype == "float32"
    config = hub.read_decoder_config(folder, compute_dtype="bfloat16")
    hub.save_decoder(tmp_path / "new", hub.load_decoder(folder, config))
    text = (tmp_path / "new" / "config.json").read_text()
    assert not json.loads(text).keys() & {"compute_dtype", "unroll", "remat", "dtype"}
    assert hub.read_decoder_config(tmp_path / "new").compute_dtype == "float32"


@pytest.mark.parametrize("change, config, message", [
    (keep, {"activation_function": "gelu"}, "activation_function 'gelu', expected 'gelu_new'"),
    (keep, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
    (keep, {"scale_attn_weights": False}, "scale_attn_weights False"),
    (keep, {"add_cross_attention": True}, "add_cross_attention True"),
    (keep, {"tie_word_embeddings": False}, "tie_word_embeddings False"),
    (keep, {"model_type": "gptj"}, "model_type 'gptj', expected one of gpt2"),
    (keep, {"n_layer": 2}, r"12 extra: h\.2\."),
    (keep, {"n_layer": 4}, r"12 missing: h\.3\."),
    (keep, {"vocab_size": 38}, r"1 misshapen: wte\.weight is \(37, 16\).*\(38, 16\)"),
    (lambda t: {k: v for k, v in t.items() if k != BIAS}, {}, r"1 missing: h\.1\.attn\.c_attn\.bias"),
    (lambda t: {**t, f"{BIAS}2": t[BIAS]}, {}, r"1 extra: h\.1\.attn\.c_attn\.bias2"),
    (lambda t: {**t, BIAS: t[BIAS][:9].copy()}, {}, r"1 misshapen: h\.1\.attn\.c_attn\.bias is \(9,\)"),
    (lambda t: {**t, "lm_head.weight": t[WTE] + 1}, {}, "lm_head.weight: found other values"),
    (lambda t: {**bare(t), "lm_head.weight": t[WTE] + 1}, {}, "lm_head.weight: found other values"),
])  # fmt: skip
def test_files_that_do_not_fit_are_errors(saved, tmp_path, change, config, message):
    with pytest.raises(ValueError, match=message):
        load(rewrite(saved, tmp_path, change, **config))


@pytest.mark.parametrize("method", [
    methods.lora(QV, rank=2), methods.adapter_l(2), methods.prefix_embed(2), methods.prefix_layer(2),
    methods.top_layers(1),
], ids=lambda method: method.name)  # fmt: skip
def test_saving_a_model_with_something_inserted_is_an_error(method, tmp_path):
    tiny = GPT2Config(16, 2, 2, vocab_size=20, n_positions=8)
    model = nnx.eval_shape(lambda: method.insert(GPT2(tiny, nnx.Rngs(0)), jax.random.key(0)))
    with pytest.raises(
        ValueError, match=r"layers|embeddings/token.* are not part of a published model: merge"
    ):
        hub.save_decoder(tmp_path / "model", model)
    assert not (tmp_path / "model").exists()
