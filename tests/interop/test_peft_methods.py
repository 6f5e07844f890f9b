"""PEFT's other methods than LoRA, and starts that PEFT takes off the base, both ways against PEFT itself."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import peft
import pytest
import torch
from peft_models import (
    CONFIG,
    ENCODERS,
    WEIGHTS,
    assert_same_tensors,
    logits_of,
    model_of,
    our_logits,
    read_base,
    settings_of,
    trained,
    without_note,
)
from safetensors.numpy import load_file, save_file

import lora_jax
from experiments.convert.peft import as_peft, from_peft, to_peft
from lora_jax import adapters, partition, state

pytestmark = pytest.mark.usefixtures("read_once")
TOLERANCE = 1e-5  # of logits of about 1, two float32 programs that sum in other orders


@dataclasses.dataclass
class Case:
    """A model, whether it has a head, and settings of PEFT."""

    model: str
    with_head: bool
    config: peft.PeftConfig


def case(model, config, with_head=False):
    kind = str(config.peft_type).rpartition(".")[2]
    return pytest.param(Case(model, with_head, config), id=f"{kind} {model} {with_head}")


def moved(name, with_head, config, size=0.2):
    """A model of PEFT whose trained parameters have moved."""
    torch.manual_seed(1)
    model = peft.get_peft_model(model_of(name, with_head), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn_like(parameter))
    return model


HEAD = {"task_type": "SEQ_CLS"}
CASES = [
    case("llama", peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"],
                                 feedforward_modules=["down_proj"])),
    case("bert", peft.IA3Config(target_modules=["key", "layer.0.output.dense"],
                                feedforward_modules=["layer.0.output.dense"], **HEAD), True),
    case("gpt2", peft.IA3Config(target_modules=["c_attn", "mlp.c_proj"],
                                feedforward_modules=["mlp.c_proj"])),
    case("llama", peft.VeraConfig(r=5, target_modules=["q_proj", "v_proj", "down_proj"])),
    case("gpt2", peft.VeraConfig(r=20, target_modules=["c_attn", "mlp.c_proj"], bias="vera_only",
                                 projection_prng_key=7)),
    case("roberta", peft.VeraConfig(r=4, target_modules=["query", "value"], vera_dropout=0.1,
                                    layers_to_transform=[1], **HEAD), True),
    case("llama", peft.LoHaConfig(r=3, alpha=5, target_modules=["q_proj", "down_proj"],
                                  rank_pattern={"down_proj": 2, "layers.1.*q_proj": 1},
                                  alpha_pattern={"layers.0.*q_proj": 7})),
    case("bert", peft.LoHaConfig(r=2, target_modules=["query", "dense"], **HEAD), True),
    case("llama", peft.LoKrConfig(r=2, alpha=5, target_modules=["q_proj", "up_proj"])),
    case("bert", peft.LoKrConfig(r=1, target_modules=["query", "dense"], decompose_both=True,
                                 decompose_factor=3, **HEAD), True),
    case("llama", peft.AdaLoraConfig(init_r=4, target_r=2, total_step=9, tinit=1, tfinal=2, lora_alpha=6,
                                     target_modules=["q_proj", "v_proj"])),
    case("gpt2", peft.AdaLoraConfig(init_r=3, target_r=2, total_step=9, target_modules=["c_attn"],
                                    bias="lora_only", lora_dropout=0.1)),
    case("llama", peft.LNTuningConfig(target_modules=["input_layernorm", "model.norm"])),
    case("bert", peft.LNTuningConfig(target_modules=["LayerNorm"], **HEAD), True),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_both_ways(case, bases, tmp_path):
    """PEFT's logits here, its bytes and settings back, and our logits in PEFT with new settings."""
    theirs, base = moved(case.model, case.with_head, case.config), bases / case.model
    theirs.save_pretrained(tmp_path / "peft")
    there_and_back(theirs, case.model, case.with_head, base, tmp_path)


