"""The families of the Llama kind against PyTorch `transformers`: training, decoding with a cache, files."""

from __future__ import annotations

import copy
import dataclasses
import json
import re

import jax
import jax.numpy as jnp
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
from lora_jax.errors import FileError, InputError
from lora_jax.low_rank.layers import adapted_layers
from lora_jax.models import hub, llama_json
from lora_jax.models.llama import Llama
from lora_jax.models.llama_config import LlamaConfig
from lora_jax.models.rotary import Rotary

SIZES = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": POSITIONS,
    "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2,  # the row of a pad token has no gradient
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 50.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "original_max_position_embeddings": 8,
}
TWO = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
SLIDING = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
# Every setting that a family has, in one of its cases.
CASES = {
    "llama": (transformers.LlamaConfig, {}),
    "llama, tied, biases": (
        transformers.LlamaConfig,
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 6},
    ),
    "llama 3.1": (transformers.LlamaConfig, {"rope_parameters": LLAMA3, "num_key_value_heads": 4}),
    "llama, one key": (transformers.LlamaConfig, {"num_key_value_heads": 1, "rms_norm_eps": 0.1}),
    "llama, yarn": (
        transformers.LlamaConfig,
        {"rope_parameters": {**YARN, "beta_fast": 8, "beta_slow": 2, "mscale": 0.7, "mscale_all_dim": 0.5}},
    ),
    "mistral": (transformers.MistralConfig, {"sliding_window": 5}),
    "mistral, all tokens": (transformers.MistralConfig, {"sliding_window": None}),
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen2, windows": (transformers.Qwen2Config, {**SLIDING, "rope_parameters": YARN}),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 8, "tie_word_embeddings": True}),
    "qwen3, windows": (transformers.Qwen3Config, {**SLIDING, "head_dim": 4, "attention_bias": True}),
    "gemma2": (
        transformers.Gemma2Config,
        {"head_dim": 6, "sliding_window": 4, "query_pre_attn_scalar": 10, "attn_logit_softcapping": 2.0,
         "final_logit_softcapping": 3.0},
    ),
    "gemma2, no caps": (
        transformers.Gemma2Config,
        {"head_dim": 4, "attn_logit_softcapping": None, "final_logit_softcapping": None,
         "attention_bias": True},
    ),
    "gemma3": (
        transformers.Gemma3TextConfig,
        {"num_hidden_layers": 7, "head_dim": 6, "sliding_window": 3, "query_pre_attn_scalar": 10,
         "rope_parameters": TWO},
    ),
    "gemma3, caps": (
        transformers.Gemma3TextConfig,
        {"head_dim": 4, "final_logit_softcapping": 2.0, "tie_word_embeddings": False,
         "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    ),
}  # fmt: skip
# Torch name without the layer -> our path; written out again so that it checks the hub's table.
NAMES = {
    "embed_tokens": "embeddings/token/embedding",
    "norm": "norm/scale",
    "lm_head": "lm_head/kernel",
    "input_layernorm": "attention/norm/scale",
    "self_attn.q_proj": "attention/query/kernel",
    "self_attn.k_proj": "attention/key/kernel",
    "self_attn.v_proj": "attention/value/kernel",
    "self_attn.o_proj": "attention/output/kernel",
    "self_attn.q_norm": "attention/query_norm/scale",
    "self_attn.k_norm": "attention/key_norm/scale",
    "post_attention_layernorm": "feed_forward/norm/scale",
    "mlp.gate_proj": "feed_forward/gate/kernel",
    "mlp.up_proj": "feed_forward/up/kernel",
    "mlp.down_proj": "feed_forward/down/kernel",
}
GEMMA_NAMES = NAMES | {
    "post_attention_layernorm": "attention/post_norm/scale",
    "pre_feedforward_layernorm": "feed_forward/norm/scale",
    "post_feedforward_layernorm": "feed_forward/post_norm/scale",
}


def to_ours(named, gemma):
    """Torch tensors in the order of layers, as arrays by our path."""
    groups = {}
    for name, tensor in named:
        *module, leaf = name.removeprefix("model.").split(".")
        inside = module[0] == "layers"
        path = (GEMMA_NAMES if gemma else NAMES)[".".join(module[2:] if inside else module)]
        if leaf == "bias":
            path = path.replace("kernel", "bias")
        value = tensor.detach().numpy()
        value = value.T if path.endswith("kernel") else value
        groups.setdefault(f"layers/block/{path}" if inside else path, []).append(value)
    return {k: np.stack(v) if k.startswith("layers/") else v[0] for k, v in groups.items()}


def torch_model(case, **changes):
    kind, values = CASES[case]
    config = kind(**{**SIZES, **values, **changes}, attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(len(case))
    around = 0.0 if "gemma" in case else 1.0  # the scale of Gemma's norms is 1 + weight
    for name, p in model.named_parameters():
        p.data.normal_(around if "norm" in name else 0.0, 0.3, generator=generator)
    return model


def load(folder, dtype=jnp.float32, **overrides):
    return hub.load_decoder(folder, hub.read_decoder_config(folder, **overrides), dtype)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The models that are asked for: theirs, and the folder they are saved in."""
    made = {}

    def get(case):
        if case not in made:
            folder = tmp_path_factory.mktemp("llama") / re.sub(r"\W+", "_", case)
            model = torch_model(case)
            model.save_pretrained(folder)
            made[case] = model, folder
        return made[case]

    return get


@pytest.mark.parametrize("case", CASES)
def test_logits_and_all_gradients_equal_pytorch(saved, case):
    theirs, folder = saved(case)
    ours, gemma = load(folder), "gemma" in case
    np.testing.assert_equal(parameters(ours), to_ours(theirs.named_parameters(), gemma))
    theirs.zero_grad()
    expected = torch_logits(theirs)
    torch.nn.functional.cross_entropy(expected, torch.tensor(TARGETS)).backward()
    gradients = to_ours(((name, p.grad) for name, p in theirs.named_parameters()), gemma)
    logits, our_gradients = logits_and_gradients(ours)
    reached = difference(logits, expected), deviation(our_gradients, gradients)
    print(f"\ndeviation of {case}: logits {reached[0]:.1e}, gradients {reached[1]:.1e}")
    assert reached[0] < LOGITS_TOLERANCE and reached[1] < GRADIENT_TOLERANCE


@pytest.mark.parametrize(
    "case", ["llama", "mistral", "qwen2, windows", "qwen3", "gemma2", "gemma3"]
)
def test_cached_decoding_equals_full_passes(saved, case):
    """Prompts of different lengths, beams that take each other's pasts, windows that end in the prompt."""
    theirs, folder = saved(case)
    assert decode(load(folder), theirs, (1, 7, 4), 3, 9, 2) < LOGITS_TOLERANCE


def test_more_steps_than_a_chunk_of_the_cache_and_beyond_the_window(saved):
    """18 steps, of which a window of 3 or 5 reaches back over the border of two chunks."""
    for case in ("mistral", "gemma3"):
        theirs, folder = saved(case)
        assert decode(load(folder), theirs, (3, 2), 2, 18, 0) < LOGITS_TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_a_saved_folder_is_that_of_transformers(saved, case, tmp_path):
    theirs, folder = saved(case)
    ours = load(folder)
    hub.save_decoder(tmp_path, ours, pad_token_id=None, bos_token_id=1, eos_token_id=2)
    assert hub.read_decoder_config(tmp_path) == ours.config
    a, b = (load_file(path / "model.safetensors") for path in (folder, tmp_path))
    np.testing.assert_equal(b, a)
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        assert difference(torch_logits(again).numpy(), torch_logits(theirs)) < LOGITS_TOLERANCE


@pytest.mark.slow
def test_layers_that_differ_can_be_cut_and_unrolled(saved):
    """A cut stack knows which of its layers have windows; dropout draws the same numbers."""
    theirs, folder = saved("gemma3")
    key = jax.random.key(5, impl="unsafe_rbg")
    plain, expected = logits_and_gradients(load(folder, attention_dropout=0.2), key)
    for unroll, remat in ((7, "none"), (2, "full"), (1, "dots")):
        model = load(folder, attention_dropout=0.2, unroll=unroll, remat=remat)
        logits, gradients = logits_and_gradients(model, key)
        assert np.abs(logits - plain).max() < 2e-5
        assert deviation(gradients, expected) < GRADIENT_TOLERANCE
    cut = methods.top_layers(3).insert(load(folder), jax.random.key(0))
    assert difference(run(cut), torch_logits(theirs)) < LOGITS_TOLERANCE
    assert decode(cut, theirs, (2, 6), 2, 6, 0) < LOGITS_TOLERANCE


def test_attention_dropout_acts_with_a_key_only(saved):
    _, folder = saved("qwen2")
    still, model = run(load(folder)), load(folder, attention_dropout=0.2)
    np.testing.assert_allclose(run(model), still, atol=1e-5)
    key = jax.random.key(0)
    one, again = run(model, key), run(model, key)
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - still).max() > 1e-2


@pytest.mark.parametrize("case", ["llama", "gemma2"])
def test_bfloat16_is_close(saved, case):
    """About as far from float32 as PyTorch is in bfloat16; logits are float32 whatever the rest is."""
    theirs, folder = saved(case)
    expected = torch_logits(theirs)
    half = torch_logits(copy.deepcopy(theirs).bfloat16()).float()
    model = load(folder, jnp.bfloat16, compute_dtype="bfloat16")
    assert {v.dtype for v in partition.parameters(model).values()} == {jnp.dtype(jnp.bfloat16)}
    logits = run(model)
    assert logits.dtype == jnp.float32
    ours, theirs, exact = np.asarray(logits), half.detach().numpy(), expected.detach().numpy()
    # Of both, single logits are off by up to 0.1 of the largest; the mean says how good they are.
    assert np.square(ours - exact).mean() < 2 * np.square(theirs - exact).mean()


ALL_SEVEN = r".*/attention/(query|key|value|output)|.*/feed_forward/(gate|up|down)"


@pytest.mark.parametrize("case", ["llama, tied, biases", "gemma3"])
def test_lora_on_all_matrices_and_the_table_is_what_it_merges_to(saved, case):
    model = load(saved(case)[1])
    method = lora_jax.lora([ALL_SEVEN, "embeddings/token"], rank=2)
    adapted = method.insert(model, jax.random.key(0))
    assert len(adapted_layers(adapted)) == 8
    linear = lora_jax.lora("all-linear", rank=2)
    assert not linear.summary(linear.insert(model, jax.random.key(0))).skipped  # norms are none
    np.testing.assert_allclose(run(adapted), run(model), atol=1e-6)
    keys = iter(jax.random.split(jax.random.key(1), 99))
    for _, variable in nnx.to_flat_state(nnx.state(adapted, nnx.LoRAParam)):
        variable.set_raw_value(0.3 * jax.random.normal(next(keys), variable.shape))
    merged = lora_jax.merge(adapted)
    moved = run(adapted)
    assert np.abs(moved - run(model)).max() > 0.1
    assert deviation({"": run(merged)}, {"": np.asarray(moved)}) < 2e-5


@pytest.mark.parametrize(
    "name", ["adapter_h", "adapter_l", "prefix_embed", "prefix_layer", "bitfit"]
)
def test_other_methods_start_at_the_base(saved, name):
    _, folder = saved("gemma2, no caps")
    model = load(folder)
    arguments = {"bitfit": (), "prefix_embed": (2,), "prefix_layer": (2,)}.get(name, (3,))
    adapted = getattr(methods, name)(*arguments).insert(load(folder), jax.random.key(0))
    difference = deviation({"": np.asarray(run(adapted))}, {"": np.asarray(run(model))})
    assert difference < (0.02 if "adapter" in name else 1e-6)


@pytest.mark.parametrize("name", llama_json.FAMILIES)
def test_defaults_are_those_of_transformers(saved, name, tmp_path):
    """A config.json that says nothing but sizes is read as transformers reads it."""
    kind = {"gemma3_text": "gemma3"}.get(name, name)
    theirs = CASES[kind][0]
    sizes = {
        k: v
        for k, v in SIZES.items()
        if k not in ("num_key_value_heads", "max_position_embeddings")
    }
    sizes |= {"num_attention_heads": 32, "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name, **sizes}))
    ours, expected = hub.read_decoder_config(tmp_path), theirs(**sizes)
    for key in llama_json.keys(name).ranges:
        value = getattr(ours, key)
        if key in ("num_key_value_heads", "head_dim"):
            value = ours.shared_heads if key == "num_key_value_heads" else ours.head_size
        wanted = getattr(expected, key, ours.hidden_size // 32)
        assert value == wanted, key
    types = getattr(expected, "layer_types", None)
    window = getattr(expected, "sliding_window", None)
    if name in ("llama", "mistral"):
        types = ["sliding_attention" if window else "full_attention"] * 3
    kinds = [ours.kinds[kind] for kind in ours.layer_kinds or (0,) * 3]
    assert [k.window for k in kinds] == [window if "sliding" in t else None for t in types]
    rope = expected.rope_parameters
    bases = {t: rope.get(t, rope)["rope_theta"] for t in set(types)}
    assert [k.rotary for k in kinds] == [Rotary(theta=bases[t]) for t in types]


def rewritten(folder, tmp_path, **changes):
    values = {**json.loads((folder / "config.json").read_text()), **changes}
    kept = {k: v for k, v in values.items() if v is not ...}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    return tmp_path


OLD = {
    "llama 3.1": {"rope_parameters": ..., "rope_theta": 50.0,
                  "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"}},
    "qwen2, windows": {"rope_parameters": ..., "rope_theta": 100.0, "layer_types": ...,
                       "rope_scaling": {"type": "yarn", "factor": 4.0,
                                        "original_max_position_embeddings": 8}},
    "gemma3": {"rope_parameters": ..., "rope_theta": 1000.0, "rope_local_base_freq": 100.0,
               "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "layer_types": ...,
               "sliding_window_pattern": 6, "hidden_act": "gelu_pytorch_tanh"},
    "gemma2": {"layer_types": ..., "hidden_act": "gelu", "rope_parameters": ..., "rope_theta": 10000.0},
}  # fmt: skip


@pytest.mark.parametrize("case", OLD)
def test_files_of_before_transformers_5_say_the_same(saved, case, tmp_path):
    _, folder = saved(case)
    old = rewritten(folder, tmp_path, **OLD[case])
    assert hub.read_decoder_config(old) == hub.read_decoder_config(folder)


@pytest.mark.parametrize(
    "case, changes, message",
    [
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
         r"rope_parameters\.rope_type: found 'dynamic', expected one of default, linear, llama3, yarn"),
        ("llama", {"rope_parameters": {**YARN, "short_factor": [1.0]}}, "short_factor: found a key"),
        ("llama", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
         r"partial_rotary_factor: found 0\.5, expected 1"),
        ("llama", {"partial_rotary_factor": 0.25}, r"partial_rotary_factor 0\.25"),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, r"rope_parameters\.factor: found nothing"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, r"factor must be .* got 0\.5"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling: found another"),
        ("llama", {"rope_parameters": ..., "rope_theta": 0}, "rope_theta: theta must be"),
        ("llama", {"hidden_act": "relu"}, "hidden_act 'relu', expected 'silu'"),
        ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation 'gelu'"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention True"),
        ("gemma3", {"layer_types": ["full_attention"] * 6 + ["other"]}, r"layer_types\[6\]: found 'other'"),
        ("gemma3", {"layer_types": ["full_attention"] * 6}, "layer_types: found 6 layers, expected 7"),
        ("gemma2", {"sliding_window": 0}, "sliding_window: found 0, expected an integer from 1"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config.*Quantised bases"),
        ("llama", {"num_key_value_heads": 3}, "4 is not divisible by num_key_value_heads 3"),
        ("llama", {"num_attention_heads": 3, "head_dim": None}, "divisible by num_attention_heads 3"),
        ("llama", {"head_dim": 5}, "an even head_dim, got 5"),
        ("llama", {"intermediate_size": ...}, "intermediate_size: found nothing"),
        ("llama", {"model_type": "phi3"}, "model_type 'phi3', expected one of gpt2, llama, mistral"),
        ("llama", {"attention_bias": True}, r"missing: layers\.0\.self_attn\.k_proj\.bias"),
        ("llama, tied, biases", {"attention_bias": False}, r"extra: layers\.0\.self_attn\.k_proj\.bias"),
        ("llama, tied, biases", {"tie_word_embeddings": False}, r"1 missing: lm_head\.weight"),
        ("llama", {"tie_word_embeddings": True}, r"lm_head\.weight: found other values, expected those of"),
        ("qwen3", {"model_type": "qwen2"}, r"missing: layers\.0\.self_attn\.k_proj\.bias"),
        ("gemma2, no caps", {"model_type": "gemma3_text"}, r"missing: layers\.0\.self_attn\.k_norm\.weight"),
    ],
)  # fmt: skip
def test_what_is_not_implemented_is_refused_by_name(saved, case, changes, message, tmp_path):
    _, folder = saved(case)
    with pytest.raises(InputError, match=message) as error:
        load(rewritten(folder, tmp_path, **changes))
    assert str(tmp_path) in str(error.value)


def test_heads_of_classifiers_are_named_and_old_buffers_are_not_needed(saved, tmp_path):
    theirs, folder = saved("llama")
    tensors = load_file(folder / "model.safetensors")
    rewritten(folder, tmp_path)
    more = {"score.weight": np.ones((2, 16), np.float32)} | {
        f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)
        for layer in range(3)
    }
    save_file({**tensors, **more}, tmp_path / "model.safetensors")
    assert hub.check(tmp_path, hub.read_decoder_config(tmp_path)) == ("score.weight",)
    assert difference(run(load(tmp_path)), torch_logits(theirs)) < LOGITS_TOLERANCE


