"""Models in GGUF files: the values and tensors of transformers' models come back as they were."""

from __future__ import annotations

import gguf
import gguf_models
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from lora_jax.data.tokenizers import DECODER, load_tokenizer
from lora_jax.errors import FileError, InputError
from lora_jax.models import config_json, gguf_config, hub, model_files
from lora_jax.models.gguf_files import GgufFiles

Q8_0 = gguf.GGMLQuantizationType.Q8_0
TEXT = (
    "The capital of France is Paris, and the capital of Germany is Berlin. Paris lies on the river Seine, "
    "and Berlin lies on the river Spree. Every year millions of people visit the two cities, because they "
    "want to see their museums. In the morning they drink a cup of coffee, and in the evening they go to "
    "the theatre. Once upon a time there was a king who had three daughters, and the youngest was so "
    "beautiful that the sun itself, which had seen so much, wondered whenever it shone in her face."
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The file of every model."""
    folder = tmp_path_factory.mktemp("gguf")
    for name in gguf_models.CONFIGS:
        gguf_models.write(folder / f"{name}.gguf", name)
    return folder


@pytest.fixture
def write(tmp_path):
    """Writes one model with some of its keys changed."""

    def one(name, **changes):
        gguf_models.write(tmp_path / "model.gguf", name, **changes)
        return tmp_path / "model.gguf"

    return one


@pytest.mark.parametrize("name", gguf_models.CONFIGS)
def test_tensors_are_those_of_the_model(files, name):
    state = gguf_models.model(name).state_dict()
    if gguf_models.CONFIGS[name].tie_word_embeddings:
        del state["lm_head.weight"]
    ours = model_files.open_files(files / f"{name}.gguf")
    assert ours.shapes == {key: tuple(value.shape) for key, value in state.items()}
    ours.check_types(ours.shapes)
    for key, value in ours.read(ours.shapes, jnp.float32).items():
        # weight + 1 - 1 in float32 loses what is below 2^-24; all else is copied.
        tolerance = 2**-23 if "norm" in key and name.startswith("gemma") else 0
        np.testing.assert_allclose(value, state[key].numpy(), rtol=0, atol=tolerance, err_msg=key)


@pytest.mark.parametrize("name", gguf_models.CONFIGS)
def test_values_are_those_of_the_config(files, name):
    theirs = gguf_models.CONFIGS[name].to_dict()
    ours = config_json.read(files / f"{name}.gguf").values
    unsaid = {"sliding_window", "use_bidirectional_attention"}
    for key, value in ours.items():
        assert value == theirs[key] or (value == 0 and theirs[key] is None), key
    silent = {
        # About training, programs or heads; or what transformers says twice.
        *config_json.WITHOUT_EFFECT, *config_json.FIXED, "initializer_range", "pretraining_tp",
        "attention_dropout", "max_window_layers", "_sliding_window_pattern", *unsaid,
    }  # fmt: skip
    left = theirs.keys() - ours.keys() - silent
    assert left <= {"layer_types"}, left  # of Qwen: all layers attend to everything
    assert set(theirs.get("layer_types", [])) <= {"full_attention"} or "layer_types" in ours


@pytest.mark.parametrize("name", gguf_models.CONFIGS)
def test_transformers_computes_the_same_with_them(files, name):
    """The values that are left out have no effect: a model of ours alone gives the same logits."""
    path = files / f"{name}.gguf"
    values = gguf_config.read(path).values
    config = transformers.AutoConfig.for_model(**values)
    config._attn_implementation = "eager"
    ours = transformers.AutoModelForCausalLM.from_config(config).eval()
    read = GgufFiles(path)
    tensors = read.read(read.shapes, jnp.float32)
    missing, extra = ours.load_state_dict({k: torch.tensor(v) for k, v in tensors.items()}, False)
    assert not extra and set(missing) <= (
        {"lm_head.weight"} if values["tie_word_embeddings"] else set()
    )
    ours.tie_weights()
    theirs = gguf_models.model(name)
    theirs.set_attn_implementation("eager")
    tokens = torch.randint(3, 300, (2, 40), generator=torch.manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_values_in_another_type_are_rounded_once(files, dtype):
    ours = GgufFiles(files / "gemma2.gguf")
    full, short = ours.read(ours.shapes, jnp.float32), ours.read(ours.shapes, dtype)
    for key, value in short.items():
        assert value.dtype == dtype
        np.testing.assert_array_equal(value, full[key].astype(dtype), err_msg=key)


def test_packed_tensors_have_their_rows_in_order_too(write):
    kinds = {"blk.1.attn_q.weight": Q8_0, "blk.2.attn_k.weight": Q8_0, "blk.0.ffn_up.weight": Q8_0}
    ours, state = GgufFiles(write("llama", kinds=kinds)), gguf_models.model("llama").state_dict()
    for stored in ("1.self_attn.q_proj", "2.self_attn.k_proj", "0.mlp.up_proj"):
        key = f"model.layers.{stored}.weight"
        wanted = state[key].numpy()
        error = np.abs(ours.read([key], jnp.float32)[key] - wanted).max(axis=1)
        # Half a step of the row's only block, and the rounding of its scale to float16.
        assert (error <= np.abs(wanted).max(axis=1) * (0.5 / 127 + 2**-10)).all()


REFUSED = {
    "expert_count": ("llama", {"arch__expert_count": 8}, "expert_count.*found 8.*Mixtures"),
    "scaling": ("qwen2", {"arch__rope__scaling__type": "longrope"}, "scaling.type.*longrope"),
    "unknown": ("qwen3", {"arch__residual_scale": 2.0}, r"qwen3\.residual_scale.*no such key"),
    "window": ("qwen2", {"arch__attention__sliding_window": 9}, r"qwen2\.attention\.sliding_window"),
    "partial": ("llama", {"arch__rope__dimension_count": 4}, "rotated in part"),
    "value": ("gemma2", {"arch__attention__value_length": 8}, "found 8, expected 16"),
    "width": ("qwen2", {"arch__attention__key_length": 10, "arch__attention__value_length": 10,
                        "arch__rope__dimension_count": 10}, "attention.key_length"),
    "cap": ("gemma3", {"arch__attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    "causal": ("llama", {"arch__attention__causal": False}, "attention.causal"),
    "pooling": ("qwen3", {"arch__pooling_type": 3}, "pooling_type"),
    "architecture": ("llama", {"general__architecture": "falcon"}, "falcon.*llama, qwen2"),
    "kind": ("llama", {"general__type": "adapter"}, "general.type.*adapter.*model"),
    "split": ("llama", {"split__count": 3}, "split.count.*llama-gguf-split --merge"),
    "vocabulary": ("llama", {"arch__vocab_size": 299}, "vocab_size.*299.*300"),
    "heads": ("llama", {"arch__attention__head_count": [4, 4, 2]}, "head_count.*integer"),
    "missing": ("llama", {"arch__block_count": None}, "block_count.*found nothing"),
    "depth": ("llama", {"arch__block_count": 2**20}, "block_count.*1048576"),
    "epsilon": ("llama", {"arch__attention__layer_norm_rms_epsilon": float("nan")}, "finite"),
    "base": ("llama", {"arch__rope__freq_base": 0.0}, "freq_base"),
    "both": ("llama3", {"arch__rope__scaling__type": "linear", "arch__rope__scaling__factor": 2.0},
             "rope_freqs"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_implemented_is_refused_by_name(write, case):
    name, changes, message = REFUSED[case]
    if "general__architecture" in changes:
        path = write(name)
        data = path.read_bytes()
        stored = b"\x05\0\0\0\0\0\0\0llama"
        path.write_bytes(data.replace(stored, b"\x06\0\0\0\0\0\0\0falcon", 1))
    else:
        path = write(name, **changes)
    with pytest.raises(FileError, match=message) as caught:
        gguf_config.read(path)
    assert str(path) in str(caught.value)


def test_keys_without_effect_are_taken(write):
    config = gguf_config.read(
        write(
            "llama",
            arch__expert_count=0,
            arch__rope__scaling__type="none",
            arch__attention__causal=True,
        )
    )
    assert config.values == gguf_config.read(write("llama")).values


def test_a_window_for_every_layer_of_a_pattern(write):
    kinds = gguf_config.read(
        write(
            "gemma3",
            arch__attention__sliding_window_pattern=[True, False, True, True, True, False, True],
        )
    ).values["layer_types"]
    assert [kind[0] for kind in kinds] == list("sfsssfs")


@pytest.mark.parametrize("layers, width", [(46, 8), (45, 16)])
def test_gemmas_largest_model_scales_queries_by_its_width(write, layers, width):
    """llama.cpp tells the model with 27 billion parameters by its layers; config.json names the scale."""
    values = gguf_config.read(write("gemma2", arch__block_count=layers)).values
    assert values["query_pre_attn_scalar"] == width


def test_other_factors_of_periods_than_llama_3s_are_refused(write, monkeypatch):
    factors = gguf_models.rope_factors(gguf_models.CONFIGS["llama3"])
    monkeypatch.setattr(gguf_models, "rope_factors", lambda config: factors**2)
    with pytest.raises(FileError, match="rope_freqs.*Other factors"):
        gguf_config.read(write("llama3"))
    monkeypatch.setattr(gguf_models, "rope_factors", lambda config: np.ones_like(factors))
    assert gguf_config.read(write("llama3")).values["rope_parameters"] == {
        "rope_type": "default", "rope_theta": 5e5
    }  # fmt: skip


def _replaced(path, old, new):
    data = path.read_bytes()
    assert data.count(old) == 1 and len(old) == len(new)
    path.write_bytes(data.replace(old, new))
    return path


def test_a_tensor_that_the_architecture_lacks_is_named(write):
    path = _replaced(write("llama"), b"blk.1.ffn_up.weight", b"blk.1.ffn_ux.weight")
    with pytest.raises(FileError, match=r"blk\.1\.ffn_ux\.weight.*llama model"):
        GgufFiles(path)
    with pytest.raises(FileError, match=r"post_attention_norm.*qwen2 model"):
        GgufFiles(_replaced(write("qwen2"), b"blk.2.ffn_norm.weight", b"post_attention_norm.x"))


@pytest.mark.parametrize("kind", ["Q2_K", "IQ4_NL", "MXFP4", "F64"])
def test_other_types_of_values_are_refused_by_name(tmp_path, monkeypatch, kind):
    number = gguf.GGMLQuantizationType[kind]
    values, size = gguf.GGML_QUANT_SIZES[number]
    monkeypatch.setattr(
        gguf.quants, "quantize",
        lambda array, of: np.zeros((array.shape[0], -(-array.shape[1] // values) * size), np.uint8),
    )  # fmt: skip
    monkeypatch.setattr(gguf_models, "model", gguf_models.model.__wrapped__)  # without its memory
    monkeypatch.setitem(
        gguf_models.CONFIGS, "llama",
        transformers.LlamaConfig(**{**gguf_models._SIZES, "hidden_size": 256}),
    )  # fmt: skip
    path = tmp_path / "model.gguf"
    gguf_models.write(path, "llama", kinds={"blk.0.ffn_up.weight": number})
    files = GgufFiles(path)
    names = ["model.layers.0.mlp.up_proj.weight"]
    for read in (files.check_types, lambda x: files.read(x, jnp.float32)):
        with pytest.raises(FileError, match=rf"blk\.0\.ffn_up.*type {kind}.*Q4_K.*llama-quantize"):
            read(names)


def test_values_that_are_not_finite_are_refused(write):
    path = write("llama", kinds={"blk.1.ffn_up.weight": Q8_0})
    files = GgufFiles(path)
    key = "model.layers.1.mlp.up_proj.weight"
    start = files.container.tensors["blk.1.ffn_up.weight"].start
    data = bytearray(path.read_bytes())
    data[start + 34 : start + 36] = b"\x00\x7e"  # the scale of the second block: NaN
    path.write_bytes(data)
    with pytest.raises(FileError, match=r"blk\.1\.ffn_up.*not finite"):
        files.read([key], jnp.float32)
    data[start + 34 : start + 36] = b"\xff\x7b"  # 65504, times an integer
    path.write_bytes(data)
    assert np.isfinite(files.read([key], jnp.float32)[key]).all()
    with pytest.raises(FileError, match=r"blk\.1\.ffn_up.*too large.*float16"):
        files.read([key], jnp.float16)


def test_a_model_is_found_by_its_file_its_folder_or_its_package(write, tmp_path, monkeypatch):
    path = write("llama")
    assert hub.find(str(path)) == hub.find(str(tmp_path)) == path
    assert hub.digest(path) == hub.digest(path) != hub.digest(write("llama", general__name="other"))
    package = tmp_path / "some_model"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FileNotFoundError, match="no model with safetensors and no GGUF"):
        hub.find("package:some_model")
    path.rename(package / "weights" / "model.gguf")
    assert hub.find("package:some_model") == package / "weights" / "model.gguf"
    (package / "weights" / "more.gguf").touch()
    for name in ("package:some_model", str(package / "weights")):
        with pytest.raises(InputError, match=r"several GGUF files.*model\.gguf.*more\.gguf"):
            hub.find(name)
    (package / "weights" / "model.safetensors").touch()
    assert hub.find(str(package / "weights")) == package / "weights"


def test_smollm2_has_the_values_of_gguf():
    """Every tensor; queries and keys in the order that transformers gives them."""
    path = gguf_models.smollm2()
    ours = GgufFiles(path)
    processor = LlamaTensorProcessor({"num_attention_heads": 9, "num_key_value_heads": 3})
    reader = gguf.GGUFReader(path)
    assert len(reader.tensors) == len(ours.shapes) == 272
    by_stored = {stored: name for name, stored in ours._stored.items()}
    count = 0
    for tensor in reader.tensors:
        name = by_stored[tensor.name]
        wanted = tensor.data
        if (
            tensor.tensor_type != gguf.GGMLQuantizationType.F32
        ):  # all rows at once: a tenth of the time
            wanted = gguf.quants._type_traits[tensor.tensor_type].dequantize_rows(tensor.data)
        wanted = processor.process(wanted, tensor.name).weights
        np.testing.assert_array_equal(ours.read([name], jnp.float32)[name], wanted, err_msg=name)
        count += wanted.size
    assert count == 134_515_008


@pytest.mark.slow
def test_smollm2_speaks_english():
    """The whole way: transformers' model of our values finds an English text likely."""
    path = gguf_models.smollm2()
    config = transformers.AutoConfig.for_model(**gguf_config.read(path).values)
    files = GgufFiles(path)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    tensors = files.read(files.shapes, jnp.float32)
    values = {name: torch.from_numpy(value) for name, value in tensors.items()}
    values["lm_head.weight"] = values["model.embed_tokens.weight"]
    model.load_state_dict(values, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    tokenizer = load_tokenizer(path, DECODER, config.vocab_size)
    tokens = torch.tensor([tokenizer(TEXT)["input_ids"]])
    with torch.no_grad():
        loss = float(model.eval()(tokens, labels=tokens).loss)
    # Measured: 2.47, and 4.27 with the rows of queries and keys left in llama.cpp's order.
    assert loss < 3