def there_and_back(theirs, name, with_head, base, tmp_path):
    expected = logits_of(theirs)
    assert np.abs(expected - logits_of(model_of(name, with_head))).max() > 1e-2
    from_peft(str(tmp_path / "peft"), tmp_path / "ours", model=str(base))
    assert np.abs(our_logits(tmp_path / "ours", base, name) - expected).max() < TOLERANCE
    to_peft(tmp_path / "ours", tmp_path / "back")
    assert_same_tensors(tmp_path / "peft", tmp_path / "back")
    assert settings_of(tmp_path / "peft") == settings_of(tmp_path / "back")
    without_note(tmp_path / "ours", tmp_path / "own")
    to_peft(tmp_path / "own", tmp_path / "new", model=str(base))
    again = peft.PeftModel.from_pretrained(model_of(name, with_head), tmp_path / "new")
    assert np.abs(logits_of(again) - expected).max() < TOLERANCE


def test_pruned_ranks_of_adalora(bases, tmp_path):
    """PEFT drops what was pruned, all of a module even; here it stays as zeros, and goes back dropped."""
    config = peft.AdaLoraConfig(
        init_r=3, target_r=2, total_step=9, target_modules=["q_proj", "v_proj"]
    )
    theirs = moved("llama", False, config)
    kept = {
        "0.q": [True, False, True],
        "0.v": [False] * 3,
        "1.q": [True] * 3,
        "1.v": [False, True, False],
    }
    names = {k: f"model.layers.{k[0]}.self_attn.{k[2]}_proj" for k in kept}
    modules = dict(theirs.base_model.model.named_modules())
    with torch.no_grad():
        for key, mask in kept.items():
            modules[names[key]].lora_E["default"][~torch.tensor(mask)] = 0
    patterns = {f"{names[key]}.lora_E.default": mask for key, mask in kept.items()}
    theirs.peft_config["default"].rank_pattern = patterns
    theirs.save_pretrained(tmp_path / "peft")
    assert (
        load_file(tmp_path / "peft" / WEIGHTS)[f"base_model.model.{names['0.v']}.lora_A"].size == 0
    )
    there_and_back(theirs, "llama", False, bases / "llama", tmp_path)