@pytest.mark.parametrize(
    "length, factor", [(4096, 8.0), (8192, 32.0)]
)  # as Llama 3.1 and 3.2 have them
def test_frequencies_of_long_models(length, factor):
    """Against transformers, at the sizes of real models."""
    scaling = {
        **LLAMA3,
        "rope_theta": 500_000.0,
        "factor": factor,
        "original_max_position_embeddings": length,
    }
    config = transformers.LlamaConfig(
        head_dim=128, max_position_embeddings=131072, rope_parameters=scaling
    )
    inverse, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config)
    ours = Rotary(
        theta=500_000.0, scaling="llama3", factor=factor, original_length=length, low=1.0, high=4.0
    ).frequencies(128)
    np.testing.assert_allclose(ours, inverse.numpy(), rtol=3e-6)


def test_a_config_is_checked_as_a_whole():
    sizes = {k: SIZES[k] for k in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                                   "num_attention_heads")}  # fmt: skip
    config = LlamaConfig(**sizes)
    with pytest.raises(InputError, match="2 kinds of layers for 3 layers"):
        dataclasses.replace(config, layer_kinds=(0, 0))
    with pytest.raises(InputError, match="high factor 1.0 must be above"):
        Rotary(scaling="llama3", high=1.0)
    abstract = nnx.eval_shape(lambda: Llama(config, nnx.Rngs(0)))
    assert partition.parameters(abstract)["layers/block/attention/key/kernel"].shape == (3, 16, 16)
    assert issubclass(FileError, InputError)