STARTS = [
    ("llama", {"init_lora_weights": "pissa"}, "pissa"),
    ("gpt2", {"init_lora_weights": "pissa", "use_rslora": True, "r": 2}, "pissa"),
    ("llama", {"init_lora_weights": "pissa", "use_dora": True}, "pissa"),
    ("bert", {"init_lora_weights": "olora", "lora_alpha": 5}, "olora"),
    # where singular values 4 and 5 are well apart (0.77), so that 28 rounds converge to 4e-7
    ("llama", {"init_lora_weights": "pissa_niter_28", "r": 4, "target_modules": ["k_proj"]}, "pissa"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings", "init"), STARTS)
def test_starts_that_peft_takes_off_the_base(name, settings, init, bases, tmp_path):
    """They are ours, with PEFT's own factors; PEFT's load of its folder is the reference."""
    trained(name, False, **settings).save_pretrained(tmp_path / "peft")
    theirs = peft.PeftModel.from_pretrained(model_of(name, False), tmp_path / "peft")
    there_and_back(theirs, name, False, bases / name, tmp_path)
    adapter = adapters.load_adapter(tmp_path / "ours")
    ((_, arguments),) = adapter.method.spec
    assert {own["init"] for own in arguments["targets"].values()} == {init}
    assert len(adapter.state) == 2 * sum(path.endswith("/a") for path in adapter.values)
    config = settings_of(tmp_path / "new")
    assert config["r"] == 2 * settings_of(tmp_path / "peft")["r"]


def test_a_start_of_random_numbers(bases, tmp_path):
    """It cannot be computed again where the rounds have not converged; the exact one is there on request."""
    trained("llama", False, init_lora_weights="pissa_niter_2").save_pretrained(tmp_path / "peft")
    with pytest.raises(
        ValueError, match=r"pissa_niter_2'.*random numbers.*path_initial_model.*--ignore"
    ):
        from_peft(str(tmp_path / "peft"), tmp_path / "ours", model=str(bases / "llama"))
    from_peft(
        str(tmp_path / "peft"), tmp_path / "ours", model=str(bases / "llama"),
        ignore=["init_lora_weights"],
    )  # fmt: skip
    trained("llama", False, init_lora_weights="pissa").save_pretrained(tmp_path / "exact")
    values = adapters.load_adapter(tmp_path / "ours").state
    from_peft(str(tmp_path / "exact"), tmp_path / "other", model=str(bases / "llama"))
    other = adapters.load_adapter(tmp_path / "other").state
    assert all(np.array_equal(values[path], other[path]) for path in other)


# --- Adapters that were trained here --------------------------------------------------------------


def trained_here(name, with_head, method, bases, folder):
    """An adapter folder with random leaves, and the logits of its model."""
    base = read_base(bases / name, 6, decoder_head=with_head and name not in ENCODERS)
    model = method.insert(base.model, jax.random.key(0))
    labels = method.labels(model)
    structure, trainable, frozen = partition.split(model, labels)
    rng = np.random.default_rng(0)
    values = {
        path: np.asarray(value) + 0.2 * rng.normal(size=value.shape).astype(np.float32)
        for path, value in trainable.items()
    }
    fresh = state.values(method.insert(base.model, jax.random.key(1)), "fixed")
    fixed = state.fixed(partition.join(structure, values, frozen), fresh)
    notes = {"model": str(bases / name)}
    return adapters.save_adapter(
        folder, values, labels, method, base.fingerprint(), notes, state=fixed
    )


FUSED = {"parts": ("q", "v"), "fused": ("q", "k", "v")}
OURS = [
    ("llama", False, lora_jax.lora("query", rank=2, init="pissa", alpha=3), "LORA"),
    ("gpt2", False, lora_jax.lora("qkv", rank=2, init="olora", scaling="alpha/sqrt(r)", **FUSED), "LORA"),
    ("llama", False, lora_jax.lora("query", rank=2, init="lora_ga"), "LORA"),
    ("llama", False, lora_jax.lora("query", rank=2, gradient="lora_fa", seed=3), "LORA"),
    ("llama", False, lora_jax.lora("query", rank=2, gradient="lora_pro", b_rate=16), "LORA"),
    ("llama", False, lora_jax.vera(["query", "down"], rank=5, seed=3), "VERA"),
    ("gpt2", False, lora_jax.vera("qkv", rank=5, bias="lora_only"), "VERA"),
    ("bert", True, lora_jax.ia3(["key", "value", "feed_forward/down"], feed_forward="feed_forward/down",
                                head="head/.*"), "IA3"),
    ("gpt2", False, lora_jax.ia3("qkv", **FUSED), "IA3"),
    ("llama", False, lora_jax.ia3("last_1/block/attention/query", cut=[1]) + lora_jax.leaves("norm/scale"),
     "IA3"),
    ("llama", False, lora_jax.loha({"query": {"rank": 2}, "up": {"scaling": "alpha/sqrt(r)"}}, rank=3),
     "LOHA"),
    ("llama", False, lora_jax.lokr(["query", "up"], rank=1, decompose_both=True, alpha=3), "LOKR"),
    ("llama", False, lora_jax.adalora(["query", "up"], rank=3, target_rank=2, warm_up=2), "ADALORA"),
    ("llama", False, lora_jax.norms(), "LN_TUNING"),
    ("bert", True, lora_jax.norms(head="head/.*", targets=".*attention/norm"), "LN_TUNING"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "with_head", "method", "kind"),
    [pytest.param(*row, id=f"{row[0]} {row[2].name} {i}") for i, row in enumerate(OURS)],
)
def test_adapters_trained_here(name, with_head, method, kind, bases, tmp_path):
    folder = trained_here(name, with_head, method, bases, tmp_path / "ours")
    expected = our_logits(folder, bases / name, name)
    assert np.abs(expected - logits_of(model_of(name, with_head))).max() > 1e-2
    assert to_peft(folder, tmp_path / "peft")["peft_type"] == kind
    model = peft.PeftModel.from_pretrained(model_of(name, with_head), tmp_path / "peft")
    assert np.abs(logits_of(model) - expected).max() < TOLERANCE
    from_peft(str(tmp_path / "peft"), tmp_path / "again", model=str(bases / name))
    assert np.abs(our_logits(tmp_path / "again", bases / name, name) - expected).max() < TOLERANCE
    to_peft(tmp_path / "again", tmp_path / "back")
    assert_same_tensors(tmp_path / "peft", tmp_path / "back")


def test_a_start_of_a_rank_whose_double_no_matrix_has(bases, tmp_path):
    """Two factors of rank r with a start are a pair of 2 r, or of all that the matrix allows."""
    method = lora_jax.lora(
        ["query", "up"], rank=12, init="pissa", alpha=3
    )  # of 16 x 16 and 16 x 24
    folder = trained_here("llama", False, method, bases, tmp_path / "ours")
    expected = our_logits(folder, bases / "llama", "llama")
    to_peft(folder, tmp_path / "peft")
    tensors = load_file(tmp_path / "peft" / WEIGHTS)
    assert {min(value.shape) for value in tensors.values()} == {16}
    model = peft.PeftModel.from_pretrained(model_of("llama", False), tmp_path / "peft")
    assert np.abs(logits_of(model) - expected).max() < TOLERANCE
    from_peft(str(tmp_path / "peft"), tmp_path / "again", model=str(bases / "llama"))
    assert (
        np.abs(our_logits(tmp_path / "again", bases / "llama", "llama") - expected).max()
        < TOLERANCE
    )


def test_what_came_from_peft_and_changed(bases, tmp_path):
    """VeRA's matrices are PEFT's and no seed of ours gives them: they go with the adapter."""
    config = peft.VeraConfig(r=5, target_modules=["q_proj"])
    moved("llama", False, config).save_pretrained(tmp_path / "peft")
    folder = from_peft(str(tmp_path / "peft"), tmp_path / "ours", model=str(bases / "llama"))
    adapter = adapters.load_adapter(folder)
    values = {path: value * np.float32(1.1) for path, value in adapter.values.items()}
    dataclasses.replace(adapter, values=values).save(tmp_path / "moved")
    to_peft(tmp_path / "moved", tmp_path / "new")
    again = peft.PeftModel.from_pretrained(model_of("llama", False), tmp_path / "new")
    expected = our_logits(tmp_path / "moved", bases / "llama", "llama")
    assert np.abs(logits_of(again) - expected).max() < TOLERANCE
    one, other = (load_file(tmp_path / d / WEIGHTS)["base_model.vera_A"] for d in ("peft", "new"))
    assert one.tobytes() == other.tobytes()


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [
        ("gpt2", lora_jax.vera("qkv", rank=4, **FUSED), r"the parts q, v.*lora_jax.to_lora"),
        ("gpt2", lora_jax.loha("qkv", rank=2), r"c_attn is a Conv1D.*no LOHA.*to_lora"),
        ("llama", lora_jax.lokr("embeddings/token", rank=2), r"a table of embeddings.*to_lora"),
        ("llama", lora_jax.vera({"query": {"rank": 3}, "value": {}}, rank=4), r"differ in rank.*to_lora"),
        ("llama", lora_jax.vera({"query": {"seed": 3}, "value": {}}, rank=4), r"random matrices.*to_lora"),
        ("llama", lora_jax.adalora({"query": {"alpha": 3}, "up": {}}), r"differ in alpha.*to_lora"),
        ("llama", lora_jax.vera("query", rank=4) + lora_jax.ia3("value"), r"of several methods.*to_lora"),
        ("llama", lora_jax.lora("query", rank=4) + lora_jax.ia3("value"), r"of several methods.*to_lora"),
        ("qwen2", lora_jax.ia3("value", bias="all"), r"IA3 trains no biases.*to_lora"),
        ("llama", lora_jax.lokr({"query": {"factor": 2}, "up": {}}, rank=2), r"differ in factor.*to_lora"),
    ],
)  # fmt: skip
def test_adapters_that_peft_has_no_place_for(name, method, message, bases, tmp_path):
    folder = trained_here(name, False, method, bases, tmp_path / "ours")
    with pytest.raises(ValueError, match=message):
        to_peft(folder, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


def test_only_lora_is_for_servers(bases, tmp_path):
    folder = trained_here("llama", False, lora_jax.ia3("key"), bases, tmp_path / "ours")
    with pytest.raises(ValueError, match=r"is IA3 in PEFT, and here only LORA.*to_lora"):
        as_peft(folder, plain=True)


def edited(folder, new, drop=(), **settings):
    """A copy of a folder with other settings, and without some tensors."""
    new.mkdir()
    tensors = {k: v for k, v in load_file(folder / WEIGHTS).items() if not k.endswith(tuple(drop))}
    save_file(tensors, new / WEIGHTS, {"format": "pt"})
    (new / CONFIG).write_text(json.dumps({**settings_of(folder), **settings}))
    return new


REFUSED = [
    (0, (), {"feedforward_modules": []}, r"down_proj: its tensors are .*\(1, 24\).* need .*\(16, 1\)"),
    (0, ("0.self_attn.k_proj.ia3_l",), {}, r"names 1 modules without factors"),
    (0, (), {"feedforward_modules": "("}, r"feedforward_modules rule .* is no regular expression"),
    (0, (), {"feedforward_modules": [1]}, r"feedforward_modules=\[1\]: not a list of names"),
    (0, (), {"new_key": 1}, r"unknown keys new_key"),
    (3, (), {"save_projection": False}, r"save_projection is false.*convert_to_lora"),
    (3, ("vera_A",), {}, r"vera_A is not in the file"),
    (3, ("v_proj.vera_lambda_b",), {}, r"v_proj: its tensors are"),
    (3, (), {"r": 6}, r"lambda_d.*\(5,\).* need .*\(6,\)"),
    (3, (), {"bias": "lora_only"}, r"bias='lora_only'; PEFT's VERA has none, all, vera_only"),
    (6, (), {"r": 4}, r"q_proj: its tensors are"),
    (6, (), {"alpha_pattern": {"q_proj": "8"}}, r"alpha_pattern: q_proj has '8'"),
    (8, ("0.self_attn.q_proj.lokr_w1",), {}, r"give a matrix of None inputs"),
    (8, (), {"decompose_factor": 2}, r"needs|does not fit"),
    (10, (), {"init_r": 5}, r"its tensors are .*\(4, 16\).* need .*\(5, 16\)"),
    (10, (), {"use_dora": True}, r"use_dora=True: PEFT's AdaLoRA has no such thing"),
    (10, (), {"lora_alpha": 0}, r"lora_alpha=0: then PEFT's scale"),
    (12, ("model.norm.ln_tuning_layers.weight",), {}, r"the file lacks model.norm.weight"),
    (12, (), {"target_modules": ["model.norm"]}, r"besides those of target_modules"),
    (12, (), {"target_modules": None}, r"target_modules is not given"),
]  # fmt: skip


@pytest.mark.parametrize(("number", "drop", "settings", "message"), REFUSED)
def test_folders_without_a_counterpart(number, drop, settings, message, bases, tmp_path):
    (found,) = CASES[number].values
    moved(found.model, found.with_head, found.config).save_pretrained(tmp_path / "peft")
    there = edited(tmp_path / "peft", tmp_path / "edited", drop, **settings)
    with pytest.raises(ValueError, match=message):
        from_peft(str(there), tmp_path / "ours", model=str(bases / found.model))
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("init", ["lora_ga", "corda", "loftq"])
def test_starts_that_do_not_follow_from_the_base(init, bases, tmp_path):
    trained("llama", False).save_pretrained(tmp_path / "peft")
    there = edited(tmp_path / "peft", tmp_path / "edited", init_lora_weights=init)
    with pytest.raises(ValueError, match=rf"{init}.*path_initial_model_for_weight_conversion"):
        from_peft(str(there), tmp_path / "ours", model=str(bases / "llama"))


def test_a_base_is_needed_for_the_start(bases, tmp_path):
    trained("llama", False, init_lora_weights="pissa").save_pretrained(tmp_path / "peft")
    with pytest.raises(ValueError, match=r"does not say what its base is: name it, --model=NAME"):
        from_peft(str(tmp_path / "peft"), tmp_path / "ours")
